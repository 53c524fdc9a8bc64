use super::*;
use crate::fixtures::*;
use crate::ip::Version;
use crate::{Addr, Decision, tcp};

const KINDS: [Kind; 9] = [
    Kind::Tcp,
    Kind::Udp,
    Kind::EchoRequest,
    Kind::EchoReply,
    Kind::IcmpError,
    Kind::Neighbour,
    Kind::MulticastListener,
    Kind::LaterFragment,
    Kind::Other,
];

/// A packet of the sandbox to somebody far away, with nothing but a kind.
fn of_kind(kind: Kind) -> Packet {
    let protocol = match kind {
        Kind::Tcp => protocol::TCP,
        Kind::Udp | Kind::LaterFragment => protocol::UDP,
        Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError => protocol::ICMP,
        Kind::Neighbour | Kind::MulticastListener => protocol::ICMP_V6,
        Kind::Other => 47,
    };
    Packet {
        src: V4.into(),
        dst: FAR_V4.into(),
        kind,
        protocol,
        src_port: 0,
        dst_port: 0,
        flags: if kind == Kind::Tcp { tcp::SYN } else { 0 },
        seq: 0,
        ack: 0,
        l4: 34,
        l4_len: 20,
        payload: 0,
        mapped_destination: false,
    }
}

fn rule(class: Class) -> RuleWord {
    RuleWord::new(class, 3)
}

// The verdict.

#[test]
fn every_class_and_kind_has_its_reason() {
    use Reason::{AllowedCidr, Default, DeniedCidr, Fragment, Guarded, Protocol};
    let classes = [Class::Guarded, Class::Allowed, Class::Denied, Class::Unmatched];
    let table = [
        (Kind::Tcp, [Guarded, AllowedCidr, DeniedCidr, Default]),
        (Kind::Udp, [Guarded, AllowedCidr, DeniedCidr, Default]),
        (Kind::EchoRequest, [Guarded, AllowedCidr, DeniedCidr, Default]),
        (Kind::EchoReply, [Guarded, Protocol, Protocol, Protocol]),
        (Kind::IcmpError, [Guarded, Protocol, Protocol, Protocol]),
        (Kind::Neighbour, [Guarded, Protocol, Protocol, Protocol]),
        (Kind::MulticastListener, [Guarded, Protocol, Protocol, Protocol]),
        (Kind::LaterFragment, [Guarded, AllowedCidr, Fragment, Fragment]),
        (Kind::Other, [Guarded, Protocol, Protocol, Protocol]),
    ];
    assert_eq!(table.map(|(kind, _)| kind), KINDS);
    for (kind, reasons) in table {
        for (class, expected) in classes.into_iter().zip(reasons) {
            assert_eq!(judge(&of_kind(kind), rule(class)), expected, "{kind:?} {class:?}");
        }
    }
}

#[test]
fn a_later_fragment_of_another_protocol_is_protocol() {
    let later = |version, number| {
        let (src, dst) = ends(version);
        Packet { src: src.into(), dst: dst.into(), protocol: number, ..of_kind(Kind::LaterFragment) }
    };
    let carried = |version| [protocol::TCP, protocol::UDP, icmp_of(version)];
    for version in [Version::V4, Version::V6] {
        for number in 0..=255 {
            let packet = later(version, number);
            let known = carried(version).contains(&number);
            let (allowed, otherwise) = if known {
                (Reason::AllowedCidr, Reason::Fragment)
            } else {
                (Reason::Protocol, Reason::Protocol)
            };
            assert_eq!(judge(&packet, rule(Class::Allowed)), allowed, "{version:?} {number}");
            assert_eq!(judge(&packet, rule(Class::Denied)), otherwise, "{version:?} {number}");
            assert_eq!(judge(&packet, RuleWord::UNMATCHED), otherwise, "{version:?} {number}");
            assert_eq!(judge(&packet, rule(Class::Guarded)), Reason::Guarded, "{version:?} {number}");
        }
    }
}

#[test]
fn a_mapped_destination_is_guarded_whatever_the_rule() {
    for kind in KINDS {
        let packet = Packet { mapped_destination: true, ..of_kind(kind) };
        for class in [Class::Unmatched, Class::Allowed, Class::Denied, Class::Guarded] {
            assert_eq!(judge(&packet, rule(class)), Reason::Guarded, "{kind:?} {class:?}");
        }
    }
}

#[test]
fn a_rule_that_cannot_be_read_guards() {
    for bits in [8_u32 << 28, 9 << 28, u32::MAX] {
        assert_eq!(judge(&of_kind(Kind::Tcp), RuleWord::from_bits(bits)), Reason::Guarded);
        assert!(!is_punted(&of_kind(Kind::Tcp), RuleWord::from_bits(bits), |_| true));
        assert!(!permits(rule(Class::Named), RuleWord::from_bits(bits)));
    }
}

#[test]
fn an_open_connection_stays_open_where_a_new_one_would_be_let_through() {
    for class in [Class::Unmatched, Class::Allowed, Class::Denied, Class::Guarded] {
        let fresh = judge(&of_kind(Kind::Tcp), rule(class));
        assert_eq!(
            permits(rule(Class::Allowed), rule(class)),
            fresh.decision() == Decision::Allow,
            "{class:?}"
        );
        assert_eq!(reason_of(rule(class)), fresh, "{class:?}");
    }
}

