//! The way in over UDP: datagrams that the kernel punted, and answers that come from where they went to.
//!
//! A query was addressed to a resolver, say 8.8.8.8:53, and its answer has to come from there. A socket that
//! is bound to that address would do, one for each resolver that any policy names; but it would take port 53
//! from the host's own DNS server, or not get it, where that one listens on every address. So answers are
//! written as packets, header and all, to a raw socket, which needs no port, and one for each family is
//! enough. They fit into any link, so that nothing has to be cut in pieces.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use etherparse::PacketBuilder;
use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, setsockopt, sockopt,
    },
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, time::sleep};
use tracing::{debug, warn};

use super::{Forwarder, Reply};
use crate::host::{Flow, Host, Transport};

/// The longest query that is read. One with every option that there is comes nowhere near.
const MAX_QUERY: usize = 4096;
/// What may wait to be read, in bytes, for a burst of all sandboxes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How many routers an answer passes at most; the recommended default (RFC 1700, "IP TTL parameter").
const HOPS: u8 = 64;
/// `IPPROTO_RAW`: what is sent brings its own header, and nothing is received.
const RAW: i32 = 255;
/// How long a socket is left alone that cannot be read.
const PAUSE: Duration = Duration::from_millis(100);

/// The sockets that punted datagrams arrive on, and those that answers leave by.
#[derive(Debug)]
pub struct Listener {
    v4: Side,
    v6: Option<Side>,
}

/// One family.
#[derive(Debug)]
struct Side {
    inbound: UdpSocket,
    outbound: Outbound,
}

#[derive(Debug)]
struct Outbound(Socket);

/// A datagram, and where it went.
struct Datagram {
    query: Vec<u8>,
    flow: Flow,
}

impl Listener {
    /// Binds to ports of the loopback addresses; the kernel programs find the sockets by [`Self::v4`] and
    /// [`Self::v6`], not by address. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Without the right to open raw sockets (`CAP_NET_RAW`).
    pub fn bind() -> io::Result<Self> {
        Self::bind_to((Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into())
    }

    /// As [`Self::bind`], to these addresses.
    ///
    /// # Errors
    /// As [`Self::bind`], and if an address cannot be had.
    pub fn bind_to(v4: SocketAddr, v6: SocketAddr) -> io::Result<Self> {
        let v6 = match Side::bind(v6) {
            Ok(side) => Some(side),
            Err(error) if is_without_ipv6(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4: Side::bind(v4)?, v6 })
    }

    /// Has answers carry a mark (`SO_MARK`), 0 for none.
    ///
    /// # Errors
    /// Without the right to set marks (`CAP_NET_ADMIN`).
    pub fn mark(&self, mark: u32) -> io::Result<()> {
        [Some(&self.v4), self.v6.as_ref()].into_iter().flatten().try_for_each(|side| side.outbound.0.set_mark(mark))
    }

    /// The socket for IPv4.
    pub fn v4(&self) -> BorrowedFd<'_> {
        self.v4.inbound.as_fd()
    }

    /// The socket for IPv6, if the host has IPv6.
    pub fn v6(&self) -> Option<BorrowedFd<'_>> {
        self.v6.as_ref().map(|side| side.inbound.as_fd())
    }

    /// Answers queries for as long as it is polled.
    pub async fn serve(self, host: Arc<impl Host>, forwarder: Forwarder) {
        let v4 = Arc::new(self.v4).serve(Arc::clone(&host), forwarder.clone());
        match self.v6 {
            Some(v6) => {
                tokio::join!(v4, Arc::new(v6).serve(host, forwarder));
            }
            None => v4.await,
        }
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

impl Side {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if address.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
        } else {
            socket.set_only_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?;
        }
        // Without the right to exceed the host's bound it is that.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        socket.bind(&address.into())?;
        let outbound = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(RAW)))?;
        Ok(Self { inbound: UdpSocket::from_std(socket.into())?, outbound: Outbound(outbound) })
    }

    async fn serve(self: Arc<Self>, host: Arc<impl Host>, forwarder: Forwarder) {
        let mut buffer = vec![0; MAX_QUERY];
        loop {
            let received =
                self.inbound.async_io(Interest::READABLE, || receive(&self.inbound, &mut buffer)).await;
            match received {
                Ok(Some(datagram)) => self.take(datagram, &host, &forwarder),
                Ok(None) => {}
                Err(error) => {
                    warn!(%error, "cannot read queries");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Starts to answer a datagram. One that the kernel did not punt is nobody's.
    fn take(
        self: &Arc<Self>,
        Datagram { query, flow }: Datagram,
        host: &Arc<impl Host>,
        forwarder: &Forwarder,
    ) {
        let Some(tenant) = host.tenant(&flow) else { return };
        let Some(place) = forwarder.admit(tenant) else {
            return self.outbound.send(forwarder.busy(&query, Transport::Udp), &flow);
        };
        let (side, host, forwarder) = (Arc::clone(self), Arc::clone(host), forwarder.clone());
        tokio::spawn(async move {
            let reply = forwarder.serve(&place, &query, &flow, tenant, host.as_ref()).await;
            side.outbound.send(reply, &flow);
        });
    }
}

/// `None`: a datagram that is too long to be a query, or does not say where it went.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    let mut control = cmsg_space!(libc::sockaddr_in6);
    let mut slices = [IoSliceMut::new(buffer)];
    let received =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let (count, source) = (received.bytes, received.address.as_ref().and_then(address));
    let destination = received.cmsgs()?.find_map(|message| destination(&message));
    let cut = received.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    Ok(source.zip(destination).filter(|_| !cut).map(|(source, destination)| Datagram {
        query: buffer.get(..count).unwrap_or_default().to_vec(),
        flow: Flow { transport: Transport::Udp, source, destination },
    }))
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

fn destination(message: &ControlMessageOwned) -> Option<SocketAddr> {
    if let ControlMessageOwned::Ipv4OrigDstAddr(v4) = message {
        return Some(SocketAddrV4::from(SockaddrIn::from(*v4)).into());
    }
    if let ControlMessageOwned::Ipv6OrigDstAddr(v6) = message {
        return Some(SocketAddrV6::from(SockaddrIn6::from(*v6)).into());
    }
    None
}

impl Outbound {
    /// Sends the answer from where the query went. If the link is full it is lost like any datagram.
    fn send(&self, reply: Option<Reply>, flow: &Flow) {
        let Some((packet, to)) = reply.and_then(|reply| packet(flow, &reply.bytes)) else { return };
        if let Err(error) = self.0.send_to(&packet, &SockAddr::from(to)) {
            debug!(%error, "an answer was lost");
        }
    }
}

/// The answer as a packet, and the address to send it to: without a port, of which a raw socket knows none.
fn packet(flow: &Flow, payload: &[u8]) -> Option<(Vec<u8>, SocketAddr)> {
    let builder = match (flow.destination, flow.source) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), HOPS)
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), HOPS)
        }
        (SocketAddr::V4(_), SocketAddr::V6(_)) | (SocketAddr::V6(_), SocketAddr::V4(_)) => return None,
    };
    let builder = builder.udp(flow.destination.port(), flow.source.port());
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).ok()?;
    let mut to = flow.source;
    to.set_port(0);
    Some((packet, to))
}

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
