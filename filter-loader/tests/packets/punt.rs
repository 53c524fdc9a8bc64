//! What goes to the inspector, in what shape, and what becomes of it afterwards.

use std::net::SocketAddr;

use filter_common::ip::{self, Version};
use filter_common::layout::{FlowKey, PuntKey};
use filter_common::tcp::Side;
use filter_common::{Class, Reason, RuleWord};

use crate::fixtures::frames::*;
use crate::fixtures::machine::Direction::{self, Forwarded, FromHost, Out};
use crate::fixtures::machine::{Context, INSPECTORS, Machine, PUNT, REDIRECT, SHOT, Tenant, UNSPEC};
use crate::fixtures::policies::Document;

/// Somebody whom no net of the policy has, and a resolver of it.
fn web(family: Family) -> SocketAddr {
    SocketAddr::new(family.other(), 443)
}

fn resolver(family: Family) -> SocketAddr {
    SocketAddr::new(ip(family.pick("192.0.2.53", "2001:db8:c::53")), 53)
}

fn key_of(machine: &Machine, frame: &Frame, family: Family) -> FlowKey {
    let version = family.pick(Version::V4, Version::V6);
    let packet = ip::parse(&frame.bytes.as_slice(), version).unwrap();
    FlowKey::of(machine.tenant, &packet, Side::Sandbox).unwrap()
}

/// With an inspector, under the policy that has a name.
fn each_family(test: impl Fn(&mut Machine, Family)) {
    let mut machine = Machine::new();
    for family in Family::BOTH {
        machine.used = true;
        machine.enter(&Tenant::ORDINARY, Document::Named);
        machine.used = true;
        machine.inspect(true);
        test(&mut machine, family);
    }
}

/// Sends a frame; it goes to the inspector and cannot go anywhere else.
fn punted(machine: &Machine, frame: &Frame) {
    let ran = machine.run(Out, &frame.bytes);
    assert_eq!(ran.action, UNSPEC, "it does not pass");
    let family = Family::of(frame.dst.unwrap().ip());
    assert_eq!(ran.frame[14 + family.pick(8, 7)], 1, "hops left");
    if family == Family::V4 {
        let (header, _) = etherparse::Ipv4Header::from_slice(&ran.frame[14..]).unwrap();
        assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 checksum");
    }
    let mut expected = frame.bytes.clone();
    let changed = family.pick(&[8, 10, 11][..], &[7]);
    changed.iter().for_each(|at| expected[14 + at] = ran.frame[14 + at]);
    assert_eq!(ran.frame, expected, "nothing else is changed");
}

#[test]
fn web_connections_and_queries_go_to_the_inspector_by_mark() {
    each_family(|machine, family| {
        let before = machine.snapshot();
        let frames = [
            tcp(here(family), web(family), SYN, b""),
            tcp(here(family), SocketAddr::new(family.other(), 80), SYN, b""),
            tcp(here(family), resolver(family), SYN, b""),
            udp(here(family), resolver(family), b"query"),
        ];
        for frame in &frames {
            punted(machine, frame);
            let other_bits = 0x0a0b;
            let context = Context { mark: other_bits, ..Context::of(Out) };
            assert_eq!(machine.mark_of(&frame.bytes, &context), PUNT.punted | other_bits);
        }
        assert_eq!(machine.budget().active, 4);
        assert_eq!(machine.punted().len(), 4);
        assert!(machine.punted().iter().all(|(_, tenant)| *tenant == machine.tenant));
        // What the inspector has yet to judge is not counted yet; queries are what they are.
        let queries = 2 * (frames[2].len() + frames[3].len());
        assert_eq!(machine.snapshot().moved_since(&before), [("dns".to_owned(), 4, queries)]);
        // It tells of its connections itself, with their names.
        let reasons: Vec<_> = machine.events().iter().map(|event| event.reason).collect();
        assert_eq!(reasons, [Reason::Dns as u8; 2]);
    });
}

