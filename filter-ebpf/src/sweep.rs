//! Goes through the connections of one shard: after an update, when a sandbox is detached, and time and
//! again to end those that are idle.
//!
//! After an update userspace waits a grace period first, so that every connection that was begun under the
//! old policy is in the map already.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_for_each_map_elem, programs::TcContext};
use filter_common::layout::{Flow, FlowKey, PolicyWord, sweep};
use filter_common::{RuleWord, decide};

use crate::flows::{self, Direction};
use crate::skb::Skb;
use crate::{events, expiry, policy};

/// What the callbacks share.
#[repr(C)]
struct Sweep {
    policy: PolicyWord,
    tenant: u32,
    ifindex: u32,
    result: u32,
    zero: u32,
}

type Visit = unsafe extern "C" fn(*mut c_void, *mut FlowKey, *mut Flow, *mut Sweep) -> i64;

/// Control fields: the task, the shard, the sandbox's number, its slot, its interface.
pub fn run(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let (task, shard, tenant) = (skb.control(0), skb.control(1), skb.control(2));
    let (slot, ifindex) = (skb.control(3), skb.control(4));
    let mut shared = Sweep { policy: policy::in_force(slot), tenant, ifindex, result: sweep::DONE, zero: 0 };
    match task {
        sweep::REJUDGE => visit_egress(shard, rejudge, &mut shared),
        sweep::FORGET => {
            visit_egress(shard, forget_egress, &mut shared);
            visit_inbound(shard, forget_inbound, &mut shared);
        }
        sweep::EXPIRE => expire(shard),
        sweep::START => return if expiry::start() { sweep::DONE as i32 } else { sweep::AGAIN as i32 },
        _ => {}
    }
    shared.result as i32
}

/// Ends the idle connections of a shard.
#[inline(always)]
pub fn expire(shard: u32) {
    let mut nothing =
        Sweep { policy: PolicyWord::default(), tenant: 0, ifindex: 0, result: sweep::DONE, zero: 0 };
    visit_egress(shard, expire_egress, &mut nothing);
    visit_inbound(shard, expire_inbound, &mut nothing);
}

#[inline(always)]
fn visit_egress(shard: u32, visit: Visit, shared: &mut Sweep) {
    if let Some(shard) = flows::egress_shard(shard) {
        let map = core::ptr::from_ref(shard).cast_mut().cast();
        // SAFETY: the callback has the signature that the kernel calls, and `shared` outlives the call.
        unsafe { bpf_for_each_map_elem(map, visit as *mut c_void, (&raw mut *shared).cast(), 0) };
    }
}

#[inline(always)]
fn visit_inbound(shard: u32, visit: Visit, shared: &mut Sweep) {
    if let Some(shard) = flows::inbound_shard(shard) {
        let map = core::ptr::from_ref(shard).cast_mut().cast();
        // SAFETY: as above.
        unsafe { bpf_for_each_map_elem(map, visit as *mut c_void, (&raw mut *shared).cast(), 0) };
    }
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

#[inline(never)]
unsafe extern "C" fn rejudge(
    _map: *mut c_void,
    key: *mut FlowKey,
    flow: *mut Flow,
    shared: *mut Sweep,
) -> i64 {
    // SAFETY: the kernel calls this with entries of the map, and with what `run` gave it.
    unsafe {
        let policy = (*shared).policy;
        if (*key).tenant() != (*shared).tenant || (*flow).generation == policy.generation() {
            return GO_ON;
        }
        let (held, rule) = (RuleWord::from_bits((*flow).rule), policy::rule(policy, (*key).remote()));
        if decide::permits(held, rule) {
            (*flow).rule = decide::held_under(held, rule).bits();
            (*flow).generation = policy.generation();
            return GO_ON;
        }
        if events::cuts_waiting() {
            (*shared).result = sweep::AGAIN;
            return STOP;
        }
        flows::revoke(key, flow, (*shared).ifindex);
    }
    GO_ON
}

#[inline(never)]
unsafe extern "C" fn forget_egress(
    _map: *mut c_void,
    key: *mut FlowKey,
    flow: *mut Flow,
    shared: *mut Sweep,
) -> i64 {
    // SAFETY: as above.
    unsafe {
        if (*key).tenant() == (*shared).tenant {
            flows::forget(key, flow, Direction::Egress);
        }
    }
    GO_ON
}

#[inline(never)]
unsafe extern "C" fn forget_inbound(
    _map: *mut c_void,
    key: *mut FlowKey,
    flow: *mut Flow,
    shared: *mut Sweep,
) -> i64 {
    // SAFETY: as above.
    unsafe {
        if (*key).tenant() == (*shared).tenant {
            flows::forget(key, flow, Direction::Inbound);
        }
    }
    GO_ON
}

#[inline(never)]
unsafe extern "C" fn expire_egress(
    _map: *mut c_void,
    key: *mut FlowKey,
    flow: *mut Flow,
    _shared: *mut Sweep,
) -> i64 {
    // SAFETY: as above.
    unsafe { flows::expire(key, flow, Direction::Egress) };
    GO_ON
}

#[inline(never)]
unsafe extern "C" fn expire_inbound(
    _map: *mut c_void,
    key: *mut FlowKey,
    flow: *mut Flow,
    _shared: *mut Sweep,
) -> i64 {
    // SAFETY: as above.
    unsafe { flows::expire(key, flow, Direction::Inbound) };
    GO_ON
}
