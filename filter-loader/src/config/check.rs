//! What a value of the right type may still be wrong about.

use std::{collections::HashSet, ops::RangeInclusive, path::Path, time::Duration};

use filter_common::layout::FLOW_PLACES;
use filter_common::layout::MAX_INSPECTED_PORTS;
use filter_policy::Name;

use super::{
    Config,
    api_keys::ApiKey,
    error::Wrong,
    sections::{Ingress, Inspector, Limits, Marks, Paths, Provider, ProviderKind, Rate, Timeouts},
};

const EGRESS_CONNECTIONS: RangeInclusive<u32> = 1..=1_000_000;
/// There is no room for more, even if there is one sandbox only.
const EGRESS_CEILING: RangeInclusive<u32> = 1..=FLOW_PLACES;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Of flows: the kernel looks once a second, and nothing sensible is silent for longer than a month.
const SILENCE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 60 * 60);
/// Of whatever a client waits for.
const PATIENCE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60 * 60);
const RATE_PERIOD: RangeInclusive<Duration> = Duration::from_millis(1)..=DAY;
/// Connections of clients, each of which is a descriptor or two.
const CLIENTS: RangeInclusive<u32> = 1..=1_000_000;
/// Files of events: each is renamed when one is set aside.
const MOST_KEPT: u32 = 1000;
/// `sun_path` with its terminating zero.
const MAX_SOCKET_PATH: usize = 107;

const DNS_PORT: u16 = 53;
/// Rules of lower priority come behind that of the main table.
const LAST_PRIORITY: u32 = 32_765;
const MAX_MARK_BITS: u32 = 16;

type Checked = Result<(), Wrong>;

/// The first thing that is wrong, if any.
pub(super) fn check(config: &Config) -> Checked {
    paths(&config.paths)?;
    limits(&config.limits)?;
    timeouts(&config.timeouts)?;
    inspector(&config.inspector)?;
    ingress(&config.ingress)?;
    api_keys(&config.api_keys)?;
    provider(&config.provider)?;
    if config.events.keep > MOST_KEPT {
        let message = format!("expected an integer from 0 to {MOST_KEPT}, found {}", config.events.keep);
        return wrong("events.keep", message);
    }
    for (key, path) in [
        ("transform.upstream_ca", &config.transform.upstream_ca),
        ("transform.secrets_dir", &config.transform.secrets_dir),
        ("events.jsonl", &config.events.jsonl),
    ] {
        path.as_deref().map_or(Ok(()), |path| absolute(key, path))?;
    }
    Ok(())
}

fn paths(paths: &Paths) -> Checked {
    absolute("paths.state_dir", &paths.state_dir)?;
    absolute("paths.bpffs_dir", &paths.bpffs_dir)?;
    absolute("paths.socket", &paths.socket)?;
    if paths.socket.as_os_str().len() > MAX_SOCKET_PATH {
        return wrong("paths.socket", format!("longer than {MAX_SOCKET_PATH} bytes; choose a shorter path"));
    }
    Ok(())
}

fn limits(limits: &Limits) -> Checked {
    if !EGRESS_CONNECTIONS.contains(&limits.egress_connections) {
        let message = format!(
            "expected an integer from {} to {}, found {}",
            EGRESS_CONNECTIONS.start(),
            EGRESS_CONNECTIONS.end(),
            limits.egress_connections
        );
        return wrong("limits.egress_connections", message);
    }
    if !EGRESS_CEILING.contains(&limits.egress_ceiling) {
        let message = format!(
            "expected an integer from {} to {}, found {}",
            EGRESS_CEILING.start(),
            EGRESS_CEILING.end(),
            limits.egress_ceiling
        );
        return wrong("limits.egress_ceiling", message);
    }
    rate("limits.create_rate", &limits.create_rate)?;
    rate("limits.management_api", &limits.management_api)?;
    rate("limits.sandbox_traffic", &limits.sandbox_traffic)
}

fn timeouts(timeouts: &Timeouts) -> Checked {
    duration("timeouts.tcp_half_open", timeouts.tcp_half_open, SILENCE)?;
    duration("timeouts.tcp_closing", timeouts.tcp_closing, SILENCE)?;
    duration("timeouts.tcp_established", timeouts.tcp_established, SILENCE)?;
    duration("timeouts.udp", timeouts.udp, SILENCE)?;
    duration("timeouts.icmp", timeouts.icmp, SILENCE)
}

fn inspector(inspector: &Inspector) -> Checked {
    duration("inspector.peek_timeout", inspector.peek_timeout, PATIENCE)?;
    duration("inspector.dial_timeout", inspector.dial_timeout, PATIENCE)?;
    let mut seen = HashSet::new();
    for port in inspector.ports.http.iter().chain(&inspector.ports.tls) {
        if *port == 0 {
            return wrong("inspector.ports", "0 is no port; write one from 1 to 65535");
        }
        if !seen.insert(port) {
            return wrong("inspector.ports", format!("port {port} stands there twice; name it once"));
        }
    }
    if seen.len() > MAX_INSPECTED_PORTS {
        return wrong("inspector.ports", format!("at most {MAX_INSPECTED_PORTS} ports can be inspected"));
    }
    if seen.contains(&DNS_PORT) {
        return wrong("inspector.ports", "port 53 is DNS and has its own treatment");
    }
    marks(&inspector.marks)?;
    // The kernel's own: unspecified, compat, default, main, local.
    if matches!(inspector.table, 0 | 252..=255) {
        return wrong("inspector.table", "that table is the kernel's own; take another number");
    }
    if !(1..LAST_PRIORITY).contains(&inspector.rule_priority) {
        return wrong("inspector.rule_priority", format!("expected 1 to {}", LAST_PRIORITY - 1));
    }
    Ok(())
}

