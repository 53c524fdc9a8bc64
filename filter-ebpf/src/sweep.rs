//! Goes through all connections of one sandbox, after an update or when it is detached.
//!
//! Userspace runs this program itself and waits a grace period first, so that every connection that was
//! begun under the old policy is in the map already.

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_for_each_map_elem, programs::TcContext};
use filter_common::decide;
use filter_common::layout::{Flow, FlowKey, PolicyWord, sweep};

use crate::flows::{self, Direction, EGRESS, INBOUND};
use crate::skb::Skb;
use crate::{events, policy};

/// What the callbacks share.
#[repr(C)]
struct Sweep {
    policy: PolicyWord,
    tenant: u32,
    ifindex: u32,
    result: u32,
    zero: u32,
}

pub fn run(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let (task, tenant, slot, ifindex) = (skb.control(0), skb.control(1), skb.control(2), skb.control(3));
    let mut shared =
        Sweep { policy: policy::in_force(slot), tenant, ifindex, result: sweep::DONE, zero: 0 };
    let shared_ptr = (&raw mut shared).cast::<c_void>();
    // SAFETY: the callbacks have the signature that the kernel calls, and `shared` outlives the calls.
    unsafe {
        if task == sweep::REJUDGE {
            bpf_for_each_map_elem((&raw const EGRESS).cast_mut().cast(), rejudge as *mut c_void, shared_ptr, 0);
        } else if task == sweep::FORGET {
            bpf_for_each_map_elem(
                (&raw const EGRESS).cast_mut().cast(),
                forget_egress as *mut c_void,
                shared_ptr,
                0,
            );
            bpf_for_each_map_elem(
                (&raw const INBOUND).cast_mut().cast(),
                forget_inbound as *mut c_void,
                shared_ptr,
                0,
            );
        }
    }
    shared.result as i32
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
        let rule = policy::rule(policy, (*key).remote());
        if decide::permits(rule) {
            (*flow).rule = rule.bits();
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
