//! The service in the sandbox: one thread, which ends with its owner.

use std::io;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use filter_tests::Netns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Where it listens.
pub const PORT: u16 = 3000;

const BODY: usize = 128;
const BULK: usize = 256 << 10;

/// Answers `/` with a page, `/ws` with an echo, and `/<number>` with so many bytes.
#[derive(Debug)]
pub struct Service {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Service {
    /// Starts it in `netns`.
    pub fn start(netns: &Netns) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = netns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let socket = tokio::net::TcpSocket::new_v4()?;
                socket.set_reuseaddr(true)?;
                socket.bind(([0, 0, 0, 0], PORT).into())?;
                let listener = socket.listen(4096)?;
                ready.send(())?;
                tokio::select! {
                    result = serve(listener) => result,
                    // The owner going away is a stop as well.
                    _ = stopped => Ok(()),
                }
            })
        })?;
        listening.recv().context("the service does not listen")?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("warning: a service had failed: {error:#}");
        }
    }
}

async fn serve(listener: TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(async move {
            // How a client ends is its own affair, and is seen there.
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    const END: &[u8] = b"\r\n\r\n";
    stream.set_nodelay(true)?;
    let page = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    let mut input = Vec::with_capacity(4096);
    loop {
        let Some(end) = input.windows(END.len()).position(|window| window == END) else {
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head: Vec<u8> = input.drain(..end + END.len()).collect();
        let line = String::from_utf8_lossy(&head);
        match line.split(' ').nth(1).unwrap_or_default() {
            "/" => stream.write_all(page.as_bytes()).await?,
            "/ws" => return echo(stream).await,
            other => bulk(&mut stream, other.trim_start_matches('/').parse().unwrap_or(0)).await?,
        }
    }
}

async fn bulk(stream: &mut TcpStream, length: u64) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let piece = vec![b'x'; BULK];
    let mut left = length;
    while left > 0 {
        let count = usize::try_from(left).map_or(BULK, |left| left.min(BULK));
        stream.write_all(piece.get(..count).unwrap_or_default()).await?;
        left -= count as u64;
    }
    Ok(())
}

/// The bytes of frames, whatever they say.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    // What the key of every client here is answered with (RFC 6455 section 1.3).
    let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..count).unwrap_or_default()).await?;
    }
}
