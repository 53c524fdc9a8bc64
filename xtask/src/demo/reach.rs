//! First act: what each sandbox may reach. Every cell is an attempt; the number beside it counts the packets
//! that arrived at the destination.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use filter_tests::{Attempt, Sandbox};

use super::Findings;
use super::paint::{Style, line, title};
use super::stage::{
    ALPHA, BETA, ECHO, ELSEWHERE, HTTP, METADATA, PATIENCE, SHOP, SHOP_V6, Stage, TRACKER, UDP,
};

/// What a sandbox tries.
#[derive(Clone, Copy)]
enum Probe {
    Tcp(u16),
    Udp(u16),
    Http,
    Ping,
}

/// Where, and what the policies of `alpha` and `beta` say to it.
struct Row {
    to: Target,
    probe: Probe,
    allowed: [bool; 2],
}

#[derive(Clone, Copy)]
enum Target {
    Internet(IpAddr),
    Metadata,
    Host,
    Neighbour,
}

/// What became of an attempt.
struct Seen {
    outcome: Outcome,
    took: Duration,
    arrived: u64,
}

enum Outcome {
    Answered(&'static str),
    /// Refused at once, with this errno.
    Refused(String),
    /// Anything else, such as silence.
    Odd(String),
}

/// Widths of the columns.
const NAME: usize = 32;
const CELL: usize = 29;

pub fn play(stage: &Stage, findings: &mut Findings) -> Result<()> {
    title("1. What they may reach, what they saw, and how many packets arrived there");
    line(&[(Style::Faint, format!("  {:<NAME$}{ALPHA:<CELL$} pkts   {BETA:<CELL$} pkts", ""))]);
    for row in rows()? {
        let mut parts = vec![(Style::Plain, format!("  {:<NAME$}", row.name()))];
        for ((id, sandbox), allowed) in stage.sandboxes().into_iter().zip(row.allowed) {
            // A sandbox is no neighbour of itself.
            if matches!(row.to, Target::Neighbour) && id == BETA {
                continue;
            }
            let seen = row.attempt(stage, sandbox)?;
            let (style, text) = seen.shown(allowed);
            findings.expect(
                seen.is_right(allowed),
                format!("{id}, {}: {text}, {} packets arrived", row.name(), seen.arrived),
            );
            parts.push((style, format!("{text:<CELL$}")));
            parts.push((Style::Faint, format!("{:>5}   ", seen.arrived)));
        }
        line(&parts);
    }
    findings.expect(
        stage.host_service.connections() == 0,
        format!("the host's own service got {} connections", stage.host_service.connections()),
    );
    Ok(())
}

fn rows() -> Result<Vec<Row>> {
    let (shop, tracker, elsewhere) = (SHOP.into(), TRACKER.into(), ELSEWHERE.into());
    let shop_v6: IpAddr = SHOP_V6.parse()?;
    let row = |to, probe, alpha, beta| Row { to, probe, allowed: [alpha, beta] };
    let internet = Target::Internet;
    Ok(vec![
        row(internet(shop), Probe::Tcp(ECHO), true, true),
        row(internet(shop), Probe::Udp(UDP), true, true),
        row(internet(shop), Probe::Http, true, true),
        row(internet(shop), Probe::Ping, true, true),
        row(internet(tracker), Probe::Tcp(ECHO), false, false),
        row(internet(tracker), Probe::Udp(UDP), false, false),
        row(internet(tracker), Probe::Http, false, false),
        row(internet(tracker), Probe::Ping, false, false),
        row(internet(elsewhere), Probe::Http, false, true),
        row(internet(elsewhere), Probe::Udp(UDP), false, true),
        // `0.0.0.0/0` covers IPv6: nothing leaks there.
        row(internet(shop_v6), Probe::Tcp(ECHO), false, true),
        row(internet(shop_v6), Probe::Udp(UDP), false, true),
        row(internet(shop_v6), Probe::Ping, false, true),
        row(Target::Metadata, Probe::Http, false, false),
        row(Target::Host, Probe::Tcp(ECHO), false, false),
        row(Target::Neighbour, Probe::Tcp(ECHO), false, false),
    ])
}

impl Row {
    fn name(&self) -> String {
        let probe = match self.probe {
            Probe::Tcp(_) => "TCP",
            Probe::Udp(_) => "UDP",
            Probe::Http => "HTTP",
            Probe::Ping => "ping",
        };
        match self.to {
            Target::Internet(address) => format!("{probe:<5}{address}"),
            Target::Metadata => format!("{probe:<5}metadata ({METADATA})"),
            Target::Host => format!("{probe:<5}the host, its gateway"),
            Target::Neighbour => format!("{probe:<5}another sandbox (beta)"),
        }
    }

