//! Addresses of the platform, which no policy can open.
//!
//! `::ffff:0:0/96`, IPv4-mapped IPv6, is guarded as well but never a prefix here: IPv4 itself lives
//! there in the 16-byte key space of the kernel's trie, so that the prefix would guard all of IPv4.
//! The kernel's packet parser refuses IPv6 packets that carry such an address, and
//! [`Guard::contains`] says that they are guarded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::net::MAPPED;

const fn v4(a: u8, b: u8, c: u8, len: u8) -> IpNet {
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(a, b, c, 0)), len)
}

const fn v6(a: u16, b: u16, last: u16, len: u8) -> IpNet {
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, last)), len)
}

/// The guarded prefixes of one host.
///
/// Two guards that protect the same addresses by the same rules are equal, so that a change on the
/// host is noticed by comparing.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Guard(Vec<IpNet>);

impl Guard {
    /// What is guarded unless the operator opens it.
    pub const BUILT_IN: [IpNet; 18] = [
        v4(0, 0, 0, 8),
        v4(10, 0, 0, 8),
        v4(100, 64, 0, 10),
        v4(127, 0, 0, 8),
        v4(169, 254, 0, 16),
        v4(172, 16, 0, 12),
        v4(192, 0, 0, 24),
        v4(192, 168, 0, 16),
        v4(198, 18, 0, 15),
        v4(224, 0, 0, 4),
        v4(240, 0, 0, 4),
        v6(0, 0, 0, 128),
        v6(0, 0, 1, 128),
        v6(0x64, 0xff9b, 0, 96),
        v6(0x2002, 0, 0, 16),
        v6(0xfc00, 0, 0, 7),
        v6(0xfe80, 0, 0, 10),
        v6(0xff00, 0, 0, 8),
    ];

    /// The built-in list without what the operator opens, and on top of it, opened or not, what the
    /// operator adds and every address of the host itself. A net is of its own family only: `::/0` in
    /// `deny` adds no IPv4, nor `0.0.0.0/0` any IPv6.
    pub fn new(open: &[IpNet], deny: &[IpNet], host: &[IpAddr]) -> Self {
        let mut prefixes = Self::BUILT_IN.to_vec();
        for hole in open {
            prefixes = subtract(prefixes, &hole.trunc());
        }
        prefixes.extend(deny.iter().map(IpNet::trunc));
        prefixes.extend(host.iter().map(|addr| IpNet::from(addr.to_canonical())));
        prefixes = subtract(prefixes, &MAPPED);
        prefixes.sort_unstable();
        // Sorted, a prefix follows the one that covers it, and what is covered adds nothing.
        prefixes.dedup_by(|next, kept| kept.contains(&*next));
        Self(prefixes)
    }

    /// The prefixes, sorted, none covering another; the index is the number of the rule.
    pub fn prefixes(&self) -> &[IpNet] {
        &self.0
    }

    /// Whether an address is guarded; IPv4-mapped IPv6 always is.
    pub fn contains(&self, addr: IpAddr) -> bool {
        MAPPED.contains(&addr) || self.0.iter().any(|net| net.contains(&addr))
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::new(&[], &[], &[])
    }
}

fn subtract(nets: Vec<IpNet>, hole: &IpNet) -> Vec<IpNet> {
    nets.into_iter().flat_map(|net| without(net, hole)).collect()
}

