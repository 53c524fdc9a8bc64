use core::net::IpAddr;

use super::*;
use crate::fixtures::*;

use crate::ip::protocol;

const OTHER_MAC: Mac = [0x02, 0xaa, 0xbb, 0x00, 0x00, 0x02];
const LINK_LOCAL: &str = "fe80::aa:bbff:fe00:1";
const OWN: &str = "2001:db8::2";
const NEIGHBOUR: &str = "2001:db8::3";

const RS: u8 = 133;
const RA: u8 = 134;
const NS: u8 = 135;
const NA: u8 = 136;
const REDIRECT: u8 = 137;

// ARP.

fn arp_verdict(frame: &[u8], sandbox: &Sandbox) -> Result<bool, Malformed> {
    let ethernet = crate::frame::parse(&frame)?;
    Ok(arp_is_own(&parse_arp(&frame)?, &ethernet, sandbox))
}

#[test]
fn arp_passes_for_the_own_address_only() {
    let (own, other, gateway) = ("10.11.0.2", "10.11.0.3", "10.11.0.1");
    let table = [
        ("request", arp(1, MAC, own, gateway), true),
        ("reply", arp(2, MAC, own, gateway), true),
        ("announcement", arp(1, MAC, own, own), true),
        ("announcement as a reply", arp(2, MAC, own, own), true),
        ("probe of its own address", arp(1, MAC, "0.0.0.0", own), true),
        ("probe of another's", arp(1, MAC, "0.0.0.0", other), false),
        ("request as another", arp(1, MAC, other, gateway), false),
        ("reply as another", arp(2, MAC, other, gateway), false),
        ("reply as the gateway", arp(2, MAC, gateway, other), false),
        ("announcement of another", arp(1, MAC, other, other), false),
        ("claim to be another, told to itself", arp(2, MAC, other, own), false),
        ("broadcast as sender", arp(2, MAC, "255.255.255.255", own), false),
        ("request with another's MAC", arp(1, OTHER_MAC, own, gateway), false),
        ("reply with another's MAC", arp(2, OTHER_MAC, own, gateway), false),
        ("probe with another's MAC", arp(1, OTHER_MAC, "0.0.0.0", own), false),
    ];
    for (name, frame, expected) in table {
        assert_eq!(arp_verdict(&frame, &sandbox()), Ok(expected), "{name}");
    }
}

#[test]
fn an_arp_sender_is_the_frames_sender_even_where_the_mac_is_unknown() {
    let stranger = Sandbox { flags: 0, mac: [0; 6], ..sandbox() };
    assert_eq!(arp_verdict(&arp(2, MAC, "10.11.0.2", "10.11.0.1"), &stranger), Ok(true));
    assert_eq!(arp_verdict(&arp(2, OTHER_MAC, "10.11.0.2", "10.11.0.1"), &stranger), Ok(false));
    // Both the frame's and the packet's sender are another's.
    let mut lie = arp(2, OTHER_MAC, "10.11.0.2", "10.11.0.1");
    lie[6..12].copy_from_slice(&OTHER_MAC);
    assert_eq!(arp_verdict(&lie, &stranger), Ok(true));
    assert_eq!(arp_verdict(&lie, &sandbox()), Ok(false));
}

#[test]
fn odd_arp_is_malformed() {
    let whole = arp(1, MAC, "10.11.0.2", "10.11.0.1");
    let lies: [(&str, usize, [u8; 2]); 9] = [
        ("hardware type IEEE 802", 0, [0, 6]),
        ("hardware type, bytes swapped", 0, [1, 0]),
        ("protocol IPv6", 2, [0x86, 0xdd]),
        ("hardware size", 4, [8, 4]),
        ("protocol size", 4, [6, 16]),
        ("operation 0", 6, [0, 0]),
        ("reverse ARP", 6, [0, 3]),
        ("inverse ARP", 6, [0, 9]),
        ("operation, bytes swapped", 6, [1, 0]),
    ];
    for (name, at, bytes) in lies {
        let mut frame = whole.clone();
        frame[IP + at..IP + at + 2].copy_from_slice(&bytes);
        assert_eq!(arp_verdict(&frame, &sandbox()), Err(Malformed), "{name}");
    }
    for len in 0..whole.len() {
        assert_eq!(arp_verdict(&whole[..len], &sandbox()), Err(Malformed), "cut to {len}");
    }
    let padded = [&whole[..], &[0; 18]].concat();
    assert_eq!(arp_verdict(&padded, &sandbox()), Ok(true));
}

// Neighbour discovery.

fn message(src: &str, l4: &[u8]) -> Vec<u8> {
    let all_nodes: IpAddr = "ff02::1".parse().unwrap();
    frame(&packet(src.parse().unwrap(), all_nodes, protocol::ICMP_V6, l4))
}

fn is_own(frame: &[u8], sandbox: &Sandbox) -> bool {
    let (ethernet, packet) = read_both(frame).unwrap();
    discovery_is_own(&frame, &packet, &ethernet, sandbox)
}

