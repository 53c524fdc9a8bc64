//! Frames for the tests of this crate, built field by field. Checksums are left 0: no parser here reads
//! them. Where a test wants a lie, it overwrites the byte that tells it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Addr;
use crate::frame::{self, ETHERNET_LEN, Ethernet, Mac, Malformed, Payload};
use crate::ip::{self, Packet, Version, protocol};
use crate::layout::{MAX_ADDRS, Sandbox, sandbox_flags};
use crate::tcp;

pub const MAC: Mac = [0x02, 0xaa, 0xbb, 0x00, 0x00, 0x01];
pub const GATEWAY_MAC: Mac = [0x02, 0xaa, 0xbb, 0x00, 0x00, 0xfe];

/// The sandbox's addresses and those of somebody far away.
pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 11, 0, 2));
pub const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
pub const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
pub const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9));

/// Where the headers of a frame lie that has neither options nor extension headers.
pub const IP: usize = ETHERNET_LEN as usize;
pub const V4_L4: usize = IP + 20;
pub const V6_L4: usize = IP + 40;

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION_OPTIONS: u8 = 60;
pub const MORE_FRAGMENTS: u16 = 0x2000;

pub fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

/// A sandbox that has [`MAC`], [`V4`] and [`V6`].
pub fn sandbox() -> Sandbox {
    let mut addrs = [Addr::UNSPECIFIED; MAX_ADDRS];
    (addrs[0], addrs[1]) = (V4.into(), V6.into());
    Sandbox {
        tenant: 7,
        slot: 3,
        flags: sandbox_flags::KNOWN_MAC,
        ifindex: 3,
        addr_count: 2,
        mac: MAC,
        iface_mac: [0; 6],
        addrs,
    }
}

/// As [`sandbox`], without an address check.
pub fn sandbox_of_any_address() -> Sandbox {
    Sandbox { flags: sandbox_flags::KNOWN_MAC | sandbox_flags::ANY_ADDR, addr_count: 0, ..sandbox() }
}

/// The sandbox and the far end, in the family of `version`.
pub fn ends(version: Version) -> (IpAddr, IpAddr) {
    match version {
        Version::V4 => (V4, FAR_V4),
        Version::V6 => (V6, FAR_V6),
    }
}

pub fn ethernet(source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &source, &ethertype.to_be_bytes(), payload].concat()
}

/// An IP packet in a frame of the sandbox.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(MAC, if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet)
}

/// An IP packet of either family without options, extension headers or a frame.
pub fn packet(src: IpAddr, dst: IpAddr, protocol: u8, l4: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => v4_packet(src, dst, (&[], 0), protocol, l4),
        (IpAddr::V6(src), IpAddr::V6(dst)) => v6_packet(src, dst, &[], protocol, l4),
        _ => panic!("{src} and {dst} are of different families"),
    }
}

fn v4_packet(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    (options, fragment): (&[u8], u16),
    protocol: u8,
    l4: &[u8],
) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4) && options.len() <= 40);
    let header = 20 + options.len();
    let total = u16::try_from(header + l4.len()).unwrap_or(0).to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    let ihl = 0x40 | u8::try_from(header / 4).unwrap();
    let head = [ihl, 0, total[0], total[1], 0x12, 0x34, f0, f1, 64, protocol, 0, 0];
    [&head[..], &src.octets(), &dst.octets(), options, l4].concat()
}

fn v6_packet(src: Ipv6Addr, dst: Ipv6Addr, extensions: &[(u8, Vec<u8>)], protocol: u8, l4: &[u8]) -> Vec<u8> {
    let mut behind = Vec::new();
    for (index, (_, header)) in extensions.iter().enumerate() {
        let next = extensions.get(index + 1).map_or(protocol, |(number, _)| *number);
        behind.push(next);
        behind.extend_from_slice(&header[1..]);
    }
    behind.extend_from_slice(l4);
    let len = u16::try_from(behind.len()).unwrap_or(0).to_be_bytes();
    let first = extensions.first().map_or(protocol, |(number, _)| *number);
    // As neighbour discovery demands; nothing else minds.
    let head = [0x60, 0, 0, 0, len[0], len[1], first, 255];
    [&head[..], &src.octets(), &dst.octets(), &behind].concat()
}

/// From the sandbox to the far end.
pub fn outward(version: Version, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let (src, dst) = ends(version);
    frame(&packet(src, dst, protocol, l4))
}

/// From the far end to the sandbox.
pub fn inward(version: Version, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let (dst, src) = ends(version);
    frame(&packet(src, dst, protocol, l4))
}

/// As [`outward`] over IPv4, with options (a multiple of four bytes) and the word of flags and fragment
/// offset.
pub fn v4_with(options: &[u8], fragment: u16, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (V4, FAR_V4) else { unreachable!() };
    frame(&v4_packet(src, dst, (options, fragment), protocol, l4))
}

/// As [`outward`] over IPv6, with extension headers: each its number and its bytes, of which the first,
/// the next header's number, is filled in.
pub fn v6_with(extensions: &[(u8, Vec<u8>)], protocol: u8, l4: &[u8]) -> Vec<u8> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (V6, FAR_V6) else { unreachable!() };
    frame(&v6_packet(src, dst, extensions, protocol, l4))
}

/// An extension header of `8 * units` bytes, filled with PadN options (RFC 8200 section 4.2).
pub fn extension(number: u8, units: u8) -> (u8, Vec<u8>) {
    let mut header = vec![0; usize::from(units) * 8];
    header[1] = units - 1;
    let mut position = 2;
    while position < header.len() {
        let len = (header.len() - position - 2).min(255);
        header[position] = 1;
        header[position + 1] = u8::try_from(len).unwrap();
        position += 2 + len;
    }
    (number, header)
}

