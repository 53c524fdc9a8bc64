//! Which policy decides: the one whose generation is in force, for open connections too.

use std::net::SocketAddr;

use filter_common::layout::{event_kind, sweep};
use filter_common::{Class, Reason, RuleWord};

use crate::fixtures::frames::*;
use crate::fixtures::machine::Direction::{Forwarded, FromHost, Out};
use crate::fixtures::machine::{IFINDEX, Machine, REDIRECT, SLOT, Tenant, UNSPEC};
use crate::fixtures::policies::Document;

/// An event names the entry of the list that decided.
#[test]
fn a_denial_names_the_rule_that_decided() {
    let mut machine = Machine::new();
    for (document, addr, class, number) in [
        (Document::AllowFirst, "198.51.100.7", Class::Denied, 0),
        (Document::DenyFirst, "8.8.8.8", Class::Denied, 1),
        (Document::DenyFirst, "2001:4860:4860::8888", Class::Denied, 2),
        (Document::Listed, "9.9.9.9", Class::Denied, 0),
        (Document::Denied, NAMED_V4, Class::Denied, 0),
        (Document::Denied, NAMED_V6, Class::Denied, 1),
        (Document::NoInternet, "1.1.1.1", Class::Denied, 0),
        (Document::Nested, "30.1.2.4", Class::Denied, 2),
        (Document::Nested, "21.0.0.1", Class::Denied, 3),
        (Document::Empty, "0.1.2.3", Class::Guarded, 0),
        (Document::Empty, "10.0.0.1", Class::Guarded, 1),
        (Document::None, NAMED_V4, Class::Guarded, RuleWord::MAX_NUMBER),
    ] {
        machine.enter(&Tenant::ORDINARY, document);
        let addr = ip(addr);
        let frame = tcp(here(Family::of(addr)), SocketAddr::new(addr, SERVER), SYN, b"");
        assert_eq!(machine.run(Out, &frame.bytes).action, REDIRECT, "{document:?} {addr}");
        let events = machine.events();
        let rule = RuleWord::from_bits(events.last().unwrap().rule);
        assert_eq!((rule.class(), rule.number()), (class, number), "{document:?} {addr}");
    }
}

#[test]
fn the_kernels_trie_says_what_userspace_says() {
    let mut machine = Machine::new();
    for document in [
        Document::Empty,
        Document::Listed,
        Document::AllowFirst,
        Document::DenyFirst,
        Document::Everything,
        Document::EverythingDenied,
        Document::NoInternet,
        Document::Nested,
        Document::Operator,
    ] {
        machine.adopt(document);
        // Both ends of each prefix, and the addresses right outside.
        for (prefix, _) in document.compiled().unwrap().entries {
            let first = u128::from_be_bytes(prefix.addr.octets());
            let last = first | u128::MAX.checked_shr(prefix.len.into()).unwrap_or(0);
            for key in [first.wrapping_sub(1), first, first + (last - first) / 2, last, last.wrapping_add(1)]
            {
                let addr = std::net::Ipv6Addr::from(key).into();
                let expected = document.rule(filter_common::Addr::from(addr));
                assert_eq!(machine.rule_in_kernel(document, addr), expected, "{document:?} {addr}");
            }
        }
    }
}

#[test]
fn a_connection_that_may_stay_is_judged_once_under_each_generation() {
    let mut machine = Machine::new();
    machine.used = true;
    let frame = udp(here(Family::V4), there(Family::V4), b"x").bytes;
    for document in
        [Document::Empty, Document::Listed, Document::AllowFirst, Document::NoInternet, Document::Empty]
    {
        machine.adopt(document);
        assert_eq!(machine.run(Out, &frame).action, UNSPEC);
        let snapshot = machine.snapshot();
        let (_, flow) = snapshot.egress.values().next().unwrap();
        assert_eq!(flow.generation, machine.generation);
        assert_eq!(flow.rule, document.rule(ip(NAMED_V4).into()).bits());
        assert_eq!((snapshot.egress.len(), snapshot.budget.active), (1, 1));
    }
    assert_eq!(machine.snapshot().count(Reason::AllowedCidr).0, 2);
    assert_eq!(machine.snapshot().count(Reason::Default).0, 3);
}

/// Opens connections of all sorts, to whom `Denied` denies and to whom it does not.
fn open_many(machine: &mut Machine, ports: u16) {
    machine.used = true;
    for family in Family::BOTH {
        for addr in [family.named(), family.other()] {
            for port in 1..=ports {
                let far = SocketAddr::new(addr, port);
                assert_eq!(machine.run(Out, &tcp(here(family), far, SYN, b"").bytes).action, UNSPEC);
                assert_eq!(machine.run(Out, &udp(here(family), far, b"x").bytes).action, UNSPEC);
                assert_eq!(machine.run(Out, &ping(family.sandbox(), addr, port).bytes).action, UNSPEC);
                assert_eq!(
                    machine
                        .run(FromHost, &tcp(far, SocketAddr::new(family.sandbox(), 80), SYN, b"").bytes)
                        .action,
                    UNSPEC
                );
            }
        }
    }
    machine.events();
}

