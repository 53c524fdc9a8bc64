//! How much a sandbox can make the host say: refusals and told denials in each window of time.

use aya_ebpf::{btf_maps::Array, helpers::bpf_ktime_get_coarse_ns, macros::btf_map};
use filter_common::layout::{MAX_SANDBOXES, Throttle};

#[btf_map]
static THROTTLES: Array<Throttle, { MAX_SANDBOXES as usize }> = Array::new();

/// A window is 2^27 ns, about 134 ms.
const WINDOW_SHIFT: u32 = 27;
/// Refusals in a window: about 15,000 a second.
const REFUSALS: u32 = 2048;
/// Denials told in a window: about 1,900 a second.
const DENIALS: u32 = 256;

/// Two CPUs may lose each other's step here: a limit on noise needs no more precision than that.
#[inline(always)]
fn present(slot: u32) -> Option<&'static mut Throttle> {
    let throttle = THROTTLES.get_ptr_mut(slot)?;
    // SAFETY: the element lives as long as the map and is plain numbers.
    let throttle = unsafe { &mut *throttle };
    // SAFETY: the helper has no preconditions.
    let window = (unsafe { bpf_ktime_get_coarse_ns() } >> WINDOW_SHIFT) as u32;
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
