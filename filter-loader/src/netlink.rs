//! What the host knows of interfaces and addresses, and word of their changes.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's messages have many more kinds and attributes than are looked for here"
)]

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use filter_common::frame::Mac;
use futures_util::{StreamExt, TryStream, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, LinkGetRequest, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio::sync::Mutex;

/// A connection to the kernel's routing sockets, in the network namespace of the caller.
#[derive(Clone)]
pub struct Netlink {
    /// The kernel refuses a list (`EBUSY`) while it is still telling another one on the same socket:
    /// `__netlink_dump_start` in <https://github.com/torvalds/linux/blob/v6.12/net/netlink/af_netlink.c>
    lister: Arc<Mutex<Handle>>,
    /// For everything that is no list: another socket, so that it waits for none.
    asker: Handle,
}

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether its frames have Ethernet headers.
    pub ethernet: bool,
    /// Its own hardware address; zeros if it has none.
    pub mac: Mac,
}

/// Who is at the other end of an interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peers {
    /// Their addresses.
    pub addrs: BTreeSet<IpAddr>,
    /// Their hardware addresses.
    pub macs: BTreeSet<Mac>,
}

/// Something changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// An interface went away.
    LinkGone(u32),
    /// The host's addresses are not what they were.
    Addresses,
    /// An interface is not what it was: its hardware address, for instance.
    Link(u32),
    /// A routing rule went away, or a local route of another table than the kernel's.
    Rules,
    /// Changes came faster than they could be told.
    Missed,
}

impl Change {
    /// The interface that is not what it was.
    pub fn link(&self) -> Option<u32> {
        if let Self::Link(index) = self { Some(*index) } else { None }
    }

    /// The interface that went away.
    pub fn link_gone(&self) -> Option<u32> {
        if let Self::LinkGone(index) = self { Some(*index) } else { None }
    }
}

impl Netlink {
    /// The connection itself, for whoever has other things to ask. One list at a time.
    pub async fn handle(&self) -> tokio::sync::MutexGuard<'_, Handle> {
        self.lister.lock().await
    }

    /// Another connection, for requests that list nothing; any number at a time.
    pub fn requests(&self) -> Handle {
        self.asker.clone()
    }

    /// Opens a connection. The second value tells of changes from now on.
    ///
    /// # Errors
    /// If the kernel refuses the sockets.
    pub fn open() -> io::Result<(Self, impl futures_util::Stream<Item = Change> + Send + Unpin)> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let (connection, asker, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        let changes = messages.filter_map(|(message, _)| {
            std::future::ready(match message.payload {
                NetlinkPayload::InnerMessage(message) => change(&message),
                // Some were lost; whatever they were, everything is looked at again.
                NetlinkPayload::Overrun(_) => Some(Change::Missed),
                _ => None,
            })
        });
        Ok((Self { lister: Arc::new(Mutex::new(handle)), asker }, changes))
    }

    /// The interface called `name`, if there is one.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        // No name of an interface is longer, and the kernel would refuse to look.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Ok(None);
        }
        one(self.asker.link().get().match_name(name)).await
    }

    /// The interface with this index, if there is one.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn link_at(&self, index: u32) -> io::Result<Option<Link>> {
        one(self.asker.link().get().match_index(index)).await
    }

    /// Switches an interface on, unless it is.
    ///
    /// # Errors
    /// If there is none of that name, or the kernel refuses.
    pub async fn set_up(&self, name: &str) -> io::Result<()> {
        let link = self.link(name).await?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let up = LinkUnspec::new_with_index(link.index).up().build();
        self.asker.link().set(up).execute().await.map_err(io::Error::other)
    }

    /// All interfaces.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        let messages = self.list(|handle| handle.link().get().execute()).await?;
        Ok(messages.into_iter().map(Link::from).collect())
    }

    /// Every address of the host itself.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn host_addresses(&self) -> io::Result<BTreeSet<IpAddr>> {
        let messages = self.list(|handle| handle.address().get().execute()).await?;
        Ok(messages
            .into_iter()
            .flat_map(|message| message.attributes)
            .filter_map(|attribute| match attribute {
                // On a point-to-point link `Address` is the other end's; `Local` is ours where it is given.
                AddressAttribute::Local(addr) | AddressAttribute::Address(addr) => Some(addr),
                _ => None,
            })
            .collect())
    }

    /// Every range that the host takes packets for besides its addresses: broadcast and anycast addresses of
    /// its subnets, and what a local route says.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn host_ranges(&self) -> io::Result<BTreeSet<IpNet>> {
        let mut ranges = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            ranges.extend(self.routes(family).await?.iter().filter_map(taken_by_host));
        }
        Ok(ranges)
    }

    /// Who the host's routes and neighbours say is at the other end of an interface.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn peers(&self, ifindex: u32) -> io::Result<Peers> {
        let mut peers = Peers::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in self.routes(family).await? {
                peers.addrs.extend(host_route(&route, ifindex));
            }
        }
        let neighbours = self.list(|handle| handle.neighbours().get().execute()).await?;
        for message in neighbours {
            let known = !matches!(
                message.header.state,
                NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::Noarp
            );
            if message.header.ifindex != ifindex || !known {
                continue;
            }
            for attribute in message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(addr)) => {
                        peers.addrs.insert(addr.into());
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(addr)) => {
                        peers.addrs.insert(addr.into());
                    }
                    NeighbourAttribute::LinkLayerAddress(bytes) => {
                        peers.macs.extend(Mac::try_from(bytes.as_slice()).ok());
                    }
                    _ => {}
                }
            }
        }
        peers.addrs.retain(|addr| !addr.is_multicast() && !addr.is_unspecified());
        Ok(peers)
    }

    async fn routes(&self, family: AddressFamily) -> io::Result<Vec<RouteMessage>> {
        let request = match family {
            AddressFamily::Inet => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            _ => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        self.list(|handle| handle.route().get(request).execute()).await
    }

    /// Has the kernel list something. `ask` sends the request, so it is called when its turn has come.
    async fn list<S>(&self, ask: impl FnOnce(&Handle) -> S) -> io::Result<Vec<S::Ok>>
    where
        S: TryStream<Error = rtnetlink::Error>,
    {
        let handle = self.lister.lock().await;
        ask(&handle).try_collect().await.map_err(io::Error::other)
    }
}

