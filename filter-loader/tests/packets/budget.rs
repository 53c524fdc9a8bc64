//! The count of connections: exact, each sandbox's own, never of what was denied.

use std::net::SocketAddr;

use filter_common::Reason;
use filter_common::ip::Kind;
use filter_common::layout::{Ends, FLOW_WAYS, FlowKey, INBOUND_LIMIT, event_kind};
use filter_common::tcp::Side;
use filter_loader::kernel::Settings;

use crate::fixtures::frames::*;
use crate::fixtures::machine::Direction::{Forwarded, FromHost, Out};
use crate::fixtures::machine::{Machine, PATIENT, REDIRECT, SHOT, SLOT, Tenant, UNSPEC};
use crate::fixtures::policies::Document;

fn far(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(family.named(), port)
}

#[test]
fn the_one_over_the_limit_is_refused_until_another_ends() {
    let mut machine = Machine::new();
    for family in Family::BOTH {
        machine.enter(&Tenant::ORDINARY, Document::Three);
        machine.used = true;
        let syn = |port| tcp(here(family), far(family, port), SYN, b"").bytes;
        for port in 1..=3 {
            assert_eq!(machine.run(Out, &syn(port)).action, UNSPEC);
        }
        for _ in 0..5 {
            assert_eq!(machine.run(Out, &syn(4)).action, REDIRECT);
        }
        assert_eq!((machine.budget().active, machine.budget().peak, machine.budget().refused), (3, 3, 5));
        assert_eq!(machine.snapshot().count(Reason::ConnectionLimit).0, 5);
        // What comes from the host is not held against it, and what it answers neither.
        assert_eq!(machine.run(FromHost, &tcp(far(family, 9), here(family), SYN, b"").bytes).action, UNSPEC);
        assert_eq!(machine.run(Out, &tcp(here(family), far(family, 9), SYN_ACK, b"").bytes).action, UNSPEC);

        let reset = tcp(far(family, 2), here(family), RST, b"").bytes;
        assert_eq!(machine.run(Forwarded, &reset).action, UNSPEC);
        assert_eq!(machine.budget().active, 2);
        assert_eq!(machine.run(Out, &syn(4)).action, UNSPEC);
        assert_eq!(machine.run(Out, &syn(5)).action, REDIRECT);
        assert_eq!((machine.budget().active, machine.budget().peak, machine.budget().refused), (3, 3, 6));
    }
}

/// A policy may allow more than the host gives a sandbox of the room that all share. That is not the budget.
#[test]
fn the_ceiling_of_the_host_holds_whatever_the_policy_says() {
    let mut machine = Machine::with(&Settings { egress_ceiling: 5, ..PATIENT });
    for family in Family::BOTH {
        machine.enter(&Tenant::ORDINARY, Document::Empty);
        machine.used = true;
        let syn = |port| tcp(here(family), far(family, port), SYN, b"");
        for port in 1..=5 {
            assert_eq!(machine.run(Out, &syn(port).bytes).action, UNSPEC);
        }
        machine.events();
        assert_eq!(machine.run(Out, &syn(6).bytes).action, REDIRECT, "refused at once, not dropped");
        let snapshot = machine.snapshot();
        assert_eq!((snapshot.budget.active, snapshot.budget.refused), (5, 0));
        assert_eq!(snapshot.count(Reason::Capacity), (1, syn(6).len()));
        assert_eq!(snapshot.count(Reason::ConnectionLimit), (0, 0));
        let [event] = machine.events()[..] else { panic!("one event") };
        assert_eq!((event.kind, event.reason), (event_kind::DENY, Reason::Capacity as u8));
        // Below the ceiling it is the policy's limit that counts, with its own reason.
        machine.adopt(Document::Three);
        assert_eq!(machine.run(Out, &syn(6).bytes).action, REDIRECT);
        assert_eq!(machine.snapshot().count(Reason::ConnectionLimit).0, 1);
        // Another connection's end makes room.
        machine.adopt(Document::Empty);
        let reset = tcp(far(family, 2), here(family), RST, b"").bytes;
        assert_eq!(machine.run(Forwarded, &reset).action, UNSPEC);
        assert_eq!(machine.run(Out, &syn(6).bytes).action, UNSPEC);
    }
}

