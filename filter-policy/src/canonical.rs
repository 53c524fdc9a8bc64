//! The one form that a policy is echoed in and hashed by.
//!
//! camelCase, every field in a fixed order (only an absent `maskRequestHost` is left out), host bits
//! masked, single addresses bare, names and header names in lower case. Two documents that mean the
//! same have the same canonical form.

use std::fmt;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    net,
    policy::{AllowEntry, Policy},
    transform::{HeaderValue, Scheme},
};

/// What stands for a header's value where people look.
const REDACTED: &str = "***";

/// SHA-256 of the canonical JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyHash([u8; 32]);

impl PolicyHash {
    /// The bytes of the digest.
    pub const fn as_bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PolicyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Policy {
    /// The canonical form. Header values are in it in clear: it is for storing and hashing.
    pub fn canonical(&self) -> Value {
        self.document(HeaderValue::as_str)
    }

    /// The canonical form for people's eyes and logs, header values masked.
    pub fn redacted(&self) -> Value {
        self.document(|_| REDACTED)
    }

    /// What tells this policy from every policy that means something else.
    pub fn hash(&self) -> PolicyHash {
        PolicyHash(Sha256::digest(self.canonical().to_string()).into())
    }

    fn document(&self, header_value: fn(&HeaderValue) -> &str) -> Value {
        let rules: Map<String, Value> = self
            .rules
            .iter()
            .map(|(host, transform)| {
                let headers: Map<String, Value> = transform
                    .headers
                    .iter()
                    .map(|(name, value)| (name.clone(), header_value(value).into()))
                    .collect();
                let mut rule = json!({ "transform": { "headers": headers } });
                if transform.scheme == Scheme::Http {
                    rule["scheme"] = transform.scheme.name().into();
                }
                (host.to_string(), json!([rule]))
            })
            .collect();
        let allow_out: Vec<Value> =
            self.allow_out.iter().map(AllowEntry::to_string).map(Value::String).collect();
        let deny_out: Vec<Value> = self.deny_out.iter().map(net::canonical).map(Value::String).collect();
        let servers: Vec<Value> = self.dns.servers.iter().map(|addr| addr.to_string().into()).collect();

        let mut document = Map::new();
        let mut put = |name: &str, value: Value| document.insert(name.to_owned(), value);
        put("allowInternetAccess", self.allow_internet_access.into());
        put("allowOut", allow_out.into());
        put("denyOut", deny_out.into());
        put("rules", rules.into());
        put("allowPublicTraffic", self.allow_public_traffic.into());
        if let Some(mask) = &self.mask_request_host {
            put("maskRequestHost", mask.as_str().into());
        }
        put("limits", json!({ "egressConnections": self.limits.egress_connections }));
        put("dns", json!({ "mode": self.dns.mode.name(), "servers": servers }));
        put("precedence", self.precedence.name().into());
        put("quic", self.quic.name().into());
        document.into()
    }
}
