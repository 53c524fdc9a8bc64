//! The stage: three sandboxes, a host with the daemon, an internet with servers.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use filter_tests::{
    Ca, Capture, Daemon, Netns, Sandbox, Server, Service, TlsServer, TlsService, Topology, Zone,
};
use serde_json::{Value, json};

use super::paint::{Style, say, title};

/// How long the demo waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Servers, inside and outside of what the policies name.
pub const SHOP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const MIRROR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
pub const TRACKER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const SHOP_V6: &str = "2001:db8:113::10";

/// Names: two that the policy of `gamma` allows, where the shop and the mirror are, and one that it does not,
/// where the tracker is.
pub const NAMED: &str = "shop.test";
pub const IMAGES: &str = "img.cdn.test";
pub const STRANGER: &str = "tracker.test";
/// Which resolver a policy with names opens.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// Ports of the services, on every address of the internet.
pub const ECHO: u16 = 9000;
pub const STREAM: u16 = 9001;
pub const UDP: u16 = 9002;
pub const HTTP: u16 = 80;
pub const TLS: u16 = 443;

pub const ALPHA: &str = "alpha";
pub const BETA: &str = "beta";
pub const GAMMA: &str = "gamma";

/// What each transfer sends in a second.
const PACE: u64 = 10_000_000;

pub struct Stage {
    // Dropped in this order: the daemon before the ground that it stands on.
    pub daemon: Daemon,
    pub alpha: Sandbox,
    pub beta: Sandbox,
    pub gamma: Sandbox,
    pub echo: Server,
    _others: Vec<Server>,
    _tls: TlsServer,
    _zone: Zone,
    /// Whose certificates the TLS servers have.
    pub ca: Ca,
    /// What reaches the internet, and what reaches `beta`.
    pub internet: Capture,
    pub neighbour: Capture,
    /// A service of the host itself, which no sandbox may reach.
    pub host_service: Server,
    topology: Topology,
}

impl Stage {
    pub fn build(binary: &Path) -> Result<Self> {
        title(
            "The stage: three sandboxes, a host with the filter, an internet. No packet leaves this machine.",
        );
        // The metadata service is there, so that not reaching it means something.
        let topology = Topology::builder().owns(IpAddr::from(METADATA).into()).build()?;
        let (alpha, beta, gamma) = (topology.sandbox(1)?, topology.sandbox(2)?, topology.sandbox(3)?);
        let ca = Ca::new()?;
        let daemon = Daemon::on(&topology)
            .binary(binary)
            // The acts follow each other fast; a UDP flow of one must not count in the next.
            .config("[timeouts]\nudp = \"2s\"\nicmp = \"2s\"")
            .start()
            .context("cannot start the daemon")?;
        let stage = Self {
            daemon,
            echo: topology.serve(Service::TcpEcho, ECHO)?,
            _others: vec![
                topology.serve(Service::TcpStream { bytes_per_second: Some(PACE) }, STREAM)?,
                topology.serve(Service::UdpEcho, UDP)?,
                topology.serve(Service::Http, HTTP)?,
                // So that `beta` would answer, if it could be reached.
                Server::start(&beta, Service::TcpEcho, ECHO)?,
            ],
            _tls: TlsServer::start(topology.internet(), &ca, TlsService::Http, TLS)?,
            _zone: zone(&topology)?,
            ca,
            internet: topology.capture()?,
            neighbour: Capture::start(&beta, Sandbox::INTERFACE)?,
            host_service: Server::start(topology.host(), Service::TcpEcho, ECHO)?,
            alpha,
            beta,
            gamma,
            topology,
        };
        for (id, sandbox, policy) in [
            (ALPHA, &stage.alpha, alpha_policy()),
            (BETA, &stage.beta, beta_policy()),
            (GAMMA, &stage.gamma, gamma_policy()),
        ] {
            stage.daemon.attach(id, sandbox, &policy)?;
            say(Style::Plain, &format!("  {id:<6} {:<11} {policy}", sandbox.v4().to_string()));
        }
        Ok(stage)
    }

    pub fn host(&self) -> &Netns {
        self.topology.host()
    }

    /// Those whose policies are about addresses.
    pub fn sandboxes(&self) -> [(&'static str, &Sandbox); 2] {
        [(ALPHA, &self.alpha), (BETA, &self.beta)]
    }
}

/// Only the servers of 203.0.113.0/24.
pub fn alpha_policy() -> Value {
    json!({ "allowOut": ["203.0.113.0/24"], "denyOut": ["0.0.0.0/0"] })
}

/// Everything but 198.51.100.0/24, and callers need its token.
fn beta_policy() -> Value {
    json!({ "denyOut": ["198.51.100.0/24"], "allowPublicTraffic": false })
}

/// The shop, and every name below the one of the content network.
fn gamma_policy() -> Value {
    json!({ "allowOut": [NAMED, "*.cdn.test"], "denyOut": ["0.0.0.0/0"] })
}

fn zone(topology: &Topology) -> Result<Zone> {
    let [shop, mirror, tracker] = [SHOP, MIRROR, TRACKER].map(|address| address.to_string());
    Zone::serve(topology.internet(), &[(NAMED, &[&shop]), (IMAGES, &[&mirror]), (STRANGER, &[&tracker])])
}
