//! What the generators need of the system and `std` does not offer. All `unsafe` of the benches is here.

use std::ffi::c_int;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket as open,
};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::os::fd::AsRawFd as _;

/// Keeps the calling thread on a CPU: the last one, or the one before the last.
pub fn pin(place: Cpu) -> Result<()> {
    let this = Pid::from_raw(0);
    let own = sched_getaffinity(this)?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| own.is_set(*cpu).unwrap_or(false)).rev();
    let last = cpus.next().context("no CPU to run on")?;
    let cpu = match place {
        Cpu::Last => last,
        Cpu::Other => cpus.next().unwrap_or(last),
    };
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(this, &one).context("cannot stay on one CPU")
}

/// Where a thread runs.
#[derive(Clone, Copy, Debug)]
pub enum Cpu {
    /// The last CPU.
    Last,
    /// Another one, where there is one.
    Other,
}

/// A packet socket that sends frames as they are on interface `index` of the calling thread's namespace.
pub fn frame_socket(index: u32) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    // SAFETY: all zeroes is a valid `sockaddr_storage`, which is larger than and aligned for `sockaddr_ll`;
    // the length says how much was written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_ifindex = index as c_int;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    socket.bind(&address)?;
    Ok(socket.into())
}

/// Empties the connection table of the calling thread's namespace.
pub fn flush_conntrack() -> Result<()> {
    // linux/netfilter/nfnetlink_conntrack.h: a deletion that names no connection is for all of them.
    const IPCTNL_MSG_CT_DELETE: u16 = 2;
    const HEADER: usize = 16;
    let length: u32 = HEADER as u32 + 4;
    let kind = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | IPCTNL_MSG_CT_DELETE;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence, sender; then `nfgenmsg`: every family, version 0.
    message.extend([0; 8 + 4]);

    let netlink =
        open(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 256];
    let received = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let error = answer.get(..received).and_then(|answer| answer.get(HEADER..HEADER + 4));
    match error.and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(Errno::from_raw(-error)).context("cannot empty the connection table"),
        None => bail!("the kernel's answer about the connection table is too short"),
    }
}
