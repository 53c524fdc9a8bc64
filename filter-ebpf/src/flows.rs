//! The connections that are being followed: those that the sandbox began, and those that began with it.
//!
//! The map of egress connections *is* the count: a place in the budget is taken before an entry is made
//! and given back by whoever succeeds in removing it. Two CPUs, a timer and a sweep may all want to end
//! the same connection; the map lets only one of them.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::HashMap,
    helpers::{bpf_ktime_get_ns, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start},
    macros::btf_map,
};
use filter_common::ip::{Kind, Packet, protocol};
use filter_common::layout::{Flow, FlowKey, bpf_timer, event_kind};
use filter_common::tcp::{self, Side, state};
use filter_common::{Reason, RuleWord, decide};

use crate::control::{ticks, timeout, to_nanoseconds};
use crate::{atomic, budget, closed, events};

type Flows<const ENTRIES: usize> = HashMap<FlowKey, Flow, ENTRIES, { BPF_F_NO_PREALLOC as usize }>;

/// Not LRU: evicting an entry would corrupt the count.
#[btf_map]
pub static EGRESS: Flows<524_288> = HashMap::new();

#[btf_map]
pub static INBOUND: Flows<131_072> = HashMap::new();

const CLOCK_MONOTONIC: u64 = 1;

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
        Direction::Egress => EGRESS.get_ptr_mut(key),
        Direction::Inbound => INBOUND.get_ptr_mut(key),
    }?;
    Some(Tracked { key, flow, direction })
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
            if matches!(packet.kind, Kind::Tcp) || matches!(self.direction, Direction::Egress) || from == Side::Remote {
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
            let known = match from {
                Side::Sandbox => &raw mut (*flow).next_of_sandbox,
                Side::Remote => &raw mut (*flow).next_of_remote,
            };
            let next = packet.next_seq();
            // Something sent again lies before what is known already.
            if next.wrapping_sub(*known) as i32 > 0 || packet.flags & tcp::SYN != 0 {
                *known = next;
            }
            if packet.is_reset() {
                self.end();
                return;
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
                closed::remember(self.key);
                self.end();
            } else if added & state::FIN_BOTH != 0 {
                arm(flow, timeout::closing());
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
    let removed = unsafe {
        match direction {
            Direction::Egress => EGRESS.remove(&*key),
            Direction::Inbound => INBOUND.remove(&*key),
        }
    };
    if removed.is_err() {
        told.discard();
        return false;
    }
    if matches!(direction, Direction::Egress) {
        budget::give_back(slot);
    }
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

/// Begins to follow a connection. For an egress connection the caller has taken a place in the budget;
/// it is given back if there turns out to be no need for it.
///
/// # Errors
/// `capacity` if there is no room for it.
#[inline(always)]
pub fn open(key: &FlowKey, slot: u32, direction: Direction, flow: &Flow) -> Result<(), Reason> {
    let inserted = match direction {
        Direction::Egress => EGRESS.insert(key, flow, u64::from(BPF_NOEXIST)),
        Direction::Inbound => INBOUND.insert(key, flow, u64::from(BPF_NOEXIST)),
    };
    let tracked = find(key, direction);
    if inserted.is_err() {
        if matches!(direction, Direction::Egress) {
            budget::give_back(slot);
        }
        // Either the map is full, or another CPU was quicker with the same connection.
        return if tracked.is_some() { Ok(()) } else { Err(Reason::Capacity) };
    }
    let Some(tracked) = tracked else { return Ok(()) };
    // SAFETY: the entry was just looked up.
    if !unsafe { start_timer(tracked.flow, direction, timeout::of(key.protocol(), 0)) } {
        let removed = match direction {
            Direction::Egress => EGRESS.remove(key),
            Direction::Inbound => INBOUND.remove(key),
        };
        if removed.is_ok() && matches!(direction, Direction::Egress) {
            budget::give_back(slot);
        }
        return Err(Reason::Capacity);
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
        timer: bpf_timer { opaque: [0; 2] },
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

/// # Safety
/// `flow` must point to an entry of the map of `direction`.
#[inline(always)]
unsafe fn start_timer(flow: *mut Flow, direction: Direction, nanoseconds: u64) -> bool {
    // SAFETY: the caller's promise; the callbacks have the signature that the kernel calls.
    unsafe {
        let timer = (&raw mut (*flow).timer).cast();
        let (map, callback) = match direction {
            Direction::Egress => {
                ((&raw const EGRESS).cast_mut().cast::<c_void>(), egress_idle as *mut c_void)
            }
            Direction::Inbound => {
                ((&raw const INBOUND).cast_mut().cast::<c_void>(), inbound_idle as *mut c_void)
            }
        };
        bpf_timer_init(timer, map, CLOCK_MONOTONIC) == 0
            && bpf_timer_set_callback(timer, callback) == 0
            && bpf_timer_start(timer, nanoseconds, 0) == 0
    }
}

/// # Safety
/// `flow` must point to an entry whose timer has been started before.
#[inline(always)]
unsafe fn arm(flow: *mut Flow, nanoseconds: u64) {
    // SAFETY: the caller's promise. A timer that cannot be moved fires when it was going to.
    unsafe { bpf_timer_start((&raw mut (*flow).timer).cast(), nanoseconds, 0) };
}

#[inline(never)]
unsafe extern "C" fn egress_idle(_map: *mut c_void, key: *mut FlowKey, flow: *mut Flow) -> i64 {
    // SAFETY: the kernel calls this with an entry of the map that the timer was started for.
    unsafe { idle(key, flow, Direction::Egress) }
}

#[inline(never)]
unsafe extern "C" fn inbound_idle(_map: *mut c_void, key: *mut FlowKey, flow: *mut Flow) -> i64 {
    // SAFETY: as above.
    unsafe { idle(key, flow, Direction::Inbound) }
}

/// The timer is set once, for the first timeout, and not moved by every packet: when it fires it looks how
/// long the connection has really been idle.
///
/// # Safety
/// `key` and `flow` must belong to an entry of the map of `direction`.
#[inline(always)]
unsafe fn idle(key: *mut FlowKey, flow: *mut Flow, direction: Direction) -> i64 {
    // SAFETY: the caller's promise.
    unsafe {
        let limit = timeout::of((*key).protocol(), (*flow).state);
        let idle = to_nanoseconds(ticks().saturating_sub((*flow).last_seen));
        if idle < limit {
            arm(flow, limit - idle);
        } else {
            end(key, flow, direction);
        }
    }
    0
}
