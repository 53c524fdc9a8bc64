//! Packets as fast as they go: UDP of 64 bytes, from a packet socket in the sandbox to the internet.
//!
//! Sender, host and receiver share one CPU, so the time of a packet is the work of all three; what a filter
//! adds shows undivided.

use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Netns, Sandbox};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};

use super::compare::Ground as _;
use super::lane::Lane;
use super::prefixes::{Prefixes, Random};
use super::sys::{self, Cpu};

/// Bytes of a frame, without its check sequence.
const SIZE: usize = 64;
const PAYLOAD: usize = SIZE - 14 - 20 - 8;
/// Frames of one system call.
const BATCH: usize = 256;
/// Flows that come again and again.
const KNOWN: usize = 1024;
/// Addresses that new flows go to in turn.
const DESTINATIONS: usize = 1 << 16;

type Frame = [u8; SIZE];

/// Which flows the packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// The same 1,024, in turn.
    Known,
    /// Each packet another one.
    New,
}

/// Sends `count` packets to addresses in `prefixes`: nanoseconds for each.
pub fn run(lane: &Lane, flows: Flows, prefixes: &Prefixes, count: usize) -> Result<f64> {
    let destinations = prefixes.addresses(if flows == Flows::Known { KNOWN } else { DESTINATIONS });
    let frame = template(lane.sandbox())?;
    let sender = lane.sandbox().run(|| {
        let index = if_nametoindex(Sandbox::INTERFACE)?;
        sys::frame_socket(index).context("cannot open a packet socket")
    })?;
    if flows == Flows::Known {
        // Once each, so that all are known; and the host learns where its neighbours are.
        flood(&sender, frame, flows, &destinations, KNOWN)?;
    } else {
        lane.forget_flows()?;
    }
    let before = received(lane.internet())?;
    let took = flood(&sender, frame, flows, &destinations, count)?;
    let arrived = all_received(lane.internet(), before + count as u64)?.saturating_sub(before);
    if flows == Flows::New {
        lane.forget_flows()?;
    }
    ensure!(
        arrived * 1000 >= count as u64 * 995,
        "{}: only {arrived} of {count} packets arrived",
        lane.contender()
    );
    Ok(took.as_nanos() as f64 / arrived as f64)
}

/// A whole packet of the sandbox, to be sent to somewhere else.
fn template(sandbox: &Sandbox) -> Result<Frame> {
    let packet = sandbox.packet_to(Ipv4Addr::UNSPECIFIED.into())?.udp(0, 0);
    let mut frame = Vec::with_capacity(SIZE);
    packet.write(&mut frame, &[0; PAYLOAD])?;
    Ok(frame.as_slice().try_into()?)
}

fn flood(
    sender: &OwnedFd,
    frame: Frame,
    flows: Flows,
    destinations: &[Ipv4Addr],
    count: usize,
) -> Result<Duration> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            sys::pin(Cpu::Last)?;
            let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
            let mut frames = vec![frame; if flows == Flows::Known { KNOWN } else { BATCH }];
            if flows == Flows::Known {
                address(&mut frames, destinations, 0);
            }
            let mut sent = 0;
            let begun = Instant::now();
            while sent < count {
                let batch = BATCH.min(count - sent);
                let from = if flows == Flows::Known {
                    sent % KNOWN
                } else {
                    address(&mut frames, destinations, sent);
                    0
                };
                let end = (from + batch).min(frames.len());
                let batch = frames.get(from..end).unwrap_or_default();
                send_all(sender, &mut headers, batch)?;
                sent += batch.len();
            }
            Ok(begun.elapsed())
        });
        sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes `frames` the packets number `first` and on: each number is a flow of its own.
fn address(frames: &mut [Frame], destinations: &[Ipv4Addr], first: usize) {
    for (number, frame) in (first..).zip(frames) {
        let to =
            destinations.get(number % destinations.len().max(1)).copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
        // Ports say which round through the destinations it is, scattered as a real system's are.
        let round = (number / destinations.len().max(1)) as u64;
        let ports = Random(round ^ u64::from(to.to_bits()) << 20).below(60_000 * 60_000);
        let source = 1024 + (ports / 60_000) as u16;
        let port = 1024 + (ports % 60_000) as u16;
        put(frame, 24, &[0, 0]);
        put(frame, 30, &to.octets());
        put(frame, 34, &source.to_be_bytes());
        put(frame, 36, &port.to_be_bytes());
        // No UDP checksum (RFC 768); the header's (RFC 791) is compulsory.
        put(frame, 40, &[0, 0]);
        let sum = checksum(frame.get(14..34).unwrap_or_default());
        put(frame, 24, &sum.to_be_bytes());
    }
}

fn put(frame: &mut Frame, at: usize, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn send_all(sender: &OwnedFd, headers: &mut MultiHeaders<()>, frames: &[Frame]) -> Result<()> {
    let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
    let mut rest = slices.as_slice();
    while !rest.is_empty() {
        let nowhere = [None; BATCH];
        let sent = sendmmsg(sender.as_raw_fd(), headers, rest, nowhere, [], MsgFlags::empty())
            .context("cannot send")?
            .count();
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Packets that the internet's interface received.
fn received(internet: &Netns) -> Result<u64> {
    internet.run(|| {
        // The file shows the namespace of the thread that looks.
        let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        let row = table.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        // Bytes, then packets.
        let packets = row.and_then(|row| row.split_whitespace().nth(1));
        packets.context("no counters of eth0")?.parse().context("counters of eth0")
    })
}

/// Waits for what is still under way, and gives the counter.
fn all_received(internet: &Netns, expected: u64) -> Result<u64> {
    let deadline = Instant::now() + Duration::from_millis(300);
    loop {
        let now = received(internet)?;
        if now >= expected || Instant::now() > deadline {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
