//! What is idle for too long ends by itself: the count returns to 0 when a sandbox goes quiet.

use std::thread::sleep;
use std::time::{Duration, Instant};

use filter_common::Reason;
use filter_common::layout::{event_kind, sweep};
use filter_loader::kernel::Settings;

use crate::fixtures::frames::*;
use crate::fixtures::machine::Direction::{Forwarded, FromHost, Out};
use crate::fixtures::machine::{Machine, PATIENT, SHOT, UNSPEC};

const SHORT: Duration = Duration::from_millis(80);
/// Longer than `SHORT` by more than a tick, whatever the tick.
const LONGER: Duration = Duration::from_millis(120);
const LONG: Duration = Duration::from_secs(3600);

/// Only what is named is short.
fn machine(change: impl FnOnce(&mut Settings)) -> Machine {
    let mut settings = Settings { tcp_half_open: LONG, tcp_closing: LONG, udp: LONG, icmp: LONG, ..PATIENT };
    change(&mut settings);
    Machine::with(&settings)
}

/// Runs frames that pass; all of it stays, then goes after the short time.
fn assert_ends(
    machine: &mut Machine,
    frames: &[(crate::fixtures::machine::Direction, Frame)],
    inbound: bool,
) {
    for (direction, frame) in frames {
        assert_eq!(machine.run(*direction, &frame.bytes).action, UNSPEC);
    }
    machine.expire();
    let connections = |machine: &Machine| {
        let snapshot = machine.snapshot();
        (snapshot.egress.len(), snapshot.inbound.len(), snapshot.budget.active)
    };
    let expected = if inbound { (0, 1, 0) } else { (1, 0, 1) };
    assert_eq!(connections(machine), expected, "it is not idle yet");
    machine.events();
    sleep(LONGER);
    machine.expire();
    assert_eq!(connections(machine), (0, 0, 0), "it has been idle for too long");
    let events = machine.events();
    let [event] = events[..] else { panic!("one event expected: {events:#?}") };
    assert_eq!((event.kind, event.inbound), (event_kind::CLOSE, u8::from(inbound)));
    let (reason, total): (Reason, u64) = (
        if inbound { Reason::Reply } else { Reason::Default },
        frames.iter().map(|(_, frame)| frame.len()).sum(),
    );
    assert_eq!(event.reason, reason as u8);
    assert_eq!(event.bytes_out + event.bytes_in, total);
    assert!(event.opened < event.at);
}

#[test]
fn udp_by_its_timeout() {
    let mut machine = machine(|settings| settings.udp = SHORT);
    for family in Family::BOTH {
        let (a, b) = (here(family), there(family));
        assert_ends(&mut machine, &[(Out, udp(a, b, b"q")), (Forwarded, udp(b, a, b"answer"))], false);
        assert_ends(&mut machine, &[(FromHost, udp(b, a, b"q")), (Out, udp(a, b, b"answer"))], true);
    }
}

#[test]
fn icmp_by_its_timeout() {
    let mut machine = machine(|settings| settings.icmp = SHORT);
    for family in Family::BOTH {
        let (a, b) = (family.sandbox(), family.named());
        assert_ends(&mut machine, &[(Out, ping(a, b, 7)), (Forwarded, pong(b, a, 7))], false);
        assert_ends(&mut machine, &[(FromHost, ping(b, a, 7)), (Out, pong(a, b, 7))], true);
    }
}

#[test]
fn tcp_by_the_timeout_of_its_phase() {
    let family = Family::V4;
    let (a, b) = (here(family), there(family));
    let handshake =
        [(Out, tcp(a, b, SYN, b"")), (Forwarded, tcp(b, a, SYN_ACK, b"")), (Out, tcp(a, b, ACK, b""))];
    let closing = [&handshake[..], &[(Out, tcp(a, b, FIN_ACK, b""))]].concat();

    let mut half_open = machine(|settings| settings.tcp_half_open = SHORT);
    assert_ends(&mut half_open, &handshake[..1], false);
    assert_ends(&mut half_open, &handshake[..2], false);
    let mut established = machine(|settings| settings.tcp_established = SHORT);
    assert_ends(&mut established, &handshake, false);
    let mut closes = machine(|settings| settings.tcp_closing = SHORT);
    assert_ends(&mut closes, &closing, false);

    // And not by another's.
    for (machine, frames) in
        [(&mut half_open, &handshake[..]), (&mut established, &closing), (&mut closes, &handshake)]
    {
        for (direction, frame) in frames {
            machine.run(*direction, &frame.bytes);
        }
        sleep(LONGER);
        machine.expire();
        assert_eq!(machine.budget().active, 1, "{} segments", frames.len());
    }
}

