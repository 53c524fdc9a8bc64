//! ICMP "administratively prohibited", quoting the refused packet (RFC 1812 section 5.2.7.1, RFC 4443
//! section 3.1).

use aya_ebpf::helpers::{bpf_skb_change_head, bpf_skb_change_tail};
use filter_common::frame::ETHERNET_LEN;
use filter_common::icmp::message;
use filter_common::ip::{Kind, Packet, protocol};
use filter_common::read::Read;

use super::{fold, send_back, store, store_half, sum};
use crate::DROP;
use crate::skb::Skb;
use crate::verdict::{Subject, swap_macs};

const ICMP_LEN: u32 = 8;
/// How much of the refused packet's transport header is quoted: its ports.
const QUOTED_L4: u32 = 8;
const HOP_LIMIT: u8 = 64;

/// Answers the packet in `skb` with an ICMP error. One with IP options or extension headers is dropped
/// without: its sender made it by hand.
#[inline(never)]
pub fn unreachable(skb: &Skb, subject: &Subject) -> i32 {
    let Some(packet) = &subject.packet else { return DROP };
    if packet.l4_len < QUOTED_L4 {
        return DROP;
    }
    let done = match (packet.src.is_v4(), packet.l4 - ETHERNET_LEN) {
        (true, 20) => answer_v4(skb, subject, packet),
        (false, 40) => answer_v6(skb, subject, packet),
        _ => None,
    };
    if done.is_some() { send_back(skb) } else { DROP }
}

/// Cuts the packet to what is quoted and makes room for `headers` bytes between it and its Ethernet
/// header, which moves to the front.
#[inline(always)]
fn make_room(skb: &Skb, subject: &Subject, quoted: u32, headers: u32, ethertype: u16) -> Option<()> {
    // SAFETY: the helpers check lengths.
    let made = unsafe {
        bpf_skb_change_tail(skb.raw().cast(), ETHERNET_LEN + quoted, 0) == 0
            && bpf_skb_change_head(skb.raw().cast(), headers, 0) == 0
    };
    (made && store(skb, 0, &swap_macs(subject.macs)) && store_half(skb, 12, ethertype.to_be())).then_some(())
}

/// The checksum that a quoted UDP header carries.
///
/// If the refused datagram's checksum was still the hardware's to finish, the kernel writes it when the
/// answer leaves, in the middle of what our ICMP checksum covers. This value comes out of that
/// computation unchanged: with `s` the sum of ports and length it solves `x = !(s + x)` in ones'
/// complement arithmetic, where halving is a rotation.
#[inline(always)]
fn settled_udp_checksum(ports: u32, lengths: u32) -> u16 {
    let length = filter_common::read::first_half(lengths);
    !fold(u64::from(ports) + u64::from(length)).rotate_right(1)
}

#[inline(always)]
fn with_second_half(word: u32, half: u16) -> u32 {
    let (w, h) = (word.to_ne_bytes(), half.to_ne_bytes());
    u32::from_ne_bytes([w[0], w[1], h[0], h[1]])
}

#[inline(always)]
fn answer_v4(skb: &Skb, subject: &Subject, packet: &Packet) -> Option<()> {
    const QUOTED: u32 = 20 + QUOTED_L4;
    const TOTAL: u16 = (20 + ICMP_LEN + QUOTED) as u16;
    let mut quoted = skb.words_at::<7>(ETHERNET_LEN)?;
    if matches!(packet.kind, Kind::Udp) {
        quoted[6] = with_second_half(quoted[6], settled_udp_checksum(quoted[5], quoted[6]));
    }
    make_room(skb, subject, QUOTED, 20 + ICMP_LEN, 0x0800)?;

    let len = TOTAL.to_be_bytes();
    let mut header = [
        u32::from_ne_bytes([0x45, 0, len[0], len[1]]),
        0,
        u32::from_ne_bytes([HOP_LIMIT, protocol::ICMP, 0, 0]),
        packet.dst.v4_word(),
        packet.src.v4_word(),
    ];
    header[2] = with_second_half(header[2], !fold(sum(&header)));
    let head = u32::from_ne_bytes([message::UNREACHABLE, message::ADMINISTRATIVELY_PROHIBITED, 0, 0]);
    let icmp = [with_second_half(head, !fold(u64::from(head) + sum(&quoted))), 0];
    (store(skb, ETHERNET_LEN, &header)
        && store(skb, ETHERNET_LEN + 20, &icmp)
        && store(skb, ETHERNET_LEN + 20 + ICMP_LEN, &quoted))
    .then_some(())
}

#[inline(always)]
fn answer_v6(skb: &Skb, subject: &Subject, packet: &Packet) -> Option<()> {
    const QUOTED: u32 = 40 + QUOTED_L4;
    const PAYLOAD: u16 = (ICMP_LEN + QUOTED) as u16;
    let mut quoted = skb.words_at::<12>(ETHERNET_LEN)?;
    if matches!(packet.kind, Kind::Udp) {
        quoted[11] = with_second_half(quoted[11], settled_udp_checksum(quoted[10], quoted[11]));
    }
    make_room(skb, subject, QUOTED, 40 + ICMP_LEN, 0x86dd)?;

    let len = PAYLOAD.to_be_bytes();
    let (dst, src) = (packet.dst.words(), packet.src.words());
    let header = [
        u32::from_ne_bytes([0x60, 0, 0, 0]),
        u32::from_ne_bytes([len[0], len[1], protocol::ICMP_V6, HOP_LIMIT]),
    ];
    let head = u32::from_ne_bytes([message::V6_UNREACHABLE, message::V6_ADMINISTRATIVELY_PROHIBITED, 0, 0]);
    let pseudo =
        sum(&dst) + sum(&src) + u64::from(PAYLOAD.to_be()) + u64::from(u16::from(protocol::ICMP_V6).to_be());
    let icmp = [with_second_half(head, !fold(pseudo + u64::from(head) + sum(&quoted))), 0];
    (store(skb, ETHERNET_LEN, &header)
        && store(skb, ETHERNET_LEN + 8, &dst)
        && store(skb, ETHERNET_LEN + 24, &src)
        && store(skb, ETHERNET_LEN + 40, &icmp)
        && store(skb, ETHERNET_LEN + 40 + ICMP_LEN, &quoted))
    .then_some(())
}
