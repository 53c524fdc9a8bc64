//! What the kernel tells, as lines for people and programs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use filter_common::ip::protocol;
use filter_common::layout::{self, event_kind};
use filter_common::{Reason, RuleWord};
use filter_inspector::host::{self, Happening, Transport};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::core::Core;
use super::journal::Journal;
use super::registry::Sandbox;
use crate::kernel::rings::Ring;

/// Number of the form of the lines.
const SCHEMA: u32 = 1;
/// How often the ring is read.
const INTERVAL: Duration = Duration::from_millis(100);
/// Repetitions of a denial are told once in this time.
const FOLD: Duration = Duration::from_secs(1);
/// Denials that are being folded at once. Beyond that each is told by itself.
const MAX_FOLDED: usize = 65_536;

/// What an event is called.
const OPEN: &str = "open";
const CLOSE: &str = "close";
const DENY: &str = "deny";

/// Something that happened, as it is written.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(with = "humantime_serde")]
    ts: SystemTime,
    schema: u32,
    event: &'static str,
    sandbox: String,
    generation: u32,
    decision: &'static str,
    reason: &'static str,
    rule: Option<String>,
    proto: String,
    src: Option<IpAddr>,
    sport: Option<u16>,
    dst: Option<IpAddr>,
    dport: Option<u16>,
    server_name: Option<String>,
    resolved_ip: Option<IpAddr>,
    bytes_out: u64,
    bytes_in: u64,
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

/// That some are missing.
#[derive(Debug, Serialize)]
struct Dropped {
    #[serde(with = "humantime_serde")]
    ts: SystemTime,
    schema: u32,
    event: &'static str,
    dropped: u64,
}

/// What makes two denials the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Denial {
    tenant: u32,
    generation: u32,
    reason: &'static str,
    proto: String,
    src: Option<IpAddr>,
    sport: Option<u16>,
    dst: Option<IpAddr>,
    dport: Option<u16>,
    server_name: Option<String>,
}

/// Events of the inspector on their way to the writer. When there are too many they are counted instead.
#[derive(Clone)]
pub struct Inspected {
    sender: SyncSender<(u32, host::Event)>,
    lost: Arc<AtomicU64>,
}

/// The other end of [`Inspected`].
pub struct InspectedEvents {
    receiver: Receiver<(u32, host::Event)>,
    lost: Arc<AtomicU64>,
}

/// A way for the inspector's events.
pub fn inspected() -> (Inspected, InspectedEvents) {
    /// What comes within an interval of the writer.
    const WAITING: usize = 16_384;
    let (sender, receiver) = sync_channel(WAITING);
    let lost = Arc::new(AtomicU64::new(0));
    (Inspected { sender, lost: lost.clone() }, InspectedEvents { receiver, lost })
}

