//! The wire between a sandbox and the host.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    path::Path,
};

use filter_common::frame;
use nix::net::if_::if_nametoindex;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoKind, InfoVeth},
        route::RouteScope,
    },
};

use crate::{netlink::Netlink, protocol::SandboxId};

/// The interface inside.
const INSIDE: &str = "eth0";
/// How much of an id fits into the name of an interface, behind the prefix.
const ID_PART: usize = 11;

/// The name of a sandbox's interface on the host.
pub(super) fn name(id: &SandboxId) -> String {
    let part: String = id.as_str().chars().take(ID_PART).collect();
    format!("sbx-{part}")
}

/// The hardware address of the sandbox with this address.
pub(super) fn guest_mac(address: Ipv4Addr) -> frame::Mac {
    let [a, b, c, d] = address.octets();
    [0x02, 0x5a, a, b, c, d]
}

/// That of the host's end.
fn host_mac(address: Ipv4Addr) -> frame::Mac {
    let [a, b, c, d] = address.octets();
    [0x02, 0x5b, a, b, c, d]
}

/// A veth pair and what both ends know.
pub(super) struct Wire {
    name: String,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl Wire {
    pub(super) fn new(name: String, address: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        Self { name, address, gateway }
    }

    /// Makes the pair from inside the sandbox's namespace and sets the sandbox's end up. The host's end stays
    /// down.
    pub(super) async fn lay(&self, host: &File, inside: Handle) -> io::Result<()> {
        let host_end = LinkMessageBuilder::<LinkUnspec>::new()
            .name(&self.name)
            .address(host_mac(self.address).to_vec())
            .setns_by_fd(host.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(INSIDE)
            .address(guest_mac(self.address).to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(host_end)))
            .build();
        inside.link().add(pair).execute().await.map_err(kernel)?;
        // The only interfaces of a fresh namespace are loopback, which is always the first, and this one.
        let index = index_inside(&inside).await?;
        for link in [1, index] {
            let up = LinkUnspec::new_with_index(link).up().build();
            inside.link().set(up).execute().await.map_err(kernel)?;
        }
        inside.address().add(index, self.address.into(), 32).execute().await.map_err(kernel)?;
        inside
            .neighbours()
            .add(index, IpAddr::V4(self.gateway))
            .link_layer_address(&host_mac(self.address))
            .execute()
            .await
            .map_err(kernel)?;
        let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(self.gateway, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        inside.route().add(to_gateway).execute().await.map_err(kernel)?;
        let default =
            RouteMessageBuilder::<Ipv4Addr>::new().gateway(self.gateway).output_interface(index).build();
        inside.route().add(default).execute().await.map_err(kernel)
    }

    /// Sets the host's end up and lets the host know the way, unless it does already.
    pub(super) async fn connect(&self, netlink: &Netlink) -> io::Result<()> {
        // Sandboxes have no IPv6 address; without one of its own, the host's end needs none either.
        let switch = Path::new("/proc/sys/net/ipv6/conf").join(&self.name).join("disable_ipv6");
        match fs::write(switch, "1") {
            // A host without IPv6.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let index = if_nametoindex(self.name.as_str())?;
        let host = netlink.requests();
        let up = LinkUnspec::new_with_index(index).up().build();
        host.link().set(up).execute().await.map_err(kernel)?;
        host.neighbours()
            .add(index, IpAddr::V4(self.address))
            .link_layer_address(&guest_mac(self.address))
            .replace()
            .execute()
            .await
            .map_err(kernel)?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(self.address, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build();
        match host.route().add(route).execute().await.map_err(kernel) {
            // It is there since an earlier run of the daemon.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }
}

/// Removes an interface of the host, and with it its other end and every route through it.
pub(super) async fn remove(netlink: &Netlink, name: &str) -> io::Result<()> {
    let index = match if_nametoindex(name) {
        Ok(index) => index,
        Err(nix::Error::ENODEV) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    match netlink.requests().link().del(index).execute().await {
        // It went by itself.
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(()),
        other => other.map_err(kernel),
    }
}

async fn index_inside(inside: &Handle) -> io::Result<u32> {
    use futures_util::TryStreamExt;
    let mut found = inside.link().get().match_name(INSIDE).execute();
    let link = found.try_next().await.map_err(kernel)?;
    link.map(|link| link.header.index).ok_or_else(|| io::Error::other("the interface inside is gone"))
}

fn kernel(error: rtnetlink::Error) -> io::Error {
    if let rtnetlink::Error::NetlinkError(error) = error {
        return error.to_io();
    }
    io::Error::other(error)
}
