//! How much a sandbox can make the host say: refusals and told events in each window of time.

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
/// Beginnings and ends of connections told in a window: about a seventh of what the ring of events holds, which
/// is emptied once in a window. Enough for twice the usual limit of connections at once.
const CONNECTIONS: u32 = 6000;

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
        throttle.connections = 0;
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
    told(throttle, throttle.denials <= DENIALS)
}

/// Whether the beginning or end of another connection of the sandbox may be told; those that are not are
/// counted.
#[inline(always)]
pub fn may_tell_connection(slot: u32) -> bool {
    let Some(throttle) = present(slot) else { return false };
    throttle.connections += 1;
    told(throttle, throttle.connections <= CONNECTIONS)
}

#[inline(always)]
fn told(throttle: &mut Throttle, may_be: bool) -> bool {
    if !may_be {
        throttle.untold += 1;
    }
    may_be
}
