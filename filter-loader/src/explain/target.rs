//! What `explain` is asked about: a URL, a host, a host and a port, an address and a port.

use std::{net::IpAddr, str::FromStr};

use filter_inspector::{authority, host::Transport, rules::Named};
use filter_policy::Name;

/// Whom a connection would be for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The host.
    pub host: Host,
    /// The port; 443 where none was given.
    pub port: u16,
    /// TCP, unless `/udp` was asked for.
    pub transport: Transport,
}

/// A host, by name or by address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Host {
    /// A name that leads to addresses.
    Name(Name),
    /// An address.
    Address(IpAddr),
}

impl Target {
    /// What an HTTP client says in `Host`.
    pub fn in_http(&self) -> Named {
        let authority = match &self.host {
            Host::Name(name) => name.to_string(),
            Host::Address(IpAddr::V4(address)) => address.to_string(),
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
        };
        authority::parse(authority.as_bytes(), self.port).map(Some)
    }

    /// What a TLS client says in its hello: nothing about an address (RFC 6066 section 3).
    pub fn in_tls(&self) -> Named {
        match &self.host {
            Host::Name(name) => Ok(Some(name.clone())),
            Host::Address(_) => Ok(None),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str =
            "write a URL (https://a.test/x), a host, host:port, or ip:port, with /udp behind it for UDP";
        let wrong = |what: &str| format!("`{text}` is no target: {what}; {FORMS}");
        if let Some((scheme, rest)) = text.split_once("://") {
            let port = match scheme.to_ascii_lowercase().as_str() {
                "http" => 80,
                "https" => 443,
                _ => return Err(wrong("only http and https are known")),
            };
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            if authority.contains('@') {
                return Err(wrong("leave out what stands before the @"));
            }
            let (host, given) = split(authority).map_err(wrong)?;
            return Ok(Self { host, port: given.unwrap_or(port), transport: Transport::Tcp });
        }
        let (place, transport) = match text.rsplit_once('/') {
            Some((place, "udp")) => (place, Transport::Udp),
            Some((place, "tcp")) => (place, Transport::Tcp),
            Some(_) => return Err(wrong("what stands behind the / is no protocol")),
            None => (text, Transport::Tcp),
        };
        let (host, given) = split(place).map_err(wrong)?;
        let port = match (given, transport) {
            (Some(port), _) => port,
            (None, Transport::Tcp) => 443,
            (None, Transport::Udp) => return Err(wrong("UDP has no usual port")),
        };
        Ok(Self { host, port, transport })
    }
}

/// A host, and the port behind it if there is one.
fn split(text: &str) -> Result<(Host, Option<u16>), &'static str> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((Host::Address(address.to_canonical()), None));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the ] is missing")?;
            if port.is_empty() {
                (host, None)
            } else {
                (host, Some(port.strip_prefix(':').ok_or("that is no port")?))
            }
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port.map(|port| port.parse::<u16>().ok().filter(|number| *number != 0 && digits(port))) {
        Some(None) => return Err("a port is 1 to 65535"),
        Some(port) => port,
        None => None,
    };
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok((Host::Address(address.to_canonical()), port));
    }
    Name::parse(host)
        .map(|name| (Host::Name(name), port))
        .map_err(|_| "that is neither a name nor an address")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        let target: Target = text.parse().unwrap();
        let host = match target.host {
            Host::Name(name) => name.to_string(),
            Host::Address(address) => format!("<{address}>"),
        };
        let proto = if target.transport == Transport::Udp { "/udp" } else { "" };
        format!("{host} {}{proto}", target.port)
    }

    #[test]
    fn every_form_is_understood() {
        for (text, meant) in [
            ("https://A.test/x?y=http://b", "a.test 443"),
            ("http://a.test", "a.test 80"),
            ("http://a.test:8080#x", "a.test 8080"),
            ("HTTPS://[2001:db8::1]:8443/", "<2001:db8::1> 8443"),
            ("a.test", "a.test 443"),
            ("a.test:22", "a.test 22"),
            ("a.test:5000/udp", "a.test 5000/udp"),
            ("203.0.113.7", "<203.0.113.7> 443"),
            ("203.0.113.7:22", "<203.0.113.7> 22"),
            ("203.0.113.7:22/tcp", "<203.0.113.7> 22"),
            ("8.8.8.8:53/udp", "<8.8.8.8> 53/udp"),
            ("2001:db8::1", "<2001:db8::1> 443"),
            ("[2001:db8::1]", "<2001:db8::1> 443"),
            ("[2001:db8::1]:53/udp", "<2001:db8::1> 53/udp"),
            ("::ffff:203.0.113.7", "<203.0.113.7> 443"),
        ] {
            assert_eq!(read(text), meant, "{text}");
        }
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for text in [
            "",
            "ftp://a.test",
            "a.test:",
            "a.test:0",
            "a.test:65536",
            "a.test:+1",
            "https://u@a.test",
            "a b",
            "203.0.113.0/24",
            "a.test/icmp",
            "8.8.8.8/udp",
            "[::1",
            "[::1]x",
            "a.test:1:2",
            "*.a.test",
            "https://",
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains("is no target"), "{text}: {error}");
        }
    }

    #[test]
    fn clients_name_what_they_connect_to() {
        let target = |text: &str| text.parse::<Target>().unwrap();
        assert_eq!(target("http://a.test").in_http(), Ok(Some(Name::parse("a.test").unwrap())));
        assert!(target("http://203.0.113.7").in_http().is_err() && target("http://[::1]").in_http().is_err());
        assert_eq!(target("https://203.0.113.7").in_tls(), Ok(None));
    }
}
