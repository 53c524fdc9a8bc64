//! What is wrong with a document, entry by entry.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

/// The codes of [`Problem::code`]. Clients rely on them: a code never changes its meaning.
pub mod code {
    /// The text is not JSON, TOML or YAML, or names a member twice.
    pub const MALFORMED_DOCUMENT: &str = "malformed_document";
    /// A value of another JSON type than the field has.
    pub const WRONG_TYPE: &str = "wrong_type";
    /// A member that the policy does not have.
    pub const UNKNOWN_FIELD: &str = "unknown_field";
    /// The same field, host or header twice, in different spellings.
    pub const DUPLICATE_FIELD: &str = "duplicate_field";
    /// An entry of `allowOut` that is no address, CIDR or host pattern.
    pub const INVALID_ALLOWED_ADDRESS: &str = "invalid_allowed_address";
    /// An entry of `denyOut` that is no address or CIDR.
    pub const INVALID_DENIED_CIDR: &str = "invalid_denied_cidr";
    /// A domain in `allowOut` while `denyOut` does not deny everything else.
    pub const DOMAIN_WITHOUT_DENY_ALL: &str = "domain_without_deny_all";
    /// A number or a length outside its limits.
    pub const OUT_OF_RANGE: &str = "out_of_range";
    /// A word that is none of the choices.
    pub const INVALID_CHOICE: &str = "invalid_choice";
    /// Something that a later version may support.
    pub const NOT_SUPPORTED: &str = "not_supported";
    /// A resolver that is no plain unicast address.
    pub const INVALID_DNS_SERVER: &str = "invalid_dns_server";
    /// A host of `rules` that is no host pattern.
    pub const INVALID_RULE_HOST: &str = "invalid_rule_host";
    /// A header that must not be set or cannot be sent.
    pub const INVALID_HEADER: &str = "invalid_header";
    /// A `maskRequestHost` that is no host with an optional port.
    pub const INVALID_MASK: &str = "invalid_mask_request_host";
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// One of [`code`].
    pub code: &'static str,
    /// A sentence for people; some clients also rely on E2B's wording.
    pub message: String,
    /// Where, as a JSON pointer (RFC 6901) with the canonical field names.
    pub pointer: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pointer.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.pointer, self.message)
        }
    }
}

/// A document that is refused as a whole, with everything that is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Error)]
#[error("{}", .errors.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
pub struct Invalid {
    /// At least one, in the order of the fields.
    pub errors: Vec<Problem>,
}
