//! The shape that nearly all packets have, read in one go: UDP, or TCP that goes on with a connection, whole, over
//! IPv4 without options or IPv6 without extension headers.
//!
//! This is a shortcut through [`crate::frame`] and [`crate::ip`], never another opinion: what it reads they
//! read the same way, and whatever it does not recognise at once, sound or not, is theirs.

use crate::Addr;
use crate::frame::{ETHERNET_LEN, Mac};
use crate::ip::{Kind, Packet, protocol};
use crate::read::{Read, byte, first_half, second_half};
use crate::tcp;

/// Where reading begins: two bytes into the frame, so that the words are those of the headers behind Ethernet's.
const START: u32 = 2;
/// Words from there to the end of the shortest packet of this shape, IPv4 and UDP: the last ten bytes of the
/// Ethernet header but for its own last two, …
const SHORTEST: usize = 10;
/// … and those of them that are IP's.
type Beginning = [u32; 7];

/// A packet of the usual shape, and the hardware address that it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Plain {
    /// Who sent the frame.
    pub source: Mac,
    /// What is in it.
    pub packet: Packet,
}

/// What IP says.
struct Network {
    src: Addr,
    dst: Addr,
    l4: u32,
    l4_len: u32,
}

/// Reads a packet of the usual shape and hands it to `then`; `None` for any other. `then` is compiled four times,
/// once for each family and transport, and each time knows which.
#[inline(always)]
pub fn parse<R: Read, T>(read: &R, then: impl Fn(Plain) -> Option<T>) -> Option<T> {
    let [_, source, kind, words @ ..] = read.near::<SHORTEST>(START)?;
    let (first, last) = (source.to_ne_bytes(), kind.to_ne_bytes());
    let source = [first[0], first[1], first[2], first[3], last[0], last[1]];
    match u16::from_be(second_half(kind)) {
        0x0800 => v4(read, source, words, then),
        0x86dd => v6(read, source, words, then),
        _ => None,
    }
}

#[inline(always)]
fn v4<R: Read, T>(read: &R, source: Mac, words: Beginning, then: impl Fn(Plain) -> Option<T>) -> Option<T> {
    const HEADER_LEN: u32 = 20;
    /// Version 4, five words.
    const USUAL: u8 = 0x45;
    /// "More fragments", and which one it is.
    const FRAGMENT: u16 = 0x3fff_u16.to_be();

    let [first, second, third, src, dst, ports, next] = words;
    let total = u32::from(u16::from_be(second_half(first)));
    if byte(first, 0) != USUAL || second_half(second) & FRAGMENT != 0 || total > read.len() - ETHERNET_LEN {
        return None;
    }
    let network = Network {
        src: Addr::from_v4_word(src),
        dst: Addr::from_v4_word(dst),
        l4: ETHERNET_LEN + HEADER_LEN,
        l4_len: total.checked_sub(HEADER_LEN)?,
    };
    match byte(third, 1) {
        protocol::TCP => {
            let rest = read.near(ETHERNET_LEN + HEADER_LEN + 8)?;
            then(Plain { source, packet: segment(network, ports, next, rest)? })
        }
        protocol::UDP => then(Plain { source, packet: datagram(network, ports, next)? }),
        _ => None,
    }
}

#[inline(always)]
fn v6<R: Read, T>(read: &R, source: Mac, words: Beginning, then: impl Fn(Plain) -> Option<T>) -> Option<T> {
    const HEADER_LEN: u32 = 40;
    let [first, second, s0, s1, s2, s3, d0] = words;
    let [d1, d2, d3, ports, next] = read.near::<5>(ETHERNET_LEN + 4 * words.len() as u32)?;
    let network = Network {
        src: Addr::from_v6_words([s0, s1, s2, s3]),
        dst: Addr::from_v6_words([d0, d1, d2, d3]),
        l4: ETHERNET_LEN + HEADER_LEN,
        l4_len: u32::from(u16::from_be(first_half(second))),
    };
    if byte(first, 0) >> 4 != 6
        || network.l4_len > read.len() - network.l4
        || network.src.is_v4()
        || network.dst.is_v4()
    {
        return None;
    }
    match byte(second, 2) {
        protocol::TCP => {
            let rest = read.near(ETHERNET_LEN + HEADER_LEN + 8)?;
            then(Plain { source, packet: segment(network, ports, next, rest)? })
        }
        protocol::UDP => then(Plain { source, packet: datagram(network, ports, next)? }),
        _ => None,
    }
}

#[inline(always)]
fn segment(network: Network, ports: u32, seq: u32, [ack, control, _]: [u32; 3]) -> Option<Packet> {
    let (header, flags) = (u32::from(byte(control, 0) >> 4) * 4, byte(control, 1));
    if header < tcp::HEADER_LEN || !tcp::goes_on(flags) {
        return None;
    }
    let payload = network.l4_len.checked_sub(header)?;
    Some(Packet { flags, seq, ack, payload, ..carrying(network, Kind::Tcp, protocol::TCP, ports) })
}

#[inline(always)]
fn datagram(network: Network, ports: u32, lengths: u32) -> Option<Packet> {
    let len = u32::from(u16::from_be(first_half(lengths)));
    if len < 8 || len > network.l4_len {
        return None;
    }
    Some(carrying(network, Kind::Udp, protocol::UDP, ports))
}

#[inline(always)]
fn carrying(network: Network, kind: Kind, protocol: u8, ports: u32) -> Packet {
    Packet {
        src: network.src,
        dst: network.dst,
        kind,
        protocol,
        src_port: first_half(ports),
        dst_port: second_half(ports),
        flags: 0,
        seq: 0,
        ack: 0,
        l4: network.l4,
        l4_len: network.l4_len,
        payload: 0,
        mapped_destination: false,
    }
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;
