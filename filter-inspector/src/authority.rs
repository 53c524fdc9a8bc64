//! The name in an authority: what stands in a `Host` header or an absolute URI.

use filter_policy::{BadName, Name};

/// The name in `authority`, on a connection to `port`.
///
/// Only the connection's own port is stripped, written as a client would write it. Anything else that may
/// stand beside a name (another port, user information, brackets, space) is left in place, where it makes
/// the whole no name.
pub fn parse(authority: &[u8], port: u16) -> Result<Name, BadName> {
    let port = format!(":{port}");
    Name::parse(authority.strip_suffix(port.as_bytes()).unwrap_or(authority))
}