// The punt.

#[test]
fn what_a_name_may_allow_goes_to_the_inspector_and_nothing_else() {
    let web = |port: u16| port == 443_u16.to_be();
    let to = |kind, port: u16| Packet { dst_port: port.to_be(), ..of_kind(kind) };
    let punted = |packet: &Packet, class| is_punted(packet, rule(class), web);
    assert!(punted(&to(Kind::Tcp, 443), Class::Inspected) && punted(&to(Kind::Tcp, 443), Class::Resolver));
    assert!(punted(&to(Kind::Tcp, 53), Class::Resolver) && punted(&to(Kind::Udp, 53), Class::Resolver));
    // QUIC, other ports, DNS elsewhere, DNS over TLS.
    for (kind, port) in [(Kind::Udp, 443), (Kind::Tcp, 22), (Kind::Tcp, 53), (Kind::Udp, 53)] {
        assert!(!punted(&to(kind, port), Class::Inspected), "{kind:?} {port}");
    }
    for (kind, port) in [(Kind::Udp, 443), (Kind::Tcp, 853), (Kind::Udp, 853), (Kind::Udp, 5353)] {
        assert!(!punted(&to(kind, port), Class::Resolver), "{kind:?} {port}");
    }
    for class in [Class::Unmatched, Class::Allowed, Class::Denied, Class::Guarded, Class::Named] {
        for kind in KINDS {
            assert!(!punted(&to(kind, 443), class) && !punted(&to(kind, 53), class), "{kind:?} {class:?}");
        }
    }
    for kind in KINDS.into_iter().filter(|kind| !matches!(kind, Kind::Tcp | Kind::Udp)) {
        assert!(!is_punted(&to(kind, 443), rule(Class::Resolver), |_| true), "{kind:?}");
    }
    let mapped = Packet { mapped_destination: true, ..to(Kind::Tcp, 443) };
    assert!(!punted(&mapped, Class::Inspected));
}

#[test]
fn what_is_not_punted_is_denied_as_if_there_were_no_names() {
    for class in [Class::Inspected, Class::Resolver] {
        assert_eq!(judge(&of_kind(Kind::Udp), rule(class)), Reason::DeniedCidr);
        assert_eq!(judge(&of_kind(Kind::LaterFragment), rule(class)), Reason::Fragment);
        assert_eq!(rule(class).without_names(), rule(Class::Denied));
    }
}

#[test]
fn an_inspected_connection_stays_with_the_inspector_and_no_other_gets_there() {
    use Class::{Allowed, Denied, Guarded, Inspected, Named, Resolver, Unmatched};
    for (held, now, stays) in [
        (Inspected, Inspected, true),
        (Named, Inspected, true),
        (Named, Resolver, true),
        (Named, Allowed, true),
        (Named, Unmatched, true),
        (Named, Denied, false),
        (Named, Guarded, false),
        (Resolver, Resolver, true),
        (Resolver, Allowed, true),
        (Resolver, Inspected, false),
        (Resolver, Denied, false),
        (Allowed, Inspected, false),
        (Allowed, Resolver, false),
        (Unmatched, Inspected, false),
    ] {
        assert_eq!(permits(rule(held), rule(now)), stays, "{held:?} {now:?}");
    }
    assert_eq!(held_under(rule(Named), rule(Allowed)), rule(Named));
    assert_eq!(held_under(rule(Allowed), rule(Unmatched)), rule(Unmatched));
}

// The refusal.

#[test]
fn every_kind_has_its_refusal() {
    use Refusal::{Reset, Silence, Unreachable};
    let told = [
        Reason::Guarded,
        Reason::Protocol,
        Reason::Fragment,
        Reason::DeniedCidr,
        Reason::ConnectionLimit,
        Reason::Capacity,
        Reason::Revoked,
        Reason::InspectorDown,
    ];
    let silent = [Reason::Malformed, Reason::Spoofed, Reason::NeighbourClaim, Reason::Inbound];
    let table = [
        (Kind::Tcp, Reset),
        (Kind::Udp, Unreachable),
        (Kind::EchoRequest, Unreachable),
        (Kind::EchoReply, Unreachable),
        (Kind::IcmpError, Silence),
        (Kind::Neighbour, Silence),
        (Kind::MulticastListener, Silence),
        (Kind::LaterFragment, Silence),
        (Kind::Other, Unreachable),
    ];
    assert_eq!(table.map(|(kind, _)| kind), KINDS);
    for (kind, expected) in table {
        for reason in told {
            assert_eq!(refusal(&of_kind(kind), reason), expected, "{kind:?} {reason:?}");
        }
        for reason in silent {
            assert_eq!(refusal(&of_kind(kind), reason), Silence, "{kind:?} {reason:?}");
        }
    }
}