#[test]
fn a_sweep_cuts_what_the_new_policy_denies_and_keeps_the_rest() {
    let mut machine = Machine::new();
    open_many(&mut machine, 20);
    assert_eq!((machine.snapshot().egress.len(), machine.snapshot().inbound.len()), (240, 80));
    let before = machine.snapshot();
    assert!(machine.rejudge(), "nothing changed");
    assert!(machine.cuts().is_empty() && machine.events().is_empty());

    machine.adopt(Document::Denied);
    assert!(machine.rejudge());
    let after = machine.snapshot();
    assert_eq!((after.egress.len(), after.inbound.len()), (120, 80));
    assert_eq!(after.budget.active, 120);
    assert!(after.moved_since(&before).is_empty(), "no packet, no count");
    for (key, flow) in after.egress.values() {
        assert_eq!(flow.generation, machine.generation);
        assert_eq!(Document::Denied.rule(key.remote()).class(), Class::Unmatched);
    }
    let cuts = machine.cuts();
    assert_eq!(cuts.len(), 40, "the TCP connections");
    for cut in &cuts {
        assert_eq!((cut.key.protocol(), cut.key.tenant(), cut.ifindex), (6, machine.tenant, IFINDEX));
        assert_eq!(cut.next_of_sandbox, NUMBERS.0 + 1);
        let macs: Vec<u8> = cut.macs.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(macs, [GATEWAY_MAC, MAC].concat());
        assert_eq!(Document::Denied.rule(cut.key.remote()).class(), Class::Denied);
    }
    let events = machine.events();
    assert_eq!(events.len(), 120);
    assert!(events.iter().all(|event| event.kind == event_kind::CLOSE && event.tenant == machine.tenant));
    // A packet of one that was cut is a new connection, and that is denied.
    let ran = machine.run(Out, &tcp(here(Family::V4), SocketAddr::new(ip(NAMED_V4), 3), ACK, b"x").bytes);
    assert_eq!(ran.action, REDIRECT);
    assert_eq!(machine.snapshot().count(Reason::DeniedCidr).0, 1);
    assert_eq!(machine.snapshot().count(Reason::Revoked).0, 0);
}

#[test]
fn a_sweep_without_a_policy_cuts_everything_of_the_sandboxs_own() {
    let mut machine = Machine::new();
    open_many(&mut machine, 5);
    machine.adopt(Document::None);
    assert!(machine.rejudge());
    assert_eq!((machine.snapshot().egress.len(), machine.snapshot().inbound.len()), (0, 20));
    assert_eq!(machine.budget().active, 0);
    assert_eq!(machine.cuts().len(), 20);
}

#[test]
fn a_full_ring_of_cuts_stops_the_sweep_until_it_is_read() {
    let mut machine = Machine::new();
    machine.used = true;
    // More than the ring has room for: 256 KiB of 68 bytes and a header of 8, rounded up to 80.
    let mut opened = 0;
    for round in 0..2 {
        machine.set_budget(0);
        for port in 1..=2400 {
            let local = SocketAddr::new(ip(SANDBOX_V4), 20_000 + round);
            let far = SocketAddr::new(ip(NAMED_V4), port);
            assert_eq!(machine.run(Out, &tcp(local, far, SYN, b"").bytes).action, UNSPEC);
            opened += 1;
        }
    }
    machine.set_budget(opened);
    machine.adopt(Document::Denied);
    let (mut cut, mut rounds) = (0, 0);
    while !machine.rejudge() {
        rounds += 1;
        let read = machine.cuts().len();
        assert!(read > 0 && rounds < 10, "no progress");
        cut += read;
    }
    cut += machine.cuts().len();
    assert!(rounds > 0, "the ring was never full");
    assert_eq!(cut, opened as usize, "no cut is lost");
    assert_eq!((machine.budget().active, machine.snapshot().egress.len()), (0, 0));
}

#[test]
fn forgetting_takes_everything_of_one_sandbox() {
    let mut machine = Machine::new();
    open_many(&mut machine, 5);
    machine.forget(machine.tenant + 1);
    assert_eq!((machine.snapshot().egress.len(), machine.snapshot().inbound.len()), (60, 20));
    machine.forget(machine.tenant);
    let snapshot = machine.snapshot();
    assert_eq!((snapshot.egress.len(), snapshot.inbound.len(), snapshot.budget.active), (0, 0, 0));
    assert!(machine.cuts().is_empty(), "there is nobody left to tell");
    assert_eq!(machine.events().len(), 80);
}

#[test]
fn the_sweep_ignores_what_it_does_not_know() {
    let mut machine = Machine::new();
    open_many(&mut machine, 1);
    let before = machine.snapshot();
    for control in [
        [0; 5],
        [9, 0, machine.tenant, SLOT, IFINDEX],
        [sweep::FORGET, u32::MAX, machine.tenant, SLOT, IFINDEX],
    ] {
        assert_eq!(machine.sweep_shard(control), sweep::DONE);
    }
    let after = machine.snapshot();
    assert_eq!((after.egress.len(), after.inbound.len()), (before.egress.len(), before.inbound.len()));
}

/// A reply that comes in before the sandbox sends again meets the new policy as well.
#[test]
fn an_answer_does_not_outlive_its_permission() {
    let mut machine = Machine::new();
    machine.used = true;
    let (a, b) = (here(Family::V4), there(Family::V4));
    machine.run(Out, &udp(a, b, b"x").bytes);
    machine.adopt(Document::Denied);
    assert_ne!(machine.run(Forwarded, &udp(b, a, b"y").bytes).action, UNSPEC);
    assert_eq!(machine.snapshot().count(Reason::Revoked).0, 1);
    assert_eq!(machine.budget().active, 0);
    assert_ne!(machine.run(Forwarded, &udp(b, a, b"y").bytes).action, UNSPEC);
    assert_eq!(machine.snapshot().count(Reason::Inbound).0, 1, "nothing is known of it any more");
}
