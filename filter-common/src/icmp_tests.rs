use super::*;
use crate::fixtures::*;
use crate::ip::Version;
use crate::tcp::SYN;

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];
const SIDES: [Side; 2] = [Side::Sandbox, Side::Remote];
const TENANT: u32 = 7;

/// The other end's packet is what an end quotes.
fn other(side: Side) -> Side {
    match side {
        Side::Sandbox => Side::Remote,
        Side::Remote => Side::Sandbox,
    }
}

/// A frame that `side` sends.
fn sent_by(side: Side, version: Version, protocol: u8, l4: &[u8]) -> Vec<u8> {
    match side {
        Side::Sandbox => outward(version, protocol, l4),
        Side::Remote => inward(version, protocol, l4),
    }
}

fn number(version: Version, v4: u8, v6: u8) -> u8 {
    match version {
        Version::V4 => v4,
        Version::V6 => v6,
    }
}

/// An error of `side` about the packet in `frame`.
fn error(side: Side, version: Version, frame: &[u8]) -> Vec<u8> {
    sent_by(side, version, icmp_of(version), &icmp(number(version, 3, 1), &frame[IP..]))
}

fn quoted(frame: &[u8], from: Side) -> Option<FlowKey> {
    let error = read(frame).unwrap();
    assert_eq!(error.kind, Kind::IcmpError);
    quoted_flow(&frame, &error, from, TENANT)
}

/// What one end sends that belongs to a connection.
fn messages(version: Version) -> [(u8, Vec<u8>); 4] {
    [
        (protocol::TCP, tcp(4000, 443, SYN, b"data")),
        (protocol::UDP, udp(4000, 53, b"query")),
        (icmp_of(version), echo(number(version, 8, 128), 9)),
        (icmp_of(version), echo(number(version, 0, 129), 9)),
    ]
}

#[test]
fn an_error_is_about_the_connection_that_it_quotes() {
    for version in VERSIONS {
        for side in SIDES {
            for (protocol, l4) in messages(version) {
                let original = sent_by(other(side), version, protocol, &l4);
                let expected = FlowKey::of(TENANT, &read(&original).unwrap(), other(side));
                assert!(expected.is_some());
                let found = quoted(&error(side, version, &original), side);
                assert_eq!(found, expected, "{version:?} {side:?} {protocol}");
                assert_ne!(quoted(&error(side, version, &original), other(side)), expected);
            }
        }
    }
}

#[test]
fn every_type_of_error_quotes() {
    let original = |version| outward(version, protocol::UDP, &udp(4000, 53, b"query"));
    let types = [3, 11, 12].map(|n| (Version::V4, n)).into_iter();
    for (version, number) in types.chain([1, 2, 3, 4].map(|n| (Version::V6, n))) {
        let frame = inward(version, icmp_of(version), &icmp(number, &original(version)[IP..]));
        assert!(quoted(&frame, Side::Remote).is_some(), "{version:?} {number}");
    }
}

#[test]
fn a_router_on_the_way_may_send_it() {
    for (version, router) in [(Version::V4, "198.51.100.1"), (Version::V6, "2001:db8:5::1")] {
        let original = outward(version, protocol::UDP, &udp(4000, 53, b"query"));
        let message = icmp(number(version, 11, 3), &original[IP..]);
        let (sandbox, _) = ends(version);
        let frame = frame(&packet(router.parse().unwrap(), sandbox, icmp_of(version), &message));
        let expected = FlowKey::of(TENANT, &read(&original).unwrap(), Side::Sandbox);
        assert_eq!(quoted(&frame, Side::Remote), expected);
    }
}

#[test]
fn an_error_that_does_not_go_to_the_quoted_sender_is_forged() {
    for (version, elsewhere) in [(Version::V4, "198.51.100.1"), (Version::V6, "2001:db8:5::1")] {
        let original = inward(version, protocol::UDP, &udp(53, 4000, b"answer"));
        let message = icmp(number(version, 3, 1), &original[IP..]);
        let (sandbox, _) = ends(version);
        let frame = frame(&packet(sandbox, elsewhere.parse().unwrap(), icmp_of(version), &message));
        assert_eq!(quoted(&frame, Side::Sandbox), None, "{version:?}");
        // Quoting what it sent itself is no error about what it received.
        let own = outward(version, protocol::UDP, &udp(4000, 53, b"query"));
        assert_eq!(quoted(&error(Side::Sandbox, version, &own), Side::Sandbox), None, "{version:?}");
    }
}

