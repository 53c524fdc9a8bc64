//! Asking which programs the kernel runs when it looks up a socket in a network namespace, which aya does not offer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `BPF_PROG_QUERY` of `enum bpf_cmd`, `BPF_SK_LOOKUP` of `enum bpf_attach_type`.
/// <https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/bpf.h#L941>
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_SK_LOOKUP: u32 = 36;
/// As many as a namespace may have (`netns_bpf_max_progs` in
/// <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/net_namespace.c>).
const MOST: usize = 64;

/// The `query` part of `union bpf_attr`.
#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The ids of the programs that are asked for sockets in a namespace.
///
/// # Errors
/// What the kernel says.
pub(super) fn socket_lookups(netns: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST];
    let mut attr = QueryAttr {
        target_fd: u32::try_from(netns.as_raw_fd()).unwrap_or(u32::MAX),
        attach_type: BPF_SK_LOOKUP,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(ids.len()).unwrap_or(0),
        padding: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: the attribute is as the kernel defines it, and has room for as many ids as it says.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size_of::<QueryAttr>()) } {
        0 => {
            ids.truncate(usize::try_from(attr.prog_cnt).unwrap_or(0));
            Ok(ids)
        }
        _ => Err(io::Error::last_os_error()),
    }
}
