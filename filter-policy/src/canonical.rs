//! The one form that a policy is echoed in and hashed by.
//!
//! camelCase, every field in a fixed order (only an absent `maskRequestHost` is left out), host bits
//! masked, single addresses bare, names and header names in lower case. Two documents that mean the
//! same have the same canonical form.

use std::{fmt, net::IpAddr};

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};
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

/// The canonical form as text: JSON without space.
#[derive(Clone)]
pub struct Canonical {
    text: Box<RawValue>,
    hash: PolicyHash,
}

impl Canonical {
    /// The text, to be written into another document. Header values are in it in clear: it is for storing.
    pub fn text(&self) -> &RawValue {
        &self.text
    }

    /// What tells the policy from every policy that means something else.
    pub const fn hash(&self) -> PolicyHash {
        self.hash
    }
}

impl fmt::Debug for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.hash, f)
    }
}

impl Policy {
    /// The canonical form as a value, header values in clear.
    pub fn canonical(&self) -> Value {
        value(&self.document(HeaderValue::as_str))
    }

    /// The canonical form for people's eyes and logs, header values masked.
    pub fn redacted(&self) -> Value {
        value(&self.document(|_| REDACTED))
    }

    /// The canonical form as text, with its hash.
    pub fn canonical_text(&self) -> Canonical {
        // Everything in it has a form in JSON.
        let text = to_raw_value(&self.document(HeaderValue::as_str)).unwrap_or_default();
        let hash = PolicyHash(Sha256::digest(text.get()).into());
        Canonical { text, hash }
    }

    /// What tells this policy from every policy that means something else.
    pub fn hash(&self) -> PolicyHash {
        self.canonical_text().hash
    }

    fn document(&self, header_value: fn(&HeaderValue) -> &str) -> Document<'_> {
        Document { policy: self, header_value }
    }
}

fn value(document: &Document<'_>) -> Value {
    // Everything in it has a form in JSON.
    serde_json::to_value(document).unwrap_or_default()
}

/// A policy as its canonical form is written.
struct Document<'a> {
    policy: &'a Policy,
    header_value: fn(&HeaderValue) -> &str,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Policy {
            allow_internet_access,
            allow_out,
            deny_out,
            rules,
            allow_public_traffic,
            mask_request_host,
            limits,
            dns,
            precedence,
            quic,
        } = self.policy;
        let rules: Map<String, Value> = rules
            .iter()
            .map(|(host, transform)| {
                let headers: Map<String, Value> = transform
                    .headers
                    .iter()
                    .map(|(name, value)| (name.clone(), (self.header_value)(value).into()))
                    .collect();
                let mut rule = json!({ "transform": { "headers": headers } });
                if transform.scheme == Scheme::Http {
                    rule["scheme"] = transform.scheme.name().into();
                }
                (host.to_string(), json!([rule]))
            })
            .collect();
        let servers: Vec<String> = dns.servers.iter().map(IpAddr::to_string).collect();

        let mut document = serializer.serialize_map(None)?;
        document.serialize_entry("allowInternetAccess", allow_internet_access)?;
        document.serialize_entry("allowOut", &Each(|| allow_out.iter().map(AllowEntry::text)))?;
        document.serialize_entry("denyOut", &Each(|| deny_out.iter().map(net::canonical)))?;
        document.serialize_entry("rules", &rules)?;
        document.serialize_entry("allowPublicTraffic", allow_public_traffic)?;
        if let Some(mask) = mask_request_host {
            document.serialize_entry("maskRequestHost", mask)?;
        }
        document.serialize_entry("limits", &json!({ "egressConnections": limits.egress_connections }))?;
        document.serialize_entry("dns", &json!({ "mode": dns.mode.name(), "servers": servers }))?;
        document.serialize_entry("precedence", precedence.name())?;
        document.serialize_entry("quic", quic.name())?;
        document.end()
    }
}

/// A list that is written while it is made.
struct Each<F>(F);

impl<F, I> Serialize for Each<F>
where
    F: Fn() -> I,
    I: Iterator<Item: Serialize>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}
