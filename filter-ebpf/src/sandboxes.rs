//! Who an interface belongs to.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, btf_maps::Array, btf_maps::HashMap, macros::btf_map};
use filter_common::layout::{MAX_SANDBOXES, Sandbox};

#[btf_map]
static INTERFACES: HashMap<u32, u32, { MAX_SANDBOXES as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
static SANDBOXES: Array<Sandbox, { MAX_SANDBOXES as usize }> = Array::new();

/// The sandbox that a packet is from or to.
pub struct Attached {
    /// Its index in every map that has an entry a sandbox.
    pub slot: u32,
    pub sandbox: &'static Sandbox,
}

impl Attached {
    #[inline(always)]
    pub fn of_interface(ifindex: u32) -> Option<Self> {
        // SAFETY: an entry is a plain number, valid whichever sandbox wrote it; the check below tells a
        // recycled one.
        let slot = *unsafe { INTERFACES.get(ifindex) }?;
        let sandbox = SANDBOXES.get(slot)?;
        if sandbox.ifindex != ifindex || sandbox.tenant == 0 {
            return None;
        }
        // An array's elements stay where they are for as long as the map exists.
        Some(Self { slot, sandbox })
    }
}
