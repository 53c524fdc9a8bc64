//! A sandbox: a namespace with `eth0`, whose other end is on the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::frames::FrameSender;
use crate::netlink::{self, Mac};
use crate::netns::Netns;

/// A sandbox. It *is* its namespace: `sandbox.tcp_connect(…)` connects from inside.
#[derive(Debug)]
pub struct Sandbox {
    plan: Plan,
    host: Netns,
    guest: Netns,
}

/// Names and addresses of a sandbox.
#[derive(Clone, Debug)]
pub struct Plan {
    pub host_interface: String,
    role: String,
    v4: Ipv4Net,
    v6: Ipv6Net,
    gateway_v4: Ipv4Net,
    gateway_v6: Ipv6Net,
    mac: Mac,
    /// Of the host's end of the wire.
    port_mac: Mac,
    gateway_mac: Mac,
}

impl Plan {
    /// A subnet of its own, cut out of 10.200.0.0/16 and fd00:200::/32.
    pub fn routed(n: u16) -> Result<Self> {
        ensure!((1..0x4000).contains(&n), "there are sandboxes 1 to 16,383, not {n}");
        let [high, low] = n.to_be_bytes();
        let v4 = |host: u8| Ipv4Net::new(Ipv4Addr::new(10, 200, low, high * 4 + host), 30);
        let v6 = |host| Ipv6Net::new(Ipv6Addr::new(0xfd00, 0x200, n, 0, 0, 0, 0, host), 64);
        let port_mac = [0x02, 0x5b, 0, high, low, 0x01];
        Ok(Self {
            host_interface: format!("sbx{n}"),
            role: format!("sandbox{n}"),
            v4: v4(2)?,
            v6: v6(2)?,
            gateway_v4: v4(1)?,
            gateway_v6: v6(1)?,
            mac: [0x02, 0x5b, 0, high, low, 0x02],
            port_mac,
            gateway_mac: port_mac,
        })
    }

    /// An address in the bridge's subnet.
    pub fn bridged(n: u16, bridge_mac: Mac) -> Result<Self> {
        ensure!((1..=200).contains(&n), "there are bridged sandboxes 1 to 200, not {n}");
        let host = u8::try_from(n)? + 1;
        let v4 = |host| Ipv4Net::new(Ipv4Addr::new(10, 201, 0, host), 24);
        let v6 = |host| Ipv6Net::new(Ipv6Addr::new(0xfd00, 0x201, 0, 0, 0, 0, 0, host), 64);
        Ok(Self {
            host_interface: format!("sbr{n}"),
            role: format!("bridged{n}"),
            v4: v4(host)?,
            v6: v6(host.into())?,
            gateway_v4: v4(1)?,
            gateway_v6: v6(1)?,
            mac: [0x02, 0xb0, 0, 0, host, 0x02],
            port_mac: [0x02, 0xb0, 0, 0, host, 0x01],
            gateway_mac: bridge_mac,
        })
    }

    pub fn addresses(&self) -> [IpNet; 2] {
        [self.v4.into(), self.v6.into()]
    }

    pub fn gateways(&self) -> [IpNet; 2] {
        [self.gateway_v4.into(), self.gateway_v6.into()]
    }

    /// Makes the guest's namespace and the wire to it.
    pub fn connect(&self, host: &Netns) -> Result<Netns> {
        let guest = Netns::new(&self.role)?;
        netlink::with(host, async |links| {
            links.veth(&self.host_interface, self.port_mac, Sandbox::INTERFACE, self.mac, &guest).await?;
            links.up(&self.host_interface).await
        })?;
        guest.set_link_up(Sandbox::INTERFACE, true)?;
        Ok(guest)
    }
}

impl Sandbox {
    /// The interface inside.
    pub const INTERFACE: &str = "eth0";

    pub(crate) fn new(plan: Plan, host: Netns, guest: Netns) -> Self {
        Self { plan, host, guest }
    }

    /// The interface on the host, to which the filter is attached.
    pub fn host_interface(&self) -> &str {
        &self.plan.host_interface
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.plan.v4.addr()
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.plan.v6.addr()
    }

    /// Its address in the family of `other`.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4().into() } else { self.v6().into() }
    }

    /// The host's address at its gateway.
    pub fn gateway_v4(&self) -> Ipv4Addr {
        self.plan.gateway_v4.addr()
    }

    /// The host's IPv6 address at its gateway.
    pub fn gateway_v6(&self) -> Ipv6Addr {
        self.plan.gateway_v6.addr()
    }

    /// Its hardware address.
    pub fn mac(&self) -> Mac {
        self.plan.mac
    }

    /// Its hardware address as text.
    pub fn mac_text(&self) -> String {
        self.plan.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// The hardware address that its packets to elsewhere go to.
    pub fn gateway_mac(&self) -> Mac {
        self.plan.gateway_mac
    }

    /// Sends frames of any kind from inside.
    pub fn frames(&self) -> Result<FrameSender> {
        FrameSender::open(&self.guest, Self::INTERFACE)
    }

    /// The start of an honest packet to `to`: add `.tcp(…)`, `.udp(…)` and so on, and `write` it.
    pub fn packet_to(&self, to: IpAddr) -> Result<PacketBuilderStep<IpHeaders>> {
        // Lengths, protocol and checksums are filled in when the packet is written.
        let ip = match to {
            IpAddr::V4(to) => {
                let header =
                    Ipv4Header::new(0, 64, etherparse::IpNumber::TCP, self.v4().octets(), to.octets());
                IpHeaders::Ipv4(header.context("no IPv4 header")?, Default::default())
            }
            IpAddr::V6(to) => {
                let header = Ipv6Header {
                    hop_limit: 64,
                    source: self.v6().octets(),
                    destination: to.octets(),
                    ..Default::default()
                };
                IpHeaders::Ipv6(header, Default::default())
            }
        };
        Ok(PacketBuilder::ethernet2(self.mac(), self.gateway_mac()).ip(ip))
    }

    /// Sends one SYN from each of `ports` without a socket behind it. At an address that never answers the
    /// connections stay half open; elsewhere the kernel resets them when the answer comes.
    pub fn send_syns(&self, to: impl Into<SocketAddr>, ports: impl IntoIterator<Item = u16>) -> Result<()> {
        let to = to.into();
        let frames = self.frames()?;
        for port in ports {
            let packet = self.packet_to(to.ip())?.tcp(port, to.port(), 1, 64_240).syn();
            let mut frame = Vec::with_capacity(packet.size(0));
            packet.write(&mut frame, &[])?;
            frames.send(&frame)?;
        }
        Ok(())
    }
}

impl Deref for Sandbox {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.guest
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The namespace goes when the kernel gets to it; the wire goes now, so that its name is free.
        let _ = self.host.delete_link(&self.plan.host_interface);
    }
}
