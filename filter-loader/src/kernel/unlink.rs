//! Taking a pinned link off its interface, which aya only does by dropping the last reference.
//!
//! That is not enough: the kernel lets go of an unpinned link later, from a worker
//! (`bpf_link_put` in <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/syscall.c>). Until then its program
//! judges packets, and cannot be attached to the same interface again.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `BPF_OBJ_GET` and `BPF_LINK_DETACH` of `enum bpf_cmd`.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h#L941>
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The part of `union bpf_attr` that opens a pin.
#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that names a link to detach.
#[repr(C)]
struct LinkAttr {
    link_fd: u32,
}

/// Detaches the link that is pinned at `path`; when this returns its program judges no packet any more. One whose
/// interface is gone is detached already.
///
/// # Errors
/// What the kernel says.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectAttr { pathname: text.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attribute is as the kernel defines it, and the text outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<ObjectAttr>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given us this descriptor.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let attr = LinkAttr { link_fd: u32::try_from(link.as_raw_fd()).unwrap_or(u32::MAX) };
    // SAFETY: the attribute is as the kernel defines it, and the descriptor is open.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const attr, size_of::<LinkAttr>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
