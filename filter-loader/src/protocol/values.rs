//! Values of requests that are valid by construction, whoever wrote them.

use std::{fmt, net::IpAddr, str::FromStr};

use filter_common::{Addr, layout::MAX_ADDRS};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use utoipa::ToSchema;

/// The name of a sandbox: 1 to 63 of `a-z`, `0-9`, and `-` and `_` inside.
///
/// It is a file name, a part of pin paths and of host names: nothing else may get in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct SandboxId(String);

impl SandboxId {
    const MAX: usize = 63;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let inside = |byte: &u8| plain(byte) || matches!(byte, b'-' | b'_');
        let bytes = text.as_bytes();
        let ends = bytes.first().is_some_and(plain) && bytes.last().is_some_and(plain);
        if ends && bytes.len() <= Self::MAX && bytes.iter().all(inside) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("a sandbox id is 1 to {} of a-z and 0-9, with - and _ inside", Self::MAX))
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SandboxId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// The hardware address of one interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The bytes in the order of the wire.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl From<[u8; 6]> for Mac {
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || format!("`{text}` is no MAC of an interface; write it like 02:00:00:00:00:01");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refused)?;
            // The sign that the parser would take does not survive this.
            let digits = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            *octet = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or_else(refused)?;
        }
        // The lowest bit of the first byte makes a group address, which no packet is sent from.
        let group = octets[0] & 1 == 1;
        if parts.next().is_some() || group || octets == [0; 6] { Err(refused()) } else { Ok(Self(octets)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// Which source addresses a sandbox may use.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Addrs {
    /// Those that the host's routes and neighbours say are behind the interface.
    #[default]
    Learn,
    /// Whichever it likes.
    Any,
    /// These; one to [`MAX_ADDRS`], without duplicates.
    #[serde(deserialize_with = "listed")]
    #[schema(value_type = Vec<String>)]
    List(Vec<IpAddr>),
}

impl Addrs {
    /// The list of these addresses.
    ///
    /// # Errors
    /// When there are none or too many, or one that no sandbox can have.
    pub fn list(addrs: impl IntoIterator<Item = IpAddr>) -> Result<Self, String> {
        checked(addrs).map(Self::List)
    }
}

fn checked(addrs: impl IntoIterator<Item = IpAddr>) -> Result<Vec<IpAddr>, String> {
    let mut list = Vec::new();
    for addr in addrs {
        let word = Addr::from(addr);
        let mapped = addr.is_ipv6() && word.is_v4();
        if mapped || addr.is_loopback() || word.is_unspecified() || word.is_multicast_or_broadcast() {
            return Err(format!("{addr} is no address that a sandbox can have; name a unicast address"));
        }
        if !list.contains(&addr) {
            list.push(addr);
        }
        if list.len() > MAX_ADDRS {
            return Err(format!("a sandbox has at most {MAX_ADDRS} addresses"));
        }
    }
    if list.is_empty() { Err("the list of addresses is empty".to_owned()) } else { Ok(list) }
}

fn listed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    checked(Vec::deserialize(deserializer)?).map_err(D::Error::custom)
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "a-b", "a_b", "a--__b", "sbx1", longest.as_str()] {
            assert_eq!(good.parse::<SandboxId>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "-",
            "_",
            "-a",
            "a-",
            "_a",
            "a_",
            "A",
            "aB",
            "a.b",
            "a/b",
            "..",
            "a b",
            " a",
            "a\n",
            "ä",
            "a\0",
            too_long.as_str(),
        ] {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<SandboxId>(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn macs() {
        let mac: Mac = "02:AB:cd:00:00:01".parse().unwrap();
        assert_eq!(mac.octets(), [2, 0xab, 0xcd, 0, 0, 1]);
        assert_eq!(mac.to_string(), "02:ab:cd:00:00:01");
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02-00-00-00-00-01",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_has_one_to_eight_unicast_addresses() {
        let list = |texts: &[&str]| Addrs::list(texts.iter().map(|text| text.parse().unwrap()));
        assert_eq!(list(&["10.0.0.2", "fd00::2", "10.0.0.2"]), list(&["10.0.0.2", "fd00::2"]));
        for bad in
            ["0.0.0.0", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:1.2.3.4"]
        {
            assert!(list(&[bad]).is_err(), "{bad}");
        }
        assert!(list(&[]).is_err());
        let many = |count: u8| Addrs::list((1..=count).map(|last| IpAddr::from([10, 0, 0, last])));
        assert!(many(8).is_ok() && many(9).is_err());
        assert!(serde_json::from_str::<Addrs>(r#"{"list":[]}"#).is_err());
    }
}
