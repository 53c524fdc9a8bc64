//! The timer that ends idle connections, with or without a daemon.
//!
//! One for all: a timer in each connection's entry would be exact to the nanosecond, but the kernel must
//! allocate each where it cannot wait for memory, and there are machines on which that fails after some
//! tens of them.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::Array,
    helpers::{bpf_timer_init, bpf_timer_set_callback, bpf_timer_start},
    macros::btf_map,
};
use filter_common::layout::{Expiry, FLOW_SHARDS};

use crate::sweep;

#[btf_map]
static EXPIRY: Array<Expiry, 1> = Array::new();

const CLOCK_MONOTONIC: u64 = 1;

/// Between two shards. All are visited in about two seconds, which is how late a connection may end.
const INTERVAL: u64 = 32_000_000;

/// Starts the timer, or has a running one call this program from now on. `false` if the kernel has no
/// memory for it at the moment.
#[inline(always)]
pub fn start() -> bool {
    const BUSY: i64 = -16;
    let Some(expiry) = EXPIRY.get_ptr_mut(0) else { return false };
    // SAFETY: the array's one element lives as long as the map; the callback has the signature that the
    // kernel calls.
    unsafe {
        let timer = (&raw mut (*expiry).timer).cast();
        let made = bpf_timer_init(timer, (&raw const EXPIRY).cast_mut().cast(), CLOCK_MONOTONIC);
        if made != 0 && made != BUSY {
            return false;
        }
        let started = bpf_timer_set_callback(timer, tick as *mut c_void) == 0
            && bpf_timer_start(timer, INTERVAL, 0) == 0;
        (*expiry).running = u32::from(started);
        started
    }
}

#[inline(never)]
unsafe extern "C" fn tick(_map: *mut c_void, _index: *mut u32, expiry: *mut Expiry) -> i64 {
    // SAFETY: the kernel calls this with the element that the timer is in.
    unsafe {
        let shard = (*expiry).cursor & (FLOW_SHARDS - 1);
        (*expiry).cursor = (*expiry).cursor.wrapping_add(1);
        sweep::expire(shard);
        bpf_timer_start((&raw mut (*expiry).timer).cast(), INTERVAL, 0);
    }
    0
}
