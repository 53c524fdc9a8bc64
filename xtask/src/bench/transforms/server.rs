//! The HTTPS server: one thread, which ends with its owner, and makes sure that the header is there.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Result;
use filter_tests::{Ca, Netns};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::lane::HEADER;
use crate::bench::names::servers::{TLS, listen};

const BODY: usize = 128;
/// Of a large answer: more than a run takes.
pub const BULK: u64 = 1 << 40;
/// What is written at once.
const PIECE: usize = 64 << 10;

/// A running server, at all addresses of its namespace.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Starts a server with certificates of `ca`. Where it is `strict`, requests without the header are refused.
    pub fn start(netns: &Netns, ca: &Ca, strict: bool) -> Result<Self> {
        let listener = listen(netns, TLS)?;
        listener.set_nonblocking(true)?;
        let acceptor = TlsAcceptor::from(Arc::new(ca.server_config()?));
        let (stop, stopped) = oneshot::channel();
        let thread = netns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                tokio::select! {
                    result = accept(listener, acceptor, strict) => result,
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

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, strict: bool) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        // How a client ends is its own affair, and is seen there.
        tokio::spawn(async move {
            let _ = answer(stream, acceptor, strict).await;
        });
    }
}

async fn answer(stream: TcpStream, acceptor: TlsAcceptor, strict: bool) -> io::Result<()> {
    const END: &[u8] = b"\r\n\r\n";
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    let page = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    let mut input = Vec::with_capacity(4096);
    loop {
        match input.windows(END.len()).position(|window| window == END) {
            Some(end) => {
                let head = String::from_utf8_lossy(input.get(..end).unwrap_or_default()).into_owned();
                input.drain(..end + END.len());
                if strict && !has_header(&head) {
                    stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await?;
                } else if head.starts_with("GET /bulk ") {
                    return pour(stream).await;
                } else {
                    stream.write_all(page.as_bytes()).await?;
                }
                stream.flush().await?;
            }
            None if stream.read_buf(&mut input).await? == 0 => return Ok(()),
            None => {}
        }
    }
}

fn has_header(head: &str) -> bool {
    head.lines().any(|line| {
        line.split_once(": ")
            .is_some_and(|(name, value)| name.eq_ignore_ascii_case(HEADER.0) && value == HEADER.1)
    })
}

async fn pour(mut stream: impl tokio::io::AsyncWrite + Unpin) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BULK}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let piece = vec![b'x'; PIECE];
    loop {
        stream.write_all(&piece).await?;
    }
}
