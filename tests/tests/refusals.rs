//! What a sandbox is told of a denial: at once, correctly, and no more often than the host can bear.

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::wire::{self, ACK, FIN, MARKER, PSH, RST, SYN, Seen, Segment, TCP, UDP, V4};
use common::{ALLOWED, Answer, Before, DENIED, Ground, ID, Row, Told, counted, ip};
use filter_tests::{Offload, Sandbox};
use serde_json::Value;

const RULE: Option<&str> = Some("/denyOut/0");

/// Everything that the filter told the sandbox is as the wire would have it.
fn all_checksums_are_right(ground: &Ground, before: &Before, expected: usize) -> Result<()> {
    let answers = ground.answers_since(before)?;
    let refusals: Vec<_> = answers.iter().filter(|seen| seen.is_reset() || seen.is_prohibited()).collect();
    ensure!(refusals.len() == expected, "{} refusals, not {expected}", refusals.len());
    for refusal in refusals {
        ensure!(refusal.checksums_right, "a wrong checksum: {refusal:02x?}");
    }
    Ok(())
}

#[test]
fn checksums_are_right_whoever_computes_them() -> Result<()> {
    let ground = Ground::usual()?;
    let _servers = ground.echo()?;
    for (sandbox, host) in [(true, true), (false, true), (false, false), (true, false)] {
        ground.sandbox.set_offloads(Sandbox::INTERFACE, &[Offload::TxChecksum], sandbox)?;
        let wire = ground.sandbox.host_interface();
        ground.topology.host().set_offloads(wire, &[Offload::TxChecksum], host)?;
        let before = ground.before()?;
        for to in DENIED {
            let offload = || format!("offload in the sandbox {sandbox}, on the host {host}");
            ground.is_denied(to, "denied_cidr", RULE).with_context(offload)?;
        }
        all_checksums_are_right(&ground, &before, 6)?;
        for to in ALLOWED {
            ground.reaches(to)?;
        }
    }
    Ok(())
}

#[test]
fn resets_have_the_right_numbers() -> Result<()> {
    let ground = Ground::usual()?;
    let reply = |segment: Segment, to: &str, payload: &[u8]| -> Result<Seen> {
        let (to, before) = (ip(to), ground.before()?);
        let from = ground.sandbox.address_like(to);
        let frame = ground.frame(wire::ip(from, to, TCP, segment.bytes(from, to, payload)));
        let told = Told::flow(
            "denied_cidr",
            RULE,
            "tcp",
            SocketAddr::new(from, segment.sport),
            SocketAddr::new(to, segment.dport),
        );
        ground.frames_are_denied(&[Row { name: "segment", frame, told, answer: Answer::Reset }])?;
        let answers = ground.answers_since(&before)?;
        answers.into_iter().find(Seen::is_reset).context("no reset")
    };
    for to in DENIED {
        // A SYN is answered as by a closed port, its payload acknowledged with it.
        for payload in [&b""[..], b"early"] {
            let syn = Segment { seq: 0xffff_fffe, ..Segment::syn(ground.port(), 80) };
            let reset = reply(syn, to, payload)?;
            ensure!((reset.sport(), reset.dport()) == (syn.dport, syn.sport));
            ensure!(reset.tcp_flags() == RST | ACK, "{:#x}", reset.tcp_flags());
            let next = 0xffff_ffff_u32.wrapping_add(payload.len() as u32);
            ensure!((reset.word(4), reset.word(8)) == (0, next), "{:?}", (reset.word(4), reset.word(8)));
            ensure!(reset.body.len() == 20 && reset.half(14) == 0 && reset.half(18) == 0);
        }
        // In the middle of a connection the reset has to be where the other end would go on.
        for (flags, payload) in
            [(ACK | PSH, &b"in the middle"[..]), (ACK, b""), (FIN | ACK, b""), (SYN | ACK, b"")]
        {
            let data = Segment { seq: 5000, ack: 0x8000_0001, flags, ..Segment::syn(ground.port(), 80) };
            let reset = reply(data, to, payload)?;
            ensure!(reset.tcp_flags() == RST, "{:#x}", reset.tcp_flags());
            ensure!(reset.word(4) == 0x8000_0001, "{:#x}", reset.word(4));
        }
    }
    Ok(())
}

#[test]
fn options_do_not_keep_a_reset_away() -> Result<()> {
    let ground = Ground::usual()?;
    let to = "198.51.100.7".parse()?;
    let mut rows = Vec::new();
    for options in [&[1, 1, 1, 1][..], &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[148, 4, 0, 0]] {
        let from = ground.from(to);
        let IpAddr::V4(to) = to else { unreachable!("{to} is no IPv4 address") };
        let body = Segment::syn(from.port(), 80).bytes(from.ip(), to.into(), MARKER);
        let packet = V4 { options: options.to_vec(), ..V4::new(ground.sandbox.v4(), to, TCP, body) };
        let told = Told::flow("denied_cidr", RULE, "tcp", from, SocketAddr::new(to.into(), 80));
        let frame = ground.frame((0x0800, packet.bytes()));
        rows.push(Row { name: "SYN with options", frame, told, answer: Answer::Reset });
    }
    ground.frames_are_denied(&rows)
}

