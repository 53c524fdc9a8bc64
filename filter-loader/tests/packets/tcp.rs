//! A TCP connection from SYN to its last words (RFC 9293 section 3.3.2), as the count sees it.

use filter_common::Reason;
use filter_common::layout::{Flow, event_kind};
use filter_common::tcp::{Phase, phase, state};

use crate::fixtures::frames::*;
use crate::fixtures::machine::Direction::{self, Forwarded, FromHost, Out};
use crate::fixtures::machine::{Machine, REDIRECT, SHOT, UNSPEC};
use crate::fixtures::policies::Document;

/// A segment: who sends it, flags, sequence and acknowledgement number, bytes of data.
type Segment = (Direction, u8, u32, u32, usize);

/// Sends segments of one connection, all of which pass.
fn send(machine: &Machine, family: Family, segments: &[Segment]) {
    for segment in segments {
        assert_eq!(try_send(machine, family, *segment), UNSPEC, "{segment:?}");
    }
}

fn try_send(machine: &Machine, family: Family, (direction, flags, seq, ack, data): Segment) -> i32 {
    let (here, there) = (here(family), there(family));
    let (src, dst) = if direction.is_out() { (here, there) } else { (there, here) };
    machine.run(direction, &tcp_at(src, dst, flags, (seq, ack), &vec![0x61; data]).bytes).action
}

fn only(machine: &Machine) -> Flow {
    let snapshot = machine.snapshot();
    let flows: Vec<Flow> =
        snapshot.egress.values().chain(snapshot.inbound.values()).map(|(_, flow)| *flow).collect();
    let [flow] = flows[..] else { panic!("one connection expected: {flows:#?}") };
    flow
}

const HANDSHAKE: [Segment; 3] =
    [(Out, SYN, 100, 0, 0), (Forwarded, SYN_ACK, 500, 101, 0), (Out, ACK, 101, 501, 0)];

fn each_family(test: impl Fn(&mut Machine, Family)) {
    let mut machine = Machine::new();
    for family in Family::BOTH {
        machine.forget(machine.tenant);
        machine.enter(&crate::fixtures::machine::Tenant::ORDINARY, Document::Empty);
        test(&mut machine, family);
    }
}

#[test]
fn a_connection_is_half_open_until_the_third_segment() {
    each_family(|machine, family| {
        for (segment, expected) in
            HANDSHAKE.into_iter().zip([Phase::HalfOpen, Phase::HalfOpen, Phase::Established])
        {
            send(machine, family, &[segment]);
            assert_eq!(phase(only(machine).state), expected, "{segment:?}");
            assert_eq!(machine.budget().active, 1);
        }
    });
}

#[test]
fn an_inbound_connection_is_half_open_until_the_third_segment() {
    each_family(|machine, family| {
        let handshake: [Segment; 3] =
            [(FromHost, SYN, 9, 0, 0), (Out, SYN_ACK, 70, 10, 0), (FromHost, ACK, 10, 71, 0)];
        for (segment, expected) in
            handshake.into_iter().zip([Phase::HalfOpen, Phase::HalfOpen, Phase::Established])
        {
            send(machine, family, &[segment]);
            assert_eq!(phase(only(machine).state), expected, "{segment:?}");
            assert_eq!(machine.budget().active, 0, "an inbound connection costs no budget");
        }
    });
}

#[test]
fn simultaneous_open_is_one_connection() {
    each_family(|machine, family| {
        send(machine, family, &[(Out, SYN, 100, 0, 0), (Forwarded, SYN, 500, 0, 0)]);
        assert_eq!(phase(only(machine).state), Phase::HalfOpen);
        send(machine, family, &[(Out, SYN_ACK, 100, 501, 0), (Forwarded, SYN_ACK, 500, 101, 0)]);
        assert_eq!(phase(only(machine).state), Phase::Established);
        assert_eq!(machine.budget().active, 1);
    });
}

