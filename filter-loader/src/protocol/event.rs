//! What `observe` shows and the file of events holds, one document a line.

use std::{borrow::Cow, net::IpAddr, time::SystemTime};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::SandboxId;

/// Number of the form of the documents.
pub const SCHEMA: u32 = 1;

/// A word out of a fixed list: the daemon has it as it is, whoever reads a document owns it.
type Word = Cow<'static, str>;

/// What is told: that something happened, or that some of it is missing.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "nearly all are events")]
pub enum Told {
    /// A flow began, ended or was refused.
    Event(Event),
    /// Some are missing.
    Dropped(Dropped),
}

/// Something that happened to a flow.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When; of several that were folded, the last one's time.
    #[serde(with = "humantime_serde")]
    #[schema(value_type = String, format = DateTime)]
    pub ts: SystemTime,
    /// [`SCHEMA`]
    pub schema: u32,
    /// `open`, `close` or `deny`.
    #[schema(value_type = String)]
    pub event: Word,
    /// Whose it is.
    #[schema(value_type = String)]
    pub sandbox: SandboxId,
    /// The generation of the policy that decided.
    pub generation: u32,
    /// `allow` or `deny`.
    #[schema(value_type = String)]
    pub decision: Word,
    /// Why.
    #[schema(value_type = String)]
    pub reason: Word,
    /// The entry of the policy that decided, as a JSON pointer; none where no entry did.
    pub rule: Option<String>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, the number of another protocol, or `unknown`.
    #[schema(value_type = String)]
    pub proto: Word,
    /// Who began it.
    #[schema(value_type = Option<String>)]
    pub src: Option<IpAddr>,
    /// From which port.
    pub sport: Option<u16>,
    /// Whom it was for.
    #[schema(value_type = Option<String>)]
    pub dst: Option<IpAddr>,
    /// Which port there.
    pub dport: Option<u16>,
    /// The name that it asked for, where it was judged by name.
    pub server_name: Option<String>,
    /// The address that the filter dialled for the name.
    #[schema(value_type = Option<String>)]
    pub resolved_ip: Option<IpAddr>,
    /// Bytes that the sandbox sent.
    pub bytes_out: u64,
    /// Bytes that were sent to it.
    pub bytes_in: u64,
    /// How long it was open, for `close`.
    pub duration_ms: Option<u64>,
    /// How many denials this is, for `deny`: those of the same flow are told once a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// That some are missing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dropped {
    /// When that was noticed.
    #[serde(with = "humantime_serde")]
    #[schema(value_type = String, format = DateTime)]
    pub ts: SystemTime,
    /// [`SCHEMA`]
    pub schema: u32,
    /// `dropped`
    #[schema(value_type = String)]
    pub event: Word,
    /// Whose they were; none where that is not known.
    #[schema(value_type = Option<String>)]
    pub sandbox: Option<SandboxId>,
    /// How many.
    pub dropped: u64,
}

impl Dropped {
    /// So many of a sandbox, or of nobody knows whom, as of now.
    pub fn now(sandbox: Option<SandboxId>, dropped: u64) -> Self {
        Self { ts: SystemTime::now(), schema: SCHEMA, event: Cow::Borrowed("dropped"), sandbox, dropped }
    }
}

impl Told {
    /// When it happened.
    pub fn ts(&self) -> SystemTime {
        match self {
            Self::Event(event) => event.ts,
            Self::Dropped(dropped) => dropped.ts,
        }
    }
}