#[test]
fn an_ipv6_error_is_about_no_ipv4_connection() {
    // The quoted packet is an IPv6 one, but its addresses are the mapped forms of an IPv4 connection's.
    let mapped = |text: &str| text.parse().unwrap();
    let (own, far) = (mapped("::ffff:10.11.0.2"), mapped("::ffff:203.0.113.9"));
    let quote = packet(far, own, protocol::UDP, &udp(53, 4000, b"answer"));
    let forged = frame(&packet(V6, far, protocol::ICMP_V6, &icmp(1, &quote)));
    assert_eq!(quoted(&forged, Side::Sandbox), None);
    let quote = packet(FAR_V6, own, protocol::UDP, &udp(53, 4000, b"answer"));
    let half_forged = frame(&packet(V6, FAR_V6, protocol::ICMP_V6, &icmp(1, &quote)));
    assert_eq!(quoted(&half_forged, Side::Sandbox), None);
}

#[test]
fn a_quote_is_of_the_errors_own_family() {
    for (outer, inner) in [(Version::V4, Version::V6), (Version::V6, Version::V4)] {
        let original = outward(inner, protocol::UDP, &udp(4000, 53, &[0; 40]));
        assert_eq!(quoted(&error(Side::Remote, outer, &original), Side::Remote), None);
    }
    // An echo of the other family's ICMP is no echo.
    for (version, protocol, l4) in
        [(Version::V4, protocol::ICMP_V6, echo(128, 9)), (Version::V6, protocol::ICMP, echo(8, 9))]
    {
        let original = outward(version, protocol, &l4);
        assert_eq!(quoted(&error(Side::Remote, version, &original), Side::Remote), None, "{version:?}");
    }
}

#[test]
fn quotes_that_belong_to_no_connection_are_refused() {
    for version in VERSIONS {
        let unreachable = icmp(number(version, 3, 1), &[0; 40]);
        for (protocol, l4) in [(47, vec![0; 24]), (132, vec![0; 24]), (icmp_of(version), unreachable)] {
            let original = outward(version, protocol, &l4);
            assert_eq!(quoted(&error(Side::Remote, version, &original), Side::Remote), None, "{protocol}");
        }
    }
}

#[test]
fn a_quoted_first_fragment_has_ports_and_a_later_one_has_none() {
    let l4 = udp(4000, 53, b"query");
    let quote =
        |fragment| quoted(&error(Side::Remote, Version::V4, &v4_with(&[], fragment, 17, &l4)), Side::Remote);
    assert!(quote(0x4000).is_some() && quote(MORE_FRAGMENTS).is_some());
    for later in [1, MORE_FRAGMENTS | 1, 0x1000, 0x1fff] {
        assert_eq!(quote(later), None, "{later:#x}");
    }
    for header in [fragment(0, true), fragment(3, false)] {
        let original = v6_with(&[header], protocol::UDP, &l4);
        assert_eq!(quoted(&error(Side::Remote, Version::V6, &original), Side::Remote), None);
    }
}

#[test]
fn quoted_options_are_stepped_over() {
    let options = [1, 1, 7, 7, 4, 0, 0, 0, 0, 0, 0, 0];
    let original = v4_with(&options, 0, protocol::UDP, &udp(4000, 53, b"query"));
    let key = quoted(&error(Side::Remote, Version::V4, &original), Side::Remote).unwrap();
    assert_eq!((u16::from_be(key.local_port()), u16::from_be(key.remote_port())), (4000, 53));
    for ihl in 0..5 {
        let mut lie = outward(Version::V4, protocol::UDP, &udp(4000, 53, b"query"));
        lie[IP] = 0x40 | ihl;
        assert_eq!(quoted(&error(Side::Remote, Version::V4, &lie), Side::Remote), None, "{ihl}");
    }
}

#[test]
fn a_truncated_quote_is_refused_even_where_padding_would_complete_it() {
    for version in VERSIONS {
        let original = outward(version, protocol::UDP, &udp(4000, 53, b"query"));
        let needed = original.len() - b"query".len();
        for len in IP..=original.len() {
            let frame = error(Side::Remote, version, &original[..len]);
            assert_eq!(quoted(&frame, Side::Remote).is_some(), len >= needed, "{version:?} {len}");
            let padded = [&frame[..], &original[len..], &[0; 8]].concat();
            assert_eq!(quoted(&padded, Side::Remote).is_some(), len >= needed, "{version:?} {len}, padded");
        }
    }
}
