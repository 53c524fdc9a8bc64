//! An HTTP/1.1 server that remembers every byte, and can do what web servers do.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::Result;

use crate::netns::Netns;
use crate::workers::{Client, Workers, lock, pattern};

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebRequest {
    /// The connection that it came on, counted from 0.
    pub connection: usize,
    /// What the client connected to.
    pub local: SocketAddr,
    /// `GET /path HTTP/1.1` and so on.
    pub line: String,
    /// What `Host` says; empty without one.
    pub host: String,
    /// The head, without its empty line.
    pub head: String,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

/// A web server at every address of its namespace. What it does depends on the path:
///
/// | path | answer |
/// |---|---|
/// | `/echo` | the body; `100 Continue` first where that is expected |
/// | `/chunked` | a greeting in chunks, with a trailer |
/// | `/early` | 413 before the body is read, and the end |
/// | `/ws` | 101, then an echo of anything |
/// | `/down/N`, `/down-chunked/N`, `/down-close/N` | N bytes of `pattern`, framed in three ways |
/// | `/hints` | 103 and then a greeting |
/// | `/close` | a greeting and the end |
/// | what [`WebServer::set`] was told | that, byte for byte |
/// | any other | a greeting |
#[derive(Debug)]
pub struct WebServer {
    log: Arc<Log>,
    _workers: Workers,
}

#[derive(Debug, Default)]
struct Log {
    requests: Mutex<Vec<WebRequest>>,
    /// All bytes of each connection.
    raw: Mutex<Vec<Vec<u8>>>,
    answers: Mutex<HashMap<String, Vec<u8>>>,
}

impl WebServer {
    /// Starts a server.
    pub fn start(netns: &Netns, port: u16) -> Result<Self> {
        let log = Arc::new(Log::default());
        let shared = Arc::clone(&log);
        let workers = Workers::everywhere(netns, port, move |client| {
            {
                let mut raw = lock(&shared.raw);
                let connections = raw.len().max(client.number + 1);
                raw.resize(connections, Vec::new());
            }
            // How a client ends is its own affair.
            let _ = Connection { client, input: Vec::new(), log: &shared }.serve();
        })?;
        Ok(Self { log, _workers: workers })
    }

    /// Answers requests for `path` with these bytes from now on.
    pub fn set(&self, path: &str, answer: &[u8]) {
        lock(&self.log.answers).insert(path.to_owned(), answer.to_vec());
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> usize {
        lock(&self.log.raw).len()
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<WebRequest> {
        lock(&self.log.requests).clone()
    }

    /// Every byte that came, by connection.
    pub fn raw(&self) -> Vec<Vec<u8>> {
        lock(&self.log.raw).clone()
    }
}

struct Connection<'a> {
    client: Client,
    input: Vec<u8>,
    log: &'a Log,
}

impl Connection<'_> {
    fn serve(mut self) -> io::Result<()> {
        while let Some(end) = self.until(b"\r\n\r\n")? {
            let head = String::from_utf8_lossy(&self.take(end)).into_owned();
            self.take(4);
            let line = head.lines().next().unwrap_or_default().to_owned();
            let method = line.split(' ').next().unwrap_or_default().to_owned();
            let path = path_of(&line).to_owned();
            let waits = header(&head, "expect").is_some();
            if path == "/early" {
                self.note(&line, &head, Vec::new());
                let refusal = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 6\r\nConnection: close\r\n\r\nearly\n";
                self.say(refusal.as_bytes())?;
                return self.drain();
            }
            if waits {
                self.say(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let Some(body) = self.body(&head)? else { return Ok(()) };
            self.note(&line, &head, body.clone());
            let custom = lock(&self.log.answers).get(&path).cloned();
            if let Some(answer) = custom {
                self.say(&answer)?;
                continue;
            }
            if path == "/ws" {
                self.say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")?;
                return self.echo();
            }
            let close = header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            let greeting = format!("hello from {} as {}\n", self.client.local, host_of(&head)).into_bytes();
            let (ends, answer) = answer(&path, &greeting, &body);
            let bodiless = method == "HEAD";
            let answer = match answer.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) if bodiless => answer.get(..at + 4).unwrap_or_default().to_vec(),
                _ => answer,
            };
            self.say(&answer)?;
            if ends || close {
                return self.drain();
            }
        }
        Ok(())
    }

    fn note(&self, line: &str, head: &str, body: Vec<u8>) {
        lock(&self.log.requests).push(WebRequest {
            connection: self.client.number,
            local: self.client.local,
            line: line.to_owned(),
            host: host_of(head).to_owned(),
            head: head.to_owned(),
            body,
        });
    }

    fn body(&mut self, head: &str) -> io::Result<Option<Vec<u8>>> {
        if header(head, "transfer-encoding").is_some() {
            return self.chunks();
        }
        let length = header(head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while self.input.len() < length {
            if !self.fill()? {
                return Ok(None);
            }
        }
        Ok(Some(self.take(length)))
    }

    fn chunks(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        loop {
            let Some(end) = self.until(b"\r\n")? else { return Ok(None) };
            let line = String::from_utf8_lossy(&self.take(end)).into_owned();
            self.take(2);
            let digits = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(digits, 16).map_err(io::Error::other)?;
            if size == 0 {
                // Trailers, up to the empty line.
                loop {
                    let Some(end) = self.until(b"\r\n")? else { return Ok(None) };
                    self.take(end + 2);
                    if end == 0 {
                        return Ok(Some(body));
                    }
                }
            }
            while self.input.len() < size + 2 {
                if !self.fill()? {
                    return Ok(None);
                }
            }
            body.extend(self.take(size));
            self.take(2);
        }
    }

    fn echo(mut self) -> io::Result<()> {
        loop {
            let said = std::mem::take(&mut self.input);
            self.say(&said)?;
            if !self.fill()? {
                return self.client.stream.shutdown(std::net::Shutdown::Write);
            }
        }
    }

    /// Ends, and reads what still comes, so that the client gets the answer rather than a reset.
    fn drain(mut self) -> io::Result<()> {
        self.client.stream.shutdown(std::net::Shutdown::Write)?;
        while self.fill()? {
            self.input.clear();
        }
        Ok(())
    }

    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.client.stream.write_all(bytes)
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        self.input.drain(..count.min(self.input.len())).collect()
    }

    /// Where `mark` begins in what came; `None` if the end came instead.
    fn until(&mut self, mark: &[u8]) -> io::Result<Option<usize>> {
        let mut looked = 0;
        loop {
            let rest = self.input.get(looked..).unwrap_or_default();
            if let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
                return Ok(Some(looked + at));
            }
            looked = self.input.len().saturating_sub(mark.len());
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; 64 * 1024];
        let count = TcpStream::read(&mut self.client.stream, &mut buffer)?;
        let got = buffer.get(..count).unwrap_or_default();
        self.input.extend_from_slice(got);
        if let Some(raw) = lock(&self.log.raw).get_mut(self.client.number) {
            raw.extend_from_slice(got);
        }
        Ok(count > 0)
    }
}