fn discovery_with(number: u8, target: Option<&str>, options: &[Vec<u8>]) -> Vec<u8> {
    [discovery(number, target), options.concat()].concat()
}

#[test]
fn discovery_passes_for_the_own_addresses_only() {
    let table = [
        ("NS for a neighbour", OWN, NS, Some(NEIGHBOUR), true),
        ("NS from the link-local address", LINK_LOCAL, NS, Some(NEIGHBOUR), true),
        ("NS as another", NEIGHBOUR, NS, Some("2001:db8::1"), false),
        ("NS as another, for the own address", NEIGHBOUR, NS, Some(OWN), false),
        ("NS from another's link-local address", "fe80::aa:bbff:fe00:2", NS, Some(OWN), false),
        ("DAD of the own address", "::", NS, Some(OWN), true),
        ("DAD of the own link-local address", "::", NS, Some(LINK_LOCAL), true),
        ("DAD of another's address", "::", NS, Some(NEIGHBOUR), false),
        ("NA of the own address", OWN, NA, Some(OWN), true),
        ("NA of the own link-local address", OWN, NA, Some(LINK_LOCAL), true),
        ("NA of the own address from the link-local one", LINK_LOCAL, NA, Some(OWN), true),
        ("NA of another's address", OWN, NA, Some(NEIGHBOUR), false),
        ("NA of the gateway's link-local address", LINK_LOCAL, NA, Some("fe80::1"), false),
        ("NA as another of the own address", NEIGHBOUR, NA, Some(OWN), false),
        ("NA as another of its address", NEIGHBOUR, NA, Some(NEIGHBOUR), false),
        ("NA from nobody", "::", NA, Some(OWN), false),
        ("NA of a mapped own address", OWN, NA, Some("::ffff:10.11.0.3"), false),
        ("RS", LINK_LOCAL, RS, None, true),
        ("RS from nobody yet", "::", RS, None, true),
        ("RS as another", "fe80::1", RS, None, false),
    ];
    for (name, src, number, target, expected) in table {
        assert_eq!(is_own(&message(src, &discovery(number, target)), &sandbox()), expected, "{name}");
        // An option with the own hardware address changes nothing; one with another's is refused.
        for option in [1, 2] {
            let with = |mac| message(src, &discovery_with(number, target, &[link_layer(option, mac)]));
            assert_eq!(is_own(&with(MAC), &sandbox()), expected, "{name}, option {option}");
            assert!(!is_own(&with(OTHER_MAC), &sandbox()), "{name}, foreign option {option}");
        }
    }
}

#[test]
fn advertising_as_a_router_and_redirecting_never_pass() {
    let advertisement = [discovery(RA, None), vec![0; 8], link_layer(1, MAC)].concat();
    let redirect = [discovery(REDIRECT, Some(OWN)), addr(OWN).octets().to_vec()].concat();
    for sandbox in [sandbox(), sandbox_of_any_address()] {
        for src in [OWN, LINK_LOCAL] {
            assert!(!is_own(&message(src, &advertisement), &sandbox));
            assert!(!is_own(&message(src, &redirect), &sandbox));
        }
    }
}

#[test]
fn every_option_is_read() {
    let (own, foreign) = (link_layer(1, MAC), link_layer(1, OTHER_MAC));
    let nonce = vec![14, 1, 1, 2, 3, 4, 5, 6];
    let longer_nonce = [&[14, 2][..], &[0; 14]].concat();
    let wide = [&[1, 2][..], &MAC, &[0; 8]].concat();
    let table: [(&str, Vec<Vec<u8>>, bool); 14] = [
        ("none", vec![], true),
        ("own behind others", vec![nonce.clone(), nonce.clone(), own.clone()], true),
        ("longer than any host needs", vec![longer_nonce.clone(), own.clone()], false),
        ("unknown", vec![vec![253, 1, 1, 2, 3, 4, 5, 6]], false),
        ("four", vec![own.clone(), nonce.clone(), nonce.clone(), own.clone()], true),
        ("foreign second", vec![own.clone(), foreign.clone()], false),
        ("foreign behind a longer one", vec![longer_nonce.clone(), foreign.clone()], false),
        ("foreign fourth", vec![nonce.clone(), nonce.clone(), nonce.clone(), foreign.clone()], false),
        ("five", vec![nonce.clone(); 5], false),
        ("foreign fifth", [vec![nonce.clone(); 4], vec![foreign]].concat(), false),
        ("length 0", vec![vec![14, 0, 0, 0, 0, 0, 0, 0]], false),
        ("link-layer address of another width", vec![wide], false),
        ("past the end", vec![vec![14, 2, 0, 0, 0, 0, 0, 0]], false),
        ("cut short", vec![own, vec![14, 1, 0, 0]], false),
    ];
    for (name, options, expected) in table {
        for (number, target) in [(NS, Some(NEIGHBOUR)), (NA, Some(OWN)), (RS, None)] {
            let frame = message(OWN, &discovery_with(number, target, &options));
            assert_eq!(is_own(&frame, &sandbox()), expected, "{name}, type {number}");
        }
    }
}

