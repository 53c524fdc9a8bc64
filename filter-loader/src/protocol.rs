//! What clients and daemon tell each other: the documents of the control API that are the project's own.
//!
//! [`crate::api`] has the routes that carry them, [`crate::client`] is the one client that the project has
//! itself. Clients written for E2B never see these.

mod change;
pub mod event;
pub mod explain;
pub(crate) mod report;
mod values;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

pub use self::{
    change::{Change, Changed, Condition, etag},
    report::{
        Connections, Counter, Counters, Identity, SandboxStats, Show, Stats, Summary, Tokens,
        TotalConnections, Totals, counters,
    },
    values::{Addrs, Mac, SandboxId},
};

/// The longest document, in bytes: a policy with a million prefixes fits.
pub const MAX_DOCUMENT: usize = 128 << 20;

/// Asks for an interface to be filtered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The name it shall have.
    #[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$")]
    pub id: SandboxId,
    /// The interface on the host.
    pub iface: String,
    /// The addresses it may use.
    #[serde(default)]
    pub addrs: Addrs,
    /// The MAC it may use, where it is known.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub mac: Option<Mac>,
    /// Its policy; the configured default where there is none.
    #[serde(default)]
    #[schema(value_type = Option<crate::api::schema::PolicyDocument>)]
    pub policy: Option<Value>,
}

/// Asks for another policy.
#[derive(Clone, PartialEq, Debug)]
pub struct UpdateRequest {
    /// Of which sandbox.
    pub id: SandboxId,
    /// What shall become of its policy.
    pub change: Change,
    /// When; always where there is none.
    pub condition: Option<Condition>,
}

/// Who passes for the hosts that headers are set for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Authority {
    /// Its certificate, which sandboxes must trust, as PEM.
    pub certificate: String,
}

#[cfg(test)]
pub(crate) mod tests;
