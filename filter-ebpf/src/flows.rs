//! The connections that are being followed: those that the sandbox began, and those that began with it.
//!
//! The map of egress connections *is* the count: a place in the budget is taken before an entry is made
//! and given back by whoever succeeds in removing it. Two CPUs, the timer and a sweep may all want to end
//! the same connection; the map lets only one of them.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, ArrayOfMaps, HashMap},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use filter_common::ip::{Kind, Packet, protocol};
use filter_common::layout::{EGRESS_SHARD, FLOW_SHARDS, Flow, FlowKey, INBOUND_SHARD, ShardSeed, event_kind};
use filter_common::tcp::{self, Side, state};
use filter_common::{Reason, RuleWord, decide};

use crate::control::{ticks, timeout, to_nanoseconds};
use crate::{atomic, budget, closed, events, punt};

/// Not LRU: evicting an entry would corrupt the count.
pub type Shard<const ENTRIES: usize> = HashMap<FlowKey, Flow, ENTRIES, { BPF_F_NO_PREALLOC as usize }>;

#[btf_map]
static EGRESS: ArrayOfMaps<Shard<{ EGRESS_SHARD as usize }>, { FLOW_SHARDS as usize }> = ArrayOfMaps::new();

#[btf_map]
static INBOUND: ArrayOfMaps<Shard<{ INBOUND_SHARD as usize }>, { FLOW_SHARDS as usize }> = ArrayOfMaps::new();

/// Written by userspace before the first packet, and never again while there are connections.
#[btf_map]
static SHARD_SEED: Array<ShardSeed, 1> = Array::new();

#[inline(always)]
fn shard_of(key: &FlowKey) -> u32 {
    match SHARD_SEED.get(0) {
        Some(seed) => key.shard(seed),
        None => 0,
    }
}

/// A part of the egress connections.
#[inline(always)]
pub fn egress_shard(index: u32) -> Option<&'static Shard<{ EGRESS_SHARD as usize }>> {
    EGRESS.get(index)
}

/// A part of the inbound connections.
#[inline(always)]
pub fn inbound_shard(index: u32) -> Option<&'static Shard<{ INBOUND_SHARD as usize }>> {
    INBOUND.get(index)
}

/// Who began a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Egress,
    Inbound,
}

impl Direction {
    #[inline(always)]
    fn opener(self) -> Side {
        match self {
            Self::Egress => Side::Sandbox,
            Self::Inbound => Side::Remote,
        }
    }
}

/// How far ahead of what is known a segment may be, in bytes: more than any receive window in use.
const MOST_AHEAD: u32 = 1 << 26;

/// How far a reset's number may be from the expected one: segments may have been lost behind this point.
const RESET_WINDOW: u32 = 1 << 16;

/// A followed connection. The pointer stays readable for as long as the program runs; should another CPU
/// remove the entry meanwhile, what is written to it is lost or lands in another connection's statistics,
/// never in a count or a verdict.
pub struct Tracked<'a> {
    key: &'a FlowKey,
    flow: *mut Flow,
    direction: Direction,
}

#[inline(always)]
pub fn find(key: &FlowKey, direction: Direction) -> Option<Tracked<'_>> {
    let flow = match direction {
        Direction::Egress => egress_shard(shard_of(key))?.get_ptr_mut(key),
        Direction::Inbound => inbound_shard(shard_of(key))?.get_ptr_mut(key),
    }?;
    Some(Tracked { key, flow, direction })
}

/// Removes an entry. `false` if there is none.
#[inline(always)]
fn remove(key: &FlowKey, direction: Direction) -> bool {
    match direction {
        Direction::Egress => egress_shard(shard_of(key)).is_some_and(|shard| shard.remove(key).is_ok()),
        Direction::Inbound => inbound_shard(shard_of(key)).is_some_and(|shard| shard.remove(key).is_ok()),
    }
}

/// Makes an entry. `false` if there is no room, or one already.
#[inline(always)]
fn insert(key: &FlowKey, direction: Direction, flow: &Flow) -> bool {
    const NEW: u64 = BPF_NOEXIST as u64;
    match direction {
        Direction::Egress => {
            egress_shard(shard_of(key)).is_some_and(|shard| shard.insert(key, flow, NEW).is_ok())
        }
        Direction::Inbound => {
            inbound_shard(shard_of(key)).is_some_and(|shard| shard.insert(key, flow, NEW).is_ok())
        }
    }
}

