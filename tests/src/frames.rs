//! Frames of any kind: what a hostile guest sends.

use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{MsgFlags, MultiHeaders, send, sendmmsg};

use crate::netns::Netns;
use crate::{netlink, sys};

/// Sends frames on an interface as they are.
#[derive(Debug)]
pub struct FrameSender(OwnedFd);

impl FrameSender {
    /// A sender on `interface` of `netns`.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = netns.run(|| {
            sys::packet_socket(netlink::index(interface)?, 0).context("cannot open a packet socket")
        })?;
        Ok(Self(socket))
    }

    /// Sends one frame, from its Ethernet header on.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty())
            .with_context(|| format!("cannot send a frame of {} bytes", frame.len()))?;
        Ok(())
    }

    /// Sends frames as fast as they go.
    pub fn send_all(&self, frames: &[Vec<u8>]) -> Result<()> {
        let slices: Vec<_> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let mut headers = MultiHeaders::<()>::preallocate(slices.len(), None);
        let sent = sendmmsg(
            self.0.as_raw_fd(),
            &mut headers,
            &slices,
            vec![None; slices.len()],
            [],
            MsgFlags::empty(),
        )
        .context("cannot send frames")?
        .count();
        ensure!(sent == frames.len(), "only {sent} of {} frames were sent", frames.len());
        Ok(())
    }
}
