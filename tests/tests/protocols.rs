//! What is neither TCP, UDP nor ping stays in, forged ICMP errors too; the errors that connections live on pass.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use common::wire::{self, ICMP, ICMP_V6, MARKER, Seen, Segment, TCP, UDP};
use common::{ALLOWED, Answer, Ground, ID, PATIENCE, Row, Told, eventually, ip};
use filter_tests::{Service, Topology};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

fn row(ground: &Ground, name: &'static str, protocol: u8, to: &str, body: Vec<u8>, answer: Answer) -> Row {
    let to = ip(to);
    let from = ground.sandbox.address_like(to);
    let frame = ground.frame(wire::ip(from, to, protocol, body));
    let proto = match protocol {
        ICMP => "icmp".to_owned(),
        ICMP_V6 => "icmpv6".to_owned(),
        other => other.to_string(),
    };
    Row { name, frame, told: Told::packet("protocol", None, proto, from, to), answer }
}

#[test]
fn other_protocols_are_refused_wherever_they_go() -> Result<()> {
    let ground = Ground::usual()?;
    for to in ALLOWED {
        let to = ip(to);
        // IP in IP, GRE, ESP, AH, SCTP, UDP-Lite, DCCP, OSPF, L2TP, numbers for experiments.
        for protocol in [4, 41, 47, 50, 51, 132, 136, 33, 89, 115, 253, 254] {
            // To the sandbox's kernel that is an IPv6 extension header, and its errors are nobody's.
            if to.is_ipv6() && protocol == 51 {
                continue;
            }
            let from = ground.sandbox.address_like(to);
            // What tunnels carry: a SYN to the server.
            let (_, inner) = wire::ip(from, to, TCP, Segment::syn(4000, 80).bytes(from, to, MARKER));
            let payload = if protocol == 47 { [&[0, 0, 8, 0][..], &inner].concat() } else { inner };
            let before = ground.before()?;
            let attempt = common::attempt(&ground.sandbox, || {
                let socket =
                    Socket::new(Domain::for_address((to, 0).into()), Type::RAW, Some(protocol.into()))?;
                socket.connect(&SocketAddr::new(to, 0).into())?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send(&payload)?;
                (&socket).read(&mut [0; 64])
            });
            common::ensure_refused(&attempt, common::prohibited(to))
                .with_context(|| format!("protocol {protocol} to {to}"))?;
            ground.ensure_denied(&before, &[Told::packet("protocol", None, protocol, from, to)])?;
        }
    }
    Ok(())
}

#[test]
fn tunnels_by_hand_stay_in() -> Result<()> {
    let ground = Ground::usual()?;
    let filler = || [&[0; 16][..], MARKER].concat();
    let mut rows = Vec::new();
    for to in ALLOWED.map(ip) {
        let from = ground.sandbox.address_like(to);
        let (ethertype, inner) = wire::ip(from, to, TCP, Segment::syn(4000, 80).bytes(from, to, MARKER));
        let gre = [&[0, 0][..], &ethertype.to_be_bytes(), &inner].concat();
        let server = to.to_string();
        let number = if to.is_ipv4() { 4 } else { 41 };
        rows.push(row(&ground, "IP in IP", number, &server, inner, Answer::Whatever));
        rows.push(row(&ground, "GRE", 47, &server, gre, Answer::Whatever));
        rows.push(row(&ground, "the last number", 255, &server, filler(), Answer::Prohibited));
    }
    rows.push(row(&ground, "IGMP", 2, ALLOWED[0], filler(), Answer::Prohibited));
    rows.push(row(&ground, "ICMPv6 in IPv4", ICMP_V6, ALLOWED[0], filler(), Answer::Nothing));
    rows.push(row(&ground, "ICMP in IPv6", ICMP, ALLOWED[1], filler(), Answer::Nothing));
    rows.push(row(&ground, "AH", 51, ALLOWED[1], filler(), Answer::Prohibited));
    rows.push(row(&ground, "nothing follows", 59, ALLOWED[1], filler(), Answer::Prohibited));
    ground.frames_are_denied(&rows)
}