impl Tracked<'_> {
    #[inline(always)]
    pub fn generation(&self) -> u32 {
        // SAFETY: see the type.
        unsafe { (*self.flow).generation }
    }

    #[inline(always)]
    pub fn rule(&self) -> RuleWord {
        // SAFETY: see the type.
        RuleWord::from_bits(unsafe { (*self.flow).rule })
    }

    /// Notes that the connection was judged anew.
    #[inline(always)]
    pub fn set_judged(&self, rule: RuleWord, generation: u32) {
        // SAFETY: see the type.
        unsafe {
            (*self.flow).rule = rule.bits();
            (*self.flow).generation = generation;
        }
    }

    /// Follows the connection through one more packet.
    #[inline(always)]
    pub fn advance(&self, packet: &Packet, from: Side, bytes: u32) {
        let flow = self.flow;
        // SAFETY: see the type; what two CPUs may write at once is written atomically.
        unsafe {
            let way = match from {
                Side::Sandbox => &raw mut (*flow).bytes_out,
                Side::Remote => &raw mut (*flow).bytes_in,
            };
            atomic::add(way, u64::from(bytes));
            // Nothing that the sandbox says keeps a UDP or ICMP exchange alive that somebody else began:
            // the port at the other end may have changed hands.
            if matches!(packet.kind, Kind::Tcp)
                || matches!(self.direction, Direction::Egress)
                || from == Side::Remote
            {
                (*flow).last_seen = ticks();
            }
        }
        if matches!(packet.kind, Kind::Tcp) {
            self.advance_tcp(packet, from);
        }
    }

    #[inline(always)]
    fn advance_tcp(&self, packet: &Packet, from: Side) {
        let flow = self.flow;
        let opener = self.direction.opener();
        // SAFETY: see the type.
        unsafe {
            if packet.is_reset() {
                // Whoever guesses the ports but not the number ends nothing (RFC 5961 section 3.2).
                let answered = (*flow).state & state::ANSWERED != 0;
                let off = u32::from_be(packet.seq).wrapping_sub((*flow).next_of_remote) as i32;
                if from == Side::Sandbox || !answered || off.unsigned_abs() <= RESET_WINDOW {
                    self.end();
                }
                return;
            }
            let known = match from {
                Side::Sandbox => &raw mut (*flow).next_of_sandbox,
                Side::Remote => &raw mut (*flow).next_of_remote,
            };
            // Something sent again lies before what is known already; what lies far ahead, or begins anew
            // what was answered, is not the other end's.
            let next = packet.next_seq();
            let ahead = next.wrapping_sub(*known);
            let begins = packet.flags & tcp::SYN != 0
                && (from == Side::Sandbox || (*flow).state & state::ANSWERED == 0);
            if begins || (ahead != 0 && ahead <= MOST_AHEAD) {
                *known = next;
            }
            let bits = (*flow).state;
            // The same ports again, before the old connection was seen to end.
            if packet.is_syn() && from == opener && bits & state::FIN_BOTH != 0 {
                (*flow).state = 0;
                return;
            }
            let added = tcp::observe(bits, opener, from, packet.flags) & !bits;
            if added == 0 {
                return;
            }
            let bits = atomic::set_bits(&raw mut (*flow).state, added) | added;
            if bits & state::FIN_BOTH == state::FIN_BOTH {
                closed::remember(self.key, (*flow).generation, self.rule());
                self.end();
            }
        }
    }

    /// Ends the connection. `false` if somebody else did.
    #[inline(always)]
    pub fn end(&self) -> bool {
        // SAFETY: see the type.
        unsafe { end(self.key, self.flow, self.direction) }
    }

    /// Ends a connection that the policy in force does not permit, and has both its ends told.
    #[inline(always)]
    pub fn revoke(&self, ifindex: u32) {
        // SAFETY: see the type.
        unsafe { revoke(self.key, self.flow, ifindex) };
    }
}

