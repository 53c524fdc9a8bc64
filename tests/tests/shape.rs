//! Frames that can be read in two ways, or not at all, are dropped; odd but honest ones are judged like any other.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use common::wire::{
    self, ACK, FIN, MARKER, MORE_FRAGMENTS, PSH, RST, SYN, Segment, TCP, UDP, V4, V6, ethernet, v6_fragment,
    v6_options,
};
use common::{ALLOWED, Answer, DENIED, Ground, ID, Row, Told, eventually, ip};
use serde_json::json;

const DROPPED: Told = Told {
    reason: "malformed",
    rule: None,
    proto: String::new(),
    src: None,
    sport: None,
    dst: None,
    dport: None,
};

fn malformed(name: &'static str, frame: Vec<u8>) -> Row {
    let told = Told { proto: "unknown".to_owned(), ..DROPPED };
    Row { name, frame, told, answer: Answer::Nothing }
}

/// Builds packets of the sandbox to the allowed server.
struct Maker<'a> {
    ground: &'a Ground,
    v4: (Ipv4Addr, Ipv4Addr),
    v6: (Ipv6Addr, Ipv6Addr),
}

impl<'a> Maker<'a> {
    fn to(ground: &'a Ground, to: [&str; 2]) -> Result<Self> {
        let v4 = (ground.sandbox.v4(), to[0].parse()?);
        let v6 = (ground.sandbox.v6(), to[1].parse()?);
        Ok(Self { ground, v4, v6 })
    }

    fn syn(&self, v4: bool, port: u16) -> Vec<u8> {
        self.segment(v4, Segment::syn(port, 80))
    }

    fn segment(&self, v4: bool, segment: Segment) -> Vec<u8> {
        let (from, to) = self.ends(v4);
        segment.bytes(from, to, MARKER)
    }

    fn ends(&self, v4: bool) -> (IpAddr, IpAddr) {
        if v4 { (self.v4.0.into(), self.v4.1.into()) } else { (self.v6.0.into(), self.v6.1.into()) }
    }

    fn v4(&self, change: impl FnOnce(&mut V4)) -> Vec<u8> {
        let body = self.syn(true, self.ground.port());
        let mut packet = V4::new(self.v4.0, self.v4.1, TCP, body);
        change(&mut packet);
        self.ground.frame((0x0800, packet.bytes()))
    }

    fn v6(&self, change: impl FnOnce(&mut V6)) -> Vec<u8> {
        let body = self.syn(false, self.ground.port());
        let mut packet = V6::new(self.v6.0, self.v6.1, TCP, body);
        change(&mut packet);
        self.ground.frame((0x86dd, packet.bytes()))
    }

    /// Extension headers in front of a SYN; `first` is the number of the first.
    fn extended(&self, first: u8, headers: &[Vec<u8>]) -> Vec<u8> {
        self.v6(|packet| {
            packet.next = first;
            packet.body = [headers.concat(), packet.body.clone()].concat();
        })
    }
}

#[test]
fn unknown_frames_are_dropped() -> Result<()> {
    let ground = Ground::usual()?;
    let make = Maker::to(&ground, ALLOWED)?;
    let (gateway, own) = (ground.sandbox.gateway_mac(), ground.sandbox.mac());
    let packet = V4::new(make.v4.0, make.v4.1, TCP, make.syn(true, 4000)).bytes();
    let tagged = |tag: u16, payload: &[u8]| ethernet(gateway, own, tag, &[&[0, 5][..], payload].concat());
    let inner = [&0x0800_u16.to_be_bytes()[..], &packet].concat();
    let double = [&0x8100_u16.to_be_bytes()[..], &[0, 6], &inner].concat();
    ground.frames_are_denied(&[
        malformed("VLAN", tagged(0x8100, &inner)),
        malformed("provider VLAN", tagged(0x88a8, &inner)),
        malformed("two VLANs", tagged(0x88a8, &double)),
        malformed("priority tag", ethernet(gateway, own, 0x8100, &[&[0, 0][..], &inner].concat())),
        malformed(
            "LLC",
            ethernet(gateway, own, 100, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &packet].concat()),
        ),
        malformed("LLDP", ethernet(gateway, own, 0x88cc, MARKER)),
        malformed("PPPoE", ethernet(gateway, own, 0x8864, &packet)),
        malformed("MPLS", ethernet(gateway, own, 0x8847, &packet)),
        malformed("its own test type", ethernet(gateway, own, 0x88b5, MARKER)),
        malformed("IPv6 that says IPv4", ethernet(gateway, own, 0x86dd, &packet)),
    ])
}