/// What is left of a net: halve it, keep the half without the hole, go on with the other.
fn without(net: IpNet, hole: &IpNet) -> Vec<IpNet> {
    if hole.contains(&net) {
        return Vec::new();
    }
    if !net.contains(hole) {
        return vec![net];
    }
    let halves = net.subnets(net.prefix_len() + 1).into_iter().flatten();
    halves.flat_map(|half| without(half, hole)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_platform_is_guarded_and_the_internet_is_not() {
        let guard = Guard::default();
        for yes in [
            "0.0.0.0",
            "0.1.2.3",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.53",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "64:ff9b::a9fe:a9fe",
            "2002:a00:1::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "ff02::1",
        ] {
            assert!(guard.contains(ip(yes)), "{yes}");
        }
        for no in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "::2",
            "64:ff9b:1::1",
            "2001:db8::1",
            "2003::1",
            "fe00::1",
            "fec0::1",
        ] {
            assert!(!guard.contains(ip(no)), "{no}");
        }
    }

    #[test]
    fn what_is_opened_is_cut_out_and_no_more() {
        let guard = Guard::new(&[net("10.0.0.5/31"), net("fc00::/7"), net("1.0.0.0/8")], &[], &[]);
        assert!(
            !guard.contains(ip("10.0.0.4"))
                && !guard.contains(ip("10.0.0.5"))
                && !guard.contains(ip("fd00::1"))
        );
        assert!(
            guard.contains(ip("10.0.0.3"))
                && guard.contains(ip("10.0.0.6"))
                && guard.contains(ip("10.255.0.0"))
        );
        assert_eq!(guard.prefixes().len(), Guard::BUILT_IN.len() - 2 + (31 - 8));
    }

    #[test]
    fn denied_ranges_and_host_addresses_win_over_open_ones() {
        let guard = Guard::new(
            &[net("10.0.0.0/8")],
            &[net("10.1.0.0/16"), net("8.8.8.9/31")],
            &[ip("10.2.0.1"), ip("::ffff:9.9.9.9")],
        );
        for yes in ["10.1.2.3", "10.2.0.1", "9.9.9.9", "8.8.8.8"] {
            assert!(guard.contains(ip(yes)), "{yes}");
        }
        assert!(!guard.contains(ip("10.2.0.2")));
    }

    #[test]
    fn no_prefix_touches_where_ipv4_lives() {
        let guard = Guard::new(&[], &[net("::/0"), net("::ffff:0:0/104")], &[]);
        assert!(
            guard.contains(ip("2001:db8::1"))
                && guard.contains(ip("::fffe:ffff:ffff"))
                && !guard.contains(ip("8.8.8.8"))
        );
        assert!(guard.prefixes().iter().all(|net| !net.contains(&MAPPED) && !MAPPED.contains(net)));
    }

    #[test]
    fn equal_guards_are_equal_whatever_the_order() {
        let (a, b) = (net("203.0.113.0/24"), net("2001:db8::/32"));
        let (x, y) = (ip("198.51.100.1"), ip("10.0.0.1"));
        assert_eq!(Guard::new(&[], &[a, b], &[x, y]), Guard::new(&[], &[b, a, b], &[y, x]));
        assert_eq!(Guard::new(&[], &[], &[y]), Guard::default());
        assert_ne!(Guard::new(&[], &[], &[x]), Guard::default());
    }

    /// Nets that often meet: few bits vary, some of them inside the built-in list.
    fn nets() -> impl Strategy<Value = Vec<IpNet>> {
        let base = prop_oneof![
            Just(0x0a00_0000_u32),
            Just(0x0900_0000),
            Just(0xffff_fff0),
            Just(0xac10_0000),
            Just(0xcb00_7100)
        ];
        let v4 = (base, 0_u32..16, prop_oneof![Just(0_u8), 6..=12_u8, 28..=32_u8])
            .prop_map(|(base, low, len)| IpNet::new_assert(Ipv4Addr::from(base | low).into(), len));
        let base = prop_oneof![
            Just(0xfd00_u128 << 112),
            Just(0x2001_0db8_u128 << 96),
            Just(u128::MAX << 4),
            Just(0xffff_0000_0000_u128)
        ];
        let v6 = (base, 0_u128..16, prop_oneof![Just(0_u8), 5..=9_u8, 80..=97_u8, 124..=128_u8])
            .prop_map(|(base, low, len)| IpNet::new_assert(Ipv6Addr::from(base | low).into(), len));
        vec(prop_oneof![v4, v6], 0..6)
    }

    proptest! {
        #[test]
        fn membership_is_what_the_sentence_says(open in nets(), deny in nets(), host in nets(), probes in nets()) {
            let host: Vec<IpAddr> = host.iter().map(|net| net.addr().to_canonical()).collect();
            let guard = Guard::new(&open, &deny, &host);
            let within = |nets: &[IpNet], addr: IpAddr| nets.iter().any(|net| net.contains(&addr));
            for addr in probes.iter().chain(&open).chain(&deny).flat_map(|net| [net.addr(), net.network(), net.broadcast()]) {
                let expected = MAPPED.contains(&addr)
                    || (within(&Guard::BUILT_IN, addr) && !within(&open, addr))
                    || within(&deny, addr)
                    || host.contains(&addr);
                prop_assert_eq!(guard.contains(addr), expected, "{}", addr);
            }
            prop_assert!(guard.prefixes().is_sorted());
        }
    }
}
