//! TCP connections that both ends have closed, for as long as last acknowledgements may come.
//!
//! They no longer count against anybody's budget, so losing an entry loses nothing but a stray segment.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use filter_common::ip::{Kind, Packet};
use filter_common::layout::{Closed, FlowKey};
use filter_common::tcp;

use crate::control::{ticks, timeout, to_ticks};

#[btf_map]
static CLOSED: LruHashMap<FlowKey, Closed, 65_536> = LruHashMap::new();

#[inline(always)]
pub fn remember(key: &FlowKey, generation: u32) {
    let until = ticks() + to_ticks(timeout::closing());
    // A full map evicts its oldest entry; there is no failure to handle.
    let _ = CLOSED.insert(key, Closed { until, generation, zero: 0 }, 0);
}

/// Whether `packet` is a last word of a connection that was closed a moment ago.
#[inline(always)]
pub fn lingers(key: &FlowKey, packet: &Packet, generation: u32) -> bool {
    if !matches!(packet.kind, Kind::Tcp) || !tcp::lingers(packet.flags, packet.payload) {
        return false;
    }
    // SAFETY: the value is plain numbers, valid whoever wrote them.
    match unsafe { CLOSED.get(key) } {
        Some(closed) => closed.generation == generation && ticks() < closed.until,
        None => false,
    }
}
