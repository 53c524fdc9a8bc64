//! What makes sandboxes: a network namespace ([`netns`]), or the operator's own program ([`exec`]).
//!
//! A provider makes the thing and its interface, and takes both away again. It knows no policy: the keeper
//! attaches the filter in between, before the interface goes up.

pub mod exec;
pub mod netns;

use std::{collections::BTreeMap, sync::Arc};

use self::{exec::Exec, netns::Netns};
use super::record::Port;
use crate::{
    config::{Config, sections::ProviderKind},
    control::Answer,
    error::ControlError,
    netlink::Netlink,
    protocol::SandboxId,
    trust::Trust,
};

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its name.
    pub id: SandboxId,
    /// What it is made from.
    pub template_id: String,
    /// What its owner says about it.
    pub metadata: BTreeMap<String, String>,
    /// What its processes shall find in their environment.
    pub env_vars: BTreeMap<String, String>,
}

/// Makes sandboxes.
pub trait Provider: Send + Sync + 'static {
    /// What is known of a sandbox before it is made, and is its own from here on.
    ///
    /// # Errors
    /// If there is room for no more.
    fn reserve(&self, id: &SandboxId) -> Result<Option<Port>, ControlError>;

    /// Takes over what a sandbox of an earlier run has.
    fn adopt(&self, port: &Port);

    /// Gives back what was reserved, once nothing of the sandbox is left.
    fn release(&self, port: &Port);

    /// Makes a sandbox whose interface is there and says nothing yet.
    fn create(&self, order: Order, reserved: Option<Port>) -> Answer<'_, Port>;

    /// Lets a sandbox speak, now that it is filtered.
    fn start(&self, port: Port) -> Answer<'_, ()>;

    /// Takes everything away, whatever there is of it: a sandbox that was made in part, or in full, or whose
    /// interface has gone by itself.
    fn destroy(&self, id: SandboxId, port: Option<Port>) -> Answer<'_, ()>;
}

/// The provider that the operator wants.
///
/// # Errors
/// `usage` if the configuration names no program for `exec`.
pub fn configured(config: &Config, netlink: &Netlink) -> Result<Arc<dyn Provider>, ControlError> {
    let (netlink, trust) = (netlink.clone(), Trust::of(config));
    let resolvers = &config.defaults.fields.dns.servers;
    match (config.provider.kind, &config.provider.command) {
        (ProviderKind::Exec, Some(command)) => Ok(Arc::new(Exec::new(command.clone(), Some(netlink), trust))),
        (ProviderKind::Exec, None) => Err(ControlError::usage("[provider] kind \"exec\" needs a command")),
        (ProviderKind::Netns, _) => {
            Ok(Arc::new(Netns::new(netlink, config.provider.subnet, resolvers, trust)))
        }
    }
}
