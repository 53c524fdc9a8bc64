//! Frames as they arrived, whole: for checks of what is inside them.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::netns::Netns;
use crate::tap::Tap;
use crate::{netlink, sys};

/// Keeps every frame that an interface receives, until it is dropped.
#[derive(Debug)]
pub struct Recording {
    socket: OwnedFd,
    frames: Mutex<Vec<Vec<u8>>>,
}

impl Recording {
    /// Keeps from now on what `interface` of `netns` receives.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = netns.run(|| {
            let socket = sys::packet_socket(netlink::index(interface)?, sys::ETH_P_ALL)
                .context("cannot open a packet socket")?;
            sys::want_vnet_header(&socket).context("cannot ask for the state of checksums")?;
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).context("cannot enlarge the buffer")?;
            Ok(socket)
        })?;
        Ok(Self { socket, frames: Mutex::new(Vec::new()) })
    }

    /// All frames so far. A checksum that was left to the receiver's hardware is finished as the hardware would
    /// have finished it, so that a wrong one is wrong here. It is an error when frames were lost.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        self.since(0)
    }

    /// How many frames there are so far.
    pub fn count(&self) -> Result<usize> {
        Ok(self.since(0)?.len())
    }

    /// The frames so far without the first `skip`.
    pub fn since(&self, skip: usize) -> Result<Vec<Vec<u8>>> {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = vec![0; 80 * 1024];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    let frame = buffer.get(..length).unwrap_or_default();
                    frames.push(finish_checksum(frame).context("a frame without its header")?);
                }
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("cannot read the packet socket"),
            }
        }
        let lost = sys::packets_lost(&self.socket)?;
        ensure!(lost == 0, "the recording lost {lost} frames, so it proves nothing");
        Ok(frames.get(skip..).unwrap_or_default().to_vec())
    }
}

/// The frame behind a `virtio_net_hdr`, with its checksum finished where the header leaves that to the receiver.
/// None if it is shorter than its header says.
pub fn finish_checksum(framed: &[u8]) -> Option<Vec<u8>> {
    // Layout and flag of linux/virtio_net.h.
    const NEEDS_CSUM: u8 = 1;
    let (header, frame) = framed.split_at_checked(Tap::VNET_HEADER)?;
    let mut frame = frame.to_vec();
    if header.first()? & NEEDS_CSUM != 0 {
        let half =
            |at: usize| Some(usize::from(u16::from_ne_bytes([*header.get(at)?, *header.get(at + 1)?])));
        let (start, offset) = (half(6)?, half(8)?);
        let mut sum = 0_u64;
        for pair in frame.get(start..)?.chunks(2) {
            sum += u64::from(*pair.first()?) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = !u16::try_from(sum).ok()?;
        frame.get_mut(start + offset..start + offset + 2)?.copy_from_slice(&sum.to_be_bytes());
    }
    Some(frame)
}
