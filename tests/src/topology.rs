//! Host and internet, and the sandboxes between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;

use crate::capture::Capture;
use crate::netlink::{self, Mac};
use crate::netns::Netns;
use crate::sandbox::{Plan, Sandbox};
use crate::server::{Server, Service};
use crate::tap::Tap;

/// What the internet owns: documentation ranges to be other people's servers, and well-known resolvers.
const OWNED: &[&str] = &[
    "203.0.113.0/24",
    "198.51.100.0/24",
    "8.8.8.8/32",
    "8.8.4.4/32",
    "1.1.1.1/32",
    "2001:db8:113::/64",
    "2001:db8:198::/64",
    "2001:4860:4860::8888/128",
];

/// Parts of it that never answer, for connections that stay half open.
const SILENT: &[&str] = &["203.0.113.248/29", "2001:db8:113:0:dead::/80"];

/// The link between host and internet.
const UPLINK: [&str; 2] = ["192.0.2.1/30", "2001:db8::1/64"];
const UPLINK_PEER: [&str; 2] = ["192.0.2.2/30", "2001:db8::2/64"];
const UPLINK_MAC: Mac = [0x02, 0xff, 0, 0, 0, 0x01];
const UPLINK_PEER_MAC: Mac = [0x02, 0xff, 0, 0, 0, 0x02];

/// The bridge of [`Topology::bridge_sandbox`], as the host sees it.
const BRIDGE: &str = "br0";
const BRIDGE_ADDRESSES: [&str; 2] = ["10.201.0.1/24", "fd00:201::1/64"];
const BRIDGE_MAC: Mac = [0x02, 0xb0, 0, 0, 0, 0x01];

/// A host, an internet, and the link between them.
#[derive(Debug)]
pub struct Topology {
    host: Netns,
    internet: Netns,
}

/// What a topology owns besides the usual.
#[derive(Debug, Default)]
pub struct TopologyBuilder {
    owned: Vec<IpNet>,
}

impl TopologyBuilder {
    /// Lets the internet answer for `network` too.
    pub fn owns(mut self, network: IpNet) -> Self {
        self.owned.push(network);
        self
    }

    /// Makes host and internet.
    pub fn build(self) -> Result<Topology> {
        let host = Netns::new("host")?;
        let internet = Netns::new("internet")?;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"]
        {
            host.sysctl(key, "1")?;
        }
        // Servers answer from any address that the internet owns.
        internet.sysctl("net/ipv4/ip_nonlocal_bind", "1")?;
        internet.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;

        netlink::with(&host, async |links| {
            links.veth(Topology::UPLINK, UPLINK_MAC, "eth0", UPLINK_PEER_MAC, &internet).await?;
            links.up(Topology::UPLINK).await?;
            for address in UPLINK {
                links.address(Topology::UPLINK, address.parse()?).await?;
            }
            for gateway in UPLINK_PEER {
                links.default_route(gateway.parse::<IpNet>()?.addr()).await?;
            }
            Ok(())
        })?;
        netlink::with(&internet, async |links| {
            links.up("eth0").await?;
            for address in UPLINK_PEER {
                links.address("eth0", address.parse()?).await?;
            }
            for gateway in UPLINK {
                links.default_route(gateway.parse::<IpNet>()?.addr()).await?;
            }
            for network in OWNED {
                links.own(network.parse()?).await?;
            }
            for network in self.owned {
                links.own(network).await?;
            }
            for network in SILENT {
                links.blackhole(network.parse()?).await?;
            }
            Ok(())
        })?;
        wait_for_v6(&host, Topology::UPLINK)?;
        wait_for_v6(&internet, "eth0")?;
        Ok(Topology { host, internet })
    }
}

impl Topology {
    /// The host's interface towards the internet.
    pub const UPLINK: &str = "up0";

    /// Host and internet with what the internet usually owns: 203.0.113.0/24 and 198.51.100.0/24 (in IPv6
    /// 2001:db8:113::/64 and 2001:db8:198::/64), and the resolvers 8.8.8.8, 8.8.4.4, 1.1.1.1. The addresses
    /// 203.0.113.248/29 and 2001:db8:113:0:dead::/80 never answer.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// A topology with more.
    pub fn builder() -> TopologyBuilder {
        TopologyBuilder::default()
    }

    /// Where the daemon runs.
    pub fn host(&self) -> &Netns {
        &self.host
    }

    /// Where the servers are.
    pub fn internet(&self) -> &Netns {
        &self.internet
    }

