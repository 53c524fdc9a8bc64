//! Whose packets they are: the interface alone says.

use std::process::Command;

use filter_common::Reason;
use filter_common::layout::MAX_SANDBOXES;
use filter_common::layout::sandbox_flags::ANY_ADDR;

use crate::fixtures::frames::*;
use crate::fixtures::machine::Direction::{self, Forwarded, FromHost, Out};
use crate::fixtures::machine::{Context, IFINDEX, Machine, SHOT, SLOT, Tenant, UNSPEC};
use crate::fixtures::policies::Document;

/// An interface whose index has the same place in the table as that of the sandbox under test.
const RIVAL: u32 = IFINDEX + MAX_SANDBOXES;
const RIVAL_SLOT: u32 = 6;
const RIVAL_TENANT: u32 = 4_000_000;

fn ip_command(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.is_ok_and(|status| status.success()), "`ip {arguments}` fails; it is part of iproute2");
}

/// In the network namespace of this thread, which the machine made.
fn make_rival() {
    ip_command(&format!("link add rival index {RIVAL} type veth peer name far"));
}

fn at(direction: Direction, ifindex: u32) -> Context {
    let context = Context::of(direction);
    let ingress_ifindex = if direction.is_out() { ifindex } else { context.ingress_ifindex };
    Context { ifindex, ingress_ifindex, ..context }
}

#[test]
fn an_interface_of_nobody_lets_nothing_through() {
    let mut machine = Machine::new();
    machine.disown();
    let before = machine.snapshot();
    for family in Family::BOTH {
        let (a, b) = (here(family), there(family));
        for direction in [Out, FromHost, Forwarded] {
            let frame = if direction.is_out() { tcp(a, b, SYN, b"") } else { tcp(b, a, SYN, b"") };
            assert_eq!(machine.run(direction, &frame.bytes).action, SHOT);
        }
    }
    assert_eq!(machine.run(Out, &arp(1, (MAC, SANDBOX_V4), GATEWAY_V4).bytes).action, SHOT);
    assert!(machine.snapshot().moved_since(&before).is_empty(), "there is nobody to count for");
    assert!(machine.events().is_empty());
}

#[test]
fn a_displaced_sandbox_is_found() {
    let mut machine = Machine::new();
    machine.displace(&Tenant::ORDINARY);
    machine.used = true;
    let frame = tcp(here(Family::V4), there(Family::V4), SYN, b"");
    assert_eq!(machine.run(Out, &frame.bytes).action, UNSPEC);
    assert_eq!(machine.snapshot().count(Reason::Default), (1, frame.len()));
    assert_eq!(machine.snapshot_of(SLOT + 1).count(Reason::Default), (0, 0));
}