#[test]
fn ipv4_lies_are_dropped() -> Result<()> {
    let ground = Ground::usual()?;
    let make = Maker::to(&ground, ALLOWED)?;
    let options = |options: &[u8]| make.v4(|packet| packet.options = options.to_vec());
    let [a, b, c, d] = make.v4.1.octets();
    ground.frames_are_denied(&[
        malformed("version 5", make.v4(|packet| packet.first_byte = Some(0x55))),
        malformed("header of 16 bytes", make.v4(|packet| packet.first_byte = Some(0x44))),
        malformed("header of 0 bytes", make.v4(|packet| packet.first_byte = Some(0x40))),
        malformed("header past the end", {
            make.v4(|packet| (packet.first_byte, packet.total) = (Some(0x4f), Some(52)))
        }),
        malformed("header that eats the ports", make.v4(|packet| packet.first_byte = Some(0x4a))),
        malformed("total below the header", make.v4(|packet| packet.total = Some(19))),
        malformed("total of nothing", make.v4(|packet| packet.total = Some(0))),
        malformed("total past the frame", make.v4(|packet| packet.total = Some(1500))),
        malformed("total that cuts the TCP header", make.v4(|packet| packet.total = Some(39))),
        malformed("loose source route", options(&[131, 7, 4, a, b, c, d, 0])),
        malformed("strict source route", options(&[137, 7, 4, a, b, c, d, 0])),
        malformed("source route behind padding", options(&[1, 1, 131, 7, 4, a, b, c, d, 0, 0, 0])),
        malformed("option without length", options(&[1, 1, 1, 7])),
        malformed("option of length 0", options(&[7, 0, 0, 0])),
        malformed("option of length 1", options(&[148, 1, 0, 0])),
        malformed("option past the header", options(&[7, 9, 4, 0])),
        malformed("more options than anybody needs", options(&[1; 20])),
    ])
}

#[test]
fn odd_but_honest_ipv4_options_pass() -> Result<()> {
    let ground = Ground::usual()?;
    let make = Maker::to(&ground, ALLOWED)?;
    let before = ground.before()?;
    let record_route = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let ports: Vec<u16> = (0..3).map(|_| ground.port()).collect();
    for (options, port) in [&[1, 1, 1, 1][..], &record_route, &[1, 1, 1, 0]].iter().zip(&ports) {
        let frame = make.v4(|packet| {
            packet.options = options.to_vec();
            packet.body = Segment::syn(*port, 80).bytes(packet.from.into(), packet.to.into(), b"hello");
        });
        ground.send(&frame)?;
    }
    eventually(|| {
        let arrived = ground.arrived_since(&before)?;
        let arrived = |port: &u16| arrived.iter().any(|seen| seen.is_tcp() && seen.sport() == *port);
        Ok(ports.iter().all(arrived))
    })
    .context("not all arrived")?;
    ensure!(ground.moved(&before).is_empty(), "{}", ground.moved(&before));
    Ok(())
}

#[test]
fn ipv6_lies_are_dropped() -> Result<()> {
    let ground = Ground::usual()?;
    let make = Maker::to(&ground, ALLOWED)?;
    let mapped = Ipv4Addr::new(203, 0, 113, 10).to_ipv6_mapped();
    let routing = |kind: u8| {
        let mut header = vec![TCP, 2, kind, 1, 0, 0, 0, 0];
        header.extend(make.v6.1.octets());
        header
    };
    let chain = |length: usize| {
        let mut headers = vec![v6_options(60, 1); length];
        headers[length - 1][0] = TCP;
        headers
    };
    let long = |units| vec![v6_options(60, units), v6_options(TCP, units)];
    ground.frames_are_denied(&[
        malformed("version 4", make.v6(|packet| packet.first_byte = 0x40)),
        malformed("length past the frame", make.v6(|packet| packet.length = Some(1000))),
        malformed("length that cuts the TCP header", make.v6(|packet| packet.length = Some(19))),
        malformed("length of nothing", make.v6(|packet| packet.length = Some(0))),
        malformed("mapped source", make.v6(|packet| packet.from = mapped)),
        malformed("routing header", make.extended(43, &[routing(0)])),
        malformed("mobility routing header", make.extended(43, &[routing(2)])),
        malformed("segment routing", make.extended(43, &[routing(4)])),
        malformed("seven headers", make.extended(60, &chain(7))),
        malformed("hop-by-hop in second place", make.extended(60, &[v6_options(0, 1), v6_options(TCP, 1)])),
        malformed("hop-by-hop twice", make.extended(0, &[v6_options(0, 1), v6_options(TCP, 1)])),
        malformed("ports farther than anybody puts them", make.extended(60, &long(32))),
        malformed("header past the end", make.extended(60, &[vec![TCP, 200, 1, 4, 0, 0, 0, 0]])),
        malformed("two fragment headers", {
            make.extended(44, &[v6_fragment(44, 0, true), v6_fragment(TCP, 0, true)])
        }),
    ])?;

    // In the trie this destination would pass for the IPv4 address that is allowed.
    let from = SocketAddr::new(make.v6.0.into(), ground.port());
    let to = SocketAddr::new(mapped.into(), 80);
    let body = Segment::syn(from.port(), 80).bytes(from.ip(), to.ip(), MARKER);
    let frame = ground.frame(wire::ip(from.ip(), to.ip(), TCP, body));
    let told = Told::flow("guarded", None, "tcp", from, SocketAddr::new(ip("203.0.113.10"), 80));
    ground.frames_are_denied(&[Row { name: "mapped destination", frame, told, answer: Answer::Nothing }])
}

