//! What the tests of the control API share: a daemon that makes sandboxes, SDKs that ask for them, and a look from
//! inside.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Api, ApiAnswer, Daemon, DaemonBuilder, Netns, Sdk, SdkKind, Server, Service, Topology};
use nix::errno::Errno;
use serde_json::{Value, json};

/// Two servers.
pub const A: &str = "203.0.113.10";
pub const B: &str = "198.51.100.7";
/// The port that they answer on.
pub const PORT: u16 = 7;
/// Where the API is, on the host.
pub const API: &str = "127.0.0.1:3000";
/// Two holders of keys: one without limits worth speaking of, and one of the smallest tier.
pub const KEY: &str = "e2b_0000000000000000000000000000000000000001";
pub const HOBBY: &str = "e2b_0000000000000000000000000000000000000002";
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A host with a daemon, and an internet with an echo.
pub struct Stand {
    pub daemon: Daemon,
    pub topology: Topology,
    _echo: Server,
}

/// A daemon's configuration.
pub fn configured(topology: &Topology) -> DaemonBuilder {
    Daemon::on(topology).config(&format!(
        "[api]\nlisten = '{API}'\n\
         [[api_keys]]\nkey = '{KEY}'\nconcurrent_sandboxes = 20000\ncreate_rate = {{ requests = 100000, per = '1s' }}\n\
         [[api_keys]]\nkey = '{HOBBY}'\ntier = 'hobby'\n"
    ))
}

impl Stand {
    pub fn new() -> Result<Self> {
        Self::with("")
    }

    pub fn with(config: &str) -> Result<Self> {
        let topology = Topology::new()?;
        let echo = topology.serve(Service::TcpEcho, PORT)?;
        let daemon = configured(&topology).config(config).start()?;
        Ok(Self { daemon, topology, _echo: echo })
    }

    /// An SDK on the host.
    pub fn sdk(&self, kind: SdkKind) -> Result<Sdk> {
        kind.start(self.topology.host(), &format!("http://{API}"), KEY)
    }

    /// Asks over TCP, as the holder of a key.
    pub fn ask(&self, key: &str, method: &str, path: &str, body: Option<&Value>) -> Result<ApiAnswer> {
        let api = Api::Tcp(API.parse()?, key.to_owned());
        self.topology.host().run(|| api.ask(method, path, body))
    }

    /// Makes a sandbox; its id.
    pub fn create(&self, network: Value) -> Result<String> {
        let body = json!({ "templateID": "base", "timeout": 300, "network": network });
        let made = self.ask(KEY, "POST", "/v2/sandboxes", Some(&body))?.success()?;
        Ok(made["sandboxID"].as_str().context("no id")?.to_owned())
    }

    pub fn kill(&self, id: &str) -> Result<()> {
        self.ask(KEY, "DELETE", &format!("/sandboxes/{id}"), None)?.success().map(drop)
    }

    /// What the host has of sandboxes.
    pub fn left(&self) -> Result<Left> {
        let links = self.topology.host().links()?;
        let of_api = |name: &str| name.starts_with("sbx-i");
        let names = |path: &str| -> Vec<String> {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let pins = std::fs::read_dir(self.daemon.pins().join("links")).map(Iterator::count).unwrap_or(0);
        let files = |sub: &str| {
            let entries = std::fs::read_dir(self.daemon.state_dir().join(sub)).map(Iterator::count);
            entries.unwrap_or(0)
        };
        Ok(Left {
            links: links.into_iter().filter(|name| of_api(name)).collect(),
            namespaces: names("/run/netns").into_iter().filter(|name| of_api(name)).collect(),
            etc: names("/etc/netns").into_iter().filter(|name| of_api(name)).collect(),
            pins,
            files: files("made") + files("sandboxes"),
        })
    }
}

/// What there is of sandboxes. Namespaces and files below `/etc` are those of every daemon on the machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Left {
    pub links: Vec<String>,
    pub namespaces: Vec<String>,
    pub etc: Vec<String>,
    pub pins: usize,
    pub files: usize,
}

impl Left {
    /// Whether nothing is left of this sandbox, or of any of this daemon.
    pub fn nothing_of(&self, id: &str) -> bool {
        let name = format!("sbx-{id}");
        self.links.is_empty()
            && self.pins == 0
            && self.files == 0
            && !self.namespaces.contains(&name)
            && !self.etc.contains(&name)
    }
}

/// The inside of a sandbox.
pub fn inside(id: &str) -> Result<Netns> {
    Netns::existing(&format!("sbx-{id}"))
}

/// Whether a connection from inside comes to something; a denial must be a refusal, not silence.
pub fn reaches(id: &str, address: &str) -> Result<bool> {
    let to: SocketAddr = format!("{address}:{PORT}").parse()?;
    let attempt = inside(id)?.tcp_exchange(to, b"hello", PATIENCE);
    match &attempt.result {
        Ok(answer) => {
            ensure!(answer == b"hello", "another answer: {answer:?}");
            Ok(true)
        }
        Err(_) => {
            ensure!(attempt.errno() == Some(Errno::ECONNREFUSED), "no refusal: {attempt:?}");
            Ok(false)
        }
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so()? {
        ensure!(Instant::now() < deadline, "it did not happen that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