/// A fragment header (RFC 8200 section 4.5): the offset is counted in eight bytes.
pub fn fragment(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    (FRAGMENT, vec![0, 0, high, low, 0xca, 0xfe, 0xba, 0xbe])
}

/// A TCP segment with sequence number 0x01020304 and acknowledgement 0x05060708.
pub fn tcp(src: u16, dst: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let ports = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    let numbers = [1, 2, 3, 4, 5, 6, 7, 8];
    [&ports[..], &numbers, &[5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0], payload].concat()
}

pub fn udp(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap();
    [&src.to_be_bytes()[..], &dst.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

/// An ICMP message of either family: an error with what it quotes, or anything else with four bytes that
/// are 0 before `body`.
pub fn icmp(number: u8, body: &[u8]) -> Vec<u8> {
    [&[number, 0, 0, 0, 0, 0, 0, 0][..], body].concat()
}

/// An echo message of either family.
pub fn echo(number: u8, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    [&[number, 0, 0, 0, high, low, 0, 1][..], b"ping"].concat()
}

/// The number of ICMP in a family.
pub fn icmp_of(version: Version) -> u8 {
    match version {
        Version::V4 => protocol::ICMP,
        Version::V6 => protocol::ICMP_V6,
    }
}

/// A neighbour discovery message without its options; `target` where the type has one.
pub fn discovery(number: u8, target: Option<&str>) -> Vec<u8> {
    let target = target.map_or(Vec::new(), |text| addr(text).octets().to_vec());
    icmp(number, &target)
}

/// The option with a link-layer address: 1 of the source, 2 of the target.
pub fn link_layer(number: u8, mac: Mac) -> Vec<u8> {
    [&[number, 1][..], &mac].concat()
}

/// An ARP packet in a frame of the sandbox.
pub fn arp(operation: u16, sender_mac: Mac, sender: &str, target: &str) -> Vec<u8> {
    let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let head = [&[0, 1, 8, 0, 6, 4][..], &operation.to_be_bytes()].concat();
    let body = [&sender_mac[..], &v4(sender), &[0; 6], &v4(target)].concat();
    ethernet(MAC, 0x0806, &[head, body].concat())
}

/// Reads a frame as far as IP goes.
pub fn read(bytes: &[u8]) -> Result<Packet, Malformed> {
    read_both(bytes).map(|(_, packet)| packet)
}

/// As [`read`], with the Ethernet header.
pub fn read_both(bytes: &[u8]) -> Result<(Ethernet, Packet), Malformed> {
    let ethernet = frame::parse(&bytes)?;
    let version = match ethernet.payload {
        Payload::Ipv4 => Version::V4,
        Payload::Ipv6 => Version::V6,
        Payload::Arp => return Err(Malformed),
    };
    Ok((ethernet, ip::parse(&bytes, version)?))
}

/// One valid frame of every sort that the parser knows, named.
pub fn valid_frames() -> Vec<(&'static str, Vec<u8>)> {
    let mut frames = Vec::new();
    for version in [Version::V4, Version::V6] {
        let number = |v4, v6| if version == Version::V4 { v4 } else { v6 };
        let (src, dst) = ends(version);
        let quoted = packet(dst, src, protocol::UDP, &udp(53, 4000, b""));
        frames.extend([
            ("TCP", outward(version, protocol::TCP, &tcp(4000, 443, tcp::SYN, b""))),
            ("TCP with data", outward(version, protocol::TCP, &tcp(4000, 443, tcp::ACK, b"hello"))),
            ("UDP", outward(version, protocol::UDP, &udp(4000, 53, b"query"))),
            ("echo request", outward(version, icmp_of(version), &echo(number(8, 128), 9))),
            ("echo reply", outward(version, icmp_of(version), &echo(number(0, 129), 9))),
            ("unreachable", outward(version, icmp_of(version), &icmp(number(3, 1), &quoted))),
            ("GRE", outward(version, 47, &[0; 24])),
        ]);
    }
    let solicitation = [discovery(135, Some("2001:db8::1")), link_layer(1, MAC)].concat();
    let mut router_alert = extension(HOP_BY_HOP, 1);
    router_alert.1[2..].copy_from_slice(&[5, 2, 0, 0, 1, 0]);
    frames.extend([
        ("neighbour solicitation", outward(Version::V6, protocol::ICMP_V6, &solicitation)),
        ("listener report", v6_with(&[router_alert], protocol::ICMP_V6, &icmp(143, b""))),
        ("IPv4 options", v4_with(&[148, 4, 0, 0, 1, 1, 1, 0], 0, protocol::UDP, &udp(4000, 53, b"q"))),
        ("IPv4 first fragment", v4_with(&[], MORE_FRAGMENTS, protocol::UDP, &udp(4000, 53, b"12345678"))),
        ("IPv4 later fragment", v4_with(&[], 2, protocol::UDP, b"rest")),
        (
            "IPv6 options",
            v6_with(
                &[extension(HOP_BY_HOP, 1), extension(DESTINATION_OPTIONS, 3)],
                protocol::TCP,
                &tcp(4000, 443, tcp::SYN, b""),
            ),
        ),
        ("IPv6 first fragment", v6_with(&[fragment(0, true)], protocol::UDP, &udp(4000, 53, b"12345678"))),
        ("IPv6 later fragment", v6_with(&[fragment(2, false)], protocol::UDP, b"rest")),
    ]);
    frames
}