#[test]
fn what_names_cannot_allow_is_denied_as_ever() {
    each_family(|machine, family| {
        let to = |addr, port| SocketAddr::new(addr, port);
        let before = machine.snapshot();
        // QUIC, ssh, DNS elsewhere, DNS over TLS and over QUIC, the resolver's other ports.
        let denied = [
            udp(here(family), web(family), b"quic"),
            tcp(here(family), to(family.other(), 22), SYN, b""),
            udp(here(family), to(family.other(), 53), b"query"),
            tcp(here(family), to(family.other(), 853), SYN, b""),
            tcp(here(family), to(resolver(family).ip(), 853), SYN, b""),
            udp(here(family), to(resolver(family).ip(), 853), b"quic"),
            udp(here(family), to(resolver(family).ip(), 443), b"quic"),
            ping(family.sandbox(), family.other(), 7),
        ];
        for frame in &denied {
            assert_eq!(machine.run(Out, &frame.bytes).action, REDIRECT);
        }
        let bytes = denied.iter().map(Frame::len).sum();
        assert_eq!(machine.snapshot().moved_since(&before), [("denied_cidr".to_owned(), 8, bytes)]);
        for event in machine.events() {
            let rule = RuleWord::from_bits(event.rule);
            assert_eq!((rule.class(), rule.number()), (Class::Denied, 0), "as if there were no names");
        }
        // The platform is not reached by name either.
        let guarded = tcp(here(family), to(family.gateway(), 443), SYN, b"");
        assert_eq!(machine.run(Out, &guarded.bytes).action, REDIRECT);
        assert_eq!(machine.snapshot().count(Reason::Guarded).0, 1);
        // What a net allows needs no name.
        let allowed = tcp(here(family), to(family.named(), 443), SYN, b"");
        let ran = machine.run(Out, &allowed.bytes);
        assert_eq!((ran.action, &ran.frame), (UNSPEC, &allowed.bytes));
        assert_eq!(machine.snapshot().count(Reason::AllowedCidr).0, 1);
        assert!(machine.punted().is_empty());
    });
}

#[test]
fn without_an_inspector_it_is_refused_at_once() {
    each_family(|machine, family| {
        machine.inspect(false);
        let before = machine.snapshot();
        let (syn, query) =
            (tcp(here(family), web(family), SYN, b""), udp(here(family), resolver(family), b"query"));
        assert_eq!(machine.run(Out, &syn.bytes).action, REDIRECT);
        assert_eq!(machine.run(Out, &query.bytes).action, REDIRECT);
        let moved = machine.snapshot().moved_since(&before);
        assert_eq!(moved, [("inspector_down".to_owned(), 2, syn.len() + query.len())]);
        assert_eq!((machine.budget().active, machine.punted().len()), (0, 0));
        let events = machine.events();
        assert!(events.len() == 2 && events.iter().all(|event| event.reason == Reason::InspectorDown as u8));
        // A connection begins with a SYN, inspected or not.
        machine.inspect(true);
        let middle = tcp(here(family), web(family), ACK, b"x");
        assert_eq!(machine.run(Out, &middle.bytes).action, REDIRECT);
        assert_eq!(machine.snapshot().count(Reason::Protocol).0, 1);
    });
}

#[test]
fn a_verdict_is_counted_from_the_next_packet_on() {
    each_family(|machine, family| {
        let (syn, ack) =
            (tcp(here(family), web(family), SYN, b""), tcp(here(family), web(family), ACK, b"hello"));
        punted(machine, &syn);
        punted(machine, &ack);
        let before = machine.snapshot();
        assert!(before.moved_since(&machine.snapshot_of_nobody()).is_empty());
        let key = key_of(machine, &syn, family);
        machine.settle(&key, RuleWord::new(Class::Named, 0));
        punted(machine, &ack);
        punted(machine, &ack);
        let moved = machine.snapshot().moved_since(&before);
        assert_eq!(moved, [("allowed_name".to_owned(), 2, 2 * ack.len())]);
        let snapshot = machine.snapshot();
        let (_, flow) = snapshot.egress.values().next().unwrap();
        assert_eq!(RuleWord::from_bits(flow.rule), RuleWord::new(Class::Named, 0));
    });
}

#[test]
fn only_the_host_answers_for_an_inspected_destination() {
    each_family(|machine, family| {
        punted(machine, &tcp(here(family), web(family), SYN, b""));
        let answer = tcp(web(family), here(family), SYN_ACK, b"");
        assert_eq!(machine.run(Forwarded, &answer.bytes).action, SHOT, "the destination itself");
        assert_eq!(machine.snapshot().count(Reason::Inbound).0, 1);
        for mark in [0, INSPECTORS, INSPECTORS | 3, PUNT.punted] {
            let context = Context { mark, ..Context::of(FromHost) };
            assert_eq!(machine.run_in(FromHost, &answer.bytes, &context).action, UNSPEC, "mark {mark:#x}");
        }
        assert_eq!(machine.budget().active, 1);
    });
}