#[test]
fn two_thousand_five_hundred_and_no_more() {
    let mut machine = Machine::new();
    machine.used = true;
    let syn = |port| tcp(here(Family::V4), far(Family::V4, port), SYN, b"").bytes;
    for port in 1..=2500 {
        assert_eq!(machine.run(Out, &syn(port)).action, UNSPEC, "connection {port}");
    }
    for port in 2501..2600 {
        assert_eq!(machine.run(Out, &syn(port)).action, REDIRECT, "connection {port}");
    }
    let snapshot = machine.snapshot();
    assert_eq!((snapshot.egress.len(), snapshot.budget.active, snapshot.budget.peak), (2500, 2500, 2500));
    assert_eq!(snapshot.budget.refused, 99);
    machine.forget(machine.tenant);
    assert_eq!((machine.budget().active, machine.snapshot().egress.len()), (0, 0));
    let closed = machine.events().iter().filter(|event| event.kind == event_kind::CLOSE).count();
    assert_eq!(closed, 2500, "each is told");
}

#[test]
fn what_is_denied_never_counts() {
    let mut machine = Machine::new();
    machine.enter(&Tenant::ORDINARY, Document::Denied);
    for family in Family::BOTH {
        for port in 1000..1300 {
            machine.run(Out, &tcp(here(family), far(family, port), SYN, b"").bytes);
            machine.run(Out, &udp(here(family), far(family, port), b"x").bytes);
            machine.run(Out, &ping(family.sandbox(), family.named(), port).bytes);
        }
    }
    let snapshot = machine.snapshot();
    assert_eq!((snapshot.budget.active, snapshot.budget.peak, snapshot.budget.refused), (0, 0, 0));
    assert!(snapshot.egress.is_empty() && snapshot.inbound.is_empty());
    assert_eq!(snapshot.count(Reason::DeniedCidr).0, 6 * 300);
}

#[test]
fn one_conversation_is_one_place_whoever_speaks() {
    let mut machine = Machine::new();
    machine.used = true;
    let (a, b) = (here(Family::V4), there(Family::V4));
    for _ in 0..50 {
        machine.run(Out, &udp(a, b, b"question").bytes);
        machine.run(Forwarded, &udp(b, a, b"answer").bytes);
        machine.run(Out, &ping(a.ip(), b.ip(), 7).bytes);
        machine.run(Forwarded, &pong(b.ip(), a.ip(), 7).bytes);
    }
    assert_eq!((machine.budget().active, machine.budget().peak), (2, 2));
    let snapshot = machine.snapshot();
    let (_, flow) = snapshot.egress.values().find(|(key, _)| key.protocol() == 17).unwrap();
    let frame = |payload: &[u8]| udp(a, b, payload).len();
    assert_eq!((flow.bytes_out, flow.bytes_in), (50 * frame(b"question"), 50 * frame(b"answer")));
}

/// The places of a set can all be taken before any sandbox's budget is. Whoever comes then is refused with a
/// reason of its own, and its place in the budget is given back.
#[test]
fn a_full_set_refuses_with_capacity_and_gives_the_place_back() {
    const SET: u32 = 17;
    let mut machine = Machine::new();
    machine.used = true;
    let seed = machine.flow_seed();
    let mut opened = 0;
    let mut refused = None;
    let candidates = (0..=u8::MAX).flat_map(|last| (1..=u16::MAX).map(move |port| (port, last)));
    for (port, last) in candidates {
        let remote = SocketAddr::new(ip(&format!("203.0.113.{last}")), SERVER);
        let local = SocketAddr::new(ip(SANDBOX_V4), port);
        let ends = Ends {
            src: local.ip().into(),
            dst: remote.ip().into(),
            kind: Kind::Tcp,
            protocol: 6,
            src_port: port.to_be(),
            dst_port: SERVER.to_be(),
        };
        let key = FlowKey::between(machine.tenant, &ends, Side::Sandbox).unwrap();
        if key.spot(&seed).set != SET {
            continue;
        }
        let frame = tcp(local, remote, SYN, b"");
        let ran = machine.run(Out, &frame.bytes);
        if ran.action != UNSPEC {
            assert_eq!(ran.action, REDIRECT, "refused at once, not dropped");
            refused = Some(frame);
            break;
        }
        opened += 1;
    }
    assert_eq!(opened as usize, FLOW_WAYS, "a set has room for as many as it says");
    let refused = refused.unwrap();
    let snapshot = machine.snapshot();
    assert_eq!(snapshot.budget.active, opened, "the place in the budget is given back");
    assert_eq!(snapshot.egress.len(), opened as usize);
    assert_eq!(snapshot.count(Reason::Capacity), (1, refused.len()));
    assert_eq!(snapshot.budget.refused, 0, "it is not the budget that is used up");
    let events = machine.events();
    let last = events.last().unwrap();
    assert_eq!((last.kind, last.reason), (event_kind::DENY, Reason::Capacity as u8));
    // Other sets go on, and this one does when somebody leaves.
    let ran = machine.run(Out, &udp(here(Family::V4), there(Family::V4), b"x").bytes);
    assert_eq!(ran.action, UNSPEC);
    machine.forget(machine.tenant);
    assert_eq!((machine.budget().active, machine.snapshot().egress.len()), (0, 0));
    assert_eq!(machine.run(Out, &refused.bytes).action, UNSPEC);
}