#[test]
fn a_syn_sent_again_confirms_nothing_and_counts_once() {
    each_family(|machine, family| {
        send(machine, family, &[(Out, SYN, 100, 0, 0); 7]);
        send(machine, family, &[(Out, ACK, 101, 1, 0)]);
        assert_eq!(phase(only(machine).state), Phase::HalfOpen);
        assert_eq!((machine.budget().active, machine.budget().peak), (1, 1));
        let events = machine.events();
        assert_eq!(events.iter().map(|event| event.kind).collect::<Vec<_>>(), [event_kind::OPEN]);
    });
}

#[test]
fn both_fins_release_the_place_and_last_words_pass() {
    each_family(|machine, family| {
        send(machine, family, &HANDSHAKE);
        send(machine, family, &[(Out, FIN_ACK, 101, 501, 0)]);
        assert_eq!(phase(only(machine).state), Phase::Closing);
        assert_eq!(machine.budget().active, 1, "half closed is not closed");
        // The other half may go on for as long as it likes.
        send(machine, family, &[(Forwarded, PSH_ACK, 501, 102, 900), (Out, ACK, 102, 1401, 0)]);
        send(machine, family, &[(Forwarded, FIN_ACK, 1401, 102, 0)]);
        assert_eq!(machine.budget().active, 0, "both ends are done");
        send(
            machine,
            family,
            &[(Out, ACK, 102, 1402, 0), (Forwarded, FIN_ACK, 1401, 102, 0), (Out, ACK, 102, 1402, 0)],
        );
        assert_eq!(machine.budget().active, 0, "last words count for nothing");
        let snapshot = machine.snapshot();
        assert!(snapshot.egress.is_empty() && snapshot.inbound.is_empty());
        assert_eq!(
            machine.events().iter().map(|event| event.kind).collect::<Vec<_>>(),
            [event_kind::OPEN, event_kind::CLOSE]
        );
    });
}

#[test]
fn both_fins_at_once_and_fins_with_data_close_too() {
    each_family(|machine, family| {
        send(machine, family, &HANDSHAKE);
        send(machine, family, &[(Forwarded, FIN_ACK, 501, 101, 30), (Out, FIN_ACK, 101, 501, 20)]);
        assert_eq!(machine.budget().active, 0);
    });
}

#[test]
fn a_reset_of_either_end_releases_the_place_at_once() {
    each_family(|machine, family| {
        for last in [
            (Out, RST, 101, 0, 0),
            (Out, RST_ACK, 101, 501, 0),
            (Forwarded, RST, 501, 0, 0),
            (Forwarded, RST_ACK, 0, 101, 0),
        ] {
            for open in 1..=HANDSHAKE.len() {
                send(machine, family, &HANDSHAKE[..open]);
                assert_eq!(machine.budget().active, 1);
                send(machine, family, &[last]);
                assert_eq!(machine.budget().active, 0, "{last:?} behind {open} segments");
            }
        }
    });
}

#[test]
fn the_same_ports_again_begin_anew() {
    each_family(|machine, family| {
        send(machine, family, &HANDSHAKE);
        send(machine, family, &[(Out, FIN_ACK, 101, 501, 0)]);
        send(machine, family, &[(Out, SYN, 90_000, 0, 0)]);
        let flow = only(machine);
        assert_eq!((flow.state, flow.next_of_sandbox), (0, 90_001), "the old connection's state is gone");
        assert_eq!(machine.budget().active, 1);
        send(machine, family, &[(Forwarded, SYN_ACK, 7, 90_001, 0), (Out, ACK, 90_001, 8, 0)]);
        assert_eq!(phase(only(machine).state), Phase::Established);
        // And behind a whole end.
        send(
            machine,
            family,
            &[(Out, FIN_ACK, 90_001, 8, 0), (Forwarded, FIN_ACK, 8, 90_002, 0), (Out, ACK, 90_002, 9, 0)],
        );
        assert_eq!(machine.budget().active, 0);
        send(machine, family, &[(Out, SYN, 123, 0, 0)]);
        assert_eq!(machine.budget().active, 1);
        assert_eq!(only(machine).next_of_sandbox, 124);
    });
}

