//! At a start: what was asked for is written down, what is enforced is in the kernel. This takes over what
//! matches, repairs what differs, and removes what has no owner.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use filter_common::frame;
use filter_common::layout::PolicyWord;
use filter_policy::Policy;

use super::core::Core;
use super::registry::{InForce, JudgedBy, Public, Sandbox};
use super::state::Record;
use crate::error::{ControlError, ErrorCode};
use crate::netlink::Link;

impl Core {
    /// Brings kernel and records together.
    ///
    /// # Errors
    /// If that cannot be done; enforcement is then what it was.
    pub fn reconcile(&self) -> Result<(), ControlError> {
        let links = self.block_on(self.netlink.links()).map_err(|error| {
            ControlError::failed(format!("the host does not say what its interfaces are: {error}"))
        })?;
        let present: HashMap<u32, Link> = links.into_iter().map(|link| (link.index, link)).collect();
        let mut kept = HashSet::new();
        let mut adopted = Vec::new();
        self.state.take_proposals(|record| {
            let there = self.kernel.sandboxes.on_interface(record.ifindex)?;
            let is_ours =
                there.is_some_and(|there| there.tenant == record.tenant && there.slot == record.slot);
            Ok(is_ours && self.kernel.words.load(record.slot).generation() == record.generation)
        })?;
        for mut record in self.state.load()? {
            let known = self.kernel.sandboxes.on_interface(record.ifindex)?;
            let is_ours = known.is_some_and(|there| there.tenant == record.tenant);
            let iface_mac = match present.get(&record.ifindex) {
                // The same name on another index is another interface, and not ours to filter unasked; the
                // same index under another name is ours if the kernel says so.
                Some(link) if link.name == record.iface || is_ours => {
                    record.iface.clone_from(&link.name);
                    link.mac
                }
                Some(_) | None => {
                    tracing::info!(sandbox = %record.id, iface = record.iface, "the interface is gone");
                    self.state.remove(&record.id)?;
                    continue;
                }
            };
            let (id, tenant) = (record.id.clone(), record.tenant);
            match self.adopt(record, iface_mac) {
                Ok(sandbox) => {
                    kept.insert(tenant);
                    adopted.push(sandbox);
                }
                Err(error) if error.code == ErrorCode::Conflict => {
                    tracing::error!(sandbox = %id, %error, "left out");
                }
                Err(error) => return Err(error),
            }
        }
        // What a sandbox is judged by at the moment stays until its replacement is in force.
        let live: HashSet<u32> =
            adopted.iter().map(|sandbox| self.kernel.words.load(sandbox.slot).slot()).collect();
        self.kernel.policies.adopted(&live)?;
        self.remove_unowned(&kept)?;
        for sandbox in adopted {
            self.repair(&sandbox)?;
        }
        self.kernel.policies.retire_unused(&live);
        Ok(())
    }

    fn adopt(&self, record: Record, iface_mac: frame::Mac) -> Result<Arc<Sandbox>, ControlError> {
        let policy = Policy::from_value(record.policy, &self.config.defaults.fields).map_err(|invalid| {
            ControlError::failed(format!(
                "the policy of sandbox {} is not valid in this version: {invalid}. Detach it with the version that \
                 attached it",
                record.id
            ))
        })?;
        let public = Public::of(&policy);
        let template = self.templates.of(&Arc::new(policy), &self.guard());
        if template.compiled.inspect
            && let Err(error) = self.open_way_to_inspector()
        {
            // Nothing is open because of it, and everything else is to go on.
            tracing::error!(sandbox = %record.id, %error, "its connections by name fail");
        }
        let word = self.kernel.words.load(record.slot);
        let in_kernel = self.kernel.sandboxes.on_interface(record.ifindex)?;
        let same = in_kernel.is_some_and(|there| there.tenant == record.tenant && there.slot == record.slot);
        let lease = if same && word.generation() == record.generation {
            self.kernel.policies.adopt(template.hash, word.slot())?
        } else {
            None
        };
        // Whatever the kernel has goes on counting from there.
        let generation = if same { word.generation().max(record.generation) } else { record.generation };
        let judged_by = JudgedBy::default();
        judged_by.prepare(template.rules(generation));
        judged_by.commit();
        let sandbox = Arc::new(Sandbox {
            id: record.id,
            iface: record.iface,
            ifindex: record.ifindex,
            addrs: record.addrs,
            mac: record.mac,
            iface_mac,
            slot: record.slot,
            tenant: record.tenant,
            created_at: record.created_at,
            in_force: Mutex::new(InForce { template, previous: None, generation, lease }),
            judged_by,
            public,
        });
        self.registry.adopt(sandbox.clone())?;
        Ok(sandbox)
    }

    /// Makes the kernel's half of an adopted sandbox what it should be.
    fn repair(&self, sandbox: &Arc<Sandbox>) -> Result<(), ControlError> {
        let there = self.kernel.sandboxes.on_interface(sandbox.ifindex)?;
        if there.is_none_or(|there| there.tenant != sandbox.tenant || there.slot != sandbox.slot) {
            // The kernel knows nothing of it: attach it as if for the first time.
            let generation = sandbox.in_force().generation.wrapping_add(1).max(1);
            tracing::warn!(sandbox = %sandbox.id, "was not enforced; attaching it anew");
            self.put_in_force(sandbox, generation)?;
        } else {
            self.kernel.sandboxes.readdress(sandbox.ifindex, sandbox.iface_mac)?;
            // This daemon's programs take the place of the last one's.
            self.kernel.links.attach(sandbox.id.as_str(), &sandbox.iface)?;
            let mut in_force = sandbox.in_force();
            if in_force.lease.is_none() {
                tracing::info!(sandbox = %sandbox.id, "the policy in force is not the one asked for; replacing it");
                let lease = self.lease(&in_force.template)?;
                in_force.generation = in_force.generation.wrapping_add(1).max(1);
                sandbox.judged_by.prepare(in_force.template.rules(in_force.generation));
                self.kernel.words.store(sandbox.slot, PolicyWord::new(lease.slot(), in_force.generation));
                sandbox.judged_by.commit();
                in_force.lease = Some(lease);
                drop(in_force);
                self.kernel.policies.wait_grace_period()?;
            }
        }
        {
            let in_force = sandbox.in_force();
            self.state.save(&Record::of(sandbox, in_force.generation, in_force.template.canonical.text()))?;
        }
        // The last daemon may have been stopped between flip and cut.
        self.cut_revoked(sandbox)
    }

    fn remove_unowned(&self, kept: &HashSet<u32>) -> Result<(), ControlError> {
        let ours: HashSet<String> =
            self.registry.all().iter().map(|sandbox| sandbox.id.as_str().to_owned()).collect();
        for key in self.kernel.links.pinned()? {
            if !ours.contains(&key) {
                tracing::info!(sandbox = key, "removing programs that no sandbox has");
                self.kernel.links.detach(&key, "")?;
            }
        }
        for there in self.kernel.sandboxes.all()? {
            if !kept.contains(&there.tenant) {
                self.kernel.policies.wait_grace_period()?;
                self.kernel.runner.forget(there.tenant, there.slot)?;
                self.kernel.words.store(there.slot, PolicyWord::default());
                self.kernel.sandboxes.clear(there.slot)?;
                self.kernel.sandboxes.disown(there.ifindex)?;
            }
        }
        Ok(())
    }
}
