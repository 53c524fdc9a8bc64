//! The daemon's API, spoken to directly: a command is a process, and some tests ask a thousand times.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Putting a million prefixes in force takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the API is.
#[derive(Clone, Debug)]
pub enum Api {
    /// On the control socket.
    Socket(PathBuf),
    /// On TCP, as the holder of a key. The caller is in a namespace from where it is reachable.
    Tcp(SocketAddr, String),
}

/// A request that is ready to be sent, so that writing it is not measured.
#[derive(Clone, Debug)]
pub struct ApiRequest(Vec<u8>);

impl ApiRequest {
    /// With one header more.
    pub fn with_header(self, name: &str, value: &str) -> Self {
        let mut text = self.0;
        let line = text.windows(2).position(|pair| pair == b"\r\n").map_or(0, |at| at + 2);
        text.splice(line..line, format!("{name}: {value}\r\n").into_bytes());
        Self(text)
    }
}

/// What the API answers.
#[derive(Clone, Debug)]
pub struct ApiAnswer {
    /// The status.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body, `null` where there is none.
    pub body: Value,
    /// From connecting to the last byte.
    pub took: Duration,
}

impl ApiAnswer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The body, if the request was done.
    pub fn success(self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            bail!("refused with {}: {}", self.status, self.body);
        }
        Ok(self.body)
    }
}

impl Api {
    /// The API on this control socket.
    pub fn on(socket: impl AsRef<Path>) -> Self {
        Self::Socket(socket.as_ref().to_owned())
    }

    /// A request of this API.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> ApiRequest {
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        let key = match self {
            Self::Socket(_) => String::new(),
            Self::Tcp(_, key) => format!("X-API-Key: {key}\r\n"),
        };
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{key}\r\n{body}"
        );
        ApiRequest(text.into_bytes())
    }

    /// Asks.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<ApiAnswer> {
        self.send(&self.request(method, path, body))
    }

    /// Sends a request, on a connection of its own.
    pub fn send(&self, request: &ApiRequest) -> Result<ApiAnswer> {
        let begun = Instant::now();
        let answer = match self {
            Self::Socket(path) => {
                let stream = UnixStream::connect(path).context("the daemon does not answer")?;
                stream.set_read_timeout(Some(PATIENCE))?;
                exchange(stream, request)
            }
            Self::Tcp(address, _) => {
                let stream = TcpStream::connect(address).context("the daemon does not answer")?;
                stream.set_read_timeout(Some(PATIENCE))?;
                exchange(stream, request)
            }
        };
        let (took, text) = (begun.elapsed(), answer?);
        let (head, body) = text.split_once("\r\n\r\n").context("that is no HTTP answer")?;
        let status = head.get(9..12).and_then(|status| status.parse().ok()).context("no status")?;
        let body = match body {
            "" => Value::Null,
            body => serde_json::from_str(body).with_context(|| format!("that is no JSON: {body}"))?,
        };
        Ok(ApiAnswer { status, head: head.to_owned(), body, took })
    }
}

fn exchange(mut stream: impl Read + Write, request: &ApiRequest) -> Result<String> {
    stream.write_all(&request.0).context("the daemon does not take the request")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the daemon does not answer")?;
    Ok(answer)
}
