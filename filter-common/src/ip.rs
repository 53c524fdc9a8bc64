//! IPv4 and IPv6 down to the ports: one shape for both.
//!
//! Lengths are checked against the frame, headers are found where the packet says that they are
//! (never at a fixed offset), and whatever could be read in two ways is [`Malformed`].

use crate::Addr;
use crate::frame::{ETHERNET_LEN, Malformed};
use crate::read::{Read, byte, first_half, second_half};
use crate::tcp;

/// Protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6, RFC 4443.
    pub const ICMP_V6: u8 = 58;

    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
}

const IPV4_HEADER_LEN: u32 = 20;
const IPV6_HEADER_LEN: u32 = 40;
/// How many IPv6 extension headers the parser follows. Real packets have one or two.
const MAX_EXTENSIONS: u32 = 6;
/// How many IPv4 options the parser follows, each padding byte being one.
const MAX_OPTIONS: u32 = 16;
/// How far into the frame a transport header may begin.
const MAX_L4_OFFSET: u32 = 512;
/// Above this an IP length field cannot say how long the packet is: a host-made jumbo ("BIG TCP") has 0.
const MAX_IP_LEN: u32 = 0xffff;

/// What a packet is, as far as a verdict depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A TCP segment.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// ICMP echo, asking.
    EchoRequest,
    /// ICMP echo, answering.
    EchoReply,
    /// An ICMP error about some other packet.
    IcmpError,
    /// IPv6 neighbour discovery, redirects included (RFC 4861).
    Neighbour,
    /// IPv6 multicast listener reports and queries (RFC 3810).
    MulticastListener,
    /// A fragment other than the first: it has no ports.
    LaterFragment,
    /// Anything else.
    Other,
}

/// An IP packet, with everything that a verdict needs.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Where it says that it comes from.
    pub src: Addr,
    /// Where it goes.
    pub dst: Addr,
    /// What it is.
    pub kind: Kind,
    /// The protocol number of its transport header.
    pub protocol: u8,
    /// Source port, or the identifier of an echo; as it lies in the packet.
    pub src_port: u16,
    /// Destination port; as it lies in the packet. 0 for an echo.
    pub dst_port: u16,
    /// TCP flags.
    pub flags: u8,
    /// TCP sequence number, as it lies in the packet.
    pub seq: u32,
    /// TCP acknowledgement number, as it lies in the packet.
    pub ack: u32,
    /// Where the transport header begins, from the start of the frame.
    pub l4: u32,
    /// Bytes from there to the packet's end.
    pub l4_len: u32,
    /// Bytes behind the TCP header; 0 for other kinds.
    pub payload: u32,
    /// An IPv6 packet to an IPv4-mapped address. No such packet belongs on a wire, and in the trie its
    /// destination would pass for the IPv4 address.
    pub mapped_destination: bool,
}

impl Packet {
    /// A TCP segment that starts a connection.
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// The sequence number behind this TCP segment. SYN and FIN each take one (RFC 9293 section 3.4).
    #[inline(always)]
    pub const fn next_seq(&self) -> u32 {
        let mut taken = self.payload;
        if self.flags & tcp::SYN != 0 {
            taken += 1;
        }
        if self.flags & tcp::FIN != 0 {
            taken += 1;
        }
        u32::from_be(self.seq).wrapping_add(taken)
    }

    /// A TCP segment that ends one at once.
    #[inline(always)]
    pub const fn is_reset(&self) -> bool {
        self.flags & tcp::RST != 0
    }
}