/// # Safety
/// `key` and `flow` must belong to an entry of the map of `direction`.
#[inline(never)]
unsafe fn end(key: *const FlowKey, flow: *mut Flow, direction: Direction) -> bool {
    // SAFETY: the caller's promise.
    let (slot, rule) = unsafe { ((*flow).slot, RuleWord::from_bits((*flow).rule)) };
    let (reason, inbound) = match direction {
        Direction::Egress => (decide::reason_of(rule), false),
        Direction::Inbound => (Reason::Reply, true),
    };
    // SAFETY: the caller's promise.
    let told = unsafe { events::connection(event_kind::CLOSE, key, flow, reason, inbound) };
    // SAFETY: the caller's promise.
    if !remove(unsafe { &*key }, direction) {
        told.discard();
        return false;
    }
    if decide::belongs_to_inspector(rule) {
        // SAFETY: the caller's promise.
        punt::forget(unsafe { &*key });
    }
    give_back(slot, direction);
    told.submit();
    true
}

/// # Safety
/// `key` and `flow` must belong to an entry of [`EGRESS`].
#[inline(always)]
pub unsafe fn revoke(key: *const FlowKey, flow: *mut Flow, ifindex: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if (*key).protocol() != protocol::TCP {
            end(key, flow, Direction::Egress);
            return;
        }
        // Without room to say so the ends find out by themselves: nothing of theirs passes any more.
        let cut = events::cut(key, flow, ifindex);
        if end(key, flow, Direction::Egress) {
            cut.submit();
        } else {
            cut.discard();
        }
    }
}

/// # Safety
/// `key` and `flow` must belong to an entry of the map of `direction`.
#[inline(always)]
pub unsafe fn forget(key: *const FlowKey, flow: *mut Flow, direction: Direction) {
    // SAFETY: the caller's promise.
    unsafe { end(key, flow, direction) };
}

#[inline(always)]
fn give_back(slot: u32, direction: Direction) {
    match direction {
        Direction::Egress => budget::give_back(slot),
        Direction::Inbound => budget::give_back_inbound(slot),
    }
}

/// Begins to follow a connection. The caller has taken a place for it; that is given back if there turns
/// out to be no need for it.
///
/// # Errors
/// `capacity` if there is no room for it.
#[inline(always)]
pub fn open(key: &FlowKey, slot: u32, direction: Direction, flow: &Flow) -> Result<(), Reason> {
    if !insert(key, direction, flow) {
        give_back(slot, direction);
        // Either there is no room, or another CPU was quicker with the same connection.
        return match find(key, direction) {
            Some(_) => Ok(()),
            None => {
                if decide::belongs_to_inspector(RuleWord::from_bits(flow.rule)) {
                    punt::forget(key);
                }
                Err(Reason::Capacity)
            }
        };
    }
    if matches!(direction, Direction::Egress) {
        budget::note_peak(slot);
    }
    let (reason, inbound) = match direction {
        Direction::Egress => (decide::reason_of(RuleWord::from_bits(flow.rule)), false),
        Direction::Inbound => (Reason::Reply, true),
    };
    // SAFETY: both are references.
    unsafe { events::connection(event_kind::OPEN, key, flow, reason, inbound) }.submit();
    Ok(())
}

/// A connection's entry as `packet`, its first, makes it.
#[inline(always)]
pub fn fresh(slot: u32, packet: &Packet, macs: [u32; 3], rule: RuleWord, generation: u32) -> Flow {
    Flow {
        // SAFETY: the helper has no preconditions.
        opened: unsafe { bpf_ktime_get_ns() },
        last_seen: ticks(),
        bytes_out: 0,
        bytes_in: 0,
        generation,
        rule: rule.bits(),
        state: 0,
        next_of_sandbox: packet.next_seq(),
        next_of_remote: u32::from_be(packet.ack),
        slot,
        macs,
        zero: 0,
    }
}

/// Ends a connection that has been idle for longer than it may.
///
/// # Safety
/// `key` and `flow` must belong to an entry of the map of `direction`.
#[inline(always)]
pub unsafe fn expire(key: *const FlowKey, flow: *mut Flow, direction: Direction) {
    // SAFETY: the caller's promise.
    unsafe {
        let limit = timeout::of((*key).protocol(), (*flow).state);
        if to_nanoseconds(ticks().saturating_sub((*flow).last_seen)) >= limit {
            end(key, flow, direction);
        }
    }
}