#[test]
fn short_ipv6_extension_chains_are_followed() -> Result<()> {
    let ground = Ground::usual()?;
    let before = ground.before()?;
    let allowed = Maker::to(&ground, ALLOWED)?;
    // The kernel forwards no padding of more than seven bytes.
    let options = |next| v6_options(next, 1);
    let chains: [(u8, Vec<Vec<u8>>); 4] = [
        (60, vec![options(TCP)]),
        (0, vec![options(60), options(TCP)]),
        (60, (0..6).map(|n| options(if n == 5 { TCP } else { 60 })).collect()),
        // RFC 6946: all of the packet in one fragment.
        (44, vec![v6_fragment(TCP, 0, false)]),
    ];
    let ports: Vec<u16> = chains.iter().map(|_| ground.port()).collect();
    for ((first, headers), port) in chains.iter().zip(&ports) {
        let frame = allowed.v6(|packet| {
            let segment = Segment::syn(*port, 80).bytes(packet.from.into(), packet.to.into(), b"hello");
            (packet.next, packet.body) = (*first, [headers.concat(), segment].concat());
        });
        ground.send(&frame)?;
    }
    eventually(|| {
        let arrived = ground.arrived_since(&before)?;
        let arrived = |port: &u16| arrived.iter().any(|seen| seen.is_tcp() && seen.sport() == *port);
        Ok(ports.iter().all(arrived))
    })
    .context("not all arrived")?;

    // Behind them a denied destination is denied, and told so.
    let denied = Maker::to(&ground, DENIED)?;
    let rows: Vec<Row> = chains
        .iter()
        .map(|(first, headers)| {
            let (from, to) = (ground.from(denied.v6.1.into()), SocketAddr::new(denied.v6.1.into(), 80));
            let frame = denied.v6(|packet| {
                let segment = denied.syn(false, from.port());
                (packet.next, packet.body) = (*first, [headers.concat(), segment].concat());
            });
            let told = Told::flow("denied_cidr", Some("/denyOut/0"), "tcp", from, to);
            Row { name: "extended and denied", frame, told, answer: Answer::Reset }
        })
        .collect();
    ground.frames_are_denied(&rows)
}

#[test]
fn fragments_pass_where_their_destination_is_allowed() -> Result<()> {
    let ground = Ground::usual()?;
    let (_servers, before) = (ground.echo()?, ground.before()?);
    // The server puts them together and answers: a datagram of 3,000 bytes each way.
    for to in ALLOWED {
        let large = vec![b'x'; 3000];
        let answer = ground.sandbox.udp_exchange((ip(to), 7), &large, common::PATIENCE).result;
        ensure!(answer.with_context(|| to.to_string())? == large);
    }
    ensure!(ground.moved(&before).is_empty(), "{}", ground.moved(&before));
    let later = ground.arrived_since(&before)?.iter().filter(|seen| seen.protocol == UDP).count();
    ensure!(later >= 6, "that were {later} fragments, not 6");
    Ok(())
}