#[test]
fn sequence_numbers_follow_the_newest_byte() {
    each_family(|machine, family| {
        let next = |machine: &Machine| (only(machine).next_of_sandbox, only(machine).next_of_remote);
        let start = u32::MAX - 100;
        send(machine, family, &[(Out, SYN, start, 0, 0)]);
        assert_eq!(next(machine).0, start + 1);
        send(machine, family, &[(Forwarded, SYN_ACK, 5, start + 1, 0)]);
        assert_eq!(next(machine), (start + 1, 6));
        send(machine, family, &[(Out, PSH_ACK, start + 1, 6, 1000)]);
        assert_eq!(next(machine).0, start.wrapping_add(1001), "it wraps");
        send(machine, family, &[(Out, PSH_ACK, start + 1, 6, 500), (Out, ACK, start, 6, 0)]);
        assert_eq!(next(machine).0, start.wrapping_add(1001), "what is sent again lies before it");
        send(machine, family, &[(Forwarded, PSH_ACK, 6, 0, 10), (Forwarded, FIN_ACK, 16, 0, 4)]);
        assert_eq!(next(machine).1, 21, "a FIN takes one");
    });
}

#[test]
fn data_behind_the_end_is_refused() {
    each_family(|machine, family| {
        send(machine, family, &HANDSHAKE);
        send(machine, family, &[(Out, FIN_ACK, 101, 501, 0), (Forwarded, FIN_ACK, 501, 102, 0)]);
        assert_eq!(try_send(machine, family, (Out, PSH_ACK, 102, 502, 9)), REDIRECT);
        assert_eq!(try_send(machine, family, (Out, FIN_ACK, 101, 502, 9)), REDIRECT);
        assert_eq!(machine.snapshot().count(Reason::Protocol).0, 2);
        assert_eq!(machine.budget().active, 0);
        // Last words still pass, as long as the policy is the one that it was closed under.
        send(machine, family, &[(Out, ACK, 102, 502, 0)]);
        machine.adopt(Document::Denied);
        assert_eq!(try_send(machine, family, (Out, PSH_ACK, 102, 502, 9)), REDIRECT);
        assert_eq!(try_send(machine, family, (Out, ACK, 102, 502, 0)), REDIRECT);
        assert_eq!(machine.snapshot().count(Reason::DeniedCidr).0, 2);
        assert_eq!(try_send(machine, family, (Forwarded, ACK, 502, 102, 0)), SHOT);
        assert_eq!(machine.budget().active, 0);
    });
}

#[test]
fn only_a_syn_opens_a_connection() {
    each_family(|machine, family| {
        for flags in [PSH_ACK, ACK, FIN_ACK, SYN_ACK] {
            assert_eq!(try_send(machine, family, (Out, flags, 1, 1, 10)), REDIRECT, "{flags:#x}");
        }
        for flags in [RST, RST_ACK] {
            assert_eq!(try_send(machine, family, (Out, flags, 1, 1, 0)), SHOT, "{flags:#x}");
        }
        let snapshot = machine.snapshot();
        assert_eq!(snapshot.count(Reason::Protocol).0, 6);
        assert!(snapshot.egress.is_empty() && snapshot.inbound.is_empty());
        assert_eq!((machine.budget().active, machine.budget().peak), (0, 0));
        // Nor does what comes back then belong to anything.
        assert_eq!(try_send(machine, family, (Forwarded, ACK, 1, 11, 0)), SHOT);
    });
}