fn marks(marks: &Marks) -> Checked {
    let Marks { mask, punted, upstream } = *marks;
    let told_apart = punted != upstream && punted != 0 && upstream != 0;
    if (punted | upstream) & !mask != 0 || !told_apart {
        let message = "`punted` and `upstream` must differ, lie within `mask`, and not be 0";
        return wrong("inspector.marks", message);
    }
    if mask.count_ones() > MAX_MARK_BITS {
        return wrong("inspector.marks", format!("at most {MAX_MARK_BITS} bits; the others are for others"));
    }
    Ok(())
}

fn ingress(ingress: &Ingress) -> Checked {
    if let Err(error) = Name::parse(&ingress.domain) {
        return wrong("ingress.domain", format!("`{}` is no domain name: {error}", ingress.domain));
    }
    match (&ingress.tls.cert, &ingress.tls.key) {
        (None, None) => {}
        (Some(cert), Some(key)) => {
            absolute("ingress.tls.cert", cert)?;
            absolute("ingress.tls.key", key)?;
        }
        (Some(_), None) | (None, Some(_)) => {
            return wrong("ingress.tls", "set both `cert` and `key`, or neither");
        }
    }
    if ingress.controller_port == 0 {
        return wrong("ingress.controller_port", "0 is no port; write one from 1 to 65535");
    }
    if ingress.sandbox_requests == 0 {
        return wrong(
            "ingress.sandbox_requests",
            "with 0 nobody can be asked; write how many at the same time",
        );
    }
    if !CLIENTS.contains(&ingress.connections) {
        let message =
            format!("expected {} to {}, found {}", CLIENTS.start(), CLIENTS.end(), ingress.connections);
        return wrong("ingress.connections", message);
    }
    duration("ingress.head_timeout", ingress.head_timeout, PATIENCE)?;
    duration("ingress.dial_timeout", ingress.dial_timeout, PATIENCE)?;
    duration("ingress.idle_timeout", ingress.idle_timeout, SILENCE)?;
    Ok(())
}

fn api_keys(keys: &[ApiKey]) -> Checked {
    let mut seen = HashSet::new();
    for (index, entry) in keys.iter().enumerate() {
        let at = |key: &str| format!("api_keys[{index}]{key}");
        match (&entry.key, &entry.key_file) {
            (Some(key), None) => {
                if key.expose().is_empty() {
                    return wrong(at(".key"), "a key cannot be empty");
                }
                if !seen.insert(key.expose()) {
                    return wrong(at(".key"), "the key of an earlier entry; every entry needs its own");
                }
            }
            (None, Some(file)) => absolute(&at(".key_file"), file)?,
            (Some(_), Some(_)) | (None, None) => {
                return wrong(at(""), "set `key` or `key_file`, and not both");
            }
        }
        if entry.concurrent_sandboxes().is_none() || entry.create_rate().is_none() {
            let message =
                "set `tier` to \"hobby\" or \"pro\", or both `concurrent_sandboxes` and `create_rate`";
            return wrong(at(""), message);
        }
        entry.create_rate.as_ref().map_or(Ok(()), |own| rate(&at(".create_rate"), own))?;
    }
    Ok(())
}

fn provider(provider: &Provider) -> Checked {
    if let Some(command) = &provider.command {
        absolute("provider.command", command)?;
    }
    if provider.kind == ProviderKind::Exec && provider.command.is_none() {
        return wrong("provider.command", "kind \"exec\" needs the program to run");
    }
    // Two addresses a sandbox, and the net's own two.
    if provider.subnet.prefix_len() > 29 {
        return wrong("provider.subnet", "too small for a sandbox; write a net of /29 or larger");
    }
    Ok(())
}

fn rate(key: &str, rate: &Rate) -> Checked {
    duration(&format!("{key}.per"), rate.per, RATE_PERIOD)
}

fn duration(key: &str, found: Duration, range: RangeInclusive<Duration>) -> Checked {
    if range.contains(&found) {
        return Ok(());
    }
    let text = humantime::format_duration;
    let message =
        format!("expected {} to {}, found {}", text(*range.start()), text(*range.end()), text(found));
    wrong(key, message)
}

fn absolute(key: &str, path: &Path) -> Checked {
    if path.is_absolute() {
        return Ok(());
    }
    wrong(key, format!("`{}` is no absolute path; let it begin with /", path.display()))
}

fn wrong(key: impl Into<String>, message: impl Into<String>) -> Checked {
    Err(Wrong::new(key, message))
}
