//! What clients do: requests one after the other over connections that stay, messages of WebSockets, a download.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::lane::Lane;

/// No run takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A message of a WebSocket with its frame.
const MESSAGE: usize = 70;

/// What came of a load.
#[derive(Debug)]
pub struct Outcome {
    /// How long each took, sorted.
    times: Vec<Duration>,
    took: Duration,
}

impl Outcome {
    /// How many there were.
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// So many a second.
    pub fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }

    /// The microseconds that `share` of them do not exceed.
    pub fn microseconds(&self, share: f64) -> f64 {
        let last = self.times.len().saturating_sub(1);
        let time = self.times.get((last as f64 * share).round() as usize);
        time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }
}

/// Requests for `time` over `count` connections.
pub fn requests(lane: &Lane, count: usize, time: Duration) -> Result<Outcome> {
    let request = head(lane, "/", "");
    run(lane, count, time, request, 0, answer_length)
}

/// Messages for `time` over `count` WebSockets.
pub fn echoes(lane: &Lane, count: usize, time: Duration) -> Result<Outcome> {
    let upgrade = head(
        lane,
        "/ws",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    );
    run(lane, count, time, upgrade, MESSAGE, |input| {
        let end = input.windows(4).position(|window| window == b"\r\n\r\n");
        ensure!(end.is_none() || input.starts_with(b"HTTP/1.1 101 "), "no WebSocket");
        Ok(end.map(|end| end + 4))
    })
}

/// Fetches so many bytes; how long it takes.
pub fn download(lane: &Lane, size: u64) -> Result<Duration> {
    let request = head(lane, &format!("/{size}"), "");
    lane.host().run(|| {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(lane.at())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let begun = Instant::now();
        stream.write_all(request.as_bytes())?;
        let mut buffer = vec![0; 256 << 10];
        let (mut input, mut got) = (Vec::new(), 0);
        while got < size {
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "the download ends after {got} bytes");
            let piece = buffer.get(..count).unwrap_or_default();
            if got > 0 || input.len() > 4096 {
                got += count as u64;
                continue;
            }
            input.extend_from_slice(piece);
            if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                ensure!(input.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&input));
                got = (input.len() - end - 4) as u64;
            }
        }
        Ok(begun.elapsed())
    })
}

fn head(lane: &Lane, path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench\r\nAccept: */*\r\n{more}\r\n", lane.name())
}

/// Has `count` clients say `first`, and then, where there are such, messages of that length; each answer is waited for.
fn run(
    lane: &Lane,
    count: usize,
    time: Duration,
    first: String,
    message: usize,
    complete: impl Fn(&[u8]) -> Result<Option<usize>> + Copy + Send + Sync + 'static,
) -> Result<Outcome> {
    let at = lane.at();
    lane.host().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..count {
                let mut stream = TcpStream::connect(at).await?;
                stream.set_nodelay(true)?;
                // A first one, so that every connection behind is there.
                exchange(&mut stream, first.as_bytes(), complete).await?;
                streams.push(stream);
            }
            let begun = Instant::now();
            let end = begun + time;
            let clients: Vec<_> = streams
                .into_iter()
                .map(|mut stream| {
                    let first = first.clone();
                    tokio::spawn(async move {
                        let text = vec![b'm'; message];
                        let mut times = Vec::new();
                        while Instant::now() < end {
                            let begun = Instant::now();
                            if message == 0 {
                                exchange(&mut stream, first.as_bytes(), complete).await?;
                            } else {
                                let whole = |input: &[u8]| Ok((input.len() >= message).then_some(message));
                                exchange(&mut stream, &text, whole).await?;
                            }
                            times.push(begun.elapsed());
                        }
                        anyhow::Ok(times)
                    })
                })
                .collect();
            let mut times = Vec::new();
            for client in clients {
                let done = tokio::time::timeout(PATIENCE, client).await;
                times.extend(done.with_context(|| format!("not done within {PATIENCE:?}"))???);
            }
            let took = begun.elapsed();
            times.sort_unstable();
            Ok(Outcome { times, took })
        })
    })
}

async fn exchange(
    stream: &mut TcpStream,
    bytes: &[u8],
    complete: impl Fn(&[u8]) -> Result<Option<usize>>,
) -> Result<()> {
    stream.write_all(bytes).await?;
    let mut input = Vec::with_capacity(1024);
    loop {
        ensure!(stream.read_buf(&mut input).await? > 0, "the connection ends");
        if let Some(length) = complete(&input)?
            && input.len() >= length
        {
            return Ok(());
        }
    }
}

/// How long an answer is, once its head is whole.
fn answer_length(input: &[u8]) -> Result<Option<usize>> {
    const LENGTH: &str = "content-length:";
    let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(input.get(..end).unwrap_or_default())?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("the answer is {}", head.lines().next().unwrap_or_default());
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_at_checked(LENGTH.len())?;
        name.eq_ignore_ascii_case(LENGTH).then(|| value.trim().parse::<usize>().ok())?
    });
    Ok(Some(end + 4 + length.context("the answer has no length")?))
}
