//! The host that a request names: read in one way only, or refused.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest name that DNS has (RFC 1035 section 2.3.4).
const MAX_HOST: usize = 253;
const MAX_ID: usize = 63;

/// A host, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Authority {
    /// In lower case, without port and final dot.
    pub host: String,
    /// The port that was written behind it.
    pub port: Option<u16>,
    /// What it stands for.
    pub place: Place,
}

/// What a host stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// A port of a sandbox.
    Sandbox {
        /// The sandbox's name.
        id: String,
        /// The port inside.
        port: u16,
    },
    /// All sandboxes: headers say which.
    Shared,
}

/// Why a host is none of this gateway's. The text says what to write instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadHost(pub &'static str);

const NOT_A_HOST: BadHost = BadHost("Invalid host");
const FOREIGN: BadHost = BadHost("Invalid host: it is outside the domain of public URLs");
const SHAPE: BadHost = BadHost("Invalid host: expected <port>-<sandbox id> before the domain");
const BAD_PORT: BadHost = BadHost("Invalid port: expected 1 to 65535");
const BAD_ID: BadHost = BadHost("Invalid sandbox id: expected letters a-z and digits");

impl Authority {
    /// Reads `host[:port]` below `domain`.
    ///
    /// # Errors
    /// If it is no host, or stands for nothing here.
    pub fn parse(text: &str, domain: &str) -> Result<Self, BadHost> {
        let (host, port) = split(text)?;
        if host.starts_with('[') {
            return Ok(Self { host: host.to_ascii_lowercase(), port, place: Place::Shared });
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if host.is_empty() || host.len() > MAX_HOST {
            return Err(NOT_A_HOST);
        }
        let place = place(&host, domain)?;
        Ok(Self { host, port, place })
    }

    /// The sandbox, where the host itself names one.
    pub fn sandbox(&self) -> Option<&str> {
        match &self.place {
            Place::Sandbox { id, .. } => Some(id),
            Place::Shared => None,
        }
    }
}

fn split(text: &str) -> Result<(&str, Option<u16>), BadHost> {
    if let Some(rest) = text.strip_prefix('[') {
        let (literal, after) = rest.split_once(']').ok_or(NOT_A_HOST)?;
        literal.parse::<Ipv6Addr>().map_err(|_| NOT_A_HOST)?;
        let port = match after {
            "" => None,
            _ => Some(number(after.strip_prefix(':').ok_or(NOT_A_HOST)?).ok_or(NOT_A_HOST)?),
        };
        let end = text.len() - after.len();
        return Ok((text.get(..end).unwrap_or_default(), port));
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((host, port)) => Ok((host, Some(number(port).ok_or(NOT_A_HOST)?))),
    }
}

fn place(host: &str, domain: &str) -> Result<Place, BadHost> {
    if host == "localhost" || host.parse::<Ipv4Addr>().is_ok() {
        return Ok(Place::Shared);
    }
    let below = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
    let label = below.ok_or(FOREIGN)?;
    if label == "sandbox" {
        return Ok(Place::Shared);
    }
    let (port, id) = label.split_once('-').ok_or(SHAPE)?;
    Ok(Place::Sandbox { port: self::port(port)?, id: self::id(id)?.to_owned() })
}

/// A port of a sandbox.
///
/// # Errors
/// Unless it is a number from 1 to 65535, written as people write numbers.
pub fn port(text: &str) -> Result<u16, BadHost> {
    number(text).ok_or(BAD_PORT)
}

/// A sandbox's name as it may stand in a public URL.
///
/// # Errors
/// Unless it is letters a-z and digits.
pub fn id(text: &str) -> Result<&str, BadHost> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !text.is_empty() && text.len() <= MAX_ID && text.bytes().all(plain) { Ok(text) } else { Err(BAD_ID) }
}

