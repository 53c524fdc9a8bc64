//! Who asks, and over what: what the peer of a connection is, or what a trusted proxy says of its client.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// `X-Forwarded-For`
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    /// Its address.
    pub addr: IpAddr,
    /// The addresses on the way from it to here, as the sandbox is told.
    pub chain: String,
    /// Whether it speaks TLS.
    pub secure: bool,
}

impl Client {
    /// Who asks over a connection of `peer`.
    pub fn of(peer: IpAddr, secure: bool, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        if !is_trusted(peer, trusted) {
            return Self { addr: peer, chain: peer.to_string(), secure };
        }
        let told = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let hops: Vec<&str> = told.flat_map(|value| value.split(',')).map(str::trim).collect();
        // From here outwards: the first that is no proxy of ours. What it says itself may be invented.
        let mut addr = peer;
        let mut known = hops.len();
        while known > 0 && is_trusted(addr, trusted) {
            let Some(next) = hops.get(known - 1).and_then(|hop| hop.parse::<IpAddr>().ok()) else { break };
            (addr, known) = (next.to_canonical(), known - 1);
        }
        let believed = hops.get(known..).unwrap_or_default();
        let chain = believed.iter().map(|hop| (*hop).to_owned()).chain([peer.to_string()]);
        let mut protos = headers.get_all(FORWARDED_PROTO).iter();
        let secure = match (protos.next().map(|value| value.as_bytes()), protos.next()) {
            (Some(b"https"), None) => true,
            (Some(b"http"), None) => false,
            _ => secure,
        };
        Self { addr, chain: chain.collect::<Vec<_>>().join(", "), secure }
    }
}

fn is_trusted(addr: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&addr))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn client(peer: &str, forwarded: &[&str], proto: &[&str]) -> Client {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_str(value).unwrap());
        }
        for value in proto {
            headers.append(FORWARDED_PROTO, HeaderValue::from_str(value).unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        Client::of(peer.parse().unwrap(), false, &headers, &trusted)
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let client = client("192.0.2.1", &["198.51.100.1"], &["https"]);
        assert_eq!((client.addr.to_string(), client.chain.as_str()), ("192.0.2.1".into(), "192.0.2.1"));
        assert!(!client.secure);
    }

    #[test]
    fn a_proxy_is_believed_as_far_as_it_knows() {
        for (forwarded, addr, chain) in [
            (&["198.51.100.1"][..], "198.51.100.1", "198.51.100.1, 10.0.0.1"),
            (&["1.1.1.1, 198.51.100.1"], "198.51.100.1", "198.51.100.1, 10.0.0.1"),
            (&["1.1.1.1", "198.51.100.1"], "198.51.100.1", "198.51.100.1, 10.0.0.1"),
            (&["198.51.100.1, 10.2.0.1"], "198.51.100.1", "198.51.100.1, 10.2.0.1, 10.0.0.1"),
            (&["10.3.0.1, 10.2.0.1"], "10.3.0.1", "10.3.0.1, 10.2.0.1, 10.0.0.1"),
            (&["evil"], "10.0.0.1", "10.0.0.1"),
            (&["198.51.100.1, evil, 10.2.0.1"], "10.2.0.1", "10.2.0.1, 10.0.0.1"),
            (&["2001:db8::1, fd00::5"], "2001:db8::1", "2001:db8::1, fd00::5, 10.0.0.1"),
            (&["::ffff:198.51.100.1"], "198.51.100.1", "::ffff:198.51.100.1, 10.0.0.1"),
            (&[], "10.0.0.1", "10.0.0.1"),
        ] {
            let client = client("10.0.0.1", forwarded, &[]);
            assert_eq!(
                (client.addr.to_string().as_str(), client.chain.as_str()),
                (addr, chain),
                "{forwarded:?}"
            );
        }
    }

    #[test]
    fn the_protocol_is_told_once() {
        assert!(client("10.0.0.1", &[], &["https"]).secure);
        for proto in [&["http"][..], &["https", "https"], &["wss"], &[]] {
            assert!(!client("10.0.0.1", &[], proto).secure, "{proto:?}");
        }
    }
}
