//! What a sandbox gets instead of an answer: the refused packet, turned round in place.

mod reset;
mod unreachable;

pub use reset::reset;
pub use unreachable::unreachable;

use aya_ebpf::helpers::{bpf_redirect, bpf_skb_store_bytes};

use crate::skb::Skb;

/// Writes `words` into the packet.
#[inline(always)]
fn store<const N: usize>(skb: &Skb, offset: u32, words: &[u32; N]) -> bool {
    // SAFETY: the buffer is ours and as long as we say.
    unsafe { bpf_skb_store_bytes(skb.raw().cast(), offset, words.as_ptr().cast(), 4 * N as u32, 0) == 0 }
}

/// Writes two bytes into the packet, in the order of memory.
#[inline(always)]
fn store_half(skb: &Skb, offset: u32, half: u16) -> bool {
    // SAFETY: as above.
    unsafe { bpf_skb_store_bytes(skb.raw().cast(), offset, (&raw const half).cast(), 2, 0) == 0 }
}

/// Sends the packet out of the interface that it came in by.
#[inline(always)]
fn send_back(skb: &Skb) -> i32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_redirect(skb.ifindex(), 0) as i32 }
}

/// The ones' complement sum of words, folded to 16 bits (RFC 1071). It does not care about byte order as
/// long as all of its input has the same.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let mut sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[inline(always)]
fn sum<const N: usize>(words: &[u32; N]) -> u64 {
    let mut total = 0_u64;
    let mut index = 0;
    while index < N {
        total += u64::from(words[index]);
        index += 1;
    }
    total
}
