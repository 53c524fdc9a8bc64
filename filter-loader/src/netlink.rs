//! What the host knows of interfaces and addresses, and word of their changes.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's messages have many more kinds and attributes than are looked for here"
)]

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use filter_common::frame::Mac;
use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};

/// A connection to the kernel's routing sockets, in the network namespace of the caller.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
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
}

impl Netlink {
    /// Opens a connection. The second value tells of changes from now on.
    ///
    /// # Errors
    /// If the kernel refuses the sockets.
    pub fn open() -> io::Result<(Self, impl futures_util::Stream<Item = Change> + Send + Unpin)> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        let changes = messages.filter_map(|(message, _)| {
            std::future::ready(match message.payload {
                NetlinkPayload::InnerMessage(message) => change(&message),
                _ => None,
            })
        });
        Ok((Self { handle }, changes))
    }

    /// The interface called `name`, if there is one.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }

    /// All interfaces.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        let messages: Vec<_> =
            self.handle.link().get().execute().try_collect().await.map_err(io::Error::other)?;
        Ok(messages
            .into_iter()
            .map(|message| {
                let name = message.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                });
                Link {
                    index: message.header.index,
                    name: name.unwrap_or_default(),
                    ethernet: message.header.link_layer_type == LinkLayerType::Ether,
                }
            })
            .collect())
    }

    /// Every address of the host itself.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn host_addresses(&self) -> io::Result<BTreeSet<IpAddr>> {
        let messages: Vec<_> =
            self.handle.address().get().execute().try_collect().await.map_err(io::Error::other)?;
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
        let neighbours: Vec<_> =
            self.handle.neighbours().get().execute().try_collect().await.map_err(io::Error::other)?;
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
        self.handle.route().get(request).execute().try_collect().await.map_err(io::Error::other)
    }
}

fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::DelLink(link) => Some(Change::LinkGone(link.header.index)),
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Some(Change::Addresses),
        _ => None,
    }
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
