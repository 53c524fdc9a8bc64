//! What the inspector asks of whoever runs it, and what it tells.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use filter_common::{Reason, RuleWord};

use crate::rules::Rules;

/// Number of a sandbox's attachment, never used again.
pub type Tenant = u32;

/// What a punted packet was carried by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A punted connection or exchange, as the sandbox sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// TCP or UDP.
    pub transport: Transport,
    /// The sandbox's end.
    pub source: SocketAddr,
    /// Where the sandbox wanted to go.
    pub destination: SocketAddr,
}

/// What became of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Happening {
    /// It was allowed, and its other end is reached.
    Open,
    /// It ended.
    Close,
    /// It, or a request on it, or a query, was refused.
    Deny,
}

/// Something to be told of a punted connection.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub happening: Happening,
    /// Why: an allowing reason for [`Happening::Open`] and [`Happening::Close`], a denying one else.
    pub reason: Reason,
    /// The entry of the policy that decided; [`RuleWord::UNMATCHED`] where none did.
    pub rule: RuleWord,
    /// The policy generation that decided.
    pub generation: u32,
    /// Which connection.
    pub flow: Flow,
    /// The name that it asked for, if it is one.
    pub server_name: Option<String>,
    /// The address that the filter dialled for the name.
    pub resolved: Option<IpAddr>,
    /// Bytes from the sandbox so far; of the request or hello, for a denial.
    pub bytes_out: u64,
    /// Bytes to the sandbox so far.
    pub bytes_in: u64,
    /// How long it was open; zero for a denial before that.
    pub duration: Duration,
}

/// A part of serving a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// From its beginning to the verdict.
    Verdict,
    /// From the verdict to its other end.
    Dial,
}

/// Whoever runs the inspector.
pub trait Host: Send + Sync + 'static {
    /// Whose connection it is, as the kernel noted when it punted it; `None` if it did not.
    fn tenant(&self, flow: &Flow) -> Option<Tenant>;

    /// What is in force for the sandbox at this moment; `None` once it is detached.
    fn rules(&self, tenant: Tenant) -> Option<Arc<Rules>>;

    /// Notes with the kernel that the connection was allowed, by which rule.
    fn allowed(&self, flow: &Flow, tenant: Tenant, rule: RuleWord);

    /// Hears how long a stage of a connection took.
    fn took(&self, stage: Stage, time: Duration) {
        let _ = (stage, time);
    }

    /// Has something counted and told.
    fn tell(&self, tenant: Tenant, event: Event);
}
