//! A contender's ground: a sandbox with a service, and on the host what leads to it.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, bail};
use filter_tests::{Daemon, Netns, Sandbox, Topology};
use serde_json::json;

use super::peers;
use super::service::{PORT, Service};
use crate::bench::compare::{Contender, Ground};
use crate::bench::names::capsule::Capsule;

/// Where the contenders listen on the host.
pub const GATEWAY: u16 = 8080;
const ID: &str = "bench";
/// The rate of one client is not what is measured, and there is one client only.
const CONFIG: &str = "[events]\njsonl = \"\"\n[limits]\nsandbox_traffic = { requests = 0, per = \"60s\" }\n";

/// What leads to the service. What is above goes first when it is dropped.
pub struct Lane {
    contender: Contender,
    _way: Way,
    _service: Service,
    sandbox: Sandbox,
    topology: Topology,
}

#[expect(dead_code, reason = "held so that it goes on")]
enum Way {
    Direct,
    Daemon(Daemon),
    Peer(Capsule),
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
        let sandbox = topology.sandbox(1)?;
        for netns in [&sandbox, topology.host()] {
            // No run meets the leavings of another.
            netns.sysctl("net/ipv4/tcp_max_tw_buckets", "1")?;
            netns.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        }
        let service = Service::start(&sandbox)?;
        let to = SocketAddr::new(sandbox.v4().into(), PORT);
        let host = topology.host();
        let way = match contender {
            Contender::Nothing => Way::Direct,
            Contender::Filter => {
                let daemon = Daemon::on(&topology).binary(binary).config(CONFIG).start()?;
                daemon.attach(ID, &sandbox, &json!({ "denyOut": ["0.0.0.0/0"] }))?;
                Way::Daemon(daemon)
            }
            Contender::Nginx => Way::Peer(peers::nginx(host, &name(), to)?),
            Contender::Haproxy => Way::Peer(peers::haproxy(host, &name(), to)?),
            Contender::Nftables | Contender::Mitmproxy => bail!("{contender} is no proxy"),
        };
        Ok(Self { contender, _way: way, _service: service, sandbox, topology })
    }

    /// Where the clients are.
    pub fn host(&self) -> &Netns {
        self.topology.host()
    }

    /// Where they connect to.
    pub fn at(&self) -> SocketAddr {
        match self.contender {
            Contender::Nothing => SocketAddr::new(self.sandbox.v4().into(), PORT),
            Contender::Filter | Contender::Nftables | Contender::Mitmproxy | Contender::Nginx | Contender::Haproxy => {
                ([127, 0, 0, 1], GATEWAY).into()
            }
        }
    }

    /// What they call it.
    pub fn name(&self) -> String {
        name()
    }
}

fn name() -> String {
    format!("{PORT}-{ID}.sandbox.localhost")
}
