//! What the tests of public URLs share: a sandbox with a web server that remembers, behind a daemon, and clients that
//! say exactly what they are told.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test says that something is wrong"
)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use filter_tests::{Daemon, Netns, Process, Sandbox, Topology, WebRequest, WebServer};
use serde_json::{Value, json};

/// The sandbox's name, and the port of its web server.
pub const ID: &str = "abc123";
pub const PORT: u16 = 3000;
/// What public URLs end with, and where they are served on the host.
pub const DOMAIN: &str = "sandbox.localhost";
pub const GATEWAY: &str = "127.0.0.1:8080";
/// No answer may take longer, unless a test waits for one that does.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A daemon, and a sandbox whose web server remembers what it was sent.
pub struct Stand {
    pub daemon: Daemon,
    pub web: WebServer,
    pub sandbox: Sandbox,
    pub topology: Topology,
    /// Of the sandbox.
    pub token: String,
    pub controller_token: String,
}

/// An answer of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The values of a header.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        headers(&self.head, name)
    }

    /// The value of a header that is there once.
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.headers(name).as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("that is no JSON: {self:?}"))
    }
}

/// The values of a header in a head.
pub fn headers<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
}

pub fn deny_all() -> Value {
    json!({ "denyOut": ["0.0.0.0/0"] })
}

/// Nobody without the token.
pub fn secured() -> Value {
    json!({ "denyOut": ["0.0.0.0/0"], "allowPublicTraffic": false })
}

impl Stand {
    pub fn new(policy: &Value) -> Result<Self> {
        Self::with("", policy)
    }

    pub fn with(config: &str, policy: &Value) -> Result<Self> {
        let topology = Topology::new()?;
        let sandbox = topology.sandbox(1)?;
        let daemon = Daemon::on(&topology).config(config).start()?;
        let attached = daemon.attach(ID, &sandbox, policy)?;
        let web = WebServer::start(&sandbox, PORT)?;
        let token = |name: &str| attached[name].as_str().map(str::to_owned).context("no tokens");
        let (token, controller_token) = (token("trafficAccessToken")?, token("envdAccessToken")?);
        Ok(Self { daemon, web, sandbox, topology, token, controller_token })
    }

    pub fn host(&self) -> &Netns {
        self.topology.host()
    }

    /// Says something to the gateway and reads all that it answers, until it closes.
    pub fn say(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        say_in(self.host(), GATEWAY, bytes)
    }

    /// Asks for a path of a host, with more lines of a head.
    pub fn get(&self, host: &str, path: &str, lines: &[&str]) -> Result<Answer> {
        self.ask("GET", host, path, lines, b"")
    }

    pub fn ask(&self, method: &str, host: &str, path: &str, lines: &[&str], body: &[u8]) -> Result<Answer> {
        let more: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}{length}\r\n");
        answer(&self.say(&[head.as_bytes(), body].concat())?)
    }

    /// The one request that reached the web server since there were `before`.
    pub fn reached(&self, before: usize) -> Result<WebRequest> {
        let requests = self.web.requests();
        match requests.get(before..).unwrap_or_default() {
            [one] => Ok(one.clone()),
            others => bail!("{} requests came: {others:?}", others.len()),
        }
    }

    /// Connections that the sandbox was charged for.
    pub fn charged(&self) -> Result<Value> {
        Ok(self.daemon.show(ID)?["connections"].clone())
    }
}

/// The public host of the web server.
pub fn host() -> String {
    host_of(PORT, ID)
}

pub fn host_of(port: u16, id: &str) -> String {
    format!("{port}-{id}.{DOMAIN}:8080")
}

pub fn say_in(netns: &Netns, to: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let to: SocketAddr = to.parse()?;
    netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // It may be refused before all of it is said.
        let _ = stream.write_all(bytes);
        read_all(&mut stream)
    })
}

/// Everything until the end; a reset is one too.
pub fn read_all(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(all),
            Ok(count) => all.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(all),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("no end after {:?}", String::from_utf8_lossy(&all)));
            }
        }
    }
}

/// Reads the first answer in these bytes.
pub fn answer(bytes: &[u8]) -> Result<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("that is no answer: {text:?}"))?;
    let status = head.get(9..12).and_then(|status| status.parse().ok()).context("no status")?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// A program on the host that finds `names` at the gateway.
pub fn client(
    netns: &Netns,
    names: &[String],
    program: &str,
    args: &[&str],
) -> Result<std::process::Command> {
    let lines: String = names.iter().map(|name| format!("127.0.0.1 {name}\\n")).collect();
    // In a mount namespace of its own, with a hosts file of its own.
    let script = format!(
        "hosts=$(mktemp) && printf '127.0.0.1 localhost\\n{lines}' >$hosts && mount --bind $hosts /etc/hosts && \
         rm $hosts; exec \"$@\""
    );
    let mut command = netns.command("unshare")?;
    command.args(["--mount", "sh", "-c", &script, "sh", program]).args(args);
    Ok(command)
}

/// What a program prints, which must succeed within `patience`.
pub fn output(mut command: std::process::Command, patience: Duration) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::start(command)?;
    let child = process.child();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                // What came before an error is all there is to see.
                let _ = pipe.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = read(stdout.map(|pipe| Box::new(pipe) as _));
    let stderr = read(stderr.map(|pipe| Box::new(pipe) as _));
    let status = process.wait(patience);
    drop(process);
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    let status = status.with_context(|| format!("{stdout}{stderr}"))?;
    ensure!(status.success(), "{status}: {stdout}{stderr}");
    Ok(stdout)
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "it did not happen that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
