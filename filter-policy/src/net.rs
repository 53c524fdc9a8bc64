//! Addresses and CIDRs as they are written in a policy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// `0.0.0.0/0`, which in a policy stands for every destination of both families.
pub const ALL_TRAFFIC: IpNet = IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// `::ffff:0:0/96`: where IPv4 lives in the 16-byte key space of the kernel's trie.
pub(crate) const MAPPED: IpNet =
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), 96);

/// Reads a single address or a CIDR, host bits masked.
///
/// Only the plain notations: no zone, port, bracket, leading zero or space. A prefix that overlaps
/// `::ffff:0:0/96` is none, from inside or around it: in the key space of the trie it would be a
/// prefix of IPv4 addresses.
pub(crate) fn parse(text: &str) -> Option<IpNet> {
    let net = match text.split_once('/') {
        None => IpNet::from(text.parse::<IpAddr>().ok()?),
        Some((addr, len)) => IpNet::new(addr.parse().ok()?, prefix_len(len)?).ok()?.trunc(),
    };
    // `::/0` overlaps openly: validation refuses it, as every unspecified net, with a better sentence.
    let mistakable = net.prefix_len() > 0 && overlaps_mapped(&net);
    (!mistakable).then_some(net)
}

/// The canonical text: a net of one address is printed as the bare address.
pub(crate) fn canonical(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

fn overlaps_mapped(net: &IpNet) -> bool {
    MAPPED.contains(net) || net.contains(&MAPPED)
}

/// Digits only: `u8::from_str` would take `+8` and `008` as well.
fn prefix_len(text: &str) -> Option<u8> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notation_of_a_net_has_one_canonical_text() {
        for (text, shown) in [
            ("8.8.8.8", "8.8.8.8"),
            ("8.8.8.8/32", "8.8.8.8"),
            ("8.8.8.8/24", "8.8.8.0/24"),
            ("255.255.255.255/32", "255.255.255.255"),
            ("255.255.255.255/1", "128.0.0.0/1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("1.2.3.4/0", "0.0.0.0/0"),
            ("2001:DB8:0::1", "2001:db8::1"),
            ("2001:db8::1/128", "2001:db8::1"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("64:ff9b::8.8.8.8", "64:ff9b::808:808"),
        ] {
            assert_eq!(canonical(&parse(text).unwrap()), shown, "{text}");
        }
    }

    #[test]
    fn other_notations_are_none() {
        for text in [
            "",
            "/",
            "/8",
            "1.2.3.4/",
            "10.0.0.0/99",
            "10.0.0.0/33",
            "::/129",
            "1.2.3.4/+8",
            "1.2.3.4/08",
            "1.2.3.4/-1",
            "1.2.3.4/8/8",
            "1.2.3.4/255.0.0.0",
            "01.2.3.4",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "16909060",
            "0x1020304",
            " 1.2.3.4",
            "1.2.3.4 ",
            "1.2.3.4:80",
            "[::1]",
            "[2001:db8::1]:80",
            "fe80::1%eth0",
            "fe80::1%1/64",
            "10.0.0.0 /8",
            "10.0.0.0-10.0.0.9",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_would_cover_or_lie_in_the_mapped_range_is_none() {
        for text in [
            "::ffff:1.2.3.4",
            "::ffff:0:0/96",
            "::ffff:102:304/128",
            "::8000:0:0/81",
            "::fffe:0:0/95",
            "::/80",
            "::/1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        for text in ["::fffe:0:0/96", "::1:0:0:0/80", "::ffff:0:0:0/96", "::/96"] {
            assert!(parse(text).is_some(), "{text}");
        }
    }
}