/// Whether the connection ends with it, and the answer.
fn answer(path: &str, greeting: &[u8], body: &[u8]) -> (bool, Vec<u8>) {
    let with_length = |body: &[u8]| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    let chunked = |body: &[u8], trailer: &str| {
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in body.chunks(10_000) {
            answer.extend(format!("{:x};ext=\"1\"\r\n", piece.len()).bytes());
            answer.extend([piece, b"\r\n"].concat());
        }
        answer.extend(format!("0\r\n{trailer}\r\n").bytes());
        answer
    };
    let until_close = |body: &[u8]| [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", body].concat();
    let (action, number) = path.rsplit_once('/').unwrap_or_default();
    match (path, action, number.parse::<usize>().map(|length| pattern(0, length))) {
        ("/echo", ..) => (false, with_length(body)),
        ("/chunked", ..) => (false, chunked(greeting, "X-Trailer: yes\r\n")),
        ("/hints", ..) => {
            let hint = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n";
            (false, [hint.as_slice(), &with_length(greeting)].concat())
        }
        ("/close", ..) => (true, until_close(greeting)),
        (_, "/down", Ok(body)) => (false, with_length(&body)),
        (_, "/down-chunked", Ok(body)) => (false, chunked(&body, "")),
        (_, "/down-close", Ok(body)) => (true, until_close(&body)),
        _ => (false, with_length(greeting)),
    }
}

fn path_of(line: &str) -> &str {
    let target = line.split(' ').nth(1).unwrap_or_default();
    match target.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    }
}

fn host_of(head: &str) -> &str {
    header(head, "host").unwrap_or_default()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}