/// What IP itself says, before the transport header is read.
#[derive(Clone, Copy)]
struct Network {
    src: Addr,
    dst: Addr,
    protocol: u8,
    l4: u32,
    l4_len: u32,
    fragment: Fragment,
    mapped_destination: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fragment {
    Whole,
    First,
    Later,
}

/// Which of the two a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// Reads an IP packet.
///
/// # Errors
/// [`Malformed`] for lengths that contradict each other or the frame; source routes and routing headers,
/// with which a packet does not go where its destination says (RFC 7126 section 4.3, RFC 5095); IPv4
/// options that do not parse; a chain of IPv6 extension headers longer than the parser follows; an
/// IPv4-mapped source in IPv6; and a transport header that is cut short.
#[inline(always)]
pub fn parse<R: Read>(read: &R, version: Version) -> Result<Packet, Malformed> {
    let network = match version {
        Version::V4 => network_v4(read),
        Version::V6 => network_v6(read),
    }?;
    transport(read, &network)
}

#[inline(always)]
fn network_v4<R: Read>(read: &R) -> Result<Network, Malformed> {
    let Some([first, second, third, src, dst]) = read.words::<5>(ETHERNET_LEN) else { return Err(Malformed) };
    let header = u32::from(byte(first, 0) & 0x0f) * 4;
    if byte(first, 0) >> 4 != 4 || header < IPV4_HEADER_LEN {
        return Err(Malformed);
    }
    let available = read.len() - ETHERNET_LEN;
    let mut total = u32::from(u16::from_be(second_half(first)));
    if total == 0 && available > MAX_IP_LEN {
        total = available;
    }
    if total < header || total > available {
        return Err(Malformed);
    }
    if header > IPV4_HEADER_LEN {
        check_options(read, header - IPV4_HEADER_LEN)?;
    }
    let fragment = u16::from_be(second_half(second));
    Ok(Network {
        src: Addr::from_v4_word(src),
        dst: Addr::from_v4_word(dst),
        protocol: byte(third, 1),
        l4: ETHERNET_LEN + header,
        l4_len: total - header,
        fragment: match (fragment & 0x2000 != 0, fragment & 0x1fff) {
            (false, 0) => Fragment::Whole,
            (true, 0) => Fragment::First,
            (_, _) => Fragment::Later,
        },
        mapped_destination: false,
    })
}

/// Walks IPv4 options (RFC 791 section 3.1), `len` bytes of them.
///
/// Not inlined: it is rare, and the kernel gives a program little stack.
#[inline(never)]
fn check_options<R: Read>(read: &R, len: u32) -> Result<(), Malformed> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;

    let mut position = 0_u32;
    let mut count = 0;
    while count < MAX_OPTIONS {
        if position >= len {
            return Ok(());
        }
        // The word that begins with the option may reach past the last one, but not past the frame's
        // transport header.
        let Some([word]) = read.words_at::<1>(ETHERNET_LEN + IPV4_HEADER_LEN + position) else {
            return Err(Malformed);
        };
        position += match byte(word, 0) {
            END => return Ok(()),
            NO_OPERATION => 1,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Malformed),
            // The length counts the option's type and itself.
            _ => match u32::from(byte(word, 1)) {
                0 | 1 => return Err(Malformed),
                option if option > len - position => return Err(Malformed),
                option => option,
            },
        };
        count += 1;
    }
    if position >= len { Ok(()) } else { Err(Malformed) }
}

#[inline(always)]
fn network_v6<R: Read>(read: &R) -> Result<Network, Malformed> {
    let Some([first, second, s0, s1, s2, s3, d0, d1, d2, d3]) = read.words::<10>(ETHERNET_LEN) else {
        return Err(Malformed);
    };
    let (src, dst) = (Addr::from_v6_words([s0, s1, s2, s3]), Addr::from_v6_words([d0, d1, d2, d3]));
    let available = read.len() - ETHERNET_LEN - IPV6_HEADER_LEN;
    let mut len = u32::from(u16::from_be(first_half(second)));
    if len == 0 && available > MAX_IP_LEN {
        len = available;
    }
    if byte(first, 0) >> 4 != 6 || len > available || src.is_v4() {
        return Err(Malformed);
    }
    let mut chain = Chain {
        protocol: byte(second, 2),
        l4: ETHERNET_LEN + IPV6_HEADER_LEN,
        l4_len: len,
        fragment: Fragment::Whole,
    };
    if is_extension(chain.protocol) {
        follow_extensions(read, &mut chain)?;
    }
    Ok(Network {
        src,
        dst,
        protocol: chain.protocol,
        l4: chain.l4,
        l4_len: chain.l4_len,
        fragment: chain.fragment,
        mapped_destination: dst.is_v4(),
    })
}

/// How far a walk along extension headers has come.
struct Chain {
    protocol: u8,
    l4: u32,
    l4_len: u32,
    fragment: Fragment,
}

#[inline(always)]
const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::FRAGMENT | protocol::DESTINATION_OPTIONS
    )
}

