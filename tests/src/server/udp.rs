//! The UDP service.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket as StdSocket;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering;

use anyhow::Result;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Tally;

/// Sends back every datagram from the address that it came to: the internet has thousands of them, and a client
/// listens to the one that it asked.
pub async fn echo(socket: StdSocket, tally: &Tally) -> Result<()> {
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    let socket = UdpSocket::from_std(socket)?;
    let mut buffer = vec![0; 65_536];
    loop {
        socket.async_io(Interest::READABLE, || Ok(answer_one(&socket, &mut buffer, tally)?)).await?;
    }
}

fn answer_one(socket: &UdpSocket, buffer: &mut [u8], tally: &Tally) -> nix::Result<()> {
    let fd = socket.as_raw_fd();
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut into = [IoSliceMut::new(buffer)];
    let received = recvmsg::<SockaddrIn6>(fd, &mut into, Some(&mut control), MsgFlags::empty())?;
    let (length, peer) = (received.bytes, received.address);
    let asked = received.cmsgs()?.find_map(|message| {
        if let ControlMessageOwned::Ipv6PacketInfo(info) = message { Some(info) } else { None }
    });
    tally.datagrams.fetch_add(1, Ordering::Relaxed);
    tally.bytes_in.fetch_add(length as u64, Ordering::Relaxed);

    let (Some(asked), Some(peer)) = (asked, peer) else { return Ok(()) };
    // Only the address counts; the route chooses the interface.
    let source = libc::in6_pktinfo { ipi6_ifindex: 0, ..asked };
    let payload = [IoSlice::new(buffer.get(..length).unwrap_or_default())];
    let from = [ControlMessage::Ipv6PacketInfo(&source)];
    // An answer that cannot be sent is lost, as datagrams are.
    if sendmsg(fd, &payload, &from, MsgFlags::empty(), Some(&peer)).is_ok() {
        tally.bytes_out.fetch_add(length as u64, Ordering::Relaxed);
    }
    Ok(())
}
