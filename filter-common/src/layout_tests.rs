use core::net::Ipv4Addr;

use super::*;
use crate::fixtures::*;
use crate::ip::{Version, protocol};

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];

fn key(frame: &[u8], from: Side) -> FlowKey {
    FlowKey::of(7, &read(frame).unwrap(), from).unwrap()
}

fn echo_types(version: Version) -> (u8, u8) {
    match version {
        Version::V4 => (8, 0),
        Version::V6 => (128, 129),
    }
}

#[test]
fn both_directions_of_a_connection_have_one_key() {
    for version in VERSIONS {
        let (request, reply) = echo_types(version);
        let table = [
            (protocol::TCP, tcp(4000, 443, 2, b""), tcp(443, 4000, 0x12, b"")),
            (protocol::TCP, tcp(22, 4000, 0x12, b""), tcp(4000, 22, 2, b"")),
            (protocol::UDP, udp(4000, 53, b"query"), udp(53, 4000, b"answer")),
            (icmp_of(version), echo(request, 9), echo(reply, 9)),
            (icmp_of(version), echo(reply, 9), echo(request, 9)),
        ];
        for (number, out, back) in table {
            let out = key(&outward(version, number, &out), Side::Sandbox);
            let back = key(&inward(version, number, &back), Side::Remote);
            assert_eq!(out, back, "{version:?} {number}");
            let (local, remote) = ends(version);
            assert_eq!((out.local(), out.remote()), (local.into(), remote.into()));
            assert_eq!((out.protocol(), out.tenant()), (number, 7));
        }
    }
}

#[test]
fn a_key_has_the_ports_of_its_ends() {
    let segment = outward(Version::V4, protocol::TCP, &tcp(4000, 443, 2, b""));
    let (out, back) = (key(&segment, Side::Sandbox), key(&segment, Side::Remote));
    assert_eq!((u16::from_be(out.local_port()), u16::from_be(out.remote_port())), (4000, 443));
    assert_eq!((u16::from_be(back.local_port()), u16::from_be(back.remote_port())), (443, 4000));
    assert_ne!(out, back);
}

#[test]
fn an_echo_of_the_sandbox_is_never_one_of_the_remote() {
    for version in VERSIONS {
        let (request, reply) = echo_types(version);
        let of = |number, id, side| {
            let build = if side == Side::Sandbox { outward } else { inward };
            key(&build(version, icmp_of(version), &echo(number, id)), side)
        };
        for id in [0, 1, 0x100, u16::MAX] {
            for asked_by_sandbox in [of(request, id, Side::Sandbox), of(reply, id, Side::Remote)] {
                for id in [0, 1, 0x100, u16::MAX] {
                    assert_ne!(asked_by_sandbox, of(request, id, Side::Remote), "{version:?}");
                    assert_ne!(asked_by_sandbox, of(reply, id, Side::Sandbox), "{version:?}");
                }
            }
        }
    }
}

#[test]
fn whatever_tells_connections_apart_is_in_the_key() {
    let packet = read(&outward(Version::V4, protocol::UDP, &udp(4000, 53, b""))).unwrap();
    let of = |tenant, packet: &Packet| FlowKey::of(tenant, packet, Side::Sandbox).unwrap();
    let others = [
        Packet { src: addr("10.11.0.3"), ..packet },
        Packet { dst: addr("203.0.113.10"), ..packet },
        Packet { src_port: 4001_u16.to_be(), ..packet },
        Packet { dst_port: 54_u16.to_be(), ..packet },
        Packet { kind: Kind::Tcp, protocol: protocol::TCP, ..packet },
    ];
    for other in others {
        assert_ne!(of(7, &packet), of(7, &other), "{other:?}");
    }
    assert_ne!(of(7, &packet), of(8, &packet), "another sandbox's");
}

#[test]
fn kinds_without_connections_have_no_key() {
    for (name, frame) in valid_frames() {
        let packet = read(&frame).unwrap();
        let has = matches!(packet.kind, Kind::Tcp | Kind::Udp | Kind::EchoRequest | Kind::EchoReply);
        for side in [Side::Sandbox, Side::Remote] {
            assert_eq!(FlowKey::of(7, &packet, side).is_some(), has, "{name}");
        }
    }
}

#[test]
fn a_policy_word_holds_slot_and_generation() {
    for (slot, generation) in [(0, 0), (1, 2), (u32::MAX, 0), (0, u32::MAX), (MAX_POLICIES - 1, u32::MAX)] {
        let word = PolicyWord::from_bits(PolicyWord::new(slot, generation).bits());
        assert_eq!((word.slot(), word.generation()), (slot, generation));
    }
    assert_eq!(PolicyWord::default().generation(), 0);
}

/// Connections as a client opens them, one port after the other to one destination or one port to one
/// destination after the other, fill all sets alike, whatever the seed, and no two have the same tag.
#[test]
fn connections_spread_over_the_sets() {
    let ends = |port: u16, remote: u32| Ends {
        src: Ipv4Addr::new(10, 0, 0, 2).into(),
        dst: Ipv4Addr::from(0xcb00_7100 + remote).into(),
        kind: Kind::Tcp,
        protocol: 6,
        src_port: port.to_be(),
        dst_port: 443_u16.to_be(),
    };
    for start in [0x9e37_79b9_7f4a_7c15_u64, 0x0123_4567_89ab_cdef] {
        let mut state = start;
        let odd = core::array::from_fn(|_| {
            state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(start);
            (state ^ state >> 32) | 1
        });
        let seed = FlowSeed { odd };
        let mut parts = vec![0_u32; 512];
        let mut tags = std::collections::HashSet::new();
        for n in 0..32_000_u16 {
            for ends in [ends(32_768 + n, 9), ends(40_000, 100 + u32::from(n))] {
                let key = FlowKey::between(7, &ends, Side::Sandbox).unwrap();
                let spot = key.spot(&seed);
                parts[(spot.set / (FLOW_SETS / 512)) as usize] += 1;
                assert!(spot.tag & tag::OWN == tag::USED && tags.insert(spot.tag));
            }
        }
        let mean = 64_000 / 512;
        assert!(parts.iter().all(|count| (mean / 2..mean * 2).contains(count)), "{seed:?}: {parts:?}");
    }
}
