//! From what kernel and inspector say of a flow to the document that users read.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use filter_common::ip::protocol;
use filter_common::layout::{self, event_kind};
use filter_common::{Reason, RuleWord};
use filter_inspector::host::{self, Happening, Transport};
use nix::time::{ClockId, clock_gettime};

use crate::daemon::registry::Sandbox;
use crate::protocol::event::{Event, SCHEMA};

/// What an event is called.
const OPEN: &str = "open";
pub(super) const CLOSE: &str = "close";
pub(super) const DENY: &str = "deny";

/// What the kernel tells. `None`: not of this version.
pub(super) fn of_kernel(event: &layout::Event, sandbox: &Sandbox) -> Option<Event> {
    let reason = Reason::from_number(event.reason)?;
    let name = match event.kind {
        event_kind::OPEN => OPEN,
        event_kind::CLOSE => CLOSE,
        event_kind::DENY => DENY,
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
    Some(Event {
        ts: wall_time(event.at),
        schema: SCHEMA,
        event: name.into(),
        sandbox: sandbox.id.clone(),
        generation: event.generation,
        decision: reason.decision().name().into(),
        reason: reason.name().into(),
        rule: rule_pointer(sandbox, reason, event.generation, event.rule),
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
pub(super) fn of_inspector(event: &host::Event, sandbox: &Sandbox) -> Event {
    let (name, duration) = match event.happening {
        Happening::Open => (OPEN, None),
        Happening::Close => (CLOSE, Some(event.duration)),
        Happening::Deny => (DENY, None),
    };
    let proto = match event.flow.transport {
        Transport::Tcp => protocol::TCP,
        Transport::Udp => protocol::UDP,
    };
    Event {
        ts: SystemTime::now(),
        schema: SCHEMA,
        event: name.into(),
        sandbox: sandbox.id.clone(),
        generation: event.generation,
        decision: event.reason.decision().name().into(),
        reason: event.reason.name().into(),
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

fn protocol_name(number: u8) -> Cow<'static, str> {
    match number {
        0 => "unknown".into(),
        protocol::TCP => "tcp".into(),
        protocol::UDP => "udp".into(),
        protocol::ICMP => "icmp".into(),
        protocol::ICMP_V6 => "icmpv6".into(),
        other => other.to_string().into(),
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
