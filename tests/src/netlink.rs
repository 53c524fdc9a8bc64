//! Interfaces, addresses and routes of a namespace, as `ip` would set them.

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use crate::netns::Netns;

/// The table that is looked at first, `local`.
const RT_TABLE_LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;

/// A hardware address.
pub type Mac = [u8; 6];

/// A conversation with the kernel about one namespace.
pub struct Links(Handle);

/// Has a conversation about `netns`.
pub fn with<T: Send>(netns: &Netns, work: impl AsyncFnOnce(&Links) -> Result<T> + Send) -> Result<T> {
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            work(&Links(handle)).await
        })
    })
}

impl Links {
    /// A veth pair: `name` here, and `peer` in the namespace `there`. Both are down: an end goes up only once it
    /// has its other end.
    pub async fn veth(&self, name: &str, mac: Mac, peer: &str, peer_mac: Mac, there: &Netns) -> Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .address(peer_mac.to_vec())
            .setns_by_fd(there.file().as_raw_fd())
            .build();
        let pair =
            LinkMessageBuilder::<LinkVeth>::new_with_info_kind(rtnetlink::packet_route::link::InfoKind::Veth)
                .name(name)
                .address(mac.to_vec())
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .build();
        self.0.link().add(pair).execute().await.with_context(|| format!("cannot make the veth pair {name}"))
    }

    /// A bridge, up.
    pub async fn bridge(&self, name: &str) -> Result<()> {
        let bridge = LinkBridge::new(name).build();
        self.0.link().add(bridge).execute().await.with_context(|| format!("cannot make the bridge {name}"))
    }

    /// A veth pair of which both ends are here.
    pub async fn pair(&self, name: &str, peer: &str) -> Result<()> {
        let pair = LinkVeth::new(name, peer).build();
        self.0.link().add(pair).execute().await.with_context(|| format!("cannot make the veth pair {name}"))
    }

    /// Makes `name` a port of `bridge`.
    pub async fn join_bridge(&self, name: &str, bridge: &str) -> Result<()> {
        self.set(name, LinkUnspec::new_with_index(index(name)?).controller(index(bridge)?)).await
    }

    /// Gives an interface its hardware address.
    pub async fn mac(&self, name: &str, mac: Mac) -> Result<()> {
        self.set(name, LinkUnspec::new_with_index(index(name)?).address(mac.to_vec())).await
    }

    /// Sets the largest packet that an interface takes.
    pub async fn mtu(&self, name: &str, mtu: u32) -> Result<()> {
        self.set(name, LinkUnspec::new_with_index(index(name)?).mtu(mtu)).await
    }

    /// Forgets the hardware addresses of all neighbours.
    pub async fn flush_neighbours(&self) -> Result<()> {
        let mut neighbours = self.0.neighbours().get().execute();
        let mut known = Vec::new();
        while let Some(neighbour) = neighbours.try_next().await.context("cannot list the neighbours")? {
            known.push(neighbour);
        }
        for neighbour in known {
            // One that has gone by itself meanwhile, or that the kernel keeps for itself, is none to forget.
            let _ = self.0.neighbours().del(neighbour).execute().await;
        }
        Ok(())
    }

    /// Switches an interface on.
    pub async fn up(&self, name: &str) -> Result<()> {
        self.set(name, LinkUnspec::new_with_index(index(name)?).up()).await
    }

    /// Switches an interface off.
    pub async fn down(&self, name: &str) -> Result<()> {
        self.set(name, LinkUnspec::new_with_index(index(name)?).down()).await
    }

    /// Removes an interface.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.0
            .link()
            .del(index(name)?)
            .execute()
            .await
            .with_context(|| format!("cannot remove the interface {name}"))
    }

    /// Adds an address.
    pub async fn address(&self, name: &str, address: IpNet) -> Result<()> {
        self.0
            .address()
            .add(index(name)?, address.addr(), address.prefix_len())
            .execute()
            .await
            .with_context(|| format!("cannot give {name} the address {address}"))
    }

    /// The default route of the gateway's family.
    pub async fn default_route(&self, gateway: IpAddr) -> Result<()> {
        let anywhere: IpNet = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse()?;
        let route = route_to(anywhere)?.gateway(gateway)?;
        self.route(route, anywhere).await
    }

    /// Makes every address of `network` one of this namespace's own (`ip route add local …`).
    pub async fn own(&self, network: IpNet) -> Result<()> {
        let route = route_to(network)?
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .table_id(RT_TABLE_LOCAL)
            .output_interface(index("lo")?);
        self.route(route, network).await
    }

    /// Drops without an answer whatever comes for `network`, also where a wider network is owned.
    pub async fn blackhole(&self, network: IpNet) -> Result<()> {
        let route = route_to(network)?.kind(RouteType::BlackHole).table_id(RT_TABLE_LOCAL);
        self.route(route, network).await
    }

    async fn route(&self, route: RouteMessageBuilder<IpAddr>, to: IpNet) -> Result<()> {
        let route = self.0.route().add(route.build()).execute();
        route.await.with_context(|| format!("cannot add the route to {to}"))
    }

    async fn set(&self, name: &str, change: LinkMessageBuilder<LinkUnspec>) -> Result<()> {
        let set = self.0.link().set(change.build()).execute();
        set.await.with_context(|| format!("cannot set up the interface {name}"))
    }
}

/// The number of an interface in the calling thread's namespace.
pub fn index(name: &str) -> Result<u32> {
    if_nametoindex(name).with_context(|| format!("no interface {name}"))
}

fn route_to(network: IpNet) -> Result<RouteMessageBuilder<IpAddr>> {
    Ok(RouteMessageBuilder::<IpAddr>::new().destination_prefix(network.addr(), network.prefix_len())?)
}
