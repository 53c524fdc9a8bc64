//! How many connections a sandbox has: exactly as many as the map of its connections holds, plus those on
//! their way in.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use filter_common::layout::{Budget, MAX_SANDBOXES};

use crate::atomic;

#[btf_map]
static BUDGETS: Array<Budget, { MAX_SANDBOXES as usize }> = Array::new();

/// How often to try again when another CPU takes or gives a place at the same moment. Each failure means
/// that some other CPU got on.
const ATTEMPTS: u32 = 64;

/// Takes one place, if fewer than `limit` are taken.
#[inline(always)]
pub fn take(slot: u32, limit: u32) -> bool {
    let Some(budget) = BUDGETS.get_ptr_mut(slot) else { return false };
    // SAFETY: the array's element lives as long as the map.
    unsafe {
        let active = &raw mut (*budget).active;
        let mut attempt = 0;
        while attempt < ATTEMPTS {
            let now = atomic::load(active);
            if now >= limit {
                break;
            }
            if atomic::replace(active, now, now + 1) {
                // Two CPUs at once may leave the lower of two peaks, never one that there was not.
                if (*budget).peak <= now {
                    (*budget).peak = now + 1;
                }
                return true;
            }
            attempt += 1;
        }
        atomic::add(&raw mut (*budget).refused, 1);
    }
    false
}

/// Gives one place back.
#[inline(always)]
pub fn give_back(slot: u32) {
    if let Some(budget) = BUDGETS.get_ptr_mut(slot) {
        // SAFETY: as in `take`.
        unsafe { atomic::decrement(&raw mut (*budget).active) };
    }
}
