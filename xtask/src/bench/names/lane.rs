//! A lane of this bench: a sandbox, its host and an internet with servers and DNS, and one contender that
//! judges by name in between.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use filter_tests::{Daemon, Netns, Sandbox, Topology, Zone};
use serde_json::json;

use super::book::{self, Book};
use super::haproxy::Haproxy;
use super::nginx::Nginx;
use super::peer::{self, Peer};
use crate::bench::client::{ATTACHMENTS, Control};
use crate::bench::compare::{Contender, Ground};
use crate::bench::sys;

/// The sandbox that is measured, as the daemon knows it.
pub const SANDBOX: &str = "bench";
/// Its number; sandboxes that join have others.
const NUMBER: u16 = 1;

const CONFIG: &str = "[events]\njsonl = \"\"\n";

/// A contender's filter.
enum Filter {
    Nothing,
    Daemon { daemon: Daemon, control: Control },
    Peer { contender: Contender, peer: Box<dyn Peer> },
}

/// One contender's ground. What is above goes first when it is dropped.
pub struct Lane {
    filter: Filter,
    zone: Zone,
    sandbox: Sandbox,
    topology: Topology,
}

impl Ground for Lane {
    fn contender(&self) -> Contender {
        match &self.filter {
            Filter::Nothing => Contender::Nothing,
            Filter::Daemon { .. } => Contender::Filter,
            Filter::Peer { contender, .. } => *contender,
        }
    }
}

impl Lane {
    /// Makes the ground and puts the contender there, with the usual names allowed. Each of its processes has
    /// so many descriptors.
    pub fn build(contender: Contender, binary: &Path, descriptors: u64) -> Result<Self> {
        let topology = Topology::new()?;
        // What the internet does not own ends there without an answer.
        topology.internet().sysctl("net/ipv4/ip_forward", "0")?;
        let sandbox = topology.sandbox(NUMBER)?;
        for netns in [&sandbox, topology.host(), topology.internet()] {
            // No run meets the leavings of another.
            netns.sysctl("net/ipv4/tcp_max_tw_buckets", "1")?;
            netns.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        }
        let zone = Zone::serve(topology.internet(), &[])?;
        let book = Book::new(book::USUAL, 0);
        let host = topology.host();
        let filter = match contender {
            Contender::Nothing => Filter::Nothing,
            Contender::Filter => {
                let daemon = Daemon::on(&topology).binary(binary).config(CONFIG).start()?;
                daemon.attach(SANDBOX, &sandbox, &book.policy())?;
                let control = Control::new(daemon.socket());
                Filter::Daemon { daemon, control }
            }
            Contender::Nginx => {
                Filter::Peer { contender, peer: Box::new(Nginx::start(host, &book, descriptors)?) }
            }
            Contender::Haproxy => {
                Filter::Peer { contender, peer: Box::new(Haproxy::start(host, &book, descriptors)?) }
            }
            Contender::Nftables | Contender::Mitmproxy => bail!("{contender} is not compared here"),
        };
        if let Filter::Peer { .. } = filter {
            peer::redirect(host)?;
        }
        let lane = Self { filter, zone, sandbox, topology };
        lane.know(&book)?;
        Ok(lane)
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Where the contender is.
    pub fn host(&self) -> &Netns {
        self.topology.host()
    }

    /// Where the servers are.
    pub fn internet(&self) -> &Netns {
        self.topology.internet()
    }

    /// Another sandbox, under the same policy as the first.
    pub fn join(&self, number: u16) -> Result<Sandbox> {
        let sandbox = self.topology.sandbox(NUMBER + number)?;
        if let Filter::Daemon { control, .. } = &self.filter {
            let request = json!({
                "id": member(number),
                "iface": sandbox.host_interface(),
                "addrs": { "list": [sandbox.v4(), sandbox.v6()] },
                "mac": sandbox.mac_text(),
                "policy": Book::new(book::USUAL, 0).policy(),
            });
            control.ask("POST", ATTACHMENTS, Some(&request))?;
        }
        Ok(sandbox)
    }

    /// Takes leave of sandbox `number`.
    pub fn leave(&self, number: u16) -> Result<()> {
        if let Filter::Daemon { control, .. } = &self.filter {
            control.ask("DELETE", &format!("{ATTACHMENTS}/{}", member(number)), None)?;
        }
        Ok(())
    }

    /// Lets DNS know the names of a book.
    pub fn know(&self, book: &Book) -> Result<()> {
        book.entries().try_for_each(|(name, server)| {
            self.zone.set(name, &[&book::server(server).to_string(), &book::server_v6(server)])
        })
    }

    /// How to talk to the daemon, in the product's lane.
    pub fn control(&self) -> Option<&Control> {
        match &self.filter {
            Filter::Daemon { control, .. } => Some(control),
            Filter::Nothing | Filter::Peer { .. } => None,
        }
    }

    /// The proxy, in a peer's lane.
    pub fn peer(&self) -> Option<&dyn Peer> {
        match &self.filter {
            Filter::Peer { peer, .. } => Some(peer.as_ref()),
            Filter::Nothing | Filter::Daemon { .. } => None,
        }
    }

    /// What the daemon said.
    pub fn log(&self) -> Option<String> {
        match &self.filter {
            Filter::Daemon { daemon, .. } => Some(daemon.log()),
            Filter::Nothing | Filter::Peer { .. } => None,
        }
    }

    /// The contender's processes.
    pub fn processes(&self) -> Result<Vec<u32>> {
        match &self.filter {
            Filter::Nothing => Ok(Vec::new()),
            Filter::Daemon { daemon, .. } => Ok(vec![daemon.id().context("the daemon does not run")?]),
            Filter::Peer { peer, .. } => peer.processes(),
        }
    }

    /// Forgets connections, so that a run finds the tables as the one before it did.
    pub fn forget(&self) -> Result<()> {
        match &self.filter {
            Filter::Nothing | Filter::Daemon { .. } => Ok(()),
            Filter::Peer { .. } => self.topology.host().run(sys::flush_conntrack),
        }
    }
}

fn member(number: u16) -> String {
    format!("member-{number}")
}