#[test]
fn what_the_inspector_sends_is_not_the_hosts_own() {
    each_family(|machine, family| {
        let mine = SocketAddr::new(family.sandbox(), 8080);
        let syn = tcp(there(family), mine, SYN, b"");
        for mark in [INSPECTORS, INSPECTORS | 3, PUNT.punted] {
            let context = Context { mark, ..Context::of(FromHost) };
            assert_eq!(machine.run_in(FromHost, &syn.bytes, &context).action, SHOT, "mark {mark:#x}");
        }
        assert_eq!(machine.snapshot().count(Reason::Inbound).0, 3);
        let others = Context { mark: !PUNT.mask, ..Context::of(FromHost) };
        assert_eq!(machine.run_in(FromHost, &syn.bytes, &others).action, UNSPEC);
    });
}

/// The inspector answers under the destination's address. Behind the connection's end that must not pass for a
/// connection that the host begins, on which the sandbox could answer the destination itself.
#[test]
fn late_words_of_the_inspector_open_nothing() {
    each_family(|machine, family| {
        converse(machine, family, &[(Out, SYN, 100, 0), (Out, RST, 4711, 0)]);
        assert_eq!(machine.budget().active, 0);
        for (mark, flags) in [
            (INSPECTORS, SYN_ACK),
            (INSPECTORS, ACK),
            (INSPECTORS, FIN_ACK),
            (INSPECTORS, SYN),
            (PUNT.punted, SYN_ACK),
            // Of the host's stack, which marks nothing once the socket is gone.
            (0, SYN_ACK),
            (0, ACK),
            (0, FIN_ACK),
        ] {
            let late = tcp(web(family), here(family), flags, b"");
            let context = Context { mark, ..Context::of(FromHost) };
            assert_eq!(machine.run_in(FromHost, &late.bytes, &context).action, SHOT, "{mark:#x} {flags:#x}");
        }
        let answer = udp(resolver(family), here(family), b"answer");
        let context = Context { mark: INSPECTORS, ..Context::of(FromHost) };
        assert_eq!(machine.run_in(FromHost, &answer.bytes, &context).action, SHOT);
        let snapshot = machine.snapshot();
        assert_eq!((snapshot.inbound.len(), snapshot.count(Reason::Inbound).0), (0, 9));
        // A reset ends what the sandbox still has, and begins nothing.
        let reset = tcp(web(family), here(family), RST, b"");
        assert_eq!(machine.run(FromHost, &reset.bytes).action, UNSPEC);
        assert!(machine.snapshot().inbound.is_empty());
    });
}

/// What the inspector says may decide how a connection is counted, never where it goes.
#[test]
fn no_verdict_takes_a_connection_from_the_inspector() {
    each_family(|machine, family| {
        let (syn, ack) = (tcp(here(family), web(family), SYN, b""), tcp(here(family), web(family), ACK, b"x"));
        for class in [Class::Allowed, Class::Unmatched, Class::Denied, Class::Inspected] {
            punted(machine, &syn);
            machine.settle(&key_of(machine, &syn, family), RuleWord::new(class, 0));
            punted(machine, &ack);
            punted(machine, &tcp_at(here(family), web(family), RST, (101, 0), b""));
        }
        assert_eq!((machine.budget().active, machine.punted().len()), (0, 0));
    });
}

/// Runs segments of one connection between the sandbox and the inspector.
fn converse(machine: &Machine, family: Family, segments: &[(Direction, u8, u32, u32)]) {
    for (direction, flags, seq, ack) in segments {
        let (src, dst) =
            if direction.is_out() { (here(family), web(family)) } else { (web(family), here(family)) };
        let frame = tcp_at(src, dst, *flags, (*seq, *ack), b"");
        if direction.is_out() {
            punted(machine, &frame);
        } else {
            assert_eq!(machine.run(*direction, &frame.bytes).action, UNSPEC, "{flags}");
        }
    }
}

#[test]
fn nothing_of_it_gets_past_the_inspector_even_at_its_end() {
    each_family(|machine, family| {
        converse(
            machine,
            family,
            &[
                (Out, SYN, 100, 0),
                (FromHost, SYN_ACK, 500, 101),
                (Out, ACK, 101, 501),
                (Out, FIN_ACK, 101, 501),
                (FromHost, FIN_ACK, 501, 102),
                // The connection is over and lingers: its last word goes the same way.
                (Out, ACK, 102, 502),
            ],
        );
        assert_eq!((machine.budget().active, machine.punted().len()), (0, 0));
        // An error that the sandbox sends about it does, too.
        converse(machine, family, &[(Out, SYN, 100, 0)]);
        let answer = tcp(web(family), here(family), SYN_ACK, b"");
        let error = unreachable(family.sandbox(), web(family).ip(), &answer);
        punted(machine, &Frame { dst: Some(web(family)), ..error });
    });
}

