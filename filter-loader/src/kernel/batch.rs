//! Writing many map entries in one system call, which aya does not offer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::Pod;

/// `BPF_MAP_UPDATE_BATCH` of `enum bpf_cmd`.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h#L941>
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

/// The `batch` part of `union bpf_attr`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes `values` under `keys`, pairwise.
///
/// # Errors
/// What the kernel says; some entries may have been written.
pub fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    // Bounded, so that the kernel does not allocate for all at once.
    const CHUNK: usize = 16_384;
    for (keys, values) in keys.chunks(CHUNK).zip(values.chunks(CHUNK)) {
        let attr = BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: u32::try_from(keys.len().min(values.len())).unwrap_or(0),
            map_fd: u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attribute is as the kernel defines it, and both slices outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw const attr, size_of::<BatchAttr>())
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
