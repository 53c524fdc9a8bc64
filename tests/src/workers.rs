//! What servers with a thread for each connection share.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{SockAddr, Socket, Type};

use crate::netns::Netns;
use crate::server::{bind, unmapped};

/// A connection, as it is served.
#[derive(Debug)]
pub struct Client {
    pub stream: TcpStream,
    /// Which one it is, counted from 0.
    pub number: usize,
    pub peer: SocketAddr,
    /// What the client connected to.
    pub local: SocketAddr,
}

/// Threads that serve connections, until it is dropped.
#[derive(Debug)]
pub struct Workers {
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<JoinHandle<Result<()>>>,
}

impl Workers {
    /// Serves every connection to `port`, at any address of the namespace.
    pub fn everywhere(netns: &Netns, port: u16, serve: impl Fn(Client) + Send + Sync + 'static) -> Result<Self> {
        let socket = netns.run(|| Ok(bind(Type::STREAM, port)?))?;
        Self::on(netns, socket.into(), serve)
    }

    /// Serves every connection to an address.
    pub fn at(netns: &Netns, at: SocketAddr, serve: impl Fn(Client) + Send + Sync + 'static) -> Result<Self> {
        let socket = netns
            .run(|| {
                let socket = Socket::new(socket2::Domain::for_address(at), Type::STREAM.nonblocking(), None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&SockAddr::from(at))?;
                socket.listen(4096)?;
                Ok(socket)
            })
            .with_context(|| format!("cannot serve {at}"))?;
        Self::on(netns, socket.into(), serve)
    }

    fn on(
        netns: &Netns,
        listener: TcpListener,
        serve: impl Fn(Client) + Send + Sync + 'static,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (told, kept, serve) = (Arc::clone(&stop), Arc::clone(&streams), Arc::new(serve));
        let accepting = netns.spawn(move || {
            let mut number = 0;
            while !told.load(Ordering::Relaxed) {
                let wait = PollTimeout::from(50_u8);
                poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], wait)?;
                let Ok((stream, peer)) = listener.accept() else { continue };
                // One client that is gone again is no reason to stop.
                let Ok(local) = stream.local_addr() else { continue };
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                lock(&kept).push(stream.try_clone()?);
                let client = Client { stream, number, peer: unmapped(peer), local: unmapped(local) };
                number += 1;
                let serve = Arc::clone(&serve);
                std::thread::Builder::new().name("server".into()).spawn(move || serve(client))?;
            }
            Ok(())
        })?;
        Ok(Self { stop, streams, accepting: Some(accepting) })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.accepting.take().map(JoinHandle::join) {
            eprintln!("warning: a server had failed: {error:#}");
        }
        // Their threads find an end, and end. Those that are closed already mind nothing.
        for stream in lock(&self.streams).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Lists and maps of servers are whole whatever thread panicked while it held the lock.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many bytes from a place of an endless text that does not repeat for long: a byte that is lost, doubled or
/// in the wrong place makes another one of it.
pub fn pattern(from: u64, length: usize) -> Vec<u8> {
    (from..).take(length).map(|at| (at ^ (at >> 8).wrapping_mul(7) ^ (at >> 16).wrapping_mul(13)) as u8).collect()
}
