//! Offloads of an interface. Benches switch them off to count packets instead of segments.

use anyhow::{Context as _, Result};

use crate::sys;

/// A feature that a network card, or a veth in its place, takes off the kernel's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums of received packets.
    RxChecksum,
    /// Checksums of sent packets; off also ends segmentation offloads.
    TxChecksum,
    /// Packets in several pieces of memory.
    ScatterGather,
    /// Cutting TCP segments in the card.
    Tso,
    /// Cutting segments at the last moment in the kernel.
    Gso,
    /// Joining received segments.
    Gro,
}

impl Offload {
    /// Everything that makes one frame out of several packets.
    pub const SEGMENTATION: &[Self] = &[Self::Tso, Self::Gso, Self::Gro];

    pub(crate) fn set(self, interface: &str, on: bool) -> Result<()> {
        // ETHTOOL_S… of linux/ethtool.h.
        let command = match self {
            Self::RxChecksum => 0x15,
            Self::TxChecksum => 0x17,
            Self::ScatterGather => 0x19,
            Self::Tso => 0x1f,
            Self::Gso => 0x24,
            Self::Gro => 0x2c,
        };
        sys::ethtool_set(interface, command, on)
            .with_context(|| format!("cannot switch {self:?} of {interface} to {on}"))
    }
}