/// Digits only, no zeros in front: what `str::parse` takes besides (a sign) is another text for the same port.
fn number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOMAIN: &str = "sandbox.localhost";

    fn sandbox(text: &str) -> Option<(u16, String)> {
        match Authority::parse(text, DOMAIN).ok()?.place {
            Place::Sandbox { port, id } => Some((port, id)),
            Place::Shared => None,
        }
    }

    #[test]
    fn a_port_and_a_sandbox() {
        for text in [
            "3000-abc.sandbox.localhost",
            "3000-ABC.Sandbox.LocalHost",
            "3000-abc.sandbox.localhost.",
            "3000-abc.sandbox.localhost:8080",
            "3000-abc.sandbox.localhost.:443",
        ] {
            assert_eq!(sandbox(text), Some((3000, "abc".to_owned())), "{text}");
        }
        assert_eq!(sandbox("1-0.sandbox.localhost"), Some((1, "0".to_owned())));
        assert_eq!(sandbox("65535-a.sandbox.localhost"), Some((65535, "a".to_owned())));
    }

    #[test]
    fn shared_hosts_leave_it_to_headers() {
        for text in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "127.0.0.1",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:8080",
            "sandbox.sandbox.localhost",
            "192.0.2.1",
        ] {
            assert_eq!(Authority::parse(text, DOMAIN).unwrap().place, Place::Shared, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let long = format!("3000-{}.sandbox.localhost", "a".repeat(64));
        for text in [
            "",
            ".",
            ":80",
            "sandbox.localhost",
            "example.com",
            "3000-abc.example.com",
            "3000-abc.evilsandbox.localhost",
            "3000-abcsandbox.localhost",
            "0-abc.sandbox.localhost",
            "65536-abc.sandbox.localhost",
            "99999999999999999999-abc.sandbox.localhost",
            "03000-abc.sandbox.localhost",
            "+3000-abc.sandbox.localhost",
            "-abc.sandbox.localhost",
            "-3000-abc.sandbox.localhost",
            "3000.sandbox.localhost",
            "abc.sandbox.localhost",
            "abc-3000.sandbox.localhost",
            "3000-.sandbox.localhost",
            "3000-abc-extra.sandbox.localhost",
            "3000-a_b.sandbox.localhost",
            "3000-abc.x.sandbox.localhost",
            "x.3000-abc.sandbox.localhost",
            ".3000-abc.sandbox.localhost",
            "3000-abc..sandbox.localhost",
            "3000-abc.sandbox.localhost..",
            "3000-abc.sandbox.localhost:",
            "3000-abc.sandbox.localhost:0",
            "3000-abc.sandbox.localhost:080",
            "3000-abc.sandbox.localhost:65536",
            "3000-abc.sandbox.localhost:80:80",
            "3000-abc.sandbox.localhost:x",
            "u@3000-abc.sandbox.localhost",
            "3000-abc.sandbox.localhost/x",
            "3000-abc.sandbox.localhost,x",
            " 3000-abc.sandbox.localhost",
            "3000-abc.sandbox.localhost ",
            "3000-àbc.sandbox.localhost",
            "3000-abc%2esandbox.localhost",
            "[::1",
            "[::1]80",
            "[::1]:",
            "[127.0.0.1]",
            "::1",
            "0x7f000001",
            "127.1",
            &long,
        ] {
            assert!(Authority::parse(text, DOMAIN).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(port in 1..=u16::MAX, id in "[a-z0-9]{1,63}") {
            prop_assert_eq!(sandbox(&format!("{port}-{id}.{DOMAIN}")), Some((port, id)));
        }

        #[test]
        fn nothing_panics_and_hosts_are_canonical(text in ".{0,80}") {
            if let Ok(authority) = Authority::parse(&text, DOMAIN) {
                prop_assert_eq!(authority.host.to_ascii_lowercase(), authority.host.clone());
                prop_assert!(Authority::parse(&authority.host, DOMAIN).is_ok());
            }
        }
    }
}
