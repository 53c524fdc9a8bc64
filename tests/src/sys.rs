//! The system calls that neither `std` nor `nix` offers safely. All `unsafe` of this crate is here.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::{io, mem};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Every protocol, for a packet socket that receives.
pub const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;

/// Lets `command` start in the namespace `netns`. The mount namespace stays, so that pins in bpffs are seen.
pub fn start_in(command: &mut Command, netns: File) {
    // SAFETY: between fork and exec only `setns` runs, which is one system call on a descriptor that the
    // closure owns: no allocation, no lock.
    unsafe {
        command.pre_exec(move || match libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// Lets the kernel kill `command` when the *thread* that starts it ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: `prctl` with integers is one system call and async-signal-safe.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

/// A raw packet socket on interface `index` of the calling thread's namespace. It receives what comes in, not what
/// goes out; with protocol 0 nothing.
pub fn packet_socket(index: u32, protocol: u16) -> io::Result<OwnedFd> {
    // Made with protocol 0 and bound with the wanted one: otherwise it would see every interface until bound.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    // SAFETY: all zeroes is a valid `sockaddr_storage`, which is larger than and aligned for `sockaddr_ll`;
    // the length says how much was written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_protocol = protocol.to_be();
            (*link).sll_ifindex = index as c_int;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    let ignore: c_int = 1;
    // SAFETY: pointer and length describe `ignore`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const ignore).cast(),
            size_of_val(&ignore) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&address)?;
    Ok(socket.into())
}

/// Has a packet socket put a `virtio_net_hdr` in front of each frame: it says whose the checksum is to finish.
pub fn want_vnet_header(socket: &OwnedFd) -> io::Result<()> {
    let wanted: c_int = 1;
    // SAFETY: pointer and length describe `wanted`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const wanted).cast(),
            size_of_val(&wanted) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many frames the packet socket lost since the last call, for want of buffer.
pub fn packets_lost(socket: &OwnedFd) -> io::Result<u32> {
    // SAFETY: all zeroes is a valid `tpacket_stats`.
    let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: pointer and length describe `stats`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(stats.tp_drops) } else { Err(io::Error::last_os_error()) }
}

/// Sets one on/off feature of an interface through the classic ethtool call.
pub fn ethtool_set(interface: &str, command: u32, on: bool) -> io::Result<()> {
    // As `struct ethtool_value` in linux/ethtool.h.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command, data: on.into() };
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: the request names an interface and points to `value`; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the tap device `name` in the calling thread's namespace; it lives as long as the file.
pub fn open_tap(name: &str, vnet_header: bool) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let header = if vnet_header { libc::IFF_VNET_HDR } else { 0 };
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as i16;
    // SAFETY: the request is a whole `ifreq` that outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if vnet_header {
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(file)
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // One byte stays for the terminating zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("interface name too long: {name}")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}
