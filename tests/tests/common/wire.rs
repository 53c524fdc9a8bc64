//! Packets by hand: every field can be a lie.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP_V6: u8 = 58;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// In every packet made here that has room for it; nothing with it may arrive where it is denied.
pub const MARKER: &[u8] = b"no-way-out!!";

/// Of IPv4: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;

/// An Ethernet frame.
pub fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 packet. What is `None` is filled in truthfully.
#[derive(Clone, Debug)]
pub struct V4 {
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub protocol: u8,
    pub options: Vec<u8>,
    /// Flags and offset.
    pub fragment: u16,
    pub ttl: u8,
    /// Version and header length.
    pub first_byte: Option<u8>,
    pub total: Option<u16>,
    pub body: Vec<u8>,
}

impl V4 {
    pub fn new(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: Vec<u8>) -> Self {
        let (options, fragment, ttl) = (Vec::new(), 0, 64);
        Self { from, to, protocol, options, fragment, ttl, first_byte: None, total: None, body }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let words = 5 + self.options.len() / 4;
        let total = self.total.unwrap_or((words * 4 + self.body.len()) as u16);
        let mut header = vec![self.first_byte.unwrap_or(0x40 | words as u8), 0];
        header.extend(total.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(self.from.octets());
        header.extend(self.to.octets());
        header.extend(&self.options);
        let sum = checksum(&header).to_be_bytes();
        header.splice(10..12, sum);
        header.extend(&self.body);
        header
    }
}

/// An IPv6 packet; extension headers are part of the body.
#[derive(Clone, Debug)]
pub struct V6 {
    pub from: Ipv6Addr,
    pub to: Ipv6Addr,
    pub next: u8,
    pub hops: u8,
    pub length: Option<u16>,
    pub first_byte: u8,
    pub body: Vec<u8>,
}

impl V6 {
    pub fn new(from: Ipv6Addr, to: Ipv6Addr, next: u8, body: Vec<u8>) -> Self {
        Self { from, to, next, hops: 64, length: None, first_byte: 0x60, body }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = self.length.unwrap_or(self.body.len() as u16);
        let mut packet = vec![self.first_byte, 0, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([self.next, self.hops]);
        packet.extend(self.from.octets());
        packet.extend(self.to.octets());
        packet.extend(&self.body);
        packet
    }
}

/// An IPv6 options header of `units` of eight bytes, all of it padding.
pub fn v6_options(next: u8, units: u8) -> Vec<u8> {
    let length = usize::from(units) * 8;
    let mut header = vec![next, units - 1, 1, (length - 4) as u8];
    header.resize(length, 0);
    header
}

/// An IPv6 fragment header; the offset in bytes.
pub fn v6_fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let field = (offset & 0xfff8 | u16::from(more)).to_be_bytes();
    vec![next, 0, field[0], field[1], 0, 0, 0x12, 0x34]
}

/// The parts of a TCP segment that tests vary.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
}

impl Segment {
    pub const fn syn(sport: u16, dport: u16) -> Self {
        Self { sport, dport, seq: 1000, ack: 0, flags: SYN }
    }

    pub fn bytes(&self, from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
        let mut segment = [self.sport.to_be_bytes(), self.dport.to_be_bytes()].concat();
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.extend([5 << 4, self.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        segment.extend(payload);
        with_checksum(segment, 16, from, to, TCP)
    }
}

pub fn udp(from: IpAddr, to: IpAddr, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    with_checksum(datagram, 6, from, to, UDP)
}

/// An ICMP message of the addresses' family.
pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(body);
    if from.is_ipv6() {
        return with_checksum(message, 2, from, to, ICMP_V6);
    }
    let sum = checksum(&message).to_be_bytes();
    message.splice(2..4, sum);
    message
}

/// IP around `body`, and Ethernet's type for it.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, body: Vec<u8>) -> (u16, Vec<u8>) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (0x0800, V4::new(from, to, protocol, body).bytes()),
        (IpAddr::V6(from), IpAddr::V6(to)) => (0x86dd, V6::new(from, to, protocol, body).bytes()),
        (from, to) => panic!("{from} and {to} are of two families"),
    }
}