#[test]
fn a_message_ends_where_the_packet_ends() {
    let whole = message(OWN, &discovery_with(NA, Some(OWN), &[link_layer(2, MAC)]));
    let padded = [&whole[..], &[0; 9]].concat();
    assert!(is_own(&padded, &sandbox()), "Ethernet padding is no option");
    // The target of these lies in the padding, where no receiver looks.
    for len in [8_u16, 16, 23] {
        let mut cut = whole.clone();
        cut[IP + 4..IP + 6].copy_from_slice(&len.to_be_bytes());
        assert!(!is_own(&cut, &sandbox()), "{len} bytes");
    }
    let mut cut = whole.clone();
    cut[IP + 4..IP + 6].copy_from_slice(&24_u16.to_be_bytes());
    assert!(is_own(&cut, &sandbox()));
    // Half of the option.
    cut[IP + 4..IP + 6].copy_from_slice(&28_u16.to_be_bytes());
    assert!(!is_own(&cut, &sandbox()));
}

#[test]
fn discovery_behind_extension_headers_is_refused() {
    let message = |target| discovery(NA, Some(target));
    let chains =
        [vec![extension(HOP_BY_HOP, 1)], vec![extension(DESTINATION_OPTIONS, 2)], vec![fragment(0, false)]];
    for chain in chains {
        assert!(!is_own(&v6_with(&chain, protocol::ICMP_V6, &message(OWN)), &sandbox()));
        assert!(!is_own(&v6_with(&chain, protocol::ICMP_V6, &message(NEIGHBOUR)), &sandbox()));
    }
}

#[test]
fn discovery_stays_on_the_link() {
    let to = |dst: &str, target: &str| {
        let l4 = discovery(NS, Some(target));
        frame(&packet(OWN.parse().unwrap(), dst.parse().unwrap(), protocol::ICMP_V6, &l4))
    };
    assert!(is_own(&to("fe80::1", NEIGHBOUR), &sandbox()));
    assert!(is_own(&to(NEIGHBOUR, NEIGHBOUR), &sandbox()), "is that one still there?");
    assert!(!is_own(&to("2001:db8:198::10", NEIGHBOUR), &sandbox()), "nobody there could answer");
    let mut forwarded = to("ff02::1", NEIGHBOUR);
    forwarded[IP + 7] = 254;
    assert!(!is_own(&forwarded, &sandbox()));
}

#[test]
fn what_is_no_discovery_is_not_own() {
    for (name, frame) in valid_frames() {
        if let Ok((ethernet, packet)) = read_both(&frame)
            && !matches!(packet.kind, Kind::Neighbour)
        {
            assert!(!discovery_is_own(&frame.as_slice(), &packet, &ethernet, &sandbox()), "{name}");
        }
    }
}

// Addresses.

#[test]
fn a_sandbox_owns_what_it_was_attached_with() {
    let own = sandbox();
    for yes in ["10.11.0.2", OWN, LINK_LOCAL] {
        assert!(own.owns(addr(yes)), "{yes}");
    }
    for no in ["10.11.0.3", NEIGHBOUR, "fe80::1", "0.0.0.0", "::", "::ffff:0:0", "::10.11.0.2", "2001:db8::"]
    {
        assert!(!own.owns(addr(no)), "{no}");
    }
}

#[test]
fn only_the_counted_addresses_count() {
    let own = |addr_count| Sandbox { addr_count, ..sandbox() };
    assert!(!own(0).owns(V4.into()));
    assert!(own(1).owns(V4.into()) && !own(1).owns(V6.into()));
    // The unused places hold `::`; a count past their end is cut.
    assert!(!own(2).owns(Addr::UNSPECIFIED));
    assert!(!own(u32::MAX).owns(addr(NEIGHBOUR)));
}

#[test]
fn the_link_local_address_follows_from_a_known_mac() {
    assert_eq!(link_local(MAC), addr(LINK_LOCAL));
    assert_eq!(link_local([0, 0x11, 0x22, 0x33, 0x44, 0x55]), addr("fe80::211:22ff:fe33:4455"));
    let unknown = Sandbox { flags: 0, ..sandbox() };
    assert!(!unknown.owns(addr(LINK_LOCAL)));
}

#[test]
fn a_known_mac_is_compared_in_full() {
    let own = sandbox();
    assert!(own.owns_mac(MAC));
    for at in 0..6 {
        let mut other = MAC;
        other[at] ^= 1;
        assert!(!own.owns_mac(other), "byte {at}");
        assert!(Sandbox { flags: 0, ..sandbox() }.owns_mac(other));
    }
}

#[test]
fn any_address_is_any_address() {
    for any in ["198.51.100.1", "2001:db8:77::1", "fe80::77"] {
        assert!(sandbox_of_any_address().owns(addr(any)), "{any}");
    }
}