impl Inspected {
    /// Has an event told. Never waits.
    pub fn send(&self, tenant: u32, event: host::Event) {
        if self.sender.try_send((tenant, event)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Folded {
    line: Line,
    count: u64,
    since: SystemTime,
}

struct Writer {
    core: Arc<Core>,
    out: Option<Journal>,
    folded: HashMap<Denial, Folded>,
    inspected: InspectedEvents,
    /// What each sandbox's throttle had held back when it was last looked at.
    untold: HashMap<u32, u64>,
}

/// Starts the thread that reads the ring of events, until `stop`. `out`: where lines go, if anywhere.
///
/// # Errors
/// If there can be no more threads.
pub fn start(
    core: Arc<Core>,
    mut ring: Ring<layout::Event>,
    inspected: InspectedEvents,
    out: Option<Journal>,
    stop: Arc<AtomicBool>,
) -> std::io::Result<JoinHandle<()>> {
    // What was held back under an earlier daemon was told by that.
    let mut untold = HashMap::new();
    for sandbox in core.kernel.sandboxes.all().map_err(std::io::Error::other)? {
        let activity = core.kernel.sandboxes.activity(sandbox.slot).map_err(std::io::Error::other)?;
        untold.insert(sandbox.tenant, activity.untold);
    }
    let mut writer = Writer { core, out, folded: HashMap::new(), inspected, untold };
    std::thread::Builder::new().name("events".into()).spawn(move || {
        loop {
            let last = stop.load(Ordering::Relaxed);
            writer.drain(&mut ring, last);
            if last {
                return;
            }
            std::thread::sleep(INTERVAL);
        }
    })
}

impl Writer {
    fn drain(&mut self, ring: &mut Ring<layout::Event>, last: bool) {
        while let Some(event) = ring.pop() {
            self.take(event.tenant, |sandbox| line(&event, sandbox));
        }
        while let Ok((tenant, event)) = self.inspected.receiver.try_recv() {
            self.take(tenant, |sandbox| Some(inspected_line(&event, sandbox)));
        }
        self.unfold(last);
        self.tell_losses();
        if let Some(out) = &mut self.out
            && let Err(error) = out.flush()
        {
            tracing::error!(%error, "cannot write events");
        }
    }

    fn take(&mut self, tenant: u32, line: impl FnOnce(&Sandbox) -> Option<Line>) {
        if self.out.is_none() {
            return;
        }
        // Its sandbox left long ago.
        let Some(sandbox) = self.core.registry.tenant(tenant) else { return };
        let Some(line) = line(&sandbox) else { return };
        if line.event != DENY {
            self.write(&line);
            return;
        }
        let denial = Denial {
            tenant,
            generation: line.generation,
            reason: line.reason,
            proto: line.proto.clone(),
            src: line.src,
            sport: line.sport,
            dst: line.dst,
            dport: line.dport,
            server_name: line.server_name.clone(),
        };
        if let Some(folded) = self.folded.get_mut(&denial) {
            folded.count += 1;
            folded.line.ts = line.ts;
            folded.line.bytes_out += line.bytes_out;
            folded.line.bytes_in += line.bytes_in;
            return;
        }
        // The first is told at once, what follows within a second is told at its end.
        self.write(&Line { count: Some(1), ..line.clone() });
        if self.folded.len() < MAX_FOLDED {
            let line = Line { bytes_out: 0, bytes_in: 0, ..line };
            self.folded.insert(denial, Folded { since: line.ts, line, count: 0 });
        }
    }

    fn unfold(&mut self, all: bool) {
        let now = SystemTime::now();
        let mut due = Vec::new();
        self.folded.retain(|_, folded| {
            let keep = !all && now.duration_since(folded.since).is_ok_and(|age| age < FOLD);
            if !keep && folded.count > 0 {
                due.push(Line { count: Some(folded.count), ..folded.line.clone() });
            }
            keep
        });
        for line in due {
            self.write(&line);
        }
    }

    fn tell_losses(&mut self) {
        let mut dropped = self.core.kernel.sandboxes.take_events_lost().unwrap_or(0);
        dropped += self.inspected.lost.swap(0, Ordering::Relaxed);
        let mut present = HashMap::new();
        for sandbox in self.core.registry.all() {
            let Ok(activity) = self.core.kernel.sandboxes.activity(sandbox.slot) else { continue };
            let before = self.untold.get(&sandbox.tenant).copied().unwrap_or(0);
            dropped += activity.untold.saturating_sub(before);
            present.insert(sandbox.tenant, activity.untold);
        }
        self.untold = present;
        if dropped > 0 {
            self.write(&Dropped { ts: SystemTime::now(), schema: SCHEMA, event: "dropped", dropped });
        }
    }

    fn write(&mut self, line: &impl Serialize) {
        let Some(out) = &mut self.out else { return };
        let written = serde_json::to_vec(line).map_err(std::io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            out.write(&bytes)
        });
        if let Err(error) = written {
            tracing::error!(%error, "cannot write events");
        }
    }
}

fn line(event: &layout::Event, sandbox: &Sandbox) -> Option<Line> {
    let reason = Reason::from_number(event.reason)?;
    let (name, decision) = match event.kind {
        event_kind::OPEN => (OPEN, reason.decision()),
        event_kind::CLOSE => (CLOSE, reason.decision()),
        event_kind::DENY => (DENY, reason.decision()),
        _ => return None,
    };
    let readable = event.protocol != 0;
    let local = readable.then(|| IpAddr::from(event.local));
    let remote = readable.then(|| IpAddr::from(event.remote));
    let has_ports = matches!(event.protocol, protocol::TCP | protocol::UDP);
    let local_port = has_ports.then(|| u16::from_be(event.local_port));
    let remote_port = has_ports.then(|| u16::from_be(event.remote_port));
    let inbound = event.inbound != 0;
    let (src, sport, dst, dport) = if inbound {
        (remote, remote_port, local, local_port)
    } else {
        (local, local_port, remote, remote_port)
    };
    let duration_ms =
        (event.kind == event_kind::CLOSE).then(|| event.at.saturating_sub(event.opened) / 1_000_000);
    Some(Line {
        ts: wall_time(event.at),
        schema: SCHEMA,
        event: name,
        sandbox: sandbox.id.to_string(),
        generation: event.generation,
        decision: decision.name(),
        reason: reason.name(),
        rule: Reason::from_number(event.reason)
            .and_then(|reason| rule_pointer(sandbox, reason, event.generation, event.rule)),
        proto: protocol_name(event.protocol),
        src,
        sport,
        dst,
        dport,
        server_name: None,
        resolved_ip: None,
        bytes_out: event.bytes_out,
        bytes_in: event.bytes_in,
        duration_ms,
        count: None,
    })
}

/// What the inspector tells of one of its connections.
fn inspected_line(event: &host::Event, sandbox: &Sandbox) -> Line {
    let (name, duration) = match event.happening {
        Happening::Open => (OPEN, None),
        Happening::Close => (CLOSE, Some(event.duration)),
        Happening::Deny => (DENY, None),
    };
    let proto = match event.flow.transport {
        Transport::Tcp => protocol::TCP,
        Transport::Udp => protocol::UDP,
    };
    Line {
        ts: SystemTime::now(),
        schema: SCHEMA,
        event: name,
        sandbox: sandbox.id.to_string(),
        generation: event.generation,
        decision: event.reason.decision().name(),
        reason: event.reason.name(),
        rule: rule_pointer(sandbox, event.reason, event.generation, event.rule.bits()),
        proto: protocol_name(proto),
        src: Some(event.flow.source.ip().to_canonical()),
        sport: Some(event.flow.source.port()),
        dst: Some(event.flow.destination.ip().to_canonical()),
        dport: Some(event.flow.destination.port()),
        server_name: event.server_name.clone(),
        resolved_ip: event.resolved,
        bytes_out: event.bytes_out,
        bytes_in: event.bytes_in,
        duration_ms: duration.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        count: None,
    }
}

fn rule_pointer(sandbox: &Sandbox, reason: Reason, generation: u32, rule: u32) -> Option<String> {
    // These are reached whatever the policy says of the destination, and a resolver is no rule's.
    if matches!(reason, Reason::Guarded | Reason::Protocol | Reason::Dns) {
        return None;
    }
    let word = RuleWord::from_bits(rule);
    let in_force = sandbox.in_force();
    match &in_force.previous {
        Some((before, policy)) if *before == generation => policy.rule_pointer(word),
        _ if in_force.generation == generation => in_force.template.policy.rule_pointer(word),
        _ => None,
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        0 => "unknown".to_owned(),
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMP_V6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// The wall-clock time of a moment of `CLOCK_MONOTONIC`.
fn wall_time(at: u64) -> SystemTime {
    let now = SystemTime::now();
    match clock_gettime(ClockId::CLOCK_MONOTONIC) {
        Ok(monotonic) => now - Duration::from(monotonic).saturating_sub(Duration::from_nanos(at)),
        Err(_) => now,
    }
}
