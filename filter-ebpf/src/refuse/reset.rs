//! A TCP reset, made of the refused segment (RFC 9293 section 3.10.7.1).

use aya_ebpf::helpers::{bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_change_tail};
use filter_common::frame::ETHERNET_LEN;
use filter_common::ip::{Packet, protocol};
use filter_common::read::Read;
use filter_common::tcp;

use super::{fold, send_back, store, store_half, sum};
use crate::DROP;
use crate::skb::Skb;
use crate::verdict::{Subject, swap_macs};

const BPF_F_PSEUDO_HDR: u64 = 1 << 4;
const IPV4_LENGTH: u32 = ETHERNET_LEN + 2;
const IPV4_FRAGMENT: u32 = ETHERNET_LEN + 6;
const IPV4_CHECKSUM: u32 = ETHERNET_LEN + 10;
const IPV4_ADDRESSES: u32 = ETHERNET_LEN + 12;
const IPV6_LENGTH: u32 = ETHERNET_LEN + 4;
const IPV6_ADDRESSES: u32 = ETHERNET_LEN + 8;

/// Answers the segment in `skb` with a reset.
#[inline(never)]
pub fn reset(skb: &Skb, subject: &Subject) -> i32 {
    match subject.packet {
        Some(ref packet) if turn_round(skb, subject, packet).is_some() => send_back(skb),
        _ => DROP,
    }
}

#[inline(always)]
fn turn_round(skb: &Skb, subject: &Subject, packet: &Packet) -> Option<()> {
    let l4 = packet.l4;
    // Everything is read before anything is written.
    let [old_check] = skb.words_at::<1>(l4 + 16)?;
    // SAFETY: the helper checks the length. What was GSO no longer is.
    if unsafe { bpf_skb_change_tail(skb.raw().cast(), l4 + tcp::HEADER_LEN, 0) } != 0 {
        return None;
    }
    let done = store(skb, 0, &swap_macs(subject.macs))
        && if packet.src.is_v4() { swap_v4(skb, packet) } else { swap_v6(skb, packet) };
    if !done {
        return None;
    }
    let segment = segment(packet);
    if !store(skb, l4, &segment) || !store_half(skb, l4 + 18, 0) {
        return None;
    }
    let old_check = filter_common::read::first_half(old_check);
    fix_checksum(skb, packet, old_check, &segment)
}

/// The first 16 bytes of the reset: ports, numbers, flags. The window is 0.
#[inline(always)]
fn segment(packet: &Packet) -> [u32; 4] {
    let [d, p] = [packet.dst_port.to_ne_bytes(), packet.src_port.to_ne_bytes()];
    let ports = u32::from_ne_bytes([d[0], d[1], p[0], p[1]]);
    const HEADER_WORDS: u8 = 5 << 4;
    if packet.flags & tcp::ACK != 0 {
        [ports, packet.ack, 0, u32::from_ne_bytes([HEADER_WORDS, tcp::RST, 0, 0])]
    } else {
        [ports, 0, packet.next_seq().to_be(), u32::from_ne_bytes([HEADER_WORDS, tcp::RST | tcp::ACK, 0, 0])]
    }
}

/// Turns an IPv4 header round, options and all. Swapping the addresses leaves its checksum as it was.
#[inline(always)]
fn swap_v4(skb: &Skb, packet: &Packet) -> bool {
    let header = packet.l4 - ETHERNET_LEN;
    let Some([first, second]) = skb.words_at::<2>(ETHERNET_LEN) else { return false };
    let old_len = filter_common::read::second_half(first);
    let new_len = ((header + tcp::HEADER_LEN) as u16).to_be();
    let fragment = filter_common::read::second_half(second);
    // SAFETY: the helper checks offsets.
    let fixed = unsafe {
        bpf_l3_csum_replace(skb.raw().cast(), IPV4_CHECKSUM, u64::from(old_len), u64::from(new_len), 2) == 0
            && bpf_l3_csum_replace(skb.raw().cast(), IPV4_CHECKSUM, u64::from(fragment), 0, 2) == 0
    };
    fixed
        && store_half(skb, IPV4_LENGTH, new_len)
        && store_half(skb, IPV4_FRAGMENT, 0)
        && store(skb, IPV4_ADDRESSES, &[packet.dst.v4_word(), packet.src.v4_word()])
}

/// Turns an IPv6 header round. Extension headers stay where they are.
#[inline(always)]
fn swap_v6(skb: &Skb, packet: &Packet) -> bool {
    let len = packet.l4 - ETHERNET_LEN - 40 + tcp::HEADER_LEN;
    store_half(skb, IPV6_LENGTH, (len as u16).to_be())
        && store(skb, IPV6_ADDRESSES, &packet.dst.words())
        && store(skb, IPV6_ADDRESSES + 16, &packet.src.words())
}

/// Sets the TCP checksum.
///
/// On a buffer whose checksum is still the hardware's to finish (`CHECKSUM_PARTIAL`) the field holds the
/// pseudo header's sum and must go on doing so; on any other it must be complete. Programs cannot see
/// which it is, but the helper can: with `BPF_F_PSEUDO_HDR` it updates either kind, without the flag only
/// the complete one. So the length is corrected in both, and then the complete one is replaced.
/// <https://github.com/torvalds/linux/blob/v6.12/net/core/utils.c#L452-L466>
#[inline(always)]
fn fix_checksum(skb: &Skb, packet: &Packet, old_check: u16, segment: &[u32; 4]) -> Option<()> {
    let field = packet.l4 + 16;
    let old_len = (packet.l4_len as u16).to_be();
    let new_len = (tcp::HEADER_LEN as u16).to_be();
    let corrected = fold(u64::from(!old_check) + u64::from(!old_len) + u64::from(new_len));
    let pseudo = sum(&packet.src.words()) + sum(&packet.dst.words())
        // An IPv4 address is stored with a prefix of two bytes of ones, which sum to nothing.
        + u64::from(u16::from(protocol::TCP).to_be())
        + u64::from(new_len);
    let whole = fold(pseudo + sum(segment));
    // SAFETY: the helper checks offsets.
    let done = unsafe {
        bpf_l4_csum_replace(
            skb.raw().cast(),
            field,
            u64::from(old_len),
            u64::from(new_len),
            BPF_F_PSEUDO_HDR | 2,
        ) == 0
            && bpf_l4_csum_replace(skb.raw().cast(), field, u64::from(corrected), u64::from(whole), 2) == 0
    };
    done.then_some(())
}
