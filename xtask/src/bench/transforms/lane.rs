//! A lane of this bench: a sandbox, its host and an internet with a server, and one contender that sets a header on
//! the way.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use filter_tests::{Ca, Daemon, Netns, Sandbox, Topology, Zone};
use serde_json::json;

use super::mitmproxy;
use super::peers::{self, Peer};
use crate::bench::compare::{Contender, Ground};
use crate::bench::names::lane::SANDBOX;
use crate::bench::names::peer;

/// Whom requests are for.
pub const HOST: &str = "api.bench.test";
/// Where that is.
pub const ADDRESS: [u8; 4] = [203, 0, 113, 10];
/// The header that is set, and to what.
pub const HEADER: (&str, &str) = ("Authorization", "Bearer sk-0123456789abcdef0123456789abcdef");

/// A contender.
enum Filter {
    Nothing,
    Daemon { _daemon: Daemon },
    Peer { _peer: Peer },
}

/// One contender's ground. What is above goes first when it is dropped.
pub struct Lane {
    contender: Contender,
    filter: Filter,
    _zone: Zone,
    sandbox: Sandbox,
    ca: Ca,
    /// What the sandbox trusts.
    trusted: String,
    topology: Topology,
    _directory: Directory,
}

impl Ground for Lane {
    fn contender(&self) -> Contender {
        self.contender
    }
}

impl Lane {
    /// Makes the ground and puts the contender there.
    pub fn build(contender: Contender, binary: &Path) -> Result<Self> {
        let topology = Topology::new()?;
        topology.internet().sysctl("net/ipv4/ip_forward", "0")?;
        let sandbox = topology.sandbox(1)?;
        for netns in [&sandbox, topology.host(), topology.internet()] {
            netns.sysctl("net/ipv4/tcp_max_tw_buckets", "1")?;
            netns.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        }
        let [a, b, c, d] = ADDRESS;
        let zone = Zone::serve(topology.internet(), &[(HOST, &[&format!("{a}.{b}.{c}.{d}")])])?;
        let (ca, directory) = (Ca::new()?, Directory::new()?);
        let host = topology.host();
        let upstream_ca = directory.put("upstream.pem", &ca.pem())?;
        // What the peers show in the server's stead is of an authority of their own.
        let own = Ca::new()?;
        let (filter, trusted) = match contender {
            Contender::Nothing => (Filter::Nothing, ca.pem()),
            Contender::Filter => {
                let config = format!("[events]\njsonl = \"\"\n[transform]\nupstream_ca = {upstream_ca:?}\n");
                let daemon = Daemon::on(&topology).binary(binary).config(&config).start()?;
                let policy = json!({
                    "allowOut": [HOST],
                    "denyOut": ["0.0.0.0/0"],
                    "rules": { HOST: [{ "transform": { "headers": { HEADER.0: HEADER.1 } } }] },
                    "limits": { "egressConnections": 30_000 },
                });
                daemon.attach(SANDBOX, &sandbox, &policy)?;
                let trusted = daemon.cli(&["ca", "export"])?.success()?.stdout;
                (Filter::Daemon { _daemon: daemon }, trusted)
            }
            Contender::Nginx => (Filter::Peer { _peer: peers::nginx(host, &own, &ca)? }, own.pem()),
            Contender::Haproxy => (Filter::Peer { _peer: peers::haproxy(host, &own, &ca)? }, own.pem()),
            Contender::Mitmproxy => {
                let (peer, trusted) = mitmproxy::start(host, directory.path(), &upstream_ca)?;
                (Filter::Peer { _peer: peer }, trusted)
            }
            Contender::Nftables => bail!("{contender} sets no headers"),
        };
        if let Filter::Peer { .. } = filter {
            peer::redirect(host)?;
        }
        Ok(Self { contender, filter, _zone: zone, sandbox, ca, trusted, topology, _directory: directory })
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Where the server is.
    pub fn internet(&self) -> &Netns {
        self.topology.internet()
    }

    /// The server's authority.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// What the sandbox trusts, as PEM.
    pub fn trusted(&self) -> &str {
        &self.trusted
    }

    /// Whether the header is there when the server has the request.
    pub fn expects_header(&self) -> bool {
        !matches!(self.filter, Filter::Nothing)
    }
}

/// A directory that goes with its owner.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("bench-transforms-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn put(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Whatever stays is in the temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}