/// An ICMP message of the sandbox.
fn message(ground: &Ground, to: &str, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let to = ip(to);
    wire::icmp(ground.sandbox.address_like(to), to, kind, code, &[body, MARKER].concat())
}

#[test]
fn icmp_is_for_echo() -> Result<()> {
    let ground = Ground::usual()?;
    let mut rows = Vec::new();
    // The types have one flow in common, so each has a destination of its own.
    for (n, (name, kind)) in
        [("redirect", 5), ("source quench", 4), ("timestamp", 13), ("mask", 17), ("router advertisement", 9)]
            .into_iter()
            .enumerate()
    {
        let to = format!("203.0.113.{}", 20 + n);
        let body = message(&ground, &to, kind, 1, &[0; 16]);
        rows.push(row(&ground, name, ICMP, &to, body, Answer::Nothing));
    }
    for (n, (name, kind)) in
        [("node information", 139), ("router renumbering", 138), ("mobile prefix", 147), ("reserved", 0)]
            .into_iter()
            .enumerate()
    {
        let to = format!("2001:db8:113::{}", 20 + n);
        let body = message(&ground, &to, kind, 0, &[0; 16]);
        rows.push(row(&ground, name, ICMP_V6, &to, body, Answer::Nothing));
    }
    // Answers that nobody asked for carry data as well as questions do.
    rows.push(row(
        &ground,
        "echo reply",
        ICMP,
        "203.0.113.30",
        message(&ground, "203.0.113.30", 0, 0, &[1, 2, 0, 1]),
        Answer::Prohibited,
    ));
    rows.push(row(
        &ground,
        "IPv6 echo reply",
        ICMP_V6,
        "2001:db8:113::30",
        message(&ground, "2001:db8:113::30", 129, 0, &[1, 2, 0, 1]),
        Answer::Prohibited,
    ));
    ground.frames_are_denied(&rows)
}

/// What an error of the sandbox says that it got: a datagram.
fn quote(from: IpAddr, to: IpAddr, sport: u16, dport: u16) -> Vec<u8> {
    let (_, packet) = wire::ip(from, to, UDP, wire::udp(from, to, sport, dport, MARKER));
    [&[0; 4][..], &packet].concat()
}

#[test]
fn forged_errors_stay_in() -> Result<()> {
    let ground = Ground::usual()?;
    let _servers = ground.echo()?;
    let mut rows = Vec::new();
    let mut known = Vec::new();
    for to in ALLOWED.map(ip) {
        let from = ground.from(to);
        common::ask(&ground.sandbox, from, SocketAddr::new(to, 7)).result.context("echo")?;
        known.push((from, to));
    }
    for (n, (kind, code)) in [(3, 3), (3, 4), (11, 0), (12, 0)].into_iter().enumerate() {
        let to = format!("203.0.113.{}", 40 + n);
        let own = ground.sandbox.v4().into();
        let body = message(&ground, &to, kind, code, &quote(ip(&to), own, 80, 4000));
        rows.push(row(&ground, "about an unknown flow", ICMP, &to, body, Answer::Nothing));
    }
    for (n, (kind, code)) in [(1, 4), (2, 0), (3, 0), (4, 1)].into_iter().enumerate() {
        let to = format!("2001:db8:113::{}", 40 + n);
        let own = ground.sandbox.v6().into();
        let body = message(&ground, &to, kind, code, &quote(ip(&to), own, 80, 4000));
        rows.push(row(&ground, "about an unknown IPv6 flow", ICMP_V6, &to, body, Answer::Nothing));
    }
    for ((from, server), to) in known.iter().zip(["203.0.113.50", "2001:db8:113::50"]) {
        let (protocol, kind) = if server.is_ipv4() { (ICMP, 3) } else { (ICMP_V6, 1) };
        // The flow is known, but it is not with this one.
        let body = message(&ground, to, kind, 3, &quote(*server, from.ip(), 7, from.port()));
        rows.push(row(&ground, "about another's flow", protocol, to, body, Answer::Nothing));
        // The sandbox's own packet: errors about those come from elsewhere.
        let server = server.to_string();
        let body = message(&ground, &server, kind, 3, &quote(from.ip(), ip(&server), from.port(), 7));
        rows.push(row(&ground, "about its own packet", protocol, &server, body, Answer::Nothing));
    }
    // Cut short before the ports.
    let to = "203.0.113.60";
    let body = message(&ground, to, 3, 3, &[0; 4]);
    rows.push(row(&ground, "about nothing", ICMP, to, body, Answer::Nothing));
    ground.frames_are_denied(&rows)
}