#[test]
fn a_forged_reset_ends_nothing() {
    const WINDOW: u32 = 65_536;
    let off = |distance: u32| 501_u32.wrapping_add(distance);
    each_family(|machine, family| {
        // Before the other end answers, no number of its own is expected.
        send(machine, family, &[HANDSHAKE[0], (Forwarded, RST_ACK, off(1 << 31), 101, 0)]);
        assert_eq!(machine.budget().active, 0);
        // From its answer on there is one.
        send(machine, family, &HANDSHAKE[..2]);
        send(machine, family, &[(Forwarded, RST, off(1 << 31), 0, 0)]);
        assert_eq!(phase(only(machine).state), Phase::HalfOpen);
        send(machine, family, &[(Forwarded, RST, off(0), 0, 0)]);
        assert_eq!(machine.budget().active, 0);
        for inside in [0, 1, WINDOW, WINDOW.wrapping_neg()] {
            send(machine, family, &HANDSHAKE);
            for outside in [WINDOW + 1, 1 << 30, 1 << 31, (WINDOW + 1).wrapping_neg()] {
                let before = only(machine);
                send(machine, family, &[(Forwarded, RST, off(outside), 0, 0)]);
                let after = only(machine);
                assert_eq!(machine.budget().active, 1, "{outside:#x} off");
                assert_eq!(
                    (after.state, after.next_of_remote),
                    (before.state, before.next_of_remote),
                    "{outside:#x} off"
                );
            }
            send(machine, family, &[(Forwarded, RST, off(inside), 0, 0)]);
            assert_eq!(machine.budget().active, 0, "{inside:#x} off");
        }
        // The sandbox ends its own connections with any number.
        send(machine, family, &HANDSHAKE);
        send(machine, family, &[(Out, RST, 1 << 31, 0, 0)]);
        assert_eq!(machine.budget().active, 0);
    });
}

#[test]
fn a_forged_reset_ends_no_inbound_connection() {
    each_family(|machine, family| {
        send(
            machine,
            family,
            &[(FromHost, SYN, 9, 0, 0), (Out, SYN_ACK, 70, 10, 0), (FromHost, ACK, 10, 71, 0)],
        );
        send(machine, family, &[(FromHost, RST, 1 << 30, 0, 0)]);
        assert_eq!(machine.budget().inbound, 1);
        send(machine, family, &[(FromHost, RST, 10, 0, 0)]);
        assert_eq!(machine.budget().inbound, 0);
    });
}

#[test]
fn an_inbound_connection_follows_the_generation() {
    each_family(|machine, family| {
        send(machine, family, &[(FromHost, SYN, 9, 0, 0)]);
        for segment in [(Out, SYN_ACK, 70, 10, 0), (FromHost, ACK, 10, 71, 0)] {
            let before = machine.generation;
            machine.adopt(Document::Denied);
            assert_ne!(machine.generation, before);
            send(machine, family, &[segment]);
            assert_eq!(only(machine).generation, machine.generation, "{segment:?}");
        }
    });
}

#[test]
fn churn_leaves_nothing_behind() {
    each_family(|machine, family| {
        for round in 0..200 {
            let seq = round * 1000;
            send(
                machine,
                family,
                &[
                    (Out, SYN, seq, 0, 0),
                    (Forwarded, SYN_ACK, seq, seq + 1, 0),
                    (Out, ACK, seq + 1, seq + 1, 0),
                    (Out, FIN_ACK, seq + 1, seq + 1, 0),
                    (Forwarded, FIN_ACK, seq + 1, seq + 2, 0),
                    (Out, ACK, seq + 2, seq + 2, 0),
                ],
            );
        }
        assert_eq!((machine.budget().active, machine.budget().peak), (0, 1));
        assert!(machine.snapshot().egress.is_empty());
    });
}

#[test]
fn only_the_sandboxs_fin_is_the_sandboxs() {
    each_family(|machine, family| {
        send(machine, family, &HANDSHAKE);
        send(machine, family, &[(Out, FIN_ACK, 101, 501, 0), (Out, FIN_ACK, 101, 501, 0)]);
        assert_eq!(only(machine).state & state::FIN_BOTH, state::FIN_SANDBOX);
        assert_eq!(machine.budget().active, 1, "a FIN sent again is not the other end's");
    });
}
