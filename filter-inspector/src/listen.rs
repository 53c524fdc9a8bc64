//! The sockets that punted connections arrive at.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait to be accepted; the kernel's own bound (`somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// Listeners that share their connections. They are bound to loopback, where nobody from outside reaches
/// them, and accept connections to any address that the kernel delivers to one of them.
#[derive(Debug)]
pub struct Listeners {
    v4: Vec<TcpListener>,
    v6: Vec<TcpListener>,
}

/// One listener of each family that the host has.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) v4: TcpListener,
    pub(crate) v6: Option<TcpListener>,
}

impl Listeners {
    /// Listens `count` times, at a port that the kernel chooses for each family. Whatever is delivered to one
    /// listener of a family goes to any of them, as the kernel shares it out (`SO_REUSEPORT`). Needs
    /// `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// Whatever keeps the kernel from it. A host without IPv6 is no error; it has none of these listeners.
    pub fn bind(count: usize) -> io::Result<Self> {
        let v4 = group(Ipv4Addr::LOCALHOST.into(), count)?;
        let v6 = match group(Ipv6Addr::LOCALHOST.into(), count) {
            Ok(listeners) => listeners,
            Err(error) if has_no_v6(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6 })
    }

    /// One for IPv4, through which all of them get connections.
    pub fn v4(&self) -> Option<BorrowedFd<'_>> {
        self.v4.first().map(AsFd::as_fd)
    }

    /// One for IPv6, if the host has IPv6.
    pub fn v6(&self) -> Option<BorrowedFd<'_>> {
        self.v6.first().map(AsFd::as_fd)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.v4.iter().chain(&self.v6).map(AsFd::as_fd)
    }

    /// As many pairs as there were to be listeners.
    pub(crate) fn into_pairs(self) -> impl Iterator<Item = Pair> {
        let mut v6 = self.v6.into_iter();
        self.v4.into_iter().map(move |v4| Pair { v4, v6: v6.next() })
    }
}

fn has_no_v6(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

/// The first chooses the port, and the others join it there.
fn group(address: IpAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::with_capacity(count);
    for _ in 0..count {
        let at = match listeners.first() {
            Some(first) => first.local_addr()?,
            None => SocketAddr::new(address, 0),
        };
        listeners.push(listen(at)?);
    }
    Ok(listeners)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Before it is bound: the answer to a SYN comes from the address that the sandbox wanted to reach.
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit these.
    socket.set_tcp_nodelay(true)?;
    // Should the process die, no end may take a part of a transfer for the whole.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    // Inherited too: what acknowledges a hello or a request goes out with the answer, if that comes soon.
    socket.set_tcp_quickack(false)?;
    Ok(socket.into())
}
