//! What the sandbox does: requests over connections that stay, connections with one request each, large answers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filter_tests::client_config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::lane::{ADDRESS, HOST, Lane};
use crate::bench::names::load::{Outcome, answer_length};
use crate::bench::names::servers::TLS;

/// No run takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests for `time` over `at_once` connections that stay, one after the other on each.
pub fn requests(lane: &Lane, at_once: usize, time: Duration) -> Result<Outcome> {
    run(lane, at_once, |client| async move {
        let mut stream = client.connect().await?;
        let (mut times, mut input) = (Vec::new(), Vec::with_capacity(4096));
        // What happens once a connection is not a request's to wait for.
        exchange(&mut stream, &mut input).await?;
        let end = Instant::now() + time;
        while Instant::now() < end {
            let begun = Instant::now();
            exchange(&mut stream, &mut input).await?;
            times.push(begun.elapsed());
        }
        Ok(times)
    })
}

/// Connections for `time`, `at_once` of them: each with a full handshake and one request.
pub fn connections(lane: &Lane, at_once: usize, time: Duration) -> Result<Outcome> {
    run(lane, at_once, |client| async move {
        let (mut times, mut input) = (Vec::new(), Vec::with_capacity(4096));
        let end = Instant::now() + time;
        while Instant::now() < end {
            let begun = Instant::now();
            let mut stream = client.connect().await?;
            exchange(&mut stream, &mut input).await?;
            times.push(begun.elapsed());
        }
        Ok(times)
    })
}

/// `streams` large answers at the same time: the bytes that arrived within `time`.
pub fn bulk(lane: &Lane, streams: usize, time: Duration) -> Result<(u64, Duration)> {
    let client = Client::new(lane)?;
    lane.sandbox().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut ready = Vec::new();
            for _ in 0..streams {
                let mut stream = client.connect().await?;
                stream.write_all(request("/bulk").as_bytes()).await?;
                let mut first = [0; 15];
                stream.read_exact(&mut first).await?;
                ensure!(&first == b"HTTP/1.1 200 OK", "the server does not answer as it should");
                ready.push(stream);
            }
            let begun = Instant::now();
            let reading: Vec<_> = ready
                .into_iter()
                .map(|mut stream| {
                    tokio::spawn(async move {
                        let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0_u64);
                        while let Some(left) = time.checked_sub(begun.elapsed()) {
                            match timeout(left, stream.read(&mut buffer)).await {
                                Ok(read) => bytes += read? as u64,
                                Err(_) => break,
                            }
                        }
                        anyhow::Ok(bytes)
                    })
                })
                .collect();
            let mut bytes = 0;
            for stream in reading {
                bytes += stream.await??;
            }
            ensure!(bytes > 0, "nothing arrived");
            Ok((bytes, begun.elapsed()))
        })
    })
}

/// A client of the lane's sandbox.
#[derive(Clone)]
struct Client {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Client {
    fn new(lane: &Lane) -> Result<Self> {
        let mut config = (*client_config(lane.trusted())?).clone();
        // Every handshake is a full one, as those of different programs are.
        config.resumption = tokio_rustls::rustls::client::Resumption::disabled();
        let name = ServerName::try_from(HOST).context("that is no name")?;
        Ok(Self { connector: TlsConnector::from(std::sync::Arc::new(config)), name })
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(SocketAddr::from((ADDRESS, TLS))).await?;
        stream.set_nodelay(true)?;
        self.connector.connect(self.name.clone(), stream).await.context("no handshake")
    }
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
}

async fn exchange(stream: &mut TlsStream<TcpStream>, input: &mut Vec<u8>) -> Result<()> {
    stream.write_all(request("/item").as_bytes()).await?;
    loop {
        if let Some(length) = answer_length(input)?
            && input.len() >= length
        {
            input.drain(..length);
            return Ok(());
        }
        ensure!(stream.read_buf(input).await? > 0, "the connection ends in the middle");
    }
}

/// Has `at_once` clients work in the sandbox.
fn run<F>(lane: &Lane, at_once: usize, work: impl Fn(Client) -> F + Send + Sync) -> Result<Outcome>
where
    F: Future<Output = Result<Vec<Duration>>> + Send + 'static,
{
    let client = Client::new(lane)?;
    lane.sandbox().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let begun = Instant::now();
            let clients: Vec<_> = (0..at_once).map(|_| tokio::spawn(work(client.clone()))).collect();
            let mut times = Vec::new();
            for client in clients {
                let rest = PATIENCE.saturating_sub(begun.elapsed());
                let done = timeout(rest, client).await;
                times.extend(done.with_context(|| format!("not done within {PATIENCE:?}"))???);
            }
            Ok(Outcome::new(times, begun.elapsed()))
        })
    })
}
