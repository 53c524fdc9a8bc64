//! An array map, mapped into our memory: words that the kernel's programs and we read and write alike.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::KernelError;

/// The words of a map that was made with `BPF_F_MMAPABLE`.
pub struct Memory {
    start: NonNull<c_void>,
    words: usize,
}

// SAFETY: the memory is shared with the kernel and accessed through atomics only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the first `words` of a map, which has at least as many.
    pub(super) fn map(map: &MapData, words: usize, what: &'static str) -> Result<Self, KernelError> {
        let failed = |errno: nix::Error| KernelError::System { what, source: errno.into() };
        let length = NonZeroUsize::new(words * size_of::<u64>()).ok_or(failed(nix::Error::EINVAL))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it lives until `drop`.
        let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, map.fd().as_fd(), 0) };
        Ok(Self { start: start.map_err(failed)?, words })
    }

    /// One word.
    pub(super) fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.words {
            return None;
        }
        // SAFETY: inside the mapping, which is page-aligned and lives as long as `self`.
        Some(unsafe { self.start.cast::<AtomicU64>().add(index).as_ref() })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.start, self.words * size_of::<u64>()) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "cannot unmap a map");
        }
    }
}
