//! What a sandbox may reach: from the document that people write to the table that the kernel asks.
//!
//! A text ([`Format`]: JSON, TOML, YAML) becomes a JSON value, [`Policy::from_value`] validates it in
//! full and either names every bad entry ([`Invalid`]) or gives a typed [`Policy`]. The policy prints
//! its canonical form, hashes it, and answers which entry a [`Name`] matches. [`compile()`] flattens
//! the address rules of a policy and the platform's [`Guard`] into prefixes of which the longest match
//! alone decides, whatever the precedence; [`evaluate`] asks that table as the kernel would.
//!
//! Everything here is pure: no sockets, no files, no clock, no kernel. What a verdict does to a
//! packet, and how the table gets into a map, is the business of others.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test panics to fail"))]

mod canonical;
mod compile;
mod format;
mod guard;
mod host;
mod mask;
mod matcher;
mod name;
mod net;
mod policy;
mod prefix;
mod problem;
mod read;
mod secret;
mod transform;
mod validate;

pub use canonical::{Canonical, PolicyHash};
pub use compile::{Compiled, compile, evaluate};
pub use format::Format;
pub use guard::Guard;
pub use host::HostPattern;
pub use matcher::Matcher;
pub use name::{BadName, Name};
pub use net::ALL_TRAFFIC;
pub use policy::{AllowEntry, Defaults, Dns, DnsMode, Limits, Policy, Precedence, Quic};
pub use prefix::Prefix;
pub use problem::{Invalid, Problem, code};
pub use secret::{Part, SecretName};
pub use transform::{HeaderValue, Scheme, Transform};