#[test]
fn fragments_do_not_get_round_the_policy() -> Result<()> {
    let ground = Ground::usual()?;
    let make = Maker::to(&ground, DENIED)?;
    let denied = |reason, rule, v4: bool, dst: IpAddr, port: Option<u16>| {
        let proto = if port.is_some() { "tcp" } else { "udp" };
        let (src, _) = make.ends(v4);
        Told { sport: port, dport: port.map(|_| 80), ..Told::packet(reason, rule, proto, src, dst) }
    };
    let rule = Some("/denyOut/0");
    let mut rows = Vec::new();
    for (n, offset) in [1_u16, 3, 0x1fff].into_iter().enumerate() {
        // A destination each, since denials of one flow are told together.
        let to = Ipv4Addr::new(198, 51, 100, 20 + n as u8);
        let frame = make.v4(|packet| {
            (packet.to, packet.protocol, packet.fragment) = (to, UDP, offset);
        });
        let told = Told { sport: Some(0), dport: Some(0), ..denied("fragment", rule, true, to.into(), None) };
        rows.push(Row { name: "later fragment", frame, told, answer: Answer::Nothing });
    }
    let to: Ipv6Addr = "2001:db8:198::20".parse()?;
    let frame = make.v6(|packet| {
        (packet.to, packet.next) = (to, 44);
        packet.body = [v6_fragment(UDP, 8, true), packet.body.clone()].concat();
    });
    // What protocol a later fragment belongs to is hearsay in IPv6: the header that says it is not there.
    let told = Told { sport: Some(0), dport: Some(0), ..denied("fragment", rule, false, to.into(), None) };
    rows.push(Row { name: "later IPv6 fragment", frame, told, answer: Answer::Nothing });

    // A first fragment has ports and is judged like a whole packet.
    let port = ground.port();
    let frame = make.v4(|packet| {
        packet.fragment = MORE_FRAGMENTS;
        packet.body = make.syn(true, port);
    });
    let told = denied("denied_cidr", rule, true, make.v4.1.into(), Some(port));
    rows.push(Row { name: "first fragment", frame, told, answer: Answer::Reset });
    let port = ground.port();
    let frame = make.v6(|packet| {
        packet.next = 44;
        packet.body = [v6_fragment(TCP, 0, true), make.syn(false, port)].concat();
    });
    let told = denied("denied_cidr", rule, false, make.v6.1.into(), Some(port));
    rows.push(Row { name: "first IPv6 fragment", frame, told, answer: Answer::Reset });

    // One without all of its ports and flags cannot be judged, wherever it goes.
    let allowed = Maker::to(&ground, ALLOWED)?;
    let tiny = |length: usize| {
        allowed.v4(|packet| {
            packet.fragment = MORE_FRAGMENTS;
            packet.body.truncate(length);
        })
    };
    rows.push(malformed("tiny fragment of 8 bytes", tiny(8)));
    rows.push(malformed("tiny fragment of 16 bytes", tiny(16)));
    rows.push(malformed("tiny IPv6 fragment", {
        allowed.v6(|packet| {
            packet.next = 44;
            packet.body.truncate(8);
            packet.body = [v6_fragment(TCP, 0, true), packet.body.clone()].concat();
        })
    }));
    ground.frames_are_denied(&rows)
}

#[test]
fn later_fragments_need_an_allowed_destination() -> Result<()> {
    // Nothing is denied here, but nothing is allowed by name either.
    let ground = Ground::new(&json!({}))?;
    let make = Maker::to(&ground, ALLOWED)?;
    let frame = make.v4(|packet| (packet.protocol, packet.fragment) = (UDP, 4));
    let told = Told {
        sport: Some(0),
        dport: Some(0),
        ..Told::packet("fragment", None, "udp", make.v4.0.into(), make.v4.1.into())
    };
    ground.frames_are_denied(&[Row { name: "later fragment", frame, told, answer: Answer::Nothing }])?;
    ensure!(ground.daemon.packets(ID, "fragment")? == 1);
    Ok(())
}

#[test]
fn tcp_nonsense_is_dropped() -> Result<()> {
    let ground = Ground::usual()?;
    let make = Maker::to(&ground, ALLOWED)?;
    let mut rows = Vec::new();
    for v4 in [true, false] {
        for flags in [0, SYN | FIN, SYN | RST, PSH, SYN | FIN | ACK, 0x29 & !FIN, 0x3f, SYN | RST | ACK] {
            let body = make.segment(v4, Segment { flags, ..Segment::syn(ground.port(), 80) });
            let (from, to) = make.ends(v4);
            rows.push(malformed("nonsense flags", ground.frame(wire::ip(from, to, TCP, body))));
        }
        let (from, to) = make.ends(v4);
        let mut short = make.syn(v4, ground.port());
        short[12] = 4 << 4;
        rows.push(malformed("TCP header of 16 bytes", ground.frame(wire::ip(from, to, TCP, short))));
        let mut long = make.syn(v4, ground.port());
        long[12] = 15 << 4;
        rows.push(malformed("TCP header past the end", ground.frame(wire::ip(from, to, TCP, long))));
        let mut datagram = wire::udp(from, to, 4000, 80, MARKER);
        datagram[5] = 200;
        rows.push(malformed("UDP past the end", ground.frame(wire::ip(from, to, UDP, datagram))));
        let mut datagram = wire::udp(from, to, 4000, 80, MARKER);
        datagram[5] = 7;
        rows.push(malformed("UDP of 7 bytes", ground.frame(wire::ip(from, to, UDP, datagram))));
    }
    ground.frames_are_denied(&rows)
}
