//! What really arrived: a packet socket that counts frames by flow.
//!
//! A denial is proven at the destination, where no packet may arrive, and not by what the client believes.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::netns::Netns;
use crate::{netlink, sys};

/// Frames of one conversation in one direction. Ports are 0 where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol: 6 is TCP, 17 UDP, 1 ICMP, 58 ICMPv6.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

/// How much of a flow arrived. With segmentation offload a frame may hold many segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Frames.
    pub frames: u64,
    /// Bytes of these frames.
    pub bytes: u64,
}

/// Counts the frames that an interface receives, until it is dropped.
#[derive(Debug)]
pub struct Capture {
    state: Arc<State>,
    reader: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct State {
    socket: OwnedFd,
    flows: Mutex<HashMap<Flow, Count>>,
    stop: AtomicBool,
}

impl Capture {
    /// Counts from now on what `interface` of `netns` receives.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = netns.run(|| {
            let socket = sys::packet_socket(netlink::index(interface)?, sys::ETH_P_ALL)
                .context("cannot open a packet socket")?;
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).context("cannot enlarge the buffer")?;
            Ok(socket)
        })?;
        let state =
            Arc::new(State { socket, flows: Mutex::new(HashMap::new()), stop: AtomicBool::new(false) });
        // Empties the buffer under load; a question empties it itself, so that no answer is late.
        let reader = thread::Builder::new().name("capture".into()).spawn({
            let state = Arc::clone(&state);
            move || {
                while !state.stop.load(Ordering::Relaxed) {
                    let wait = PollTimeout::from(50_u8);
                    poll(&mut [PollFd::new(state.socket.as_fd(), PollFlags::POLLIN)], wait)?;
                    drop(state.drain()?);
                }
                Ok(())
            }
        })?;
        Ok(Self { state, reader: Some(reader) })
    }

    /// Every flow of which something arrived. It is an error when frames were lost: then nobody knows.
    pub fn flows(&self) -> Result<Vec<(Flow, Count)>> {
        let flows = self.state.drain()?;
        let mut all: Vec<_> = flows.iter().map(|(flow, count)| (*flow, *count)).collect();
        all.sort_by_key(|(flow, _)| *flow);
        Ok(all)
    }

    /// How much arrived of the flows that `wanted` picks.
    pub fn count(&self, wanted: impl Fn(&Flow) -> bool) -> Result<Count> {
        let flows = self.state.drain()?;
        let picked = flows.iter().filter(|(flow, _)| wanted(flow));
        Ok(picked.fold(Count::default(), |sum, (_, count)| Count {
            frames: sum.frames + count.frames,
            bytes: sum.bytes + count.bytes,
        }))
    }

    /// Frames of any protocol to an address.
    pub fn frames_to(&self, destination: impl Into<IpAddr>) -> Result<u64> {
        let destination = destination.into();
        Ok(self.count(|flow| flow.destination == destination)?.frames)
    }

    /// TCP frames to an address and port.
    pub fn tcp_frames_to(&self, to: impl Into<SocketAddr>) -> Result<u64> {
        let to = to.into();
        let tcp = IpNumber::TCP.0;
        let count =
            self.count(|flow| flow.protocol == tcp && flow.destination == to.ip() && flow.port == to.port());
        Ok(count?.frames)
    }

    /// UDP frames to an address and port.
    pub fn udp_frames_to(&self, to: impl Into<SocketAddr>) -> Result<u64> {
        let to = to.into();
        let udp = IpNumber::UDP.0;
        let count =
            self.count(|flow| flow.protocol == udp && flow.destination == to.ip() && flow.port == to.port());
        Ok(count?.frames)
    }

    /// Frames from an address.
    pub fn frames_from(&self, source: impl Into<IpAddr>) -> Result<u64> {
        let source = source.into();
        Ok(self.count(|flow| flow.source == source)?.frames)
    }

    /// Forgets what was counted.
    pub fn reset(&self) -> Result<()> {
        self.state.drain()?.clear();
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // Lost frames were, or would have been, reported by the question that they matter to.
            let _ = reader.join();
        }
    }
}

impl State {
    /// Takes in all that has arrived, and gives the counts.
    fn drain(&self) -> Result<MutexGuard<'_, HashMap<Flow, Count>>> {
        // Counts are whole whatever thread panicked while it held the lock.
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        // The headers are enough.
        let mut start = [0; 256];
        loop {
            // With MSG_TRUNC the answer is the frame's length, not that of what fits.
            match recv(self.socket.as_raw_fd(), &mut start, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                Ok(length) => {
                    if let Some(flow) = start.get(..length.min(256)).and_then(flow_of) {
                        let count = flows.entry(flow).or_default();
                        count.frames += 1;
                        count.bytes += length as u64;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("cannot read the packet socket"),
            }
        }
        match sys::packets_lost(&self.socket)? {
            0 => Ok(flows),
            lost => bail!("the capture lost {lost} frames, so its counts prove nothing"),
        }
    }
}

fn flow_of(frame: &[u8]) -> Option<Flow> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination, protocol) = match packet.net? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload_ip_number())
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload().ip_number)
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let port = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.destination_port(),
        Some(TransportSlice::Udp(udp)) => udp.destination_port(),
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) | None => 0,
    };
    Some(Flow { source, destination, protocol: protocol.0, port })
}
