//! What a sandbox does: short connections, several at a time, and requests over connections that stay.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use filter_tests::Netns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::book::{self, Book};
use super::hello::{self, hello};
use super::servers::{HTTP, TLS};

/// No connection or request takes longer, and no run as a whole.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of a load.
#[derive(Debug)]
pub struct Outcome {
    /// How long each connection or request took, sorted.
    times: Vec<Duration>,
    took: Duration,
}

impl Outcome {
    /// Of times in any order.
    pub fn new(mut times: Vec<Duration>, took: Duration) -> Self {
        times.sort_unstable();
        Self { times, took }
    }

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

/// `count` connections, `at_once` of them at a time: each says hello, has its answer and the end.
pub fn connections(sandbox: &Netns, at_once: usize, count: usize) -> Result<Outcome> {
    let each = count / at_once;
    run(sandbox, at_once, move |number, name| async move {
        let (to, hello) = (book::at(number, TLS), hello(&name));
        let mut times = Vec::with_capacity(each);
        for _ in 0..each {
            let begun = Instant::now();
            connection(to, &hello).await.with_context(|| format!("a connection to {name}"))?;
            times.push(begun.elapsed());
        }
        Ok(times)
    })
}

async fn connection(to: SocketAddr, hello: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(hello).await?;
    let mut answer = [0; 256];
    let mut length = 0;
    loop {
        match stream.read(answer.get_mut(length..).unwrap_or_default()).await? {
            0 => break,
            more => length += more,
        }
    }
    ensure!(answer.get(..length) == Some(&hello::ANSWER), "that is not what the server answers");
    Ok(())
}

/// Requests for `time` over `at_once` connections that stay, one after the other on each.
pub fn requests(sandbox: &Netns, at_once: usize, time: Duration) -> Result<Outcome> {
    run(sandbox, at_once, move |number, name| async move {
        let request = format!(
            "GET /item/{number} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
        );
        let mut stream = TcpStream::connect(book::at(number, HTTP)).await?;
        stream.set_nodelay(true)?;
        let mut times = Vec::new();
        let mut input = Vec::with_capacity(4096);
        let end = Instant::now() + time;
        while Instant::now() < end {
            let begun = Instant::now();
            exchange(&mut stream, request.as_bytes(), &mut input)
                .await
                .with_context(|| format!("a request to {name}"))?;
            times.push(begun.elapsed());
        }
        Ok(times)
    })
}

async fn exchange(stream: &mut TcpStream, request: &[u8], input: &mut Vec<u8>) -> Result<()> {
    stream.write_all(request).await?;
    loop {
        if let Some(length) = answer_length(input)?
            && input.len() >= length
        {
            input.drain(..length);
            return Ok(());
        }
        if stream.read_buf(input).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// How long the answer that `input` begins with is, once its head is whole.
pub fn answer_length(input: &[u8]) -> Result<Option<usize>> {
    const END: &[u8] = b"\r\n\r\n";
    const LENGTH: &str = "content-length:";
    let Some(end) = input.windows(END.len()).position(|window| window == END) else { return Ok(None) };
    let head = std::str::from_utf8(input.get(..end).unwrap_or_default())?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("the answer is {}", head.lines().next().unwrap_or_default());
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_at_checked(LENGTH.len())?;
        name.eq_ignore_ascii_case(LENGTH).then(|| value.trim().parse::<usize>().ok())?
    });
    Ok(Some(end + END.len() + length.context("the answer has no length")?))
}

/// Has `at_once` clients work in the sandbox, each with a name of its own, as far as there are so many.
fn run<F>(
    sandbox: &Netns,
    at_once: usize,
    client: impl Fn(usize, String) -> F + Send + Sync,
) -> Result<Outcome>
where
    F: Future<Output = Result<Vec<Duration>>> + Send + 'static,
{
    let book = Book::new(book::USUAL, 0);
    sandbox.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let begun = Instant::now();
            let clients: Vec<_> = (0..at_once)
                .map(|number| {
                    let number = number % book::ASKED;
                    tokio::spawn(client(number, book.name(number).to_owned()))
                })
                .collect();
            let mut times = Vec::new();
            for client in clients {
                let rest = PATIENCE.saturating_sub(begun.elapsed());
                let done = tokio::time::timeout(rest, client).await;
                times.extend(done.with_context(|| format!("not done within {PATIENCE:?}"))???);
            }
            Ok(Outcome::new(times, begun.elapsed()))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_an_answer_is_head_and_body() {
        let answer = b"HTTP/1.1 200 OK\r\nvia: x\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(answer_length(answer).ok(), Some(Some(answer.len())));
        assert_eq!(answer_length(answer.get(..20).unwrap_or_default()).ok(), Some(None));
        assert!(answer_length(b"HTTP/1.1 403 Forbidden\r\n\r\n").is_err());
    }

    #[test]
    fn quantiles_are_of_sorted_times() {
        let outcome = Outcome::new([3, 1, 2].map(Duration::from_micros).to_vec(), Duration::from_secs(1));
        assert_eq!((outcome.microseconds(0.5), outcome.microseconds(1.0)), (2.0, 3.0));
        assert_eq!(outcome.per_second(), 3.0);
    }
}