fn with_checksum(mut body: Vec<u8>, at: usize, from: IpAddr, to: IpAddr, protocol: u8) -> Vec<u8> {
    let sum = match checksum(&[pseudo(from, to, protocol, body.len()), body.clone()].concat()) {
        // Zero would say that there is none (RFC 768).
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    body.splice(at..at + 2, sum.to_be_bytes());
    body
}

pub fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut header = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => header.extend(address.octets()),
            IpAddr::V6(address) => header.extend(address.octets()),
        }
    }
    header.extend((length as u32).to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header
}

/// RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame that arrived, read.
#[derive(Clone, Debug)]
pub struct Seen {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    /// What follows IP's own header; IPv6 extension headers are skipped.
    pub body: Vec<u8>,
    /// Checksums of IP and of what it carries, where that is TCP, UDP or ICMP and whole.
    pub checksums_right: bool,
}

impl Seen {
    /// Reads an IP packet out of a frame. Headers that point past its end are a panic: nobody here makes such.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        let (from, to, mut protocol, ttl, mut body, mut right): (IpAddr, IpAddr, _, _, _, _);
        let whole;
        match u16::from_be_bytes([frame[12], frame[13]]) {
            0x0800 => {
                let header = usize::from(packet[0] & 0x0f) * 4;
                let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                from = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]).into();
                to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]).into();
                (protocol, ttl) = (packet[9], packet[8]);
                right = checksum(packet.get(..header)?) == 0;
                whole = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff == 0;
                body = packet.get(header..total.max(header))?.to_vec();
            }
            0x86dd => {
                let address = |at: usize| {
                    let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                    Some(IpAddr::from(octets))
                };
                (from, to) = (address(8)?, address(24)?);
                (protocol, ttl) = (packet[6], packet[7]);
                let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                body = packet.get(40..40 + length)?.to_vec();
                right = true;
                let mut fragment = false;
                while matches!(protocol, 0 | 43 | 44 | 60) {
                    fragment |= protocol == 44;
                    let skip = if protocol == 44 { 8 } else { (usize::from(body[1]) + 1) * 8 };
                    protocol = body[0];
                    body = body.get(skip..)?.to_vec();
                }
                whole = !fragment;
            }
            _ => return None,
        }
        if whole {
            right &= match protocol {
                TCP | UDP | ICMP_V6 => {
                    checksum(&[pseudo(from, to, protocol, body.len()), body.clone()].concat()) == 0
                }
                ICMP => checksum(&body) == 0,
                _ => true,
            };
        }
        Some(Self { from, to, protocol, ttl, body, checksums_right: right })
    }

    pub fn half(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.body[at], self.body[at + 1]])
    }

    pub fn word(&self, at: usize) -> u32 {
        u32::from(self.half(at)) << 16 | u32::from(self.half(at + 2))
    }

    pub fn sport(&self) -> u16 {
        self.half(0)
    }

    pub fn dport(&self) -> u16 {
        self.half(2)
    }

    pub fn tcp_flags(&self) -> u8 {
        self.body[13]
    }

    pub fn is_tcp(&self) -> bool {
        self.protocol == TCP && self.body.len() >= 20
    }

    pub fn is_reset(&self) -> bool {
        self.is_tcp() && self.tcp_flags() & RST != 0
    }

    /// Type and code of an ICMP message of either family.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        (matches!(self.protocol, ICMP | ICMP_V6) && self.body.len() >= 8)
            .then(|| (self.body[0], self.body[1]))
    }

    /// "Administratively prohibited" in its family's words.
    pub fn is_prohibited(&self) -> bool {
        self.icmp() == Some(if self.from.is_ipv4() { (3, 13) } else { (1, 1) })
    }
}