#[test]
fn a_reset_is_never_answered() {
    for flags in [tcp::RST, tcp::RST | tcp::ACK, tcp::RST | tcp::FIN] {
        let packet = Packet { flags, ..of_kind(Kind::Tcp) };
        assert_eq!(refusal(&packet, Reason::DeniedCidr), Refusal::Silence);
    }
    for flags in [tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK, tcp::FIN] {
        let packet = Packet { flags, ..of_kind(Kind::Tcp) };
        assert_eq!(refusal(&packet, Reason::DeniedCidr), Refusal::Reset);
    }
}

#[test]
fn odd_icmp_is_not_answered_in_either_family() {
    for number in [protocol::ICMP, protocol::ICMP_V6] {
        let packet = Packet { protocol: number, ..of_kind(Kind::Other) };
        assert_eq!(refusal(&packet, Reason::Protocol), Refusal::Silence);
    }
}

#[test]
fn nothing_is_sent_for_many_or_for_a_mapped_destination() {
    for kind in KINDS {
        for dst in ["224.0.0.251", "255.255.255.255", "ff02::fb"] {
            let packet = Packet { dst: addr(dst), ..of_kind(kind) };
            assert_eq!(refusal(&packet, Reason::Guarded), Refusal::Silence, "{kind:?} {dst}");
        }
        let packet = Packet { mapped_destination: true, ..of_kind(kind) };
        assert_eq!(refusal(&packet, Reason::Guarded), Refusal::Silence, "{kind:?}");
    }
}

// Identity.

fn datagram(src: &str, src_port: u16, dst_port: u16) -> Packet {
    let src = addr(src);
    Packet { src, src_port: src_port.to_be(), dst_port: dst_port.to_be(), ..of_kind(Kind::Udp) }
}

#[test]
fn a_source_is_one_of_the_sandboxs_addresses() {
    for own in ["10.11.0.2", "2001:db8::2", "fe80::aa:bbff:fe00:1"] {
        assert_eq!(identity(&datagram(own, 4000, 53), &sandbox()), Ok(()), "{own}");
    }
    for other in ["10.11.0.3", "10.11.0.1", "127.0.0.1", "203.0.113.9", "2001:db8::3", "fe80::1", "::1"] {
        assert_eq!(identity(&datagram(other, 4000, 53), &sandbox()), Err(Reason::Spoofed), "{other}");
    }
}

#[test]
fn every_kind_but_listener_reports_is_checked() {
    for kind in KINDS {
        let packet = Packet { src: addr("10.11.0.3"), ..of_kind(kind) };
        let expected = if kind == Kind::MulticastListener { Reason::Protocol } else { Reason::Spoofed };
        assert_eq!(identity(&packet, &sandbox()), Err(expected), "{kind:?}");
        let own = identity(&of_kind(kind), &sandbox());
        assert_eq!(own.is_ok(), kind != Kind::MulticastListener, "{kind:?}");
    }
}

#[test]
fn nobody_and_many_are_no_source_even_of_any_address() {
    for sandbox in [sandbox(), sandbox_of_any_address()] {
        for src in ["0.0.0.0", "::", "224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1", "ff0e::1"]
        {
            assert_eq!(identity(&datagram(src, 4000, 53), &sandbox), Err(Reason::Spoofed), "{src}");
        }
    }
    // A listed address does not make it one either.
    let mut listed = sandbox();
    (listed.addrs[0], listed.addrs[1]) = (Addr::UNSPECIFIED, addr("ff02::1"));
    for src in ["::", "ff02::1"] {
        assert_eq!(identity(&datagram(src, 4000, 53), &listed), Err(Reason::Spoofed), "{src}");
    }
}

#[test]
fn any_address_is_any_source() {
    for src in ["10.99.0.1", "2001:db8:77::1", "fe80::77"] {
        assert_eq!(identity(&datagram(src, 4000, 53), &sandbox_of_any_address()), Ok(()), "{src}");
    }
}

#[test]
fn a_dhcp_server_is_a_claim() {
    let claim = Err(Reason::NeighbourClaim);
    let (v4, v6) = ("10.11.0.2", "2001:db8::2");
    let table = [
        (v4, 67, 68, claim),
        (v4, 67, 67, claim),
        (v4, 67, 4000, claim),
        // Clients look at the port that an answer comes to, not at the one that it comes from.
        (v4, 4000, 68, claim),
        (v4, 68, 67, Ok(())),
        (v4, 547, 546, Ok(())),
        (v6, 547, 546, claim),
        (v6, 547, 547, claim),
        (v6, 4000, 546, claim),
        (v6, 546, 547, Ok(())),
        (v6, 67, 68, Ok(())),
    ];
    for (src, src_port, dst_port, expected) in table {
        for sandbox in [sandbox(), sandbox_of_any_address()] {
            let found = identity(&datagram(src, src_port, dst_port), &sandbox);
            assert_eq!(found, expected, "{src} {src_port} -> {dst_port}");
        }
        let segment = Packet { kind: Kind::Tcp, ..datagram(src, src_port, dst_port) };
        assert_eq!(identity(&segment, &sandbox()), Ok(()), "DHCP is UDP");
    }
    assert_eq!(identity(&datagram("10.11.0.3", 67, 68), &sandbox()), Err(Reason::Spoofed));
}
