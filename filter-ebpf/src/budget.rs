//! How many connections a sandbox has: exactly as many as the map of its connections holds, plus those on
//! their way in.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use filter_common::Reason;
use filter_common::layout::{Budget, INBOUND_LIMIT, MAX_SANDBOXES};

use crate::atomic;
use crate::control::egress_ceiling;

#[btf_map]
static BUDGETS: Array<Budget, { MAX_SANDBOXES as usize }> = Array::new();

/// How often to try again when another CPU takes or gives a place at the same moment. Each failure means
/// that some other CPU got on.
const ATTEMPTS: u32 = 64;

/// Takes one place, if fewer than `limit` are taken, and no more than the host lets a sandbox have.
///
/// # Errors
/// `connection_limit`, or `capacity` if the policy would allow it.
#[inline(always)]
pub fn take(slot: u32, limit: u32) -> Result<(), Reason> {
    let Some(budget) = BUDGETS.get_ptr_mut(slot) else { return Err(Reason::ConnectionLimit) };
    let ceiling = egress_ceiling();
    let (least, reason) =
        if limit <= ceiling { (limit, Reason::ConnectionLimit) } else { (ceiling, Reason::Capacity) };
    // SAFETY: the array's element lives as long as the map.
    unsafe {
        if count_up(&raw mut (*budget).active, least).is_some() {
            return Ok(());
        }
        if matches!(reason, Reason::ConnectionLimit) {
            atomic::add(&raw mut (*budget).refused, 1);
        }
    }
    Err(reason)
}

/// Notes the most connections at once, when one has come into being.
#[inline(always)]
pub fn note_peak(slot: u32) {
    if let Some(budget) = BUDGETS.get_ptr_mut(slot) {
        // SAFETY: as above. Two CPUs at once may leave the lower of two peaks, never one that there was not.
        unsafe {
            let active = atomic::load(&raw const (*budget).active);
            if (*budget).peak < active {
                (*budget).peak = active;
            }
        }
    }
}

/// Gives one place back.
#[inline(always)]
pub fn give_back(slot: u32) {
    if let Some(budget) = BUDGETS.get_ptr_mut(slot) {
        // SAFETY: as in `take`.
        unsafe { count_down(&raw mut (*budget).active) };
    }
}

/// As [`take`], for a connection that begins with the sandbox.
#[inline(always)]
pub fn take_inbound(slot: u32) -> bool {
    let Some(budget) = BUDGETS.get_ptr_mut(slot) else { return false };
    // SAFETY: as in `take`.
    unsafe { count_up(&raw mut (*budget).inbound, INBOUND_LIMIT) }.is_some()
}

/// As [`give_back`], for a connection that began with the sandbox.
#[inline(always)]
pub fn give_back_inbound(slot: u32) {
    if let Some(budget) = BUDGETS.get_ptr_mut(slot) {
        // SAFETY: as in `take`.
        unsafe { count_down(&raw mut (*budget).inbound) };
    }
}

/// Adds one to `count` unless it has reached `limit`, and returns the sum.
///
/// # Safety
/// `count` must be valid and aligned.
#[inline(always)]
unsafe fn count_up(count: *mut u32, limit: u32) -> Option<u32> {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        // SAFETY: the caller's promise.
        let now = unsafe { atomic::load(count) };
        if now >= limit {
            return None;
        }
        // SAFETY: the caller's promise.
        if unsafe { atomic::replace(count, now, now + 1) } {
            return Some(now + 1);
        }
        attempt += 1;
    }
    None
}

/// Takes one off `count`, which never falls below 0.
///
/// # Safety
/// `count` must be valid and aligned.
#[inline(always)]
unsafe fn count_down(count: *mut u32) {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        // SAFETY: the caller's promise.
        let now = unsafe { atomic::load(count) };
        // SAFETY: the caller's promise.
        if now == 0 || unsafe { atomic::replace(count, now, now - 1) } {
            return;
        }
        attempt += 1;
    }
}