#[test]
fn resets_and_multicast_are_not_answered() -> Result<()> {
    let ground = Ground::usual()?;
    let mut rows = Vec::new();
    for to in DENIED {
        for flags in [RST, RST | ACK, RST | FIN | ACK, RST | PSH | ACK] {
            let (from, to) = (ground.from(ip(to)), SocketAddr::new(ip(to), 80));
            let segment = Segment { flags, ack: 7, ..Segment::syn(from.port(), 80) };
            let frame =
                ground.frame(wire::ip(from.ip(), to.ip(), TCP, segment.bytes(from.ip(), to.ip(), MARKER)));
            let told = Told::flow("denied_cidr", RULE, "tcp", from, to);
            rows.push(Row { name: "reset", frame, told, answer: Answer::Nothing });
        }
    }
    for to in ["224.0.0.251", "239.255.255.250", "255.255.255.255", "ff02::fb", "ff05::2", "ff0e::101"] {
        let (from, to) = (ground.from(ip(to)), SocketAddr::new(ip(to), 5353));
        let datagram = wire::udp(from.ip(), to.ip(), from.port(), to.port(), MARKER);
        let frame = ground.frame(wire::ip(from.ip(), to.ip(), UDP, datagram));
        let told = Told::flow("guarded", None, "udp", from, to);
        rows.push(Row { name: "multicast datagram", frame, told, answer: Answer::Nothing });
        let from = ground.from(to.ip());
        let segment = Segment::syn(from.port(), 5353).bytes(from.ip(), to.ip(), MARKER);
        let frame = ground.frame(wire::ip(from.ip(), to.ip(), TCP, segment));
        let told = Told::flow("guarded", None, "tcp", from, to);
        rows.push(Row { name: "multicast SYN", frame, told, answer: Answer::Nothing });
    }
    ground.frames_are_denied(&rows)
}

#[test]
fn an_icmp_refusal_quotes_what_it_refuses() -> Result<()> {
    let ground = Ground::usual()?;
    for to in DENIED {
        let (from, to) = (ground.from(ip(to)), SocketAddr::new(ip(to), 4433));
        let before = ground.before()?;
        let datagram = wire::udp(from.ip(), to.ip(), from.port(), to.port(), &[MARKER, &[7; 1200]].concat());
        let (ethertype, packet) = wire::ip(from.ip(), to.ip(), UDP, datagram);
        let frame = ground.frame((ethertype, packet.clone()));
        let told = Told::flow("denied_cidr", RULE, "udp", from, to);
        ground.frames_are_denied(&[Row { name: "datagram", frame, told, answer: Answer::Prohibited }])?;

        let answers = ground.answers_since(&before)?;
        let refusal = answers.iter().find(|seen| seen.is_prohibited()).context("no refusal")?;
        ensure!(refusal.checksums_right && (refusal.from, refusal.to) == (to.ip(), from.ip()));
        let quoted = &refusal.body[8..];
        let header = if to.is_ipv4() { 20 } else { 40 };
        // Of UDP: ports and length. The checksum is another where the kernel was to finish it.
        ensure!(quoted.len() == header + 8 && quoted[..header + 6] == packet[..header + 6], "{quoted:02x?}");
    }
    Ok(())
}

#[test]
fn a_flood_is_not_answered_in_full() -> Result<()> {
    const PACKETS: u64 = 20_000;
    let ground = Ground::usual()?;
    let _servers = ground.echo()?;
    let before = ground.before()?;
    let to = SocketAddr::new(ip(DENIED[0]), 9);
    let from = ground.from(to.ip());
    let took = ground.sandbox.run(|| {
        let socket = UdpSocket::bind(from)?;
        let start = Instant::now();
        for _ in 0..PACKETS {
            socket.send_to(b"flood", to)?;
        }
        Ok(start.elapsed())
    })?;
    let after = ground.daemon.show(ID)?;
    ensure!(counted(&after, "denied_cidr") == PACKETS, "{} were counted", counted(&after, "denied_cidr"));

    let refusals = ground.answers_since(&before)?.iter().filter(|seen| seen.is_prohibited()).count() as u64;
    // Two thousand in each tenth of a second, of which the first and the last may be begun.
    let windows = (took.as_millis() / 100) as u64 + 2;
    ensure!(refusals <= 2000 * windows, "{refusals} refusals in {took:?}");
    ensure!(refusals >= 1000, "{refusals} refusals in {took:?}");
    ensure!(!ground.arrived_since(&before)?.iter().any(|seen| seen.to == to.ip()), "some arrived");

    // It harms nobody, not even itself.
    for to in ALLOWED {
        ground.reaches(to)?;
    }
    // Every one of them is either told or known to be missing.
    let told = Told::flow("denied_cidr", RULE, "udp", from, to);
    let deadline = Instant::now() + Duration::from_secs(4);
    loop {
        let events = ground.daemon.events()?;
        let sum = |wanted: &dyn Fn(&Value) -> bool, field: &str| -> u64 {
            events.iter().filter(|event| wanted(event)).filter_map(|event| event[field].as_u64()).sum()
        };
        let counted = sum(&|event| told.is(event), "count");
        let dropped = sum(&|event| event["event"] == "dropped", "dropped");
        if counted + dropped >= PACKETS {
            // Six thousand in each tenth of a second: a slow flood is told whole.
            ensure!((1..=6000 * windows).contains(&counted), "{counted} told, {dropped} dropped in {took:?}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{counted} told, {dropped} dropped");
        std::thread::sleep(Duration::from_millis(50));
    }
}
