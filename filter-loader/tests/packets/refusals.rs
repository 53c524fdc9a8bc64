//! Refusals: right for whatever is refused, and not more of them than the host can bear.

use std::net::SocketAddr;
use std::time::Duration;

use filter_common::Reason;
use filter_common::layout::event_kind;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::fixtures::answer::{assert_reset, assert_unreachable};
use crate::fixtures::frames::*;
use crate::fixtures::machine::Direction::Out;
use crate::fixtures::machine::{Machine, REDIRECT, SHOT, SLOT, Tenant, UNSPEC};
use crate::fixtures::policies::Document;

/// The checksums are computed from what the segment's was; so try many.
#[test]
fn answers_to_random_packets_are_sound() {
    let mut machine = Machine::new();
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..4000 {
        if round % 1000 == 0 {
            machine.enter(&Tenant::ORDINARY, Document::Denied);
        }
        let family = if random.random() { Family::V4 } else { Family::V6 };
        let base = if family == Family::V4 { ip("203.0.113.0") } else { ip("2001:db8:a::") };
        let far = match base {
            std::net::IpAddr::V4(addr) => (addr.to_bits() | random.random_range(0..256)).to_be_bytes().into(),
            std::net::IpAddr::V6(addr) => {
                let host: u128 = random.random::<u128>() & (u128::MAX >> 48);
                std::net::Ipv6Addr::from_bits(addr.to_bits() | host).into()
            }
        };
        let src = SocketAddr::new(family.sandbox(), random.random());
        let dst = SocketAddr::new(far, random.random());
        let payload: Vec<u8> = (0..random.random_range(0..64)).map(|_| random.random()).collect();
        let flags = [SYN, SYN_ACK, ACK, PSH_ACK, FIN_ACK, 1][random.random_range(0..6)];
        let segment = tcp_at(src, dst, flags, (random.random(), random.random()), &payload);
        let garbled: [u8; 2] = random.random();
        let segment =
            if random.random_bool(0.2) { segment.poke(family.pick(20, 40) + 16, &garbled) } else { segment };
        let ran = machine.run(Out, &segment.bytes);
        assert_eq!(ran.action, REDIRECT, "{segment:?}");
        assert_reset(&segment.bytes, &ran.frame);

        // A client's port to a DHCP server is refused as a claim, without an answer.
        let src = SocketAddr::new(src.ip(), src.port().max(1024));
        let dst = SocketAddr::new(dst.ip(), dst.port().max(1024));
        let datagram = udp(src, dst, &payload);
        let ran = machine.run(Out, &datagram.bytes);
        // More than may be told in a window is more than may be refused at some point.
        if ran.action == REDIRECT {
            assert_unreachable(&datagram.bytes, &ran.frame);
        } else {
            assert_eq!(ran.action, SHOT);
        }
    }
}

/// The limits of `throttle.rs`, in a window of 100 ms. A window may end in the middle of the test, so up to
/// as many windows as the test takes are allowed.
#[test]
fn a_flood_is_counted_in_full_and_answered_in_part() {
    const SENT: u64 = 12_000;
    const REFUSALS: u64 = 2000;
    const DENIALS: u64 = 200;
    let mut machine = Machine::new();
    machine.enter(&Tenant::ORDINARY, Document::Denied);
    let frame = tcp(here(Family::V4), there(Family::V4), SYN, b"");
    let begun = std::time::Instant::now();
    let (mut answered, mut dropped) = (0, 0);
    for _ in 0..SENT {
        match machine.run(Out, &frame.bytes).action {
            REDIRECT => answered += 1,
            SHOT => dropped += 1,
            other => panic!("action {other}"),
        }
    }
    let windows = u64::try_from(begun.elapsed().as_millis()).unwrap() / 100 + 2;
    let snapshot = machine.snapshot();
    assert_eq!(snapshot.count(Reason::DeniedCidr), (SENT, SENT * frame.len()), "every one is counted");
    assert_eq!(answered + dropped, SENT);
    assert!(
        answered >= REFUSALS && answered <= REFUSALS * windows,
        "{answered} answers in {windows} windows"
    );
    let told = machine.events().len() as u64;
    assert!(told >= DENIALS && told <= DENIALS * windows, "{told} events in {windows} windows");
    assert_eq!(told + snapshot.untold, SENT, "what is not told is counted");
    assert_eq!(snapshot.lost, 0);
    assert_eq!(machine.snapshot_of(SLOT + 1).untold, 0);
}

#[test]
fn a_full_ring_of_events_loses_events_and_no_verdicts() {
    // 4 MiB of 88 bytes and a header of 8: a good 43,000. One sandbox is told so many of in some tenths of a
    // second only, however fast the machine is.
    const MOST_ROUNDS: u64 = 2_000_000;
    let mut machine = Machine::new();
    let (a, b) = (here(Family::V4), there(Family::V4));
    let (begin, end) = (tcp(a, b, SYN, b"").bytes, tcp(a, b, RST, b"").bytes);
    let mut rounds = 0;
    while rounds % 1000 != 0 || machine.snapshot_of_nobody().lost == 0 {
        assert!(rounds < MOST_ROUNDS, "the ring was never full");
        assert_eq!(machine.run(Out, &begin).action, -1);
        assert_eq!(machine.run(Out, &end).action, -1);
        rounds += 1;
    }
    let snapshot = machine.snapshot();
    let missing = snapshot.lost + snapshot.untold;
    assert_eq!(machine.events().len() as u64 + missing, 2 * rounds, "what is lost or held back is counted");
    assert_eq!(snapshot.count(Reason::Default).0, 2 * rounds);
    assert_eq!((snapshot.budget.active, snapshot.egress.len()), (0, 0));
}

/// A sandbox that begins and ends connections as fast as it can does not fill the ring that all share.
#[test]
fn connections_are_told_up_to_a_limit_and_the_rest_are_counted() {
    const MANY: u32 = 20_000;
    let mut machine = Machine::new();
    machine.used = true;
    for number in 0..MANY {
        // As if the others were somebody else's.
        if number % 2000 == 0 {
            machine.set_budget(0);
        }
        let port = u16::try_from(10_000 + number).unwrap();
        let frame = udp(SocketAddr::new(ip(SANDBOX_V4), port), there(Family::V4), b"x");
        assert_eq!(machine.run(Out, &frame.bytes).action, UNSPEC);
    }
    machine.events();
    let before = machine.snapshot();
    assert_eq!(before.egress.len(), MANY as usize);
    // On a fast machine all of them began in one window, and nothing more would be told in it.
    std::thread::sleep(Duration::from_millis(150));
    machine.forget(machine.tenant);
    let told = machine.events().iter().filter(|event| event.kind == event_kind::CLOSE).count() as u64;
    let after = machine.snapshot();
    assert!(after.egress.is_empty());
    // It takes less than a window, but for one that ends meanwhile.
    assert!((1..=12_000).contains(&told), "{told} of {MANY} are told");
    assert_eq!(told + after.untold - before.untold, u64::from(MANY), "what is not told is counted");
    assert_eq!((after.lost, machine.snapshot_of(SLOT + 1).untold), (before.lost, 0));
}
