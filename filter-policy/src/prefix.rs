//! Prefixes in the key space of the kernel's trie: 16 bytes for both families.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use filter_common::Addr;
use ipnet::IpNet;

/// How far into a key the bits of an IPv4 address begin.
const MAPPED_LEN: u8 = 96;

/// A prefix of addresses; IPv4 is stored mapped, so that `a.b.c.d/n` has length 96 + n.
///
/// Its order is that of the keys, and a prefix comes right before those inside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The first address, all bits after the prefix zero.
    pub addr: Addr,
    /// The length in bits, 0 to 128.
    pub len: u8,
}

impl Prefix {
    /// Every address of both families.
    pub const EVERYTHING: Self = Self { addr: Addr::UNSPECIFIED, len: 0 };

    /// Whether an address lies in it.
    pub fn contains(&self, addr: Addr) -> bool {
        masked(key(addr), self.len) == self.key()
    }

    pub(crate) fn from_key(key: u128, len: u8) -> Self {
        Self { addr: Ipv6Addr::from(masked(key, len)).into(), len }
    }

    pub(crate) fn key(&self) -> u128 {
        key(self.addr)
    }
}

impl From<IpNet> for Prefix {
    /// Only the net itself: `0.0.0.0/0` is all of IPv4 here, and not [`Self::EVERYTHING`].
    fn from(net: IpNet) -> Self {
        let net = net.trunc();
        let before = if net.addr().is_ipv4() { MAPPED_LEN } else { 0 };
        Self { addr: net.addr().into(), len: before + net.prefix_len() }
    }
}

impl Ord for Prefix {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.key(), self.len).cmp(&(other.key(), other.len))
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match IpAddr::from(self.addr) {
            IpAddr::V4(addr) if self.len >= MAPPED_LEN => write!(f, "{addr}/{}", self.len - MAPPED_LEN),
            IpAddr::V4(addr) => write!(f, "{}/{}", addr.to_ipv6_mapped(), self.len),
            IpAddr::V6(addr) => write!(f, "{addr}/{}", self.len),
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The bytes of an address as one number, first byte first.
pub(crate) fn key(addr: Addr) -> u128 {
    u128::from_be_bytes(addr.octets())
}

/// The first `len` bits of a key.
pub(crate) fn masked(key: u128, len: u8) -> u128 {
    let rest = 128 - u32::from(len.min(128));
    key & u128::MAX.checked_shl(rest).unwrap_or(0)
}

/// How many bits two keys begin with in common, 0 to 128.
pub(crate) fn common_bits(a: u128, b: u128) -> u8 {
    // At most 128, which fits.
    (a ^ b).leading_zeros() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse::<IpNet>().unwrap().into()
    }

    #[test]
    fn both_families_share_one_key_space() {
        for (text, len) in
            [("10.0.0.0/8", 104), ("0.0.0.0/0", 96), ("1.2.3.4/32", 128), ("2001:db8::/32", 32), ("::/0", 0)]
        {
            assert_eq!(prefix(text).len, len);
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("10.1.2.3/8"), prefix("10.0.0.0/8"));
        assert_eq!(prefix("::/0"), Prefix::EVERYTHING);
    }

    #[test]
    fn an_address_is_in_the_prefixes_around_it_only() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert!(prefix("255.255.255.255/32").contains(addr("255.255.255.255")));
        assert!(!prefix("255.255.255.255/32").contains(addr("255.255.255.254")));
        assert!(
            Prefix::EVERYTHING.contains(addr("1.2.3.4")) && Prefix::EVERYTHING.contains(addr("2001:db8::1"))
        );
        assert!(
            prefix("0.0.0.0/0").contains(addr("1.2.3.4"))
                && !prefix("0.0.0.0/0").contains(addr("2001:db8::1"))
        );
    }
}
