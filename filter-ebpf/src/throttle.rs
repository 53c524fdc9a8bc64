//! How much a sandbox can make the host say: refusals and told denials in each window of time.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use filter_common::layout::{MAX_SANDBOXES, Throttle};

use crate::control::{ticks, to_ticks};

#[btf_map]
static THROTTLES: Array<Throttle, { MAX_SANDBOXES as usize }> = Array::new();

const WINDOW_NANOSECONDS: u64 = 100_000_000;
/// Refusals in a window.
const REFUSALS: u32 = 2000;
/// Denials told in a window.
const DENIALS: u32 = 200;

/// Two CPUs may lose each other's step here: a limit on noise needs no more precision than that.
#[inline(always)]
fn present(slot: u32) -> Option<&'static mut Throttle> {
    let throttle = THROTTLES.get_ptr_mut(slot)?;
    // SAFETY: the element lives as long as the map and is plain numbers.
    let throttle = unsafe { &mut *throttle };
    let window = ticks().checked_div(to_ticks(WINDOW_NANOSECONDS)).unwrap_or(0) as u32;
    if throttle.window != window {
        throttle.window = window;
        throttle.refusals = 0;
        throttle.denials = 0;
    }
    Some(throttle)
}

/// Whether the sandbox may be sent another refusal.
#[inline(always)]
pub fn may_refuse(slot: u32) -> bool {
    let Some(throttle) = present(slot) else { return false };
    throttle.refusals += 1;
    throttle.refusals <= REFUSALS
}

/// Whether another denial of the sandbox may be told; those that are not are counted.
#[inline(always)]
pub fn may_tell(slot: u32) -> bool {
    let Some(throttle) = present(slot) else { return false };
    throttle.denials += 1;
    if throttle.denials <= DENIALS {
        return true;
    }
    throttle.untold += 1;
    false
}