    fn attempt(&self, stage: &Stage, sandbox: &Sandbox) -> Result<Seen> {
        let to: IpAddr = match self.to {
            Target::Internet(address) => address,
            Target::Metadata => METADATA.into(),
            Target::Host => sandbox.gateway_v4().into(),
            Target::Neighbour => stage.beta.v4().into(),
        };
        let (outcome, took, port) = match self.probe {
            Probe::Tcp(port) => {
                let attempt = sandbox.tcp_exchange(SocketAddr::new(to, port), b"hello", PATIENCE);
                (Outcome::of(&attempt, "connected"), attempt.took, port)
            }
            Probe::Udp(port) => {
                let attempt = sandbox.udp_exchange(SocketAddr::new(to, port), b"hello", PATIENCE);
                (Outcome::of(&attempt, "answered"), attempt.took, port)
            }
            Probe::Http => {
                let attempt = sandbox.http_get(SocketAddr::new(to, HTTP), "shop.test", PATIENCE);
                let outcome = match &attempt.result {
                    Ok(answer) if answer.status != 200 => Outcome::Odd(format!("status {}", answer.status)),
                    _ => Outcome::of(&attempt, "200 OK"),
                };
                (outcome, attempt.took, HTTP)
            }
            Probe::Ping => {
                let attempt = sandbox.ping(to, PATIENCE);
                (Outcome::of(&attempt, "answered"), attempt.took, 0)
            }
        };
        let from = sandbox.address_like(to);
        let arrived = match self.to {
            Target::Internet(_) | Target::Metadata => &stage.internet,
            Target::Neighbour => &stage.neighbour,
            // Packets to the host go no further than the filter's own interface: its service counts.
            Target::Host => {
                return Ok(Seen { outcome, took, arrived: stage.host_service.connections() });
            }
        }
        .count(|flow| flow.source == from && flow.destination == to && flow.port == port)?;
        Ok(Seen { outcome, took, arrived: arrived.frames })
    }
}

impl Outcome {
    fn of<T>(attempt: &Attempt<T>, success: &'static str) -> Self {
        match &attempt.result {
            Ok(_) => Self::Answered(success),
            Err(error) => match attempt.errno() {
                Some(errno) => Self::Refused(format!("{errno:?}")),
                None => Self::Odd(error.to_string()),
            },
        }
    }
}

impl Seen {
    /// Allowed means answered. Denied means: told so at once, and not a packet there.
    fn is_right(&self, allowed: bool) -> bool {
        match &self.outcome {
            Outcome::Answered(_) => allowed && self.arrived > 0,
            Outcome::Refused(_) => !allowed && self.arrived == 0 && self.took < Duration::from_secs(1),
            Outcome::Odd(_) => false,
        }
    }

    fn shown(&self, allowed: bool) -> (Style, String) {
        let ms = self.took.as_secs_f64() * 1000.0;
        let (style, text) = match &self.outcome {
            Outcome::Answered(how) => (Style::Good, format!("✓ {how} in {ms:.2} ms")),
            Outcome::Refused(errno) => (Style::Denied, format!("✗ {errno} in {ms:.2} ms")),
            Outcome::Odd(what) => (Style::Bad, format!("? {what}")),
        };
        (if self.is_right(allowed) { style } else { Style::Bad }, text)
    }
}
