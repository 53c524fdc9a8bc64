//! The policy words: mapped into our memory, so that replacing a sandbox's policy is one store.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use filter_common::layout::{MAX_SANDBOXES, PolicyWord};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::KernelError;

const BYTES: usize = MAX_SANDBOXES as usize * size_of::<u64>();

/// One word a sandbox slot.
pub struct Words {
    memory: NonNull<c_void>,
}

// SAFETY: the memory is shared with the kernel and accessed through atomics only.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    pub(super) fn open(map: &MapData) -> Result<Self, KernelError> {
        let failed = |errno: nix::Error| KernelError::System {
            what: "mapping the policy words into memory",
            source: errno.into(),
        };
        let length = NonZeroUsize::new(BYTES).ok_or(failed(nix::Error::EINVAL))?;
        // SAFETY: a new mapping at an address of the kernel's choice; it lives until `drop`.
        let memory = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .map_err(failed)?;
        Ok(Self { memory })
    }

    /// The word of the sandbox in `slot`.
    pub fn load(&self, slot: u32) -> PolicyWord {
        PolicyWord::from_bits(self.word(slot).map_or(0, |word| word.load(Ordering::Acquire)))
    }

    /// Puts `word` in force for the sandbox in `slot`. From here on the next packet is judged by it;
    /// packets that are being judged right now may still be by the old one, until a grace period is over.
    pub fn store(&self, slot: u32, word: PolicyWord) {
        if let Some(place) = self.word(slot) {
            place.store(word.bits(), Ordering::Release);
        }
    }

    fn word(&self, slot: u32) -> Option<&AtomicU64> {
        if slot >= MAX_SANDBOXES {
            return None;
        }
        // SAFETY: inside the mapping, which is page-aligned and lives as long as `self`.
        Some(unsafe { &*self.memory.cast::<AtomicU64>().add(slot as usize).as_ptr() })
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`; no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.memory, BYTES) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "cannot unmap the policy words");
        }
    }
}