/// The answer to a question about one interface.
async fn one(request: LinkGetRequest) -> io::Result<Option<Link>> {
    match request.execute().try_next().await {
        Ok(message) => Ok(message.map(Link::from)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => Mac::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        Self {
            mac: mac.unwrap_or_default(),
            index: message.header.index,
            name: name.unwrap_or_default(),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        }
    }
}

fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        // Leaving a bridge is told the same way, under the bridge's family.
        RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(Change::LinkGone(link.header.index))
        }
        RouteNetlinkMessage::NewLink(link) if link.header.interface_family == AddressFamily::Unspec => {
            Some(Change::Link(link.header.index))
        }
        RouteNetlinkMessage::DelRule(_) => Some(Change::Rules),
        RouteNetlinkMessage::DelRoute(route)
            if route.header.kind == RouteType::Local && route.header.table != LOCAL_TABLE =>
        {
            Some(Change::Rules)
        }
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Some(Change::Addresses),
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
            if taken_by_host(route).is_some() =>
        {
            Some(Change::Addresses)
        }
        _ => None,
    }
}

/// The kernel's own table of local routes.
const LOCAL_TABLE: u8 = 255;

/// Where a route leads that ends at the host itself. Only of the kernel's own table: other tables have
/// local routes for packets that the host was asked to intercept.
fn taken_by_host(route: &RouteMessage) -> Option<IpNet> {
    let ends_here = matches!(route.header.kind, RouteType::Local | RouteType::Broadcast | RouteType::Anycast);
    let len = route.header.destination_prefix_length;
    if !ends_here || route.header.table != LOCAL_TABLE || len == 0 {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(addr)) => IpNet::new((*addr).into(), len).ok(),
        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => IpNet::new((*addr).into(), len).ok(),
        _ => None,
    })
}

/// The address that a unicast route to a single host through `ifindex` leads to.
fn host_route(route: &RouteMessage, ifindex: u32) -> Option<IpAddr> {
    let host = match route.header.address_family {
        AddressFamily::Inet => 32,
        _ => 128,
    };
    let leads_there = route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(oif) => *oif == ifindex,
        _ => false,
    });
    if !leads_there
        || route.header.destination_prefix_length != host
        || route.header.kind != RouteType::Unicast
    {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    })
}
