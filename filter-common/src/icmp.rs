//! ICMP: what a message is, and which connection an error is about.

use crate::Addr;
use crate::ip::{Kind, Packet, protocol};
use crate::layout::{Ends, FlowKey};
use crate::read::{Read, byte, first_half, second_half};
use crate::tcp::Side;

/// ICMP and ICMPv6 types (IANA registries).
pub mod message {
    /// Echo reply, RFC 792.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable, RFC 792.
    pub const UNREACHABLE: u8 = 3;
    /// Echo request, RFC 792.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded, RFC 792.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem, RFC 792.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Code of [`UNREACHABLE`]: communication administratively prohibited, RFC 1812 section 5.2.7.1.
    pub const ADMINISTRATIVELY_PROHIBITED: u8 = 13;

    /// Destination unreachable, RFC 4443.
    pub const V6_UNREACHABLE: u8 = 1;
    /// The highest number of an ICMPv6 error that is assigned: 1 to 4, RFC 4443.
    pub const V6_LAST_ERROR: u8 = 4;
    /// Code of [`V6_UNREACHABLE`]: communication administratively prohibited.
    pub const V6_ADMINISTRATIVELY_PROHIBITED: u8 = 1;
    /// Echo request, RFC 4443.
    pub const V6_ECHO_REQUEST: u8 = 128;
    /// Echo reply, RFC 4443.
    pub const V6_ECHO_REPLY: u8 = 129;
    /// Router solicitation, RFC 4861.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement, RFC 4861.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation, RFC 4861.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement, RFC 4861.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect, RFC 4861.
    pub const REDIRECT: u8 = 137;
}

/// What an ICMP message of this type is. A redirect is [`Kind::Other`]: nobody may send one.
#[inline(always)]
pub const fn kind_v4(number: u8) -> Kind {
    match number {
        message::ECHO_REQUEST => Kind::EchoRequest,
        message::ECHO_REPLY => Kind::EchoReply,
        message::UNREACHABLE | message::TIME_EXCEEDED | message::PARAMETER_PROBLEM => Kind::IcmpError,
        _ => Kind::Other,
    }
}

/// What an ICMPv6 message of this type is.
#[inline(always)]
pub const fn kind_v6(number: u8) -> Kind {
    match number {
        message::V6_ECHO_REQUEST => Kind::EchoRequest,
        message::V6_ECHO_REPLY => Kind::EchoReply,
        message::V6_UNREACHABLE..=message::V6_LAST_ERROR => Kind::IcmpError,
        message::ROUTER_SOLICITATION..=message::REDIRECT => Kind::Neighbour,
        130..=132 | 143 => Kind::MulticastListener,
        _ => Kind::Other,
    }
}

/// The connection that an ICMP error is about, if the error can be about one.
///
/// An error quotes the packet that it answers (RFC 792, RFC 4443 section 3): one that the sandbox sent
/// when the error comes from outside, and the other way round. It must go to the quoted packet's sender;
/// an error that goes anywhere else is forged.
#[inline(always)]
pub fn quoted_flow<R: Read>(read: &R, error: &Packet, from: Side, tenant: u32) -> Option<FlowKey> {
    let quote = error.l4 + 8;
    let v4 = error.src.is_v4();
    let (src, dst, number, l4) = if v4 {
        let [first, second, third, src, dst] = read.words_at::<5>(quote)?;
        let header = u32::from(byte(first, 0) & 0x0f) * 4;
        let later_fragment = u16::from_be(second_half(second)) & 0x1fff != 0;
        if byte(first, 0) >> 4 != 4 || header < 20 || later_fragment {
            return None;
        }
        (Addr::from_v4_word(src), Addr::from_v4_word(dst), byte(third, 1), quote + header)
    } else {
        let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = read.words_at::<10>(quote)?;
        if byte(first, 0) >> 4 != 6 {
            return None;
        }
        let (src, dst) = (Addr::from_v6_words([s0, s1, s2, s3]), Addr::from_v6_words([d0, d1, d2, d3]));
        // In a key these would pass for the ends of an IPv4 connection.
        if src.is_v4() || dst.is_v4() {
            return None;
        }
        (src, dst, byte(second, 2), quote + 40)
    };
    // What lies behind the error's own end is padding and no part of the quote.
    if src != error.dst || l4 + 8 > error.l4 + error.l4_len {
        return None;
    }
    let [head, body] = read.words_at::<2>(l4)?;
    let (kind, src_port, dst_port) = match number {
        protocol::TCP => (Kind::Tcp, first_half(head), second_half(head)),
        protocol::UDP => (Kind::Udp, first_half(head), second_half(head)),
        protocol::ICMP if v4 => (kind_v4(byte(head, 0)), first_half(body), 0),
        protocol::ICMP_V6 if !v4 => (kind_v6(byte(head, 0)), first_half(body), 0),
        _ => return None,
    };
    let sender = match from {
        Side::Sandbox => Side::Remote,
        Side::Remote => Side::Sandbox,
    };
    FlowKey::between(tenant, &Ends { src, dst, kind, protocol: number, src_port, dst_port }, sender)
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
