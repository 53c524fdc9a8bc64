//! Internet addresses in one shape for both families.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The bytes `00 00 ff ff` as they lie in memory: third word of an IPv4-mapped address.
const MAPPED: u32 = u32::from_be(0x0000_ffff);

/// A 16-byte address in network byte order; IPv4 is stored IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291
/// section 2.5.5.2).
///
/// The words hold the bytes as they lie in the packet, so that comparing and hashing need no byte
/// swap. An IPv6 packet that itself carries a mapped address never gets here: the parser refuses it.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Addr([u32; 4]);

impl Addr {
    /// `::`, which no packet that passes the parser has as its destination.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// From the four words of an IPv6 address as they lie in the packet.
    #[inline(always)]
    pub const fn from_v6_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// From the one word of an IPv4 address as it lies in the packet.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The four words, each in network byte order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// The last word, in network byte order: all of an IPv4 address.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }

    /// Whether this stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// `0.0.0.0` or `::`: what a host without an address yet puts into ARP probes and DAD.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && (self.0[2] == 0 || self.0[2] == MAPPED) && self.0[3] == 0
    }

    /// Multicast of either family, or the IPv4 limited broadcast: an address that no refusal may be
    /// sent for (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
    #[inline(always)]
    pub const fn is_multicast_or_broadcast(&self) -> bool {
        if self.is_v4() {
            let first = u32::from_be(self.0[3]) >> 24;
            first >> 4 == 0xe || self.0[3] == u32::MAX
        } else {
            u32::from_be(self.0[0]) >> 24 == 0xff
        }
    }

    /// Bytes in network order, as the trie's key and the event have them.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        // SAFETY: four words and sixteen bytes are the same memory without padding.
        unsafe { core::mem::transmute(self.0) }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(addr: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(addr.octets()))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(addr: Ipv6Addr) -> Self {
        let o = addr.octets();
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        let v6 = Ipv6Addr::from(addr.octets());
        if addr.is_v4() { v6.to_ipv4_mapped().map_or(Self::V6(v6), Self::V4) } else { Self::V6(v6) }
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["203.0.113.7", "0.0.0.0", "255.255.255.255", "::", "::1", "2001:db8::9", "ff02::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        }
    }

    #[test]
    fn families_and_kinds_are_told_apart() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert!(addr("10.0.0.1").is_v4() && !addr("2001:db8::1").is_v4() && !addr("::1").is_v4());
        for yes in ["224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1"] {
            assert!(addr(yes).is_multicast_or_broadcast(), "{yes}");
        }
        for no in ["223.255.255.255", "240.0.0.1", "fe80::1", "2001:db8::ff"] {
            assert!(!addr(no).is_multicast_or_broadcast(), "{no}");
        }
        assert!(addr("0.0.0.0").is_unspecified() && addr("::").is_unspecified());
        assert!(!addr("0.0.0.1").is_unspecified());
    }
}
