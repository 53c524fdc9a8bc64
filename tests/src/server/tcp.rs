//! The TCP services.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

use super::{Accepted, Service, Tally, unmapped};

const BUFFER: usize = 64 * 1024;
/// Pace is kept in steps of this.
const TICK: Duration = Duration::from_millis(20);

pub async fn serve(service: Service, listener: StdListener, tally: &Arc<Tally>) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            // One client that is gone again, or too many of them, is no reason to stop.
            Err(_) => {
                tokio::time::sleep(TICK).await;
                continue;
            }
        };
        tally.connections.fetch_add(1, Ordering::Relaxed);
        tally.open.fetch_add(1, Ordering::Relaxed);
        let local = unmapped(stream.local_addr()?);
        Tally::remember(&tally.accepted, Accepted { peer: unmapped(peer), local });
        let tally = Arc::clone(tally);
        tokio::spawn(async move {
            // How a client ends is its own affair.
            let _ = answer(service, stream, &tally).await;
            tally.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn answer(service: Service, mut stream: TcpStream, tally: &Tally) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match service {
        Service::TcpEcho => echo(&mut stream, tally).await,
        Service::TcpSink => sink(&mut stream, tally).await,
        Service::TcpStream { bytes_per_second } => send(&mut stream, bytes_per_second, tally).await,
        Service::Http => http(&mut stream, tally).await,
        Service::UdpEcho => Err(io::Error::other("that is no TCP service")),
    }
}

async fn echo(stream: &mut TcpStream, tally: &Tally) -> io::Result<()> {
    // Grows with what comes: thousands of idle connections cost nothing.
    let mut buffer = Vec::new();
    loop {
        stream.readable().await?;
        buffer.reserve(4096);
        match stream.try_read_buf(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                tally.bytes_in.fetch_add(length as u64, Ordering::Relaxed);
                stream.write_all(&buffer).await?;
                tally.bytes_out.fetch_add(length as u64, Ordering::Relaxed);
                buffer.clear();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn sink(stream: &mut TcpStream, tally: &Tally) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER * 4];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => tally.bytes_in.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}

async fn send(stream: &mut TcpStream, bytes_per_second: Option<u64>, tally: &Tally) -> io::Result<()> {
    let data = vec![b'.'; BUFFER];
    let allowance = |budget: Option<u64>| budget.map(|rate| rate * TICK.as_millis() as u64 / 1000);
    loop {
        let next = Instant::now() + TICK;
        let mut left = allowance(bytes_per_second).unwrap_or(u64::MAX);
        while left > 0 {
            let piece = data.get(..BUFFER.min(usize::try_from(left).unwrap_or(BUFFER))).unwrap_or(&data);
            let length = stream.write(piece).await? as u64;
            tally.bytes_out.fetch_add(length, Ordering::Relaxed);
            left = left.saturating_sub(length);
        }
        sleep_until(next).await;
    }
}

async fn http(stream: &mut TcpStream, tally: &Tally) -> io::Result<()> {
    let mut input = Vec::new();
    loop {
        let Some(end) = find(&input, b"\r\n\r\n") else {
            if input.len() > BUFFER || stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head = String::from_utf8_lossy(input.get(..end).unwrap_or_default()).into_owned();
        let body: usize = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let request = end + 4 + body;
        while input.len() < request {
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
        }
        input.drain(..request);
        tally.bytes_in.fetch_add(request as u64, Ordering::Relaxed);
        let close = header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let greeting = format!("hello from {}\n", unmapped(stream.local_addr()?));
        Tally::remember(&tally.requests, head);

        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{}\r\n{greeting}",
            greeting.len(),
            if close { "Connection: close\r\n" } else { "" },
        );
        stream.write_all(answer.as_bytes()).await?;
        tally.bytes_out.fetch_add(answer.len() as u64, Ordering::Relaxed);
        if close {
            return stream.shutdown().await;
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}
