//! What daemon and client say to each other over the control socket.
//!
//! One JSON document a line, each with `"version"`. A client sends a [`Request`] and reads one
//! response: a [`Reply`] or a [`ControlError`]. A connection may carry any number of such pairs.

mod report;
mod values;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use self::{
    report::{
        Connections, Counter, Counters, Identity, SandboxStats, Show, Stats, Summary, TotalConnections,
        Totals, counters,
    },
    values::{Addrs, Mac, SandboxId},
};
use crate::error::ControlError;

/// The version that this side speaks.
pub const VERSION: u32 = 1;
/// The longest line, without its end: a policy with a million prefixes fits.
pub const MAX_LINE: usize = 128 << 20;

/// What a client asks for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Filter an interface from now on; answered with [`Reply::Sandbox`] once it is enforced.
    Attach(AttachRequest),
    /// Replace a policy; answered with [`Reply::Sandbox`] once it is enforced.
    Update(UpdateRequest),
    /// Take the programs off; answered with [`Reply::Done`].
    Detach {
        /// Of which sandbox.
        id: SandboxId,
    },
    /// All sandboxes; answered with [`Reply::Sandboxes`].
    List,
    /// One sandbox; answered with [`Reply::Sandbox`].
    Show {
        /// Which one.
        id: SandboxId,
    },
    /// Numbers; answered with [`Reply::Stats`].
    Stats {
        /// Of this sandbox alone.
        id: Option<SandboxId>,
    },
    /// What only the daemon knows of its own health; answered with [`Reply::Doctor`].
    Doctor,
    /// Whether somebody is there; answered with [`Reply::Pong`].
    Ping,
}

/// [`Request::Attach`]
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The name it shall have.
    pub id: SandboxId,
    /// The interface on the host.
    pub iface: String,
    /// The addresses it may use.
    #[serde(default)]
    pub addrs: Addrs,
    /// The MAC it may use, where it is known.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Its policy; the configured default where there is none.
    #[serde(default)]
    pub policy: Option<Value>,
}

/// [`Request::Update`]
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// Of which sandbox.
    pub id: SandboxId,
    /// The whole new policy.
    pub policy: Value,
}

/// What the daemon answers when it did what was asked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// There is nothing to say.
    Done,
    /// One sandbox.
    Sandbox(Box<Show>),
    /// All of them.
    Sandboxes(Vec<Summary>),
    /// Numbers.
    Stats(Stats),
    /// The daemon's part of `doctor`.
    Doctor(Value),
    /// The release of the daemon.
    Pong {
        /// As `sandbox-filter --version` says it.
        release: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct RequestLine<T> {
    version: u32,
    request: T,
}

#[derive(Serialize, Deserialize)]
struct ResponseLine<T> {
    version: u32,
    result: T,
}

/// The line that carries a request, with its end.
///
/// # Errors
/// When the request is too long for a line.
pub fn encode_request(request: &Request) -> Result<Vec<u8>, ControlError> {
    let line = encode(&RequestLine { version: VERSION, request })?;
    if line.len() > MAX_LINE {
        let message = format!("the request is longer than {} MiB; split the policy", MAX_LINE >> 20);
        return Err(ControlError::usage(message));
    }
    Ok(line)
}

/// Reads the line of a client.
///
/// # Errors
/// When it is no request, or one of another version.
pub fn decode_request(line: &[u8]) -> Result<Request, ControlError> {
    decode::<RequestLine<Request>>(line, "request").map(|line| line.request)
}

/// The line that carries a response, with its end.
///
/// # Errors
/// When the response cannot be written as JSON.
pub fn encode_response(result: &Result<Reply, ControlError>) -> Result<Vec<u8>, ControlError> {
    encode(&ResponseLine { version: VERSION, result })
}

/// Reads the line of the daemon: what it replies, or the error that it answers with.
///
/// # Errors
/// What the daemon refuses; and when the line is no response, or one of another version.
pub fn decode_response(line: &[u8]) -> Result<Reply, ControlError> {
    decode::<ResponseLine<Result<Reply, ControlError>>>(line, "response")?.result
}

fn encode(line: &impl Serialize) -> Result<Vec<u8>, ControlError> {
    // JSON escapes line ends inside strings, so that this one is the only one.
    let mut text = serde_json::to_vec(line)
        .map_err(|error| ControlError::failed(format!("cannot be written as JSON: {error}")))?;
    text.push(b'\n');
    Ok(text)
}

/// The version is looked at before anything else, since another one may have other fields.
fn decode<T: DeserializeOwned>(line: &[u8], what: &str) -> Result<T, ControlError> {
    let not_one = |error: serde_json::Error| ControlError::usage(format!("the line is no {what}: {error}"));
    let Version { version } = serde_json::from_slice(line).map_err(not_one)?;
    if version != VERSION {
        return Err(ControlError::usage(format!(
            "the {what} has version {version}, and this side speaks version {VERSION}; \
             use a client and a daemon of the same release"
        )));
    }
    serde_json::from_slice(line).map_err(not_one)
}

#[cfg(test)]
pub(crate) mod tests;
