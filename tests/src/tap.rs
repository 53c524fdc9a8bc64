//! A tap device whose guest is the test itself.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netlink::{self, Mac};
use crate::netns::Netns;
use crate::sys;

/// The largest frame: a segment of 64 KiB with its headers.
const FRAME: usize = 66 * 1024;

/// A tap device on the host, which lives as long as this.
#[derive(Debug)]
pub struct Tap {
    file: File,
    n: u8,
    vnet_header: bool,
}

impl Tap {
    /// Bytes of the `virtio_net_hdr` in front of each frame, where it was asked for.
    pub const VNET_HEADER: usize = 10;

    pub(crate) fn open(host: &Netns, n: u8, vnet_header: bool) -> Result<Self> {
        ensure!(n > 0, "tap devices are numbered from 1");
        let name = format!("tap{n}");
        // A tap belongs to the namespace of the thread that opens it.
        let file = host.run(|| {
            sys::open_tap(&name, vnet_header).with_context(|| format!("cannot make the tap device {name}"))
        })?;
        let tap = Self { file, n, vnet_header };
        netlink::with(host, async |links| {
            links.mac(&name, tap.gateway_mac()).await?;
            links.up(&name).await?;
            links.address(&name, ipnet::Ipv4Net::new(tap.gateway_v4(), 30)?.into()).await?;
            links.address(&name, ipnet::Ipv6Net::new(tap.gateway_v6(), 64)?.into()).await
        })?;
        Ok(tap)
    }

    /// The interface on the host.
    pub fn host_interface(&self) -> String {
        format!("tap{}", self.n)
    }

    /// The address that the guest should use.
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 202, self.n, 2)
    }

    /// The IPv6 address that the guest should use.
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x202, self.n.into(), 0, 0, 0, 0, 2)
    }

    /// The host's address.
    pub fn gateway_v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 202, self.n, 1)
    }

    /// The host's IPv6 address.
    pub fn gateway_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x202, self.n.into(), 0, 0, 0, 0, 1)
    }

    /// The hardware address that the guest should use.
    pub fn mac(&self) -> Mac {
        [0x02, 0x7a, 0, 0, self.n, 0x02]
    }

    /// The host's hardware address.
    pub fn gateway_mac(&self) -> Mac {
        [0x02, 0x7a, 0, 0, self.n, 0x01]
    }

    /// Whether frames have a `virtio_net_hdr` in front.
    pub fn has_vnet_header(&self) -> bool {
        self.vnet_header
    }

    /// Sends a frame as the guest.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write_all(frame)
    }

    /// The next frame for the guest, or none within `timeout`.
    pub fn receive(&self, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            return Ok(None);
        }
        let mut frame = vec![0; FRAME];
        let length = (&self.file).read(&mut frame)?;
        frame.truncate(length);
        Ok(Some(frame))
    }
}
