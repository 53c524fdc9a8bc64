//! The names that sandboxes ask for, and where they lead.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

/// Names of a policy, other than when policies are replaced.
pub const USUAL: usize = 1_000;
/// Names that a load really asks for: their addresses are known after a moment, as a sandbox's are.
pub const ASKED: usize = 16;
/// Servers, each with an address.
pub const SERVERS: usize = 8;

/// More connections than any row has, so that the limit is kept but never reached.
const CONNECTIONS: u32 = 30_000;

/// Names that a policy allows. Those of another edition are others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Book(Vec<String>);

impl Book {
    /// So many names.
    pub fn new(count: usize, edition: u8) -> Self {
        Self(
            (0..count)
                .map(|number| format!("host-{number}.service-{}.edition-{edition}.test", number % 97))
                .collect(),
        )
    }

    /// A book with the first name alone.
    pub fn first(&self) -> Self {
        Self(self.0.iter().take(1).cloned().collect())
    }

    /// A name, the same for numbers that differ by as many as there are.
    pub fn name(&self, number: usize) -> &str {
        self.0.get(number % self.0.len().max(1)).map_or("", String::as_str)
    }

    /// All of them, each with its server.
    pub fn entries(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().enumerate().map(|(number, name)| (name.as_str(), number % SERVERS))
    }

    /// The product's policy.
    pub fn policy(&self) -> Value {
        json!({
            "allowOut": self.0,
            "denyOut": ["0.0.0.0/0"],
            "limits": { "egressConnections": CONNECTIONS },
        })
    }
}

/// A server's address.
pub fn server(number: usize) -> Ipv4Addr {
    let last = u8::try_from(number % SERVERS).unwrap_or_default();
    Ipv4Addr::new(203, 0, 113, 10 + last)
}

/// Its IPv6 address, as text.
pub fn server_v6(number: usize) -> String {
    format!("2001:db8:113::{}", 10 + number % SERVERS)
}

/// Where number `number` of a book is reached.
pub fn at(number: usize, port: u16) -> SocketAddr {
    SocketAddr::from((server(number), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editions_share_no_name() {
        let (one, other) = (Book::new(100, 0), Book::new(100, 1));
        assert!(one.entries().all(|(name, _)| other.entries().all(|(theirs, _)| name != theirs)));
    }

    #[test]
    fn a_name_leads_to_the_server_of_its_number() {
        let book = Book::new(20, 0);
        let (name, server) = book.entries().nth(13).unwrap_or_default();
        assert_eq!((name, self::server(server)), (book.name(13), self::server(13)));
    }
}