    /// The host's addresses on its uplink.
    pub fn host_addresses(&self) -> [IpAddr; 2] {
        [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))]
    }

    /// Starts a server in the internet, on every address that it owns.
    pub fn serve(&self, service: Service, port: u16) -> Result<Server> {
        Server::start(&self.internet, service, port)
    }

    /// Counts what reaches the internet from now on.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.internet, "eth0")
    }

    /// Sandbox `n` (1 to 16,383) behind the veth `sbx<n>`. Up to 255 it has 10.200.n.2 and fd00:200:n::2 (n in
    /// hexadecimal), and the host's end 10.200.n.1 and fd00:200:n::1.
    pub fn sandbox(&self, n: u16) -> Result<Sandbox> {
        let plan = Plan::routed(n)?;
        let guest = plan.connect(&self.host)?;
        netlink::with(&self.host, async |links| {
            for address in plan.gateways() {
                links.address(&plan.host_interface, address).await?;
            }
            Ok(())
        })?;
        wait_for_v6(&self.host, &plan.host_interface)?;
        self.ready(plan, guest)
    }

    /// Sandbox `n` (1 to 200) behind `sbr<n>`, a port of the bridge `br0`. It has 10.201.0.(n+1) and
    /// fd00:201::(n+1); the bridge has the .1 and is the gateway.
    pub fn bridge_sandbox(&self, n: u16) -> Result<Sandbox> {
        if !self.host.links()?.iter().any(|link| link == BRIDGE) {
            netlink::with(&self.host, async |links| {
                links.bridge(BRIDGE).await?;
                // Otherwise it takes the lowest of its ports', which changes as sandboxes come and go.
                links.mac(BRIDGE, BRIDGE_MAC).await?;
                for address in BRIDGE_ADDRESSES {
                    links.address(BRIDGE, address.parse()?).await?;
                }
                Ok(())
            })?;
        }
        let plan = Plan::bridged(n, BRIDGE_MAC)?;
        let guest = plan.connect(&self.host)?;
        netlink::with(&self.host, async |links| links.join_bridge(&plan.host_interface, BRIDGE).await)?;
        wait_for_v6(&self.host, BRIDGE)?;
        self.ready(plan, guest)
    }

    /// The tap device `tap<n>` (1 to 255) with 10.202.n.1/30 and fd00:202:n::1/64 on the host, and the guest's
    /// end in the test's hand: 10.202.n.2, fd00:202:n::2. With `vnet_header` every frame has a `virtio_net_hdr`
    /// in front, and may be larger than the MTU with its checksum left to the receiver, as a microVM sends it.
    pub fn tap(&self, n: u8, vnet_header: bool) -> Result<Tap> {
        let tap = Tap::open(&self.host, n, vnet_header)?;
        wait_for_v6(&self.host, &tap.host_interface())?;
        Ok(tap)
    }

    fn ready(&self, plan: Plan, guest: Netns) -> Result<Sandbox> {
        netlink::with(&guest, async |links| {
            for address in plan.addresses() {
                links.address(Sandbox::INTERFACE, address).await?;
            }
            for gateway in plan.gateways() {
                links.default_route(gateway.addr()).await?;
            }
            Ok(())
        })?;
        wait_for_v6(&guest, Sandbox::INTERFACE)?;
        Ok(Sandbox::new(plan, self.host.clone(), guest))
    }
}

/// Waits until `interface` can talk IPv6. The kernel gets to it later: it adds the link-local address, which
/// neighbour discovery needs, after it has noticed the carrier, and an address that is tentative is not used.
fn wait_for_v6(netns: &Netns, interface: &str) -> Result<()> {
    const IFA_F_TENTATIVE: u32 = 0x40;
    let deadline = Instant::now() + Duration::from_secs(5);
    netns
        .run(|| {
            loop {
                // Lines of: address, index, prefix length, scope, flags, interface.
                let table = std::fs::read_to_string("/proc/thread-self/net/if_inet6")?;
                let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
                let own: Vec<_> = rows.filter(|row| row.last() == Some(&interface)).collect();
                let link_local =
                    own.iter().any(|row| row.first().is_some_and(|text| text.starts_with("fe80")));
                let tentative = own.iter().any(|row| {
                    let flags = row.get(4).and_then(|flags| u32::from_str_radix(flags, 16).ok());
                    flags.is_none_or(|flags| flags & IFA_F_TENTATIVE != 0)
                });
                if link_local && !tentative {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    bail!("not ready for IPv6:\n{table}");
                }
                thread::sleep(Duration::from_millis(2));
            }
        })
        .with_context(|| format!("{interface} of {}", netns.name()))
}
