//! TCP connections that both ends have closed, for as long as last acknowledgements may come.
//!
//! They no longer count against anybody's budget, so losing an entry loses nothing but a stray segment.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use filter_common::ip::{Kind, Packet};
use filter_common::layout::{Closed, FlowKey};
use filter_common::{RuleWord, tcp};

use crate::control::{ticks, timeout, to_ticks};

#[btf_map]
static CLOSED: LruHashMap<FlowKey, Closed, 65_536> = LruHashMap::new();

#[inline(always)]
pub fn remember(key: &FlowKey, generation: u32, rule: RuleWord) {
    let until = ticks() + to_ticks(timeout::closing());
    // A full map evicts its oldest entry; there is no failure to handle.
    let _ = CLOSED.insert(key, Closed { until, generation, rule: rule.bits() }, 0);
}

/// The rule of the connection that `packet` is a last word of, if it was closed a moment ago.
#[inline(always)]
pub fn lingers(key: &FlowKey, packet: &Packet, generation: u32) -> Option<RuleWord> {
    if !matches!(packet.kind, Kind::Tcp) || !tcp::lingers(packet.flags, packet.payload) {
        return None;
    }
    // SAFETY: the value is plain numbers, valid whoever wrote them.
    let closed = unsafe { CLOSED.get(key) }?;
    let lingers = closed.generation == generation && ticks() < closed.until;
    lingers.then_some(RuleWord::from_bits(closed.rule))
}
