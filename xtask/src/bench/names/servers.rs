//! The servers of the internet: one thread, which ends with its owner.

use std::io;
use std::net::{Ipv6Addr, TcpListener as StdListener};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use filter_tests::Netns;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::hello;

/// The port of TLS servers.
pub const TLS: u16 = 443;
/// The port of HTTP servers.
pub const HTTP: u16 = 80;

const BACKLOG: i32 = 4096;
const BODY: usize = 128;

/// What a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers a hello and closes.
    Brief,
    /// Answers a hello and waits until the client closes.
    Patient,
    /// Answers request after request.
    Http,
}

/// A running server, at all addresses of its namespace.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Starts a server in `netns`, at the port of its protocol.
    pub fn start(netns: &Netns, manner: Manner) -> Result<Self> {
        let port = match manner {
            Manner::Brief | Manner::Patient => TLS,
            Manner::Http => HTTP,
        };
        let listener = listen(netns, port)?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let thread = netns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                tokio::select! {
                    result = serve(manner, listener) => result,
                    // The owner going away is a stop as well.
                    _ = stopped => Ok(()),
                }
            })
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("warning: a server had failed: {error:#}");
        }
    }
}

/// Listens for both families at all addresses of `netns`.
pub fn listen(netns: &Netns, port: u16) -> Result<StdListener> {
    netns
        .run(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.set_tcp_nodelay(true)?;
            socket.bind(&SockAddr::from(std::net::SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))))?;
            socket.listen(BACKLOG)?;
            Ok(StdListener::from(socket))
        })
        .with_context(|| format!("cannot listen at port {port} of {}", netns.name()))
}

async fn serve(manner: Manner, listener: StdListener) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(async move {
            // How a client ends is its own affair, and is seen there.
            let _ = match manner {
                Manner::Brief => greet(stream).await.map(drop),
                Manner::Patient => wait(stream).await,
                Manner::Http => answer(stream).await,
            };
        });
    }
}

async fn greet(mut stream: TcpStream) -> io::Result<TcpStream> {
    let mut hello = [0; hello::LENGTH];
    stream.read_exact(&mut hello).await?;
    stream.write_all(&hello::ANSWER).await?;
    Ok(stream)
}

async fn wait(stream: TcpStream) -> io::Result<()> {
    let stream = greet(stream).await?;
    loop {
        stream.readable().await?;
        match stream.try_read(&mut [0; 64]) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    const END: &[u8] = b"\r\n\r\n";
    let page = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    let mut input = Vec::with_capacity(4096);
    loop {
        match input.windows(END.len()).position(|window| window == END) {
            Some(end) => {
                input.drain(..end + END.len());
                stream.write_all(page.as_bytes()).await?;
            }
            None if stream.read_buf(&mut input).await? == 0 => return Ok(()),
            None => {}
        }
    }
}
