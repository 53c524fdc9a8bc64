//! Servers that answer and count what reached them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::oneshot;

use crate::netns::Netns;

mod tcp;
mod udp;

/// What a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Sends back what it gets.
    TcpEcho,
    /// Swallows what it gets.
    TcpSink,
    /// Sends without end, at most so many bytes a second to each client.
    TcpStream {
        /// None: as fast as it goes.
        bytes_per_second: Option<u64>,
    },
    /// Answers every HTTP/1.1 request with 200 and a greeting.
    Http,
    /// Sends back every datagram, from the address that it came to.
    UdpEcho,
}

/// A running server, on every address of its namespace and both families. Dropping it closes it and all of its
/// connections.
#[derive(Debug)]
pub struct Server {
    port: u16,
    tally: Arc<Tally>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// The two ends of a connection as the server saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The client.
    pub peer: SocketAddr,
    /// What the client connected to.
    pub local: SocketAddr,
}

/// What reached a server.
#[derive(Debug, Default)]
struct Tally {
    connections: AtomicU64,
    open: AtomicU64,
    datagrams: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    accepted: Mutex<Vec<Accepted>>,
    requests: Mutex<Vec<String>>,
}

/// The lists above hold the first so many; the numbers go on.
const REMEMBERED: usize = 10_000;

impl Server {
    /// Starts a server in `netns`; port 0 takes a free one.
    pub fn start(netns: &Netns, service: Service, port: u16) -> Result<Self> {
        let kind = if service == Service::UdpEcho { Type::DGRAM } else { Type::STREAM };
        let socket = netns
            .run(|| Ok(bind(kind, port)?))
            .with_context(|| format!("cannot serve {service:?} on port {port} of {}", netns.name()))?;
        let port = socket.local_addr()?.as_socket().map_or(port, |address| address.port());
        let tally = Arc::new(Tally::default());
        let (stop, stopped) = oneshot::channel();
        let counts = Arc::clone(&tally);
        let thread = netns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let serve = async {
                    if service == Service::UdpEcho {
                        udp::echo(socket.into(), &counts).await
                    } else {
                        tcp::serve(service, socket.into(), &counts).await
                    }
                };
                tokio::select! {
                    result = serve => result,
                    // The other end going away is a stop as well.
                    _ = stopped => Ok(()),
                }
            })
        })?;
        Ok(Self { port, tally, stop: Some(stop), thread: Some(thread) })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// TCP connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.tally.connections.load(Ordering::Relaxed)
    }

    /// TCP connections that are open now.
    pub fn open(&self) -> u64 {
        self.tally.open.load(Ordering::Relaxed)
    }

    /// UDP datagrams that were received.
    pub fn datagrams(&self) -> u64 {
        self.tally.datagrams.load(Ordering::Relaxed)
    }

    /// Bytes received.
    pub fn bytes_in(&self) -> u64 {
        self.tally.bytes_in.load(Ordering::Relaxed)
    }

    /// Bytes sent.
    pub fn bytes_out(&self) -> u64 {
        self.tally.bytes_out.load(Ordering::Relaxed)
    }

    /// The first 10,000 connections.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.tally.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The heads of the first 10,000 HTTP requests.
    pub fn requests(&self) -> Vec<String> {
        self.tally.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("warning: the server on port {} had failed: {error:#}", self.port);
        }
    }
}

impl Tally {
    fn remember<T>(list: &Mutex<Vec<T>>, item: T) {
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() < REMEMBERED {
            list.push(item);
        }
    }
}

/// One socket for both families: IPv4 clients show up as mapped addresses.
pub fn bind(kind: Type, port: u16) -> std::io::Result<Socket> {
    let protocol = if kind == Type::DGRAM { Protocol::UDP } else { Protocol::TCP };
    let socket = Socket::new(Domain::IPV6, kind.nonblocking(), Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(SocketAddr::from(([0_u16; 8], port))))?;
    if kind == Type::STREAM {
        socket.listen(4096)?;
    }
    Ok(socket)
}

/// The address as it was on the wire.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
