//! Keeps the host's own addresses out of every sandbox's reach, also when they change.

use std::sync::{Arc, PoisonError};

use filter_policy::Guard;

use super::core::Core;
use super::registry::Sandbox;
use super::templates::content_hash;
use crate::config::Config;
use crate::error::ControlError;
use crate::kernel::Lease;
use crate::netlink::Netlink;

/// The guard as configuration and host have it now.
///
/// # Errors
/// If the host does not say what its addresses are.
pub async fn present(config: &Config, netlink: &Netlink) -> std::io::Result<Guard> {
    let host: Vec<_> = netlink.host_addresses().await?.into_iter().collect();
    let mut deny = config.guard.deny.clone();
    deny.extend(netlink.host_ranges().await?);
    Ok(Guard::new(&config.guard.open, &deny, &host))
}

impl Core {
    /// Follows a change of the interfaces' hardware addresses, which the kernel addresses packets for the
    /// inspector to.
    ///
    /// # Errors
    /// If the host does not say what they are, or the kernel refuses to note it.
    pub fn follow_interfaces(&self, indices: impl IntoIterator<Item = u32>) -> Result<(), ControlError> {
        for index in indices {
            if self.registry.on_interface(index).is_none() {
                continue;
            }
            let link = self.block_on(self.netlink.link_at(index)).map_err(|error| {
                ControlError::failed(format!("the host does not say what its interfaces are: {error}"))
            })?;
            if let Some(link) = link {
                self.kernel.sandboxes.readdress(link.index, link.mac)?;
            }
        }
        Ok(())
    }

    /// Follows a change of the host's addresses: every sandbox's policy is compiled anew and swapped.
    ///
    /// # Errors
    /// If a sandbox's policy could not be replaced; the others have been.
    pub fn follow_host(&self) -> Result<(), ControlError> {
        let _one_at_a_time = self.guard_change.lock().unwrap_or_else(PoisonError::into_inner);
        let present = self.block_on(present(&self.config, &self.netlink)).map_err(|error| {
            ControlError::failed(format!("the host does not say what its addresses are: {error}"))
        })?;
        if present == *self.guard() {
            return Ok(());
        }
        self.set_guard(present);
        let mut first_error = Ok(());
        let mut note = |sandbox: &Sandbox, error: ControlError| {
            tracing::error!(sandbox = %sandbox.id, %error, "cannot follow the host's addresses");
            if first_error.is_ok() {
                first_error = Err(error);
            }
        };
        let mut flipped = Vec::new();
        for sandbox in self.registry.all() {
            match self.flip_if_guard_changed(&sandbox) {
                Ok(Some(old_lease)) => flipped.push((sandbox, old_lease)),
                Ok(None) => {}
                Err(error) => note(&sandbox, error),
            }
        }
        if flipped.is_empty() {
            return first_error;
        }
        // One for all of them.
        self.kernel.policies.wait_grace_period()?;
        for (sandbox, old_lease) in flipped {
            if let Err(error) = self.settle(&sandbox, Some(old_lease)).and(self.confirm(&sandbox)) {
                note(&sandbox, error);
            }
        }
        first_error
    }

    /// Replaces a sandbox's policy by itself, if what it was compiled with is not the present guard.
    pub(super) fn refresh_if_guard_changed(&self, sandbox: &Sandbox) -> Result<(), ControlError> {
        let Some(old_lease) = self.flip_if_guard_changed(sandbox)? else { return Ok(()) };
        self.kernel.policies.wait_grace_period()?;
        self.settle(sandbox, Some(old_lease)).and(self.confirm(sandbox))
    }

    /// The first half of that. Not under one lock with the second: an update between the two is complete by
    /// itself.
    fn flip_if_guard_changed(&self, sandbox: &Sandbox) -> Result<Option<Lease>, ControlError> {
        let mut in_force = sandbox.in_force();
        let wanted = content_hash(&in_force.template.canonical, &self.guard());
        match &in_force.lease {
            Some(lease) if lease.hash() != wanted => {
                let template = self.template(Arc::clone(&in_force.template.policy))?;
                self.flip(sandbox, &mut in_force, template)
            }
            Some(_) | None => Ok(None),
        }
    }
}
