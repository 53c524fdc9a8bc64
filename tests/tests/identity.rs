//! A sandbox speaks for itself and for nobody else: addresses, hardware addresses, ARP, neighbour discovery, DHCP.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use common::wire::{self, MARKER, Segment, TCP, UDP, ethernet};
use common::{ALLOWED, Answer, Ground, ID, Row, Told, counted, ip, usual_policy};
use filter_tests::{Daemon, Recording, Sandbox, Topology};

const BROADCAST: [u8; 6] = [0xff; 6];
const STRANGER: [u8; 6] = [0x02, 0, 0, 0xba, 0xdd, 0x01];

/// Two sandboxes on one host; the first is the one that lies.
fn two() -> Result<(Ground, Sandbox)> {
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let (sandbox, other) = (topology.sandbox(1)?, topology.sandbox(2)?);
    daemon.attach(ID, &sandbox, &usual_policy())?;
    daemon.attach("s2", &other, &usual_policy())?;
    Ok((Ground::around(topology, daemon, sandbox)?, other))
}

/// A frame that says nothing of itself that may be told.
fn silent(name: &'static str, reason: &'static str, frame: Vec<u8>) -> Row {
    Row { name, frame, told: Told::nothing(reason), answer: Answer::Nothing }
}

#[test]
fn other_source_addresses_are_spoofed() -> Result<()> {
    let (ground, other) = two()?;
    let heard = Recording::start(&other, Sandbox::INTERFACE)?;
    let before = ground.daemon.show("s2")?;
    let mut rows = Vec::new();
    let strangers =
        ["10.200.1.9", "203.0.113.9", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1"];
    let strangers_v6 = ["fd00:200:1::9", "2001:db8:113::9", "::", "::1", "fe80::1", "ff02::1", "2001:db8::1"];
    let others = [other.v4().to_string(), other.v6().to_string()];
    let gateway = [ground.sandbox.gateway_v4().to_string(), ground.sandbox.gateway_v6().to_string()];
    for from in
        strangers.into_iter().chain(strangers_v6).chain(others.iter().chain(&gateway).map(String::as_str))
    {
        let (from, port) = (ip(from), ground.port());
        let to = ip(ALLOWED[usize::from(from.is_ipv6())]);
        let (from_port, to_port) = (SocketAddr::new(from, port), SocketAddr::new(to, 80));

        let segment = Segment::syn(port, 80).bytes(from, to, MARKER);
        let frame = ground.frame(wire::ip(from, to, TCP, segment));
        let told = Told::flow("spoofed", None, "tcp", from_port, to_port);
        rows.push(Row { name: "SYN of another", frame, told, answer: Answer::Nothing });

        let datagram = wire::udp(from, to, port, 80, MARKER);
        let frame = ground.frame(wire::ip(from, to, UDP, datagram));
        let told = Told::flow("spoofed", None, "udp", from_port, to_port);
        rows.push(Row { name: "datagram of another", frame, told, answer: Answer::Nothing });
    }
    ground.frames_are_denied(&rows)?;
    // Neither did the other pay for it, nor did it get answers.
    let after = ground.daemon.show("s2")?;
    for reason in ["allowed_cidr", "reply", "inbound", "denied_cidr", "spoofed"] {
        ensure!(counted(&after, reason) == counted(&before, reason), "{reason} of the other sandbox moved");
    }
    ensure!(after["connections"]["peak"] == 0);
    let heard = heard.frames()?;
    ensure!(!heard.iter().any(|frame| common::contains(frame, MARKER)));
    Ok(())
}

#[test]
fn other_hardware_addresses_are_spoofed() -> Result<()> {
    let (ground, other) = two()?;
    let (own, gateway) = (&ground.sandbox, ground.sandbox.gateway_mac());
    let mut rows = Vec::new();
    for (mac, from, to) in [STRANGER, other.mac(), gateway, BROADCAST, [0; 6]]
        .into_iter()
        .flat_map(|mac| ALLOWED.map(|to| (mac, own.address_like(ip(to)), ip(to))))
    {
        let (ethertype, packet) =
            wire::ip(from, to, TCP, Segment::syn(ground.port(), 80).bytes(from, to, MARKER));
        rows.push(silent("SYN from another's card", "spoofed", ethernet(gateway, mac, ethertype, &packet)));
    }
    // An honest ARP packet in another's frame.
    let arp = arp(1, own.mac(), own.v4(), [0; 6], own.gateway_v4());
    rows.push(silent("ARP from another's card", "spoofed", ethernet(BROADCAST, STRANGER, 0x0806, &arp)));
    ground.frames_are_denied(&rows)
}

fn arp(operation: u8, mac: [u8; 6], sender: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &mac, &sender.octets(), &target_mac, &target.octets(), MARKER].concat()
}