#[test]
fn two_sandboxes_share_nothing() {
    let mut machine = Machine::new();
    make_rival();
    // The same addresses, the same ports, the same place in the table.
    let twin = Tenant { flags: ANY_ADDR, ..Tenant::ORDINARY };
    machine.enter(&twin, Document::Three);
    machine.displace_rival(RIVAL_SLOT, RIVAL, RIVAL_TENANT, &twin);
    machine.adopt_for(RIVAL_SLOT, Document::Denied, 77);
    machine.used = true;
    for family in Family::BOTH {
        let (a, b) = (here(family), there(family));
        let out = tcp(a, b, SYN, b"").bytes;
        assert_eq!(machine.run_in(Out, &out, &at(Out, RIVAL)).action, 7, "the rival's policy denies it");
        assert_eq!(machine.run_in(Out, &out, &at(Out, IFINDEX)).action, UNSPEC);
        // The connection of one is none of the other's.
        let back = tcp(b, a, SYN_ACK, b"").bytes;
        assert_eq!(machine.run_in(Forwarded, &back, &at(Forwarded, RIVAL)).action, SHOT);
        assert_eq!(machine.run_in(Forwarded, &back, &at(Forwarded, IFINDEX)).action, UNSPEC);
        assert_eq!(machine.run_in(Out, &tcp(a, b, ACK, b"").bytes, &at(Out, RIVAL)).action, 7);
    }
    let (own, rival) = (machine.snapshot(), machine.snapshot_of(RIVAL_SLOT));
    assert_eq!((own.budget.active, rival.budget.active), (2, 0));
    assert_eq!((own.count(Reason::Default).0, own.count(Reason::Reply).0), (2, 2));
    assert_eq!((rival.count(Reason::DeniedCidr).0, rival.count(Reason::Inbound).0), (4, 2));
    let events = machine.events();
    let denied: Vec<_> =
        events.iter().filter(|event| event.kind == 3).map(|event| (event.tenant, event.generation)).collect();
    assert_eq!(denied, [(RIVAL_TENANT, 77); 6]);

    // The limit of one is not the other's.
    machine.adopt_for(RIVAL_SLOT, Document::One, 78);
    let udp_to = |port| udp(here(Family::V4), std::net::SocketAddr::new(ip(NAMED_V4), port), b"x").bytes;
    assert_eq!(machine.run_in(Out, &udp_to(1), &at(Out, RIVAL)).action, UNSPEC);
    assert_eq!(machine.run_in(Out, &udp_to(2), &at(Out, RIVAL)).action, 7);
    assert_eq!(machine.run_in(Out, &udp_to(2), &at(Out, IFINDEX)).action, UNSPEC);
    assert_eq!(machine.run_in(Out, &udp_to(3), &at(Out, IFINDEX)).action, 7);
    // Forgetting one leaves the other.
    machine.forget(RIVAL_TENANT);
    assert_eq!((machine.budget().active, machine.snapshot_of(RIVAL_SLOT).budget.active), (3, 0));
    assert_eq!(machine.snapshot().egress.len(), 3);
}

#[test]
fn the_next_tenant_starts_from_nothing() {
    let mut machine = Machine::new();
    let (a, b) = (here(Family::V4), there(Family::V4));
    machine.run(Out, &tcp(a, b, SYN, b"").bytes);
    machine.run(Out, &tcp(a, b, FIN_ACK, b"").bytes);
    machine.run(Forwarded, &tcp(b, a, FIN_ACK, b"").bytes);
    machine.run(Out, &udp(a, b, b"x").bytes);
    machine.used = true;
    machine.enter(&Tenant::ORDINARY, Document::Denied);
    assert_eq!(machine.snapshot().egress.len(), 0);
    assert_eq!(machine.budget().active, 0);
    // Neither a connection nor its last words are inherited.
    assert_eq!(machine.run(Forwarded, &tcp(b, a, ACK, b"").bytes).action, SHOT);
    assert_eq!(machine.run(Forwarded, &udp(b, a, b"x").bytes).action, SHOT);
    assert_eq!(machine.run(Out, &tcp(a, b, ACK, b"").bytes).action, 7);
    assert_eq!(machine.snapshot().count(Reason::DeniedCidr).0, 1);
    assert_eq!(machine.snapshot().count(Reason::Inbound).0, 2);
}

#[test]
fn injected_frames_leave_by_the_interface_that_is_named() {
    let machine = Machine::new();
    make_rival();
    ip_command("link set rival up");
    ip_command("link set far up");
    let received = |name: &str| {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line =
            table.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:"))).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let frame = tcp(there(Family::V4), here(Family::V4), RST, b"").bytes;
    let inject = |control| {
        let context = Context { mark: 0, ingress_ifindex: 0, ifindex: 0, control };
        machine.try_run("inject", &frame, &context, 1).unwrap().action
    };
    let before = received("far");
    for _ in 0..100 {
        assert_eq!(inject([RIVAL, 0, 0, 0, 0]), 0);
    }
    assert!(received("far") >= before + 100, "the frames do not arrive");
    assert_eq!(inject([RIVAL, 1, 0, 0, 0]), 0, "as if it had come in");
    assert!(inject([999, 0, 0, 0, 0]) < 0, "there is no such interface");
}
