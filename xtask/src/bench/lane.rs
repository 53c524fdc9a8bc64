//! A lane: a sandbox, its host and an internet, with one contender's filter between them. All lanes are the
//! same but for that; each has namespaces of its own, since connection tracking works on a whole namespace.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use filter_tests::{Daemon, Netns, Offload, Sandbox, Topology};
use serde_json::{Value, json};

use super::client::Control;
use super::compare::{Contender, Ground};
use super::nft::Nft;
use super::prefixes::Prefixes;
use super::sys;

/// The sandbox that is measured, as the daemon knows it.
pub const SANDBOX: &str = "bench";

/// More connections than any row has, so that the limit is kept but never reached.
const CONNECTIONS: u32 = 1_000_000;

/// The product's daemon; a UDP flow is over after a second, so that a row of new flows can follow another.
const CONFIG: &str = "[limits]\negress_ceiling = 262144\n[timeouts]\nudp = \"1s\"\n[events]\njsonl = \"\"\n";

/// A contender's filter.
enum Filter {
    Nothing,
    Daemon { daemon: Daemon, control: Control },
    Nftables(Nft),
}

/// One contender's ground. What is above goes first when it is dropped.
pub struct Lane {
    filter: Filter,
    sandbox: Sandbox,
    topology: Topology,
}

impl Ground for Lane {
    fn contender(&self) -> Contender {
        match self.filter {
            Filter::Nothing => Contender::Nothing,
            Filter::Daemon { .. } => Contender::Filter,
            Filter::Nftables(_) => Contender::Nftables,
        }
    }
}

impl Lane {
    /// Makes the ground and puts the contender there, with a policy that allows the servers.
    pub fn build(contender: Contender, binary: &Path) -> Result<Self> {
        let topology = Topology::new()?;
        // What the internet does not own ends there without an answer.
        topology.internet().sysctl("net/ipv4/ip_forward", "0")?;
        let sandbox = topology.sandbox(1)?;
        let start = Prefixes::random(10);
        let filter = match contender {
            Contender::Nothing => Filter::Nothing,
            Contender::Filter => {
                let daemon = Daemon::on(&topology).binary(binary).config(CONFIG).start()?;
                daemon.attach(SANDBOX, &sandbox, &policy(&start))?;
                let control = Control::new(daemon.socket());
                Filter::Daemon { daemon, control }
            }
            Contender::Nftables => {
                let nft = Nft::new(topology.host().clone(), sandbox.host_interface());
                if !nft.install(&start)? {
                    bail!("nft does not take ten prefixes in time");
                }
                Filter::Nftables(nft)
            }
            Contender::Nginx | Contender::Haproxy | Contender::Mitmproxy => {
                bail!("{contender} does not judge addresses")
            }
        };
        Ok(Self { filter, sandbox, topology })
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Where packets go.
    pub fn internet(&self) -> &Netns {
        self.topology.internet()
    }

    /// All of it, for rows that need more sandboxes.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// How to talk to the daemon, in the product's lane.
    pub fn control(&self) -> Option<&Control> {
        match &self.filter {
            Filter::Daemon { control, .. } => Some(control),
            Filter::Nothing | Filter::Nftables(_) => None,
        }
    }

    /// How to talk to nftables, in its lane.
    pub fn nft(&self) -> Option<&Nft> {
        match &self.filter {
            Filter::Nftables(nft) => Some(nft),
            Filter::Nothing | Filter::Daemon { .. } => None,
        }
    }

    /// What the daemon said.
    pub fn log(&self) -> Option<String> {
        match &self.filter {
            Filter::Daemon { daemon, .. } => Some(daemon.log()),
            Filter::Nothing | Filter::Nftables(_) => None,
        }
    }

    /// Allows these prefixes and nothing else. `false` if the contender needs too long for that.
    pub fn allow(&self, prefixes: &Prefixes) -> Result<bool> {
        match &self.filter {
            Filter::Nothing => Ok(true),
            Filter::Daemon { control, .. } => {
                let path = format!("/v1/attachments/{SANDBOX}/policy");
                control.ask("PUT", &path, Some(&policy(prefixes)))?;
                Ok(true)
            }
            Filter::Nftables(nft) => nft.install(prefixes),
        }
    }

    /// Switches what makes one frame out of several packets, on all four interfaces.
    pub fn segmentation_offload(&self, on: bool) -> Result<()> {
        let guest: &Netns = &self.sandbox;
        let ends = [
            (guest, Sandbox::INTERFACE),
            (self.topology.host(), self.sandbox.host_interface()),
            (self.topology.host(), Topology::UPLINK),
            (self.topology.internet(), "eth0"),
        ];
        ends.iter()
            .try_for_each(|(netns, interface)| netns.set_offloads(interface, Offload::SEGMENTATION, on))
    }

    /// Forgets flows, so that a run finds the tables as the one before it did.
    pub fn forget_flows(&self) -> Result<()> {
        match &self.filter {
            Filter::Nothing => Ok(()),
            Filter::Nftables(_) => self.topology.host().run(sys::flush_conntrack),
            Filter::Daemon { control, .. } => wait_until_idle(control),
        }
    }
}

/// The policy that allows `prefixes` only.
pub fn policy(prefixes: &Prefixes) -> Value {
    json!({
        "allowInternetAccess": false,
        "allowOut": prefixes.texts(),
        "limits": { "egressConnections": CONNECTIONS },
    })
}

fn wait_until_idle(control: &Control) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stats = control.ask("GET", &format!("/v1/stats?id={SANDBOX}"), None)?;
        let active = stats.pointer("/sandboxes/0/connections/active").and_then(Value::as_u64);
        if active.context("the daemon does not say how many connections there are")? == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("connections are still open {PATIENCE:?} after the last packet: {active:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