#[test]
fn arp_for_others_is_refused() -> Result<()> {
    let (ground, other) = two()?;
    let heard = Recording::start(&other, Sandbox::INTERFACE)?;
    let (own, gateway) = (&ground.sandbox, ground.sandbox.gateway_v4());
    let (mac, gateway_mac) = (own.mac(), own.gateway_mac());
    let broadcast = |packet: &[u8]| ethernet(BROADCAST, mac, 0x0806, packet);
    let claim = |name, packet: Vec<u8>| silent(name, "neighbour_claim", broadcast(&packet));
    let odd = |name, packet: Vec<u8>| silent(name, "malformed", broadcast(&packet));
    let honest = arp(1, mac, own.v4(), [0; 6], gateway);
    let with = |at: usize, value: u8| {
        let mut packet = honest.clone();
        packet[at] = value;
        packet
    };
    ground.frames_are_denied(&[
        claim("the gateway, gratuitous request", arp(1, mac, gateway, [0; 6], gateway)),
        claim("the gateway, gratuitous reply", arp(2, mac, gateway, BROADCAST, gateway)),
        claim("the gateway, reply to the gateway", arp(2, mac, gateway, gateway_mac, own.v4())),
        claim("another sandbox", arp(2, mac, other.v4(), BROADCAST, other.v4())),
        claim("a free address", arp(2, mac, Ipv4Addr::new(10, 200, 1, 3), gateway_mac, gateway)),
        claim("an address of the internet", arp(1, mac, Ipv4Addr::new(203, 0, 113, 10), [0; 6], gateway)),
        claim("a probe for the gateway's address", arp(1, mac, Ipv4Addr::UNSPECIFIED, [0; 6], gateway)),
        claim("another's hardware address inside", arp(2, STRANGER, own.v4(), gateway_mac, gateway)),
        claim("the gateway's hardware address inside", arp(2, gateway_mac, own.v4(), gateway_mac, gateway)),
        odd("reverse ARP", with(7, 3)),
        odd("not Ethernet", with(1, 6)),
        odd("not IPv4", with(2, 0x86)),
        odd("long addresses", with(4, 8)),
        odd("cut short", honest[..20].to_vec()),
    ])?;
    ensure!(!heard.frames()?.iter().any(|frame| common::contains(frame, MARKER)));
    // The host still knows where everybody is.
    other.tcp_connect((other.gateway_v4(), 1), common::PATIENCE);
    let answer = ground.topology.host().ping(other.v4(), common::PATIENCE);
    answer.result.context("the other sandbox, from the host")
}

/// An option with a hardware address (RFC 4861 section 4.6.1).
fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