/// Follows IPv6 extension headers (RFC 8200 section 4) to the transport header.
///
/// Not inlined: it is rare, and the kernel gives a program little stack.
#[inline(never)]
fn follow_extensions<R: Read>(read: &R, chain: &mut Chain) -> Result<(), Malformed> {
    let mut fragmented = false;
    let mut count = 0;
    while count < MAX_EXTENSIONS {
        let this = chain.protocol;
        if !is_extension(this) {
            return Ok(());
        }
        // Hop-by-hop options are only ever the first (RFC 8200 section 4.1).
        let misplaced = this == protocol::HOP_BY_HOP && count != 0;
        if misplaced || this == protocol::ROUTING || chain.l4_len < 8 {
            return Err(Malformed);
        }
        let Some([word]) = read.words_at::<1>(chain.l4) else { return Err(Malformed) };
        chain.protocol = byte(word, 0);
        let len = if this == protocol::FRAGMENT {
            if fragmented {
                return Err(Malformed);
            }
            fragmented = true;
            let field = u16::from_be(second_half(word));
            if field & 0xfff8 != 0 {
                chain.fragment = Fragment::Later;
                return Ok(());
            }
            // Without "more fragments" this is all of the packet (RFC 6946).
            if field & 1 != 0 {
                chain.fragment = Fragment::First;
            }
            8
        } else {
            (u32::from(byte(word, 1)) + 1) * 8
        };
        if len > chain.l4_len || chain.l4 + len > MAX_L4_OFFSET {
            return Err(Malformed);
        }
        chain.l4 += len;
        chain.l4_len -= len;
        count += 1;
    }
    if is_extension(chain.protocol) { Err(Malformed) } else { Ok(()) }
}

/// Reads the first words of the transport header. The two usual places are known when this is compiled.
#[inline(always)]
fn load<R: Read, const N: usize>(read: &R, network: &Network) -> Result<[u32; N], Malformed> {
    const V4: u32 = ETHERNET_LEN + IPV4_HEADER_LEN;
    const V6: u32 = ETHERNET_LEN + IPV6_HEADER_LEN;
    let words = match network.l4 {
        V4 => read.words::<N>(V4),
        V6 => read.words::<N>(V6),
        other => read.words_at::<N>(other),
    };
    match words {
        Some(words) => Ok(words),
        None => Err(Malformed),
    }
}

#[inline(always)]
fn transport<R: Read>(read: &R, network: &Network) -> Result<Packet, Malformed> {
    let mut packet = Packet {
        src: network.src,
        dst: network.dst,
        kind: Kind::Other,
        protocol: network.protocol,
        src_port: 0,
        dst_port: 0,
        flags: 0,
        seq: 0,
        ack: 0,
        l4: network.l4,
        l4_len: network.l4_len,
        payload: 0,
        mapped_destination: network.mapped_destination,
    };
    if network.fragment == Fragment::Later {
        packet.kind = Kind::LaterFragment;
        return Ok(packet);
    }
    let v4 = network.src.is_v4();
    match network.protocol {
        protocol::TCP => {
            let [ports, seq, ack, control] = load::<R, 4>(read, network)?;
            let header = u32::from(byte(control, 0) >> 4) * 4;
            packet.flags = byte(control, 1);
            if header < tcp::HEADER_LEN || header > network.l4_len || tcp::nonsense(packet.flags) {
                return Err(Malformed);
            }
            packet.kind = Kind::Tcp;
            (packet.src_port, packet.dst_port) = (first_half(ports), second_half(ports));
            (packet.seq, packet.ack) = (seq, ack);
            packet.payload = network.l4_len - header;
        }
        protocol::UDP => {
            let [ports, lengths] = load::<R, 2>(read, network)?;
            let len = u32::from(u16::from_be(first_half(lengths)));
            // A first fragment states the length of the whole datagram.
            let excess = len > network.l4_len && network.fragment != Fragment::First;
            if network.l4_len < 8 || len < 8 || excess {
                return Err(Malformed);
            }
            packet.kind = Kind::Udp;
            (packet.src_port, packet.dst_port) = (first_half(ports), second_half(ports));
        }
        protocol::ICMP | protocol::ICMP_V6 if v4 == (network.protocol == protocol::ICMP) => {
            let [head, body] = load::<R, 2>(read, network)?;
            if network.l4_len < 8 {
                return Err(Malformed);
            }
            let number = byte(head, 0);
            packet.kind = if v4 { crate::icmp::kind_v4(number) } else { crate::icmp::kind_v6(number) };
            packet.src_port = first_half(body);
            // Neighbour discovery is never fragmented (RFC 6980); errors are too short to be.
            let echo = matches!(packet.kind, Kind::EchoRequest | Kind::EchoReply);
            if network.fragment == Fragment::First && !echo {
                return Err(Malformed);
            }
        }
        _ => {}
    }
    Ok(packet)
}

#[cfg(test)]
#[path = "ip_tests.rs"]
mod tests;
