//! Two sandboxes on one bridge: each reaches its gateway and the internet, and neither the other.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use common::wire::{self, MARKER, Seen, Segment, TCP, UDP, ethernet};
use common::{
    ALLOWED, Answer, DENIED, Ground, ID, PATIENCE, Row, Told, contains, counted, eventually, ip, usual_policy,
};
use filter_tests::{Daemon, Recording, Sandbox, Server, Service, Topology};

const BROADCAST: [u8; 6] = [0xff; 6];

/// The sandbox that the tests act as, and its neighbour, with what that one hears.
fn neighbours() -> Result<(Ground, Sandbox, Recording)> {
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let (one, two) = (topology.bridge_sandbox(1)?, topology.bridge_sandbox(2)?);
    daemon.attach(ID, &one, &usual_policy())?;
    daemon.attach("s2", &two, &usual_policy())?;
    let heard = Recording::start(&two, Sandbox::INTERFACE)?;
    Ok((Ground::around(topology, daemon, one)?, two, heard))
}

#[test]
fn each_reaches_the_internet_through_the_bridge() -> Result<()> {
    let (ground, other, _) = neighbours()?;
    let _servers = ground.echo()?;
    for to in ALLOWED {
        ground.reaches(to)?;
        let answer = other.tcp_exchange((ip(to), 7), b"hello", PATIENCE).result;
        ensure!(answer.with_context(|| format!("the other one to {to}"))? == b"hello");
    }
    for to in DENIED {
        ground.is_denied(to, "denied_cidr", Some("/denyOut/0"))?;
        ensure!(!other.tcp_connect((ip(to), 7), PATIENCE).is_ok());
    }
    // The host reaches both.
    for to in
        [ground.sandbox.v4().into(), ground.sandbox.v6().into(), other.v4().into(), IpAddr::from(other.v6())]
    {
        ground.topology.host().ping(to, PATIENCE).result.with_context(|| format!("the host to {to}"))?;
    }
    Ok(())
}

#[test]
fn neither_reaches_the_other() -> Result<()> {
    let (ground, other, heard) = neighbours()?;
    let servers = [Service::TcpEcho, Service::UdpEcho].map(|service| Server::start(&other, service, 7));
    for to in [other.v4().to_string(), other.v6().to_string()] {
        ground.is_denied(&to, "guarded", None)?;
    }
    for (server, (connections, datagrams)) in servers.into_iter().zip([(0, 0), (0, 0)]) {
        let server = server?;
        ensure!((server.connections(), server.datagrams()) == (connections, datagrams));
    }
    let before = ground.before()?;
    for to in [ground.sandbox.v4().into(), IpAddr::from(ground.sandbox.v6())] {
        ensure!(!other.ping(to, PATIENCE).is_ok());
        ensure!(!other.tcp_connect((to, 7), PATIENCE).is_ok());
    }
    ensure!(counted(&ground.daemon.show("s2")?, "guarded") >= 4);
    let strangers =
        |seen: &Seen| seen.from == IpAddr::from(other.v4()) || seen.from == IpAddr::from(other.v6());
    let mut connections = ground.answers_since(&before)?.into_iter().filter(strangers);
    ensure!(
        !connections.any(|seen| seen.is_tcp() || seen.icmp().is_some_and(|icmp| matches!(icmp.0, 8 | 128)))
    );
    ensure!(!heard.frames()?.iter().any(|frame| contains(frame, MARKER)));
    Ok(())
}