/// What comes in costs no budget, but one sandbox's callers may not take all the room there is.
#[test]
fn inbound_connections_have_a_limit_of_their_own() {
    let mut machine = Machine::new();
    machine.enter(&Tenant::ORDINARY, Document::One);
    machine.used = true;
    let service = SocketAddr::new(ip(SANDBOX_V4), 80);
    let call = |number: u32| {
        let host = ip(&format!("198.51.100.{}", number / 50_000 + 1));
        let port = u16::try_from(number % 50_000 + 1024).unwrap();
        udp(SocketAddr::new(host, port), service, b"x").bytes
    };
    for number in 0..INBOUND_LIMIT {
        assert_eq!(machine.run(FromHost, &call(number)).action, UNSPEC, "caller {number}");
    }
    machine.events();
    assert_eq!(machine.run(FromHost, &call(INBOUND_LIMIT)).action, SHOT);
    let snapshot = machine.snapshot();
    assert_eq!(
        (snapshot.budget.inbound, snapshot.budget.active, snapshot.budget.refused),
        (INBOUND_LIMIT, 0, 0)
    );
    assert_eq!(snapshot.count(Reason::Capacity).0, 1);
    let events = machine.events();
    assert_eq!(
        (events.len(), events[0].kind, events[0].reason),
        (1, event_kind::DENY, Reason::Capacity as u8)
    );
    // The sandbox's own connections are not held up by it.
    assert_eq!(machine.run(Out, &udp(here(Family::V4), there(Family::V4), b"x").bytes).action, UNSPEC);
    machine.forget(machine.tenant);
    assert_eq!((machine.budget().inbound, machine.budget().active), (0, 0));
    assert_eq!(machine.run(FromHost, &call(INBOUND_LIMIT)).action, UNSPEC);
}

/// However the count came to be too low: it does not become four thousand million.
#[test]
fn a_count_never_falls_below_nothing() {
    let mut machine = Machine::new();
    machine.used = true;
    let (a, b) = (here(Family::V4), there(Family::V4));
    assert_eq!(machine.run(Out, &tcp(a, b, SYN, b"").bytes).action, UNSPEC);
    machine.set_budget(0);
    assert_eq!(machine.run(Out, &tcp(a, b, RST, b"").bytes).action, UNSPEC);
    assert!(machine.snapshot().egress.is_empty());
    assert_eq!(machine.budget().active, 0);
    assert_eq!(machine.run(Out, &tcp(a, b, SYN, b"").bytes).action, UNSPEC);
    assert_eq!(machine.budget().active, 1);
}

#[test]
fn counters_are_the_slots_own() {
    let mut machine = Machine::new();
    machine.used = true;
    let frame = tcp(here(Family::V4), there(Family::V4), SYN, b"");
    assert_eq!(machine.run(Out, &frame.bytes).action, UNSPEC);
    assert_eq!(machine.snapshot().count(Reason::Default).0, 1);
    for other in [0, 1, SLOT - 1, SLOT + 1] {
        let snapshot = machine.snapshot_of(other);
        assert!(snapshot.counters.by_reason.iter().all(|count| count.packets == 0), "slot {other}");
    }
}

#[test]
fn without_a_budget_nothing_opens() {
    // The slot of a policy that is not there has no connections to give, nor a trie to allow any.
    let mut machine = Machine::new();
    machine.enter(&Tenant::ORDINARY, Document::Missing);
    let ran = machine.run(Out, &udp(here(Family::V4), SocketAddr::new(ip("224.0.0.1"), 1), b"x").bytes);
    assert_eq!(ran.action, SHOT);
    assert_eq!(machine.budget().active, 0);
}