#[test]
fn a_reset_or_a_timeout_leaves_nothing_behind() {
    each_family(|machine, family| {
        converse(machine, family, &[(Out, SYN, 100, 0), (Out, RST, 101, 0)]);
        assert_eq!((machine.budget().active, machine.punted().len()), (0, 0));
        converse(machine, family, &[(Out, SYN, 200, 0)]);
        punted(machine, &udp(here(family), resolver(family), b"query"));
        assert_eq!(machine.punted().len(), 2);
        machine.forget(machine.tenant);
        assert_eq!((machine.budget().active, machine.punted().len()), (0, 0));
    });
}

#[test]
fn a_policy_that_comes_with_names_takes_what_was_allowed_by_address() {
    each_family(|machine, family| {
        machine.adopt(Document::Empty);
        let syn = tcp(here(family), web(family), SYN, b"");
        assert_eq!(machine.run(Out, &syn.bytes).frame, syn.bytes);
        machine.adopt(Document::Named);
        let next = tcp(here(family), web(family), ACK, b"x");
        assert_eq!(machine.run(Out, &next.bytes).action, REDIRECT);
        assert_eq!(machine.snapshot().count(Reason::Revoked).0, 1);
        let [cut] = machine.cuts()[..] else { panic!("its ends are told") };
        assert_eq!(RuleWord::from_bits(cut.rule).class(), Class::Unmatched, "it goes to the destination");
        assert_eq!(machine.budget().active, 0);
    });
}

#[test]
fn a_policy_without_names_ends_what_it_denies_and_leaves_what_it_does_not() {
    each_family(|machine, family| {
        let syn = tcp(here(family), web(family), SYN, b"");
        punted(machine, &syn);
        // Everything is allowed: the connection stays where it is.
        machine.adopt(Document::Empty);
        assert!(machine.rejudge() && machine.cuts().is_empty());
        punted(machine, &tcp(here(family), web(family), ACK, b"x"));
        machine.adopt(Document::Listed);
        assert!(machine.rejudge());
        let [cut] = machine.cuts()[..] else { panic!("its ends are told") };
        assert_eq!(RuleWord::from_bits(cut.rule).class(), Class::Inspected, "it goes to the inspector");
        assert_eq!((machine.budget().active, machine.punted().len()), (0, 0));
    });
}

#[test]
fn an_injected_frame_of_a_cut_connection_goes_to_the_inspector() {
    use crate::fixtures::machine::MARK;
    each_family(|machine, family| {
        let reset = tcp(here(family), web(family), RST, b"");
        let context = Context { mark: MARK | 1, ..Context::of(Out) };
        let ran = machine.run_in(Out, &reset.bytes, &context);
        assert_eq!((ran.action, ran.frame[14 + family.pick(8, 7)]), (UNSPEC, 1));
        let mark = machine.mark_of(&reset.bytes, &context);
        assert_eq!(mark & PUNT.mask, PUNT.punted);
    });
}

/// On a bridge the frame is addressed to somebody else, and the bridge would send it there.
#[test]
fn a_frame_for_somebody_else_is_addressed_to_the_host() {
    each_family(|machine, family| {
        let syn = tcp(here(family), web(family), SYN, b"").macs([0x02, 0, 0, 0, 0, 0x99], MAC);
        let ran = machine.run(Out, &syn.bytes);
        assert_eq!(ran.action, UNSPEC);
        assert_eq!(ran.frame[..6], GATEWAY_MAC);
        assert_eq!(ran.frame[6..14], syn.bytes[6..14]);
    });
}

/// The host's stack could not tell two connections with the same ends apart, so there is never a second.
#[test]
fn the_same_ends_belong_to_one_sandbox() {
    each_family(|machine, family| {
        let syn = tcp(here(family), web(family), SYN, b"");
        let key = PuntKey::of(&key_of(machine, &syn, family));
        machine.claim(key, machine.tenant + 7);
        assert_eq!(machine.run(Out, &syn.bytes).action, SHOT);
        assert_eq!(machine.snapshot().count(Reason::Spoofed).0, 1);
        assert_eq!(machine.budget().active, 0);
        assert_eq!(machine.punted(), [(key, machine.tenant + 7)], "the other one's is untouched");
        machine.claim(key, machine.tenant);
        punted(machine, &syn);
    });
}

#[test]
fn the_budget_holds_for_inspected_connections_too() {
    each_family(|machine, family| {
        machine.set_budget(2500);
        let syn = tcp(here(family), web(family), SYN, b"");
        assert_eq!(machine.run(Out, &syn.bytes).action, REDIRECT);
        assert_eq!(machine.snapshot().count(Reason::ConnectionLimit).0, 1);
        assert!(machine.punted().is_empty(), "nothing is left of what was refused");
        machine.set_budget(0);
    });
}