#[test]
fn a_syn_flood_without_a_handshake_drains() {
    let machine = machine(|settings| settings.tcp_half_open = SHORT);
    for port in 1..=1000 {
        let far = std::net::SocketAddr::new(ip(NAMED_V4), port);
        machine.run(Out, &tcp(here(Family::V4), far, SYN, b"").bytes);
    }
    assert_eq!(machine.budget().active, 1000);
    sleep(LONGER);
    machine.expire();
    assert_eq!((machine.budget().active, machine.budget().peak), (0, 1000));
    assert!(machine.snapshot().egress.is_empty());
}

#[test]
fn packets_keep_a_connection_alive() {
    let machine = machine(|settings| settings.udp = Duration::from_millis(400));
    let frame = udp(here(Family::V4), there(Family::V4), b"x").bytes;
    for _ in 0..6 {
        assert_eq!(machine.run(Out, &frame).action, UNSPEC);
        sleep(Duration::from_millis(100));
        machine.expire();
        assert_eq!(machine.budget().active, 1);
    }
}

/// The port at the other end may have changed hands: what the sandbox says does not keep open what somebody
/// else began.
#[test]
fn the_sandbox_does_not_keep_others_exchanges_alive() {
    let machine = machine(|settings| settings.udp = Duration::from_millis(400));
    let (a, b) = (here(Family::V4), std::net::SocketAddr::new(ip(GATEWAY_V4), SERVER));
    assert_eq!(machine.run(FromHost, &udp(b, a, b"q").bytes).action, UNSPEC);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(600) {
        machine.run(Out, &udp(a, b, b"x").bytes);
        sleep(Duration::from_millis(50));
        machine.expire();
    }
    assert!(machine.snapshot().inbound.is_empty());
    assert_ne!(machine.run(Out, &udp(a, b, b"x").bytes).action, UNSPEC, "the host is guarded");
}

#[test]
fn last_words_come_late_to_nothing() {
    let machine = machine(|settings| settings.tcp_closing = SHORT);
    let (a, b) = (here(Family::V4), there(Family::V4));
    for (direction, frame) in [
        (Out, tcp(a, b, SYN, b"")),
        (Out, tcp(a, b, FIN_ACK, b"")),
        (Forwarded, tcp(b, a, FIN_ACK, b"")),
        (Forwarded, tcp(b, a, ACK, b"")),
    ] {
        assert_eq!(machine.run(direction, &frame.bytes).action, UNSPEC);
    }
    sleep(LONGER);
    assert_eq!(machine.run(Forwarded, &tcp(b, a, ACK, b"").bytes).action, SHOT);
    assert_eq!(machine.snapshot().count(Reason::Inbound).0, 1);
}

#[test]
fn the_timer_does_it_without_anybody_asking() {
    let mut machine = machine(|settings| (settings.udp, settings.tcp_half_open) = (SHORT, SHORT));
    assert_eq!(machine.sweep_shard([sweep::START, 0, 0, 0, 0]), sweep::DONE);
    for family in Family::BOTH {
        for port in 1..=40 {
            let far = std::net::SocketAddr::new(family.named(), port);
            machine.run(Out, &udp(here(family), far, b"x").bytes);
            machine.run(Out, &tcp(here(family), far, SYN, b"").bytes);
            machine.run(FromHost, &udp(far, here(family), b"x").bytes);
        }
    }
    assert_eq!(machine.budget().active, 160);
    let begun = Instant::now();
    while machine.budget().active > 0 && begun.elapsed() < Duration::from_secs(8) {
        sleep(Duration::from_millis(50));
    }
    assert_eq!(machine.budget().active, 0, "after {:?}", begun.elapsed());
    // Starting it again, as a daemon does that starts again, changes nothing.
    assert_eq!(machine.sweep_shard([sweep::START, 0, 0, 0, 0]), sweep::DONE);
    let closed = machine.events().iter().filter(|event| event.kind == event_kind::CLOSE).count();
    assert!(closed >= 160, "{closed}");
}
