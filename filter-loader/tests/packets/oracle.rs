//! The loaded program and the same code on the host agree about every frame of the table, and about some ten
//! thousand garbled ones.

use filter_common::frame::{self, Payload};
use filter_common::ip::{self, Kind, Version};
use filter_common::layout::Sandbox;
use filter_common::{Class, Decision, Reason, decide, neighbour};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::fixtures::machine::Direction::Out;
use crate::fixtures::machine::{IFINDEX, Machine, SLOT, Tenant, UNSPEC};
use crate::fixtures::policies::Document;
use crate::fixtures::table::all;

/// The reason for the verdict on the first frame that a sandbox sends.
fn judge(mut bytes: &[u8], sandbox: &Sandbox, policy: Document) -> Reason {
    let read = &mut bytes;
    let Ok(ethernet) = frame::parse(read) else { return Reason::Malformed };
    if !sandbox.owns_mac(ethernet.source()) {
        return Reason::Spoofed;
    }
    let version = match ethernet.payload {
        Payload::Arp => {
            return match neighbour::parse_arp(read) {
                Ok(arp) if neighbour::arp_is_own(&arp, &ethernet, sandbox) => Reason::Neighbour,
                Ok(_) => Reason::NeighbourClaim,
                Err(_) => Reason::Malformed,
            };
        }
        Payload::Ipv4 => Version::V4,
        Payload::Ipv6 => Version::V6,
    };
    let Ok(packet) = ip::parse(read, version) else { return Reason::Malformed };
    if packet.kind == Kind::Neighbour {
        let reachable =
            neighbour::is_link_scope(packet.dst) || !matches!(policy.rule(packet.dst).class(), Class::Denied);
        return if reachable && neighbour::discovery_is_own(read, &packet, &ethernet, sandbox) {
            Reason::Neighbour
        } else {
            Reason::NeighbourClaim
        };
    }
    match decide::identity(&packet, sandbox) {
        Err(reason) => reason,
        Ok(()) => match decide::judge(&packet, policy.rule(packet.dst)) {
            // There is no connection that it could belong to.
            reason
                if reason.decision() == Decision::Allow && packet.kind == Kind::Tcp && !packet.is_syn() =>
            {
                Reason::Protocol
            }
            reason => reason,
        },
    }
}

#[test]
fn the_kernel_decides_as_the_host_does() {
    const GARBLED: usize = 12;
    let mut machine = Machine::new();
    let mut random = StdRng::seed_from_u64(1);
    let mut frames = 0;
    let mut passed = 0;
    for policy in [Document::Empty, Document::Listed, Document::Denied] {
        machine.adopt(policy);
        for row in all().iter().step_by(if policy == Document::Empty { 1 } else { 3 }) {
            for round in 0..GARBLED {
                // A tenant a frame: what it may open is not known to the next.
                machine.tenant += 1;
                machine.seat(SLOT, IFINDEX, machine.tenant, &Tenant::ORDINARY);
                machine.adopt(policy);
                let sandbox = Tenant::ORDINARY.sandbox(machine.tenant, SLOT, IFINDEX);
                let mut bytes = row.frame.bytes.clone();
                for _ in 0..round.min(4) {
                    let place = random.random_range(0..bytes.len().min(90));
                    bytes[place] = if random.random() {
                        random.random()
                    } else {
                        bytes[place] ^ 1 << random.random_range(0..8)
                    };
                }
                let context = crate::fixtures::machine::Context::of(Out);
                let before = machine.snapshot_of_nobody();
                // The kernel refuses some truncated frames before the program sees them.
                let Ok(ran) = machine.try_run("from_sandbox", &bytes, &context, 1) else { continue };
                let moved = machine.snapshot_of_nobody().moved_since(&before);
                let expected = judge(&bytes, &sandbox, policy);
                let [(reason, 1, len)] = &moved[..] else { panic!("{}: counters {moved:?}", row.name) };
                assert_eq!(
                    (reason.as_str(), *len),
                    (expected.name(), bytes.len() as u64),
                    "{}: {bytes:02x?}",
                    row.name
                );
                assert_eq!(ran.action == UNSPEC, expected.decision() == Decision::Allow, "{}", row.name);
                frames += 1;
                passed += usize::from(ran.action == UNSPEC);
            }
        }
    }
    assert!(frames > 10_000 && passed > 500, "{frames} frames, {passed} passed");
    eprintln!("{frames} frames, {passed} passed");
}
