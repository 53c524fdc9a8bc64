//! Resets both ends of connections that lost their permission.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use etherparse::PacketBuilder;
use filter_common::layout::Cut;
use filter_common::{RuleWord, decide};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::core::Core;
use crate::kernel::rings::Ring;
use crate::kernel::run::Towards;

/// Starts the thread that reads the ring of cuts, until `stop`.
///
/// # Errors
/// If there can be no more threads.
pub fn start(core: Arc<Core>, mut ring: Ring<Cut>, stop: Arc<AtomicBool>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("cut".into()).spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            wait(&ring);
            while let Some(cut) = ring.pop() {
                reset(&core, &cut);
            }
        }
    })
}

/// Waits for an entry, or until it is time to look whether to stop.
fn wait(ring: &Ring<Cut>) {
    let patience = PollTimeout::from(200_u8);
    let mut fds = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
    // Interrupted or not, the ring is read next.
    let _ = poll(&mut fds, patience);
}

fn reset(core: &Core, cut: &Cut) {
    let punted = decide::belongs_to_inspector(RuleWord::from_bits(cut.rule));
    for towards in [Towards::Sandbox, if punted { Towards::Inspector } else { Towards::Host }] {
        let Some(frame) = frame(cut, towards) else { continue };
        if let Err(error) = core.kernel.runner.inject(&frame, cut.ifindex, towards) {
            // The interface may have gone meanwhile, and the connection with it.
            tracing::debug!(%error, "a connection ends without a reset");
        }
    }
}

/// The reset, as the other end would send it: it carries the number that this end expects next, which is
/// the only one that it believes (RFC 5961 section 3.2).
fn frame(cut: &Cut, towards: Towards) -> Option<Vec<u8>> {
    let mac = |from: usize| -> [u8; 6] {
        let bytes: Vec<u8> = cut.macs.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.get(from..from + 6).and_then(|mac| mac.try_into().ok()).unwrap_or_default()
    };
    let (peer, own) = (mac(0), mac(6));
    let key = &cut.key;
    let (local, remote) = (
        (key.local(), u16::from_be(key.local_port()), cut.next_of_sandbox),
        (key.remote(), u16::from_be(key.remote_port()), cut.next_of_remote),
    );
    let (macs, from, to) = match towards {
        Towards::Sandbox => ((peer, own), remote, local),
        Towards::Host | Towards::Inspector => ((own, peer), local, remote),
    };
    const HOP_LIMIT: u8 = 64;
    let ethernet = PacketBuilder::ethernet2(macs.0, macs.1);
    let ip = if from.0.is_v4() {
        let octets = |addr: filter_common::Addr| addr.v4_word().to_ne_bytes();
        ethernet.ipv4(octets(from.0), octets(to.0), HOP_LIMIT)
    } else {
        ethernet.ipv6(from.0.octets(), to.0.octets(), HOP_LIMIT)
    };
    let segment = ip.tcp(from.1, to.1, from.2, 0).rst().ack(to.2);
    let mut frame = Vec::with_capacity(segment.size(0));
    segment.write(&mut frame, &[]).ok()?;
    Some(frame)
}
