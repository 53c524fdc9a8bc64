//! What the daemon says of sandboxes: the documents behind `show`, `list` and `stats`.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::SystemTime};

use filter_common::Reason;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Mac, SandboxId};

/// One sandbox in full.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Show {
    /// Its name.
    #[schema(value_type = String)]
    pub id: SandboxId,
    /// Its interface on the host.
    pub iface: String,
    /// The interface's number.
    pub ifindex: u32,
    /// The addresses that it may use; empty where any will do.
    #[schema(value_type = Vec<String>)]
    pub addrs: Vec<IpAddr>,
    /// The MAC that it may use, where one is required.
    #[schema(value_type = Option<String>)]
    pub mac: Option<Mac>,
    /// Whether its addresses are checked.
    pub identity: Identity,
    /// The policy in force, in canonical form.
    #[schema(value_type = crate::api::schema::PolicyDocument)]
    pub policy: Value,
    /// The number of the policy in force.
    pub generation: u64,
    /// The hash of the policy in force.
    pub policy_hash: String,
    /// Whether the kernel judges every packet by it.
    pub enforced: bool,
    /// Its egress connections.
    pub connections: Connections,
    /// Packets by reason.
    pub counters: Counters,
    /// When it was attached.
    #[serde(with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: SystemTime,
    /// Its secrets, where they were asked for.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
}

/// What opens a sandbox's public side. Derived, never stored; the same for as long as the sandbox is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tokens {
    /// Of its public URLs, where the policy says that they need one.
    pub traffic_access_token: String,
    /// Of the controller inside.
    pub envd_access_token: String,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Whether a sandbox must prove who it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// Packets from other addresses are dropped.
    Checked,
    /// Packets from any address are judged.
    Any,
}

/// The egress connections of a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Connections {
    /// Open now.
    pub active: u32,
    /// How many it may have.
    pub limit: u32,
    /// The most it had at once.
    pub peak: u32,
    /// How many it was refused over the limit.
    pub refused: u64,
}

/// Packets and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Counter {
    /// How many.
    pub packets: u64,
    /// How long together.
    pub bytes: u64,
}

/// A counter for each reason, by the reason's name.
pub type Counters = BTreeMap<String, Counter>;

/// Counters for every reason there is.
pub fn counters(mut count: impl FnMut(Reason) -> Counter) -> Counters {
    Reason::ALL.iter().map(|reason| (reason.name().to_owned(), count(*reason))).collect()
}

/// One sandbox in a list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Its name.
    #[schema(value_type = String)]
    pub id: SandboxId,
    /// Its interface on the host.
    pub iface: String,
    /// The interface's number.
    pub ifindex: u32,
    /// The addresses that it may use; empty where any will do.
    #[schema(value_type = Vec<String>)]
    pub addrs: Vec<IpAddr>,
    /// Whether its addresses are checked.
    pub identity: Identity,
    /// The number of the policy in force.
    pub generation: u64,
    /// The hash of the policy in force.
    pub policy_hash: String,
    /// Whether the kernel judges every packet by it.
    pub enforced: bool,
    /// Its egress connections.
    pub connections: Connections,
    /// When it was attached.
    #[serde(with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: SystemTime,
}

impl From<Show> for Summary {
    fn from(show: Show) -> Self {
        let Show { id, iface, ifindex, addrs, identity, generation, policy_hash, enforced, .. } = show;
        let Show { connections, created_at, .. } = show;
        Self {
            id,
            iface,
            ifindex,
            addrs,
            identity,
            generation,
            policy_hash,
            enforced,
            connections,
            created_at,
        }
    }
}

/// The numbers of one sandbox.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SandboxStats {
    /// Its name.
    #[schema(value_type = String)]
    pub id: SandboxId,
    /// Its egress connections.
    pub connections: Connections,
    /// Packets by reason.
    pub counters: Counters,
}

/// The numbers of some sandboxes and their sum.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Each by itself.
    pub sandboxes: Vec<SandboxStats>,
    /// All of these together.
    pub totals: Totals,
    /// Events that the daemon was too slow for, since it started.
    pub events_lost: u64,
}

impl Stats {
    /// Adds up the numbers of these sandboxes.
    pub fn new(sandboxes: Vec<SandboxStats>, events_lost: u64) -> Self {
        let mut totals =
            Totals { connections: TotalConnections::default(), counters: counters(|_| Counter::default()) };
        for sandbox in &sandboxes {
            totals.add(sandbox);
        }
        Self { sandboxes, totals, events_lost }
    }
}

/// The numbers of several sandboxes together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// Their egress connections.
    pub connections: TotalConnections,
    /// Packets by reason.
    pub counters: Counters,
}

impl Totals {
    fn add(&mut self, sandbox: &SandboxStats) {
        self.connections.active += u64::from(sandbox.connections.active);
        self.connections.refused = self.connections.refused.saturating_add(sandbox.connections.refused);
        for (reason, counter) in &sandbox.counters {
            let total = self.counters.entry(reason.clone()).or_default();
            total.packets = total.packets.saturating_add(counter.packets);
            total.bytes = total.bytes.saturating_add(counter.bytes);
        }
    }
}

/// The egress connections of several sandboxes together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TotalConnections {
    /// Open now.
    pub active: u64,
    /// How many were refused over a limit.
    pub refused: u64,
}

/// Times as RFC 3339 has them, in UTC to the millisecond.
pub(crate) mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