#[test]
fn path_mtu_discovery_works() -> Result<()> {
    const BYTES: usize = 2_000_000;
    let ground = Ground::usual()?;
    let sink = ground.topology.serve(Service::TcpSink, 9)?;
    ground.topology.host().set_mtu(Topology::UPLINK, 1280)?;
    for (to, too_big) in ALLOWED.into_iter().zip([(3, 4), (2, 0)]) {
        let before = ground.before()?;
        let already = sink.bytes_in();
        let mut stream = ground.sandbox.tcp_connect((ip(to), 9), PATIENCE).result?;
        stream.write_all(&vec![b'x'; BYTES]).with_context(|| format!("sending to {to}"))?;
        drop(stream);
        eventually(|| Ok(sink.bytes_in() - already == BYTES as u64)).with_context(|| format!("to {to}"))?;
        let told = ground.answers_since(&before)?.iter().any(|seen| seen.icmp() == Some(too_big));
        ensure!(told, "nobody said that the packets are too big, so this proves nothing");
        ensure!(ground.moved(&before).is_empty(), "{}", ground.moved(&before));
    }
    Ok(())
}

#[test]
fn a_closed_port_is_told() -> Result<()> {
    let ground = Ground::usual()?;
    for (to, unreachable) in ALLOWED.into_iter().zip([(3, 3), (1, 4)]) {
        let before = ground.before()?;
        let to = SocketAddr::new(ip(to), 4444);
        let attempt = common::ask(&ground.sandbox, ground.from(to.ip()), to);
        ensure!(attempt.errno() == Some(Errno::ECONNREFUSED), "{:?}", attempt.result);
        let told = |seen: &Seen| seen.icmp() == Some(unreachable);
        ensure!(ground.answers_since(&before)?.iter().any(told));
        ensure!(ground.moved(&before).is_empty(), "{}", ground.moved(&before));
        let attempt = ground.sandbox.tcp_connect(to, PATIENCE);
        ensure!(attempt.errno() == Some(Errno::ECONNREFUSED), "{:?}", attempt.result);
    }
    Ok(())
}

#[test]
fn a_traceroute_sees_its_hops() -> Result<()> {
    let ground = Ground::usual()?;
    for (to, expired) in ALLOWED.into_iter().zip([(11, 0), (3, 0)]) {
        let before = ground.before()?;
        let to = ip(to);
        let from = ground.from(to);
        ground.sandbox.run(|| {
            let socket = UdpSocket::bind(from)?;
            let socket = Socket::from(socket);
            if to.is_ipv4() {
                socket.set_ttl_v4(1)?
            } else {
                socket.set_unicast_hops_v6(1)?
            }
            socket.send_to(b"who is there?", &SocketAddr::new(to, 33_434).into())?;
            Ok(())
        })?;
        let gateway: IpAddr = if to.is_ipv4() {
            ground.sandbox.gateway_v4().into()
        } else {
            ground.sandbox.gateway_v6().into()
        };
        eventually(|| {
            let answers = ground.answers_since(&before)?;
            Ok(answers.iter().any(|seen| seen.icmp() == Some(expired) && seen.from == gateway))
        })
        .with_context(|| format!("no word from the gateway on the way to {to}"))?;
        ensure!(ground.daemon.packets(ID, "reply")? > 0);
    }
    Ok(())
}