#[test]
fn no_frame_goes_to_the_neighbour_behind_the_gateways_back() -> Result<()> {
    let (ground, other, heard) = neighbours()?;
    let own = &ground.sandbox;
    // The neighbour's address at the neighbour's card: the packet itself is refused.
    let mut rows = Vec::new();
    for to in [other.v4().into(), IpAddr::from(other.v6())] {
        for card in [other.mac(), BROADCAST] {
            let (from, to) = (ground.from(to), SocketAddr::new(to, 7));
            let segment = Segment::syn(from.port(), 7).bytes(from.ip(), to.ip(), MARKER);
            let (ethertype, packet) = wire::ip(from.ip(), to.ip(), TCP, segment);
            let frame = ethernet(card, own.mac(), ethertype, &packet);
            let told = Told::flow("guarded", None, "tcp", from, to);
            rows.push(Row { name: "to the neighbour's card", frame, told, answer: Answer::Reset });
        }
    }
    ground.frames_are_denied(&rows)?;

    // An allowed address at the neighbour's card: the bridge carries it there, and no further.
    let before = counted(&ground.daemon.show("s2")?, "inbound");
    for to in ALLOWED.map(ip) {
        let from = ground.from(to);
        let datagram = wire::udp(from.ip(), to, from.port(), 7, MARKER);
        let (ethertype, packet) = wire::ip(from.ip(), to, UDP, datagram);
        ground.send(&ethernet(other.mac(), own.mac(), ethertype, &packet))?;
        let told = Told::flow("inbound", None, "udp", from, SocketAddr::new(to, 7));
        let of_the_other = |event: &serde_json::Value| told.is(event) && event["sandbox"] == "s2";
        ground.daemon.wait_event(of_the_other, PATIENCE)?;
    }
    eventually(|| Ok(counted(&ground.daemon.show("s2")?, "inbound") == before + 2))?;
    ensure!(!heard.frames()?.iter().any(|frame| contains(frame, MARKER)));
    Ok(())
}

#[test]
fn nobody_becomes_the_others_gateway() -> Result<()> {
    let (ground, other, heard) = neighbours()?;
    let _servers = ground.echo()?;
    let (own, gateway) = (&ground.sandbox, ground.sandbox.gateway_v4());
    let arp = |operation: u8, sender: Ipv4Addr, target: Ipv4Addr, card: [u8; 6]| {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        let packet = [&head[..], &own.mac(), &sender.octets(), &card, &target.octets(), MARKER].concat();
        ethernet(card, own.mac(), 0x0806, &packet)
    };
    let claim =
        |name, frame| Row { name, frame, told: Told::nothing("neighbour_claim"), answer: Answer::Nothing };
    ground.frames_are_denied(&[
        claim("gratuitous ARP", arp(1, gateway, gateway, BROADCAST)),
        claim("ARP reply to all", arp(2, gateway, gateway, BROADCAST)),
        claim("ARP reply to one", arp(2, gateway, other.v4(), other.mac())),
        claim("the neighbour's address to the gateway", arp(2, other.v4(), gateway, own.gateway_mac())),
    ])?;

    let advertise = |from: Ipv6Addr, target: Ipv6Addr, to: Ipv6Addr| {
        let option = [&[2, 1][..], &own.mac()].concat();
        let body = [&[0xa0, 0, 0, 0][..], &target.octets(), &option].concat();
        let body = wire::icmp(from.into(), to.into(), 136, 0, &body);
        let packet = wire::V6 { hops: 255, ..wire::V6::new(from, to, wire::ICMP_V6, body) };
        let told = Told::packet("neighbour_claim", None, "icmpv6", from.into(), to.into());
        let frame = ethernet(other.mac(), own.mac(), 0x86dd, &packet.bytes());
        Row { name: "neighbour advertisement", frame, told, answer: Answer::Nothing }
    };
    let (v6, gateway_v6) = (own.v6(), own.gateway_v6());
    ground.frames_are_denied(&[
        advertise(v6, gateway_v6, other.v6()),
        advertise(gateway_v6, gateway_v6, other.v6()),
        advertise(v6, other.v6(), gateway_v6),
    ])?;

    let claims = |frame: &Vec<u8>| {
        let from_one = frame[6..12] == own.mac();
        let arp = frame[12..14] == [8, 6] && frame[28..32] == gateway.octets();
        let advertised = Seen::parse(frame).is_some_and(|seen| seen.icmp() == Some((136, 0)));
        from_one && (arp || advertised)
    };
    ensure!(!heard.frames()?.iter().any(claims), "a claim came through");
    for to in ALLOWED {
        let answer = other.tcp_exchange((ip(to), 7), b"hello", PATIENCE).result;
        ensure!(answer.with_context(|| format!("the other one to {to}"))? == b"hello");
    }
    Ok(())
}