#[test]
fn neighbour_discovery_for_others_is_refused() -> Result<()> {
    let (ground, other) = two()?;
    let own = &ground.sandbox;
    let (mac, v6) = (own.mac(), own.v6());
    let link_local: Ipv6Addr = "fe80::5b:ff:fe00:102".parse()?;
    let all_nodes: Ipv6Addr = "ff02::1".parse()?;
    let (gateway, everybody) = (own.gateway_v6(), IpAddr::from(all_nodes));
    let message = |from: Ipv6Addr, to: IpAddr, kind: u8, body: Vec<u8>| {
        let body = wire::icmp(from.into(), to, kind, 0, &body);
        let IpAddr::V6(to) = to else { unreachable!("{to} is no IPv6 address") };
        let packet = wire::V6 { hops: 255, ..wire::V6::new(from, to, wire::ICMP_V6, body) };
        ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd, &packet.bytes())
    };
    let row = |name, from: Ipv6Addr, to: IpAddr, kind, body| {
        let told = Told::packet("neighbour_claim", None, "icmpv6", from.into(), to);
        Row { name, frame: message(from, to, kind, body), told, answer: Answer::Nothing }
    };
    // Flags: override, solicited.
    let advertise =
        |target: Ipv6Addr, mac| [&[0x60, 0, 0, 0][..], &target.octets(), &link_layer(2, mac)].concat();
    let solicit = |target: Ipv6Addr, mac| [&[0; 4][..], &target.octets(), &link_layer(1, mac)].concat();
    let router = || {
        let prefix = [&[3, 4, 64, 0xc0][..], &[0xff; 8], &[0; 4], &gateway.octets()].concat();
        [&[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &link_layer(1, mac), &prefix].concat()
    };
    let redirect = [&[0; 4][..], &v6.octets(), &other.v6().octets(), &link_layer(2, mac)].concat();
    ground.frames_are_denied(&[
        row("the gateway's address", v6, everybody, 136, advertise(gateway, mac)),
        row("another sandbox's address", v6, everybody, 136, advertise(other.v6(), mac)),
        row("the gateway's, from the gateway", gateway, everybody, 136, advertise(gateway, mac)),
        row("its own, at a stranger's card", v6, everybody, 136, advertise(v6, STRANGER)),
        row("a question from a stranger's card", v6, everybody, 135, solicit(gateway, STRANGER)),
        row("a question from another", other.v6(), everybody, 135, solicit(gateway, mac)),
        row("a probe for the gateway's address", Ipv6Addr::UNSPECIFIED, everybody, 135, {
            [&[0; 4][..], &gateway.octets()].concat()
        }),
        row("router advertisement", link_local, everybody, 134, router()),
        row("router advertisement to the gateway", link_local, gateway.into(), 134, router()),
        row("redirect", link_local, gateway.into(), 137, redirect),
        row("router solicitation of another", other.v6(), ip("ff02::2"), 133, {
            [&[0; 4][..], &link_layer(1, mac)].concat()
        }),
    ])
}

#[test]
fn nobody_plays_the_dhcp_server() -> Result<()> {
    let (ground, _other) = two()?;
    let (v4, v6) = (IpAddr::from(ground.sandbox.v4()), IpAddr::from(ground.sandbox.v6()));
    let row = |name, from: IpAddr, sport, to: &str, dport| {
        let to = ip(to);
        let frame = ground.frame(wire::ip(from, to, UDP, wire::udp(from, to, sport, dport, MARKER)));
        let (from, to) = (SocketAddr::new(from, sport), SocketAddr::new(to, dport));
        Row {
            name,
            frame,
            told: Told::flow("neighbour_claim", None, "udp", from, to),
            answer: Answer::Nothing,
        }
    };
    ground.frames_are_denied(&[
        row("offer", v4, 67, "255.255.255.255", 68),
        row("offer to one", v4, 67, "10.200.2.2", 68),
        row("from any port", v4, 1067, ALLOWED[0], 68),
        row("from the server's port", v4, 67, ALLOWED[0], 1068),
        row("IPv6 reply", v6, 547, "ff02::1", 546),
        row("IPv6 reply to one", v6, 547, ALLOWED[1], 546),
    ])
}

#[test]
fn its_own_neighbour_discovery_works() -> Result<()> {
    let ground = Ground::usual()?;
    let _servers = ground.echo()?;
    for to in ALLOWED {
        ground.reaches(to)?;
    }
    for _ in 0..3 {
        let before = ground.before()?;
        let counted = ground.daemon.packets(ID, "neighbour")?;
        ground.sandbox.flush_neighbours()?;
        ground.topology.host().flush_neighbours()?;
        for to in ALLOWED {
            ground.reaches(to)?;
        }
        // Question and answer, in two families.
        let more = ground.daemon.packets(ID, "neighbour")? - counted;
        ensure!(more >= 4, "{more} packets of neighbour discovery");
        ensure!(ground.moved(&before).is_empty(), "{}", ground.moved(&before));
    }
    Ok(())
}
