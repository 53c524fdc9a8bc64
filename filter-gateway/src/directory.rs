//! Which sandboxes there are, as the daemon tells it.

use std::{fmt, net::IpAddr, sync::Arc};

use subtle::ConstantTimeEq;

/// Who knows the sandboxes.
pub trait Directory: Send + Sync + 'static {
    /// The sandbox of this id, as it is now. Asked for every request; must not block.
    fn sandbox(&self, id: &str) -> Option<Arc<Sandbox>>;
}

/// What the gateway knows of a sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its name.
    pub id: String,
    /// A number that no other sandbox has while this one's connections last.
    pub tenant: u32,
    /// Its own addresses; nothing else is ever dialled.
    pub addrs: Vec<IpAddr>,
    /// What a client must know; `None` is open to everybody.
    pub traffic_token: Option<Secret>,
    /// What a client of its controller must know; `None` is open to everybody.
    pub controller_token: Option<Secret>,
    /// What it sees as `Host`, `${PORT}` standing for the port. Validated by whoever made the sandbox.
    pub mask: Option<String>,
}

/// A token. It is compared in constant time and never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A token of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether this is it. How long the answer takes depends on the length alone.
    pub fn is(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }

    /// For what is derived from it or handed to whoever has shown it already.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_itself_alone_and_shows_nothing() {
        let secret = Secret::new("abc");
        assert!(secret.is(b"abc"));
        for other in ["", "ab", "abcd", "Abc", "abc ", "abd"] {
            assert!(!secret.is(other.as_bytes()), "{other}");
        }
        assert_eq!(format!("{secret:?}"), "***");
    }
}
