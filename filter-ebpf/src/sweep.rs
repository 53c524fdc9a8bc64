//! Goes through a part of the connections: after an update, when a sandbox is detached, and time and again
//! to end those that are idle.
//!
//! After an update userspace waits a grace period first, so that every connection that was begun under the
//! old policy is in the table already.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_loop, programs::TcContext};
use filter_common::layout::{FLOW_PLACES, FLOW_SHARDS, PolicyWord, sweep};
use filter_common::{RuleWord, decide};

use crate::skb::Skb;
use crate::{events, expiry, flows, policy};

/// What the callback is given.
#[repr(C)]
struct Sweep {
    policy: PolicyWord,
    task: u32,
    /// Where the part begins.
    first: u32,
    tenant: u32,
    ifindex: u32,
    result: u32,
    zero: u32,
}

/// Control fields: the task, the part, the sandbox's number, its slot, its interface.
pub fn run(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let (task, shard, tenant) = (skb.control(0), skb.control(1), skb.control(2));
    let (slot, ifindex) = (skb.control(3), skb.control(4));
    if task == sweep::START {
        return if expiry::start() { sweep::DONE as i32 } else { sweep::AGAIN as i32 };
    }
    go_through(shard, Sweep { policy: policy::in_force(slot), task, tenant, ifindex, ..NOTHING }) as i32
}

/// Ends the idle connections of a part.
#[inline(always)]
pub fn expire(shard: u32) {
    go_through(shard, Sweep { task: sweep::EXPIRE, ..NOTHING });
}

const NOTHING: Sweep = Sweep {
    policy: PolicyWord::from_bits(0),
    task: 0,
    first: 0,
    tenant: 0,
    ifindex: 0,
    result: sweep::DONE,
    zero: 0,
};

#[inline(always)]
fn go_through(shard: u32, mut sweep: Sweep) -> u32 {
    const PART: u32 = FLOW_PLACES / FLOW_SHARDS;
    sweep.first = shard.wrapping_mul(PART);
    // SAFETY: the callback has the signature that the kernel calls, and `sweep` outlives the call.
    unsafe { bpf_loop(PART, visit as *mut c_void, (&raw mut sweep).cast(), 0) };
    sweep.result
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

#[inline(never)]
unsafe extern "C" fn visit(index: u32, sweep: *mut Sweep) -> i64 {
    // SAFETY: the kernel calls this with what `go_through` gave it.
    let sweep = unsafe { &mut *sweep };
    let Some((place, tag, entry)) = flows::nth(sweep.first.wrapping_add(index)) else { return GO_ON };
    // SAFETY: place, tag and entry belong together. Should another CPU end the connection, and begin another
    // there, its tag is another one, and nothing becomes of it.
    unsafe {
        if sweep.task == sweep::EXPIRE {
            flows::expire(place, tag, entry);
            return GO_ON;
        }
        if (*entry).key.tenant() != sweep.tenant {
            return GO_ON;
        }
        if sweep.task == sweep::FORGET {
            flows::end(place, tag, entry);
            return GO_ON;
        }
        let policy = sweep.policy;
        if sweep.task != sweep::REJUDGE
            || (*entry).inbound != 0
            || (*entry).flow.generation == policy.generation()
        {
            return GO_ON;
        }
        let held = RuleWord::from_bits((*entry).flow.rule);
        let rule = policy::rule(policy, (*entry).key.remote());
        if decide::permits(held, rule) {
            let rule = decide::held_under(held, rule);
            flows::judged(&raw mut (*entry).flow, rule, policy.generation());
            return GO_ON;
        }
        if events::cuts_waiting() {
            sweep.result = sweep::AGAIN;
            return STOP;
        }
        flows::revoke(place, tag, entry, sweep.ifindex);
    }
    GO_ON
}
