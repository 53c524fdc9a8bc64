//! Packets and bytes a sandbox, by reason.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use filter_common::Reason;
use filter_common::layout::{COUNTERS as PLACES, Count, Counters, MAX_SANDBOXES};

use crate::atomic;

/// Userspace maps this array into its memory and counts what the inspector refuses.
///
/// Not per CPU: a host with many CPUs would pay for every sandbox on each of them, and a sandbox's
/// packets are rarely on two at once.
#[btf_map]
static COUNTERS: Array<Counters, { MAX_SANDBOXES as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

#[inline(always)]
pub fn count(slot: u32, reason: Reason, bytes: u32) {
    let Some(counters) = COUNTERS.get_ptr_mut(slot) else { return };
    let place = atomic::within::<{ PLACES as u64 }>(reason as u64) as usize;
    // SAFETY: the element lives as long as the map, `place` is inside it, and all access is atomic.
    unsafe {
        let count: *mut Count = (&raw mut (*counters).by_reason).cast::<Count>().add(place);
        atomic::add(&raw mut (*count).packets, 1);
        atomic::add(&raw mut (*count).bytes, u64::from(bytes));
    }
}
