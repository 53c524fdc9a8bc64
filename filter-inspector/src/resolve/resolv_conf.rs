//! The servers that the host itself asks.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use thiserror::Error;

const PATH: &str = "/etc/resolv.conf";
/// RFC 1035 section 4.2: the port of DNS servers.
const PORT: u16 = 53;

/// There is nobody to ask.
#[derive(Debug, Error)]
pub enum NoServers {
    /// The file could not be read.
    #[error("cannot read {PATH}: {0}; set `upstream` in the [dns] section of the configuration")]
    Unreadable(#[source] io::Error),
    /// The file names no server.
    #[error("{PATH} names no server; set `upstream` in the [dns] section of the configuration")]
    Empty,
}

/// Those of `/etc/resolv.conf`.
pub(super) fn servers() -> Result<Vec<SocketAddr>, NoServers> {
    let text = fs::read_to_string(PATH).map_err(NoServers::Unreadable)?;
    match parse(&text) {
        servers if servers.is_empty() => Err(NoServers::Empty),
        servers => Ok(servers),
    }
}

/// Search lists and options are not for a resolver that only knows full names, resolv.conf(5).
fn parse(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    addresses.filter_map(server).collect()
}

fn server(text: &str) -> Option<SocketAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, PORT));
    }
    // A link-local server comes with its interface, RFC 4007 section 11.
    let (ip, zone) = text.split_once('%')?;
    let scope = zone.parse().or_else(|_| nix::net::if_::if_nametoindex(zone)).ok()?;
    Some(SocketAddrV6::new(ip.parse().ok()?, PORT, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_in_order_and_nothing_else() {
        let text = "# nameserver 192.0.2.1\n; nameserver 192.0.2.2\nsearch evil.test\n\
                    nameserver\t192.0.2.3 # the first\n  nameserver 2001:db8::1\nnameserver fe80::1%lo\n\
                    nameserver fe80::2%7\nnameserver dns.example\nnameserver\nnameservers 192.0.2.4\n\
                    options edns0";
        let servers: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.3:53", "[2001:db8::1]:53", "[fe80::1%1]:53", "[fe80::2%7]:53"]);
    }
}
