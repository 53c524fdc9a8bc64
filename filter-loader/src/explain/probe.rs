//! The packet that would begin a connection.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder};
use filter_common::frame::Mac;
use filter_inspector::host::Transport;

/// Out of those that clients get.
const PORT: u16 = 50_000;

/// Who would send it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// Its hardware address.
    pub mac: Mac,
    /// That of its gateway.
    pub gateway: Mac,
    /// Its address, of the destination's family.
    pub address: IpAddr,
}

/// The first frame of a connection: a SYN, or a datagram. `None` if the families differ.
pub fn frame(sender: &Sender, to: SocketAddr, transport: Transport) -> Option<Vec<u8>> {
    // Lengths, protocol and checksums are filled in when it is written.
    let ip = match (sender.address, to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => IpHeaders::Ipv4(
            Ipv4Header {
                time_to_live: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv4Header::default()
            },
            Default::default(),
        ),
        (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
            Ipv6Header {
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            },
            Default::default(),
        ),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    let packet = PacketBuilder::ethernet2(sender.mac, sender.gateway).ip(ip);
    let mut frame = Vec::with_capacity(80);
    let written = match transport {
        Transport::Tcp => packet.tcp(PORT, to.port(), 1, 64_240).syn().write(&mut frame, &[]),
        // Something for a server to answer.
        Transport::Udp => packet.udp(PORT, to.port()).write(&mut frame, b"?"),
    };
    written.ok().map(|()| frame)
}
