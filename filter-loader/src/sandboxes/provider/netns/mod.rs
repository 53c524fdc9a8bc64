//! Network namespaces: each sandbox is `/run/netns/sbx-<id>`, into which `ip netns exec` leads, with a veth to the
//! host, one address, a route, and a `resolv.conf` of its own; it trusts the filter's authority.
//!
//! ```text
//!   namespace sbx-<id>                     host
//!     eth0  10.200.0.7/32  ──── veth ────  sbx-<id…>   (no address)
//!     default via 10.200.0.1               10.200.0.7/32 dev sbx-<id…>
//! ```
//!
//! Both ends know each other's hardware address from the start, so that neither asks for it, and the gateway's
//! address need not exist: adding one sandbox changes nothing about the host that another could notice.

mod addresses;
mod links;
mod namespace;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::Ipv4Net;
use tokio::task::spawn_blocking;

use self::{addresses::Addresses, links::Wire, namespace::Namespace};
use super::{Order, Provider};
use crate::{
    control::Answer,
    error::ControlError,
    netlink::Netlink,
    protocol::{Mac, SandboxId},
    sandboxes::record::Port,
    trust::Trust,
};

/// Where `ip netns exec` looks for files that shall replace those of `/etc`.
const ETC: &str = "/etc/netns";

/// The provider that makes network namespaces.
#[derive(Clone)]
pub struct Netns {
    netlink: Netlink,
    gateway: Ipv4Addr,
    addresses: Arc<Mutex<Addresses>>,
    resolvers: Arc<[IpAddr]>,
    trust: Trust,
}

impl Netns {
    /// A provider that takes addresses from `subnet`; processes in its sandboxes ask `resolvers`, and trust what
    /// `trust` says.
    pub fn new(netlink: Netlink, subnet: Ipv4Net, resolvers: &[IpAddr], trust: Trust) -> Self {
        let addresses = Addresses::new(subnet);
        Self {
            netlink,
            gateway: addresses.gateway(),
            addresses: Arc::new(Mutex::new(addresses)),
            resolvers: resolvers.into(),
            trust,
        }
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self, id: &SandboxId, port: &Port) -> io::Result<()> {
        let wire = self.wire(port)?;
        let netns = Namespace::of(id);
        let (here, there) = {
            let netns = netns.clone();
            spawn_blocking(move || netns.create()).await.map_err(io::Error::other)??
        };
        wire.lay(&here, there).await?;
        let (etc, resolvers, trust) = (etc(id), self.resolvers.clone(), self.trust.clone());
        let write = move || {
            write_resolv_conf(&etc, &resolvers)?;
            trust.link_into(&etc)
        };
        spawn_blocking(write).await.map_err(io::Error::other)?
    }

    async fn remove(&self, id: &SandboxId, port: Option<&Port>) -> io::Result<()> {
        if let Some(port) = port {
            links::remove(&self.netlink, &port.iface).await?;
        }
        let (netns, etc) = (Namespace::of(id), etc(id));
        spawn_blocking(move || {
            netns.remove()?;
            match fs::remove_dir_all(&etc) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
        .await
        .map_err(io::Error::other)?
    }

    fn wire(&self, port: &Port) -> io::Result<Wire> {
        let address = port.addrs.iter().find_map(|addr| match addr {
            IpAddr::V4(addr) => Some(*addr),
            IpAddr::V6(_) => None,
        });
        let address = address.ok_or_else(|| io::Error::other("it has no address"))?;
        Ok(Wire::new(port.iface.clone(), address, self.gateway))
    }
}

impl Provider for Netns {
    fn reserve(&self, id: &SandboxId) -> Result<Option<Port>, ControlError> {
        let address = self.addresses().take().ok_or_else(|| {
            ControlError::failed("every address of [provider].subnet has a sandbox; use a larger one")
        })?;
        let mac = Mac::from(links::guest_mac(address));
        Ok(Some(Port { iface: links::name(id), addrs: vec![address.into()], mac: Some(mac) }))
    }

    fn adopt(&self, port: &Port) {
        for addr in &port.addrs {
            if let IpAddr::V4(addr) = addr {
                self.addresses().adopt(*addr);
            }
        }
    }

    fn release(&self, port: &Port) {
        for addr in &port.addrs {
            if let IpAddr::V4(addr) = addr {
                self.addresses().give_back(*addr);
            }
        }
    }

    fn create(&self, order: Order, reserved: Option<Port>) -> Answer<'_, Port> {
        Box::pin(async move {
            let port = reserved.ok_or_else(|| ControlError::failed("no address is reserved for it"))?;
            self.make(&order.id, &port).await.map_err(failed("make"))?;
            Ok(port)
        })
    }

    fn start(&self, port: Port) -> Answer<'_, ()> {
        Box::pin(async move {
            let started = async { self.wire(&port)?.connect(&self.netlink).await };
            started.await.map_err(failed("connect"))
        })
    }

    fn destroy(&self, id: SandboxId, port: Option<Port>) -> Answer<'_, ()> {
        Box::pin(async move { self.remove(&id, port.as_ref()).await.map_err(failed("remove")) })
    }
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> ControlError {
    move |error| ControlError::failed(format!("cannot {what} the network namespace: {error}"))
}

fn etc(id: &SandboxId) -> PathBuf {
    Path::new(ETC).join(namespace::name(id))
}

fn write_resolv_conf(etc: &Path, resolvers: &[IpAddr]) -> io::Result<()> {
    fs::create_dir_all(etc)?;
    let lines: String = resolvers.iter().map(|resolver| format!("nameserver {resolver}\n")).collect();
    fs::write(etc.join("resolv.conf"), lines)
}
