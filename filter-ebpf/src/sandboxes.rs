//! Who an interface belongs to.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, btf_maps::Array, btf_maps::HashMap, macros::btf_map};
use filter_common::layout::{MAX_SANDBOXES, Sandbox, sandbox_place};

/// By the lower bits of the interface's index, which is one load where a hash costs a quarter of all that
/// a packet of a known connection costs.
#[btf_map]
static SANDBOXES: Array<Sandbox, { MAX_SANDBOXES as usize }> = Array::new();

/// Those whose place was taken: indexes that are [`MAX_SANDBOXES`] apart.
#[btf_map]
static DISPLACED: HashMap<u32, Sandbox, { MAX_SANDBOXES as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The sandbox that a packet at the interface with this index is from or to.
///
/// Entries are written whole before their interface's programs are attached, never changed, and removed a
/// grace period after those were taken off.
#[inline(always)]
pub fn on_interface(ifindex: u32) -> Option<&'static Sandbox> {
    match SANDBOXES.get(sandbox_place(ifindex)) {
        Some(sandbox) if sandbox.ifindex == ifindex => Some(sandbox),
        _ => displaced(ifindex),
    }
}

#[inline(always)]
fn displaced(ifindex: u32) -> Option<&'static Sandbox> {
    // SAFETY: as above; the check tells an entry whose memory went to another sandbox meanwhile.
    let sandbox = unsafe { DISPLACED.get(ifindex) }?;
    if sandbox.ifindex == ifindex { Some(sandbox) } else { None }
}
