//! How results look to people.

use std::{
    io::{self, Write},
    net::IpAddr,
    time::SystemTime,
};

use filter_common::Reason;

use super::{
    check::Checked,
    output::{Detached, Human, Rotated, Style},
    table::{Table, printable},
};
use crate::protocol::{Authority, Connections, Counters, Identity, Show, Stats, Summary, Tokens};

impl Human for Vec<Summary> {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let mut table =
            Table::new(["ID", "IFACE", "ADDRESSES", "GENERATION", "ENFORCED", "CONNECTIONS", "CREATED"]);
        for sandbox in self {
            table.row([
                sandbox.id.to_string(),
                sandbox.iface.clone(),
                addresses(&sandbox.addrs, sandbox.identity),
                sandbox.generation.to_string(),
                yes_no(sandbox.enforced),
                format!("{}/{}", sandbox.connections.active, sandbox.connections.limit),
                created(sandbox.created_at),
            ]);
        }
        table.write(out, style)
    }
}

impl Human for Authority {
    fn human(&self, out: &mut dyn Write, _: Style) -> io::Result<()> {
        out.write_all(self.certificate.as_bytes())
    }
}

impl Human for Show {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let Connections { active, limit, peak, refused } = self.connections;
        let mac = self.mac.map_or_else(|| "any".to_owned(), |mac| mac.to_string());
        let enforced = if self.enforced { style.good("yes") } else { style.bad("no") };
        for (name, value) in [
            ("id", self.id.to_string()),
            ("interface", format!("{} ({})", printable(&self.iface), self.ifindex)),
            ("addresses", addresses(&self.addrs, self.identity)),
            ("mac", mac),
            ("created", created(self.created_at)),
            ("enforced", enforced),
            ("generation", self.generation.to_string()),
            ("policy hash", printable(&self.policy_hash)),
            ("connections", format!("{active} of {limit}, peak {peak}, refused {refused}")),
        ] {
            writeln!(out, "{} {value}", style.bold(&format!("{name:<12}")))?;
        }
        if let Some(Tokens { traffic_access_token, envd_access_token }) = &self.tokens {
            writeln!(out, "{} {}", style.bold("traffic token"), printable(traffic_access_token))?;
            writeln!(out, "{} {}", style.bold("controller token"), printable(envd_access_token))?;
        }
        writeln!(out, "{}", style.bold("policy"))?;
        writeln!(out, "{:#}", self.policy)?;
        counters(&self.counters).write(out, style)
    }
}

impl Human for Stats {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let mut table =
            Table::new(["ID", "ACTIVE", "LIMIT", "PEAK", "REFUSED", "PACKETS ALLOWED", "PACKETS DENIED"]);
        for sandbox in &self.sandboxes {
            let Connections { active, limit, peak, refused } = sandbox.connections;
            let (allowed, denied) = packets(&sandbox.counters);
            table.row([
                sandbox.id.to_string(),
                active.to_string(),
                limit.to_string(),
                peak.to_string(),
                refused.to_string(),
                allowed.to_string(),
                denied.to_string(),
            ]);
        }
        table.write(out, style)?;
        writeln!(out)?;
        counters(&self.totals.counters).write(out, style)?;
        if self.events_lost > 0 {
            writeln!(out, "\n{}", style.warning(&format!("{} events were lost", self.events_lost)))?;
        }
        Ok(())
    }
}

impl Human for Checked {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        writeln!(out, "{:#}", self.policy)?;
        writeln!(out, "{} {}\n", style.bold("policy hash"), self.policy_hash)?;
        let mut table = Table::new(["PREFIX", "VERDICT", "RULE"]);
        for entry in &self.entries {
            table.row([
                entry.prefix.clone(),
                entry.verdict.to_owned(),
                entry.rule.clone().unwrap_or_default(),
            ]);
        }
        table.write(out, style)?;
        if self.inspect {
            writeln!(out, "\nWeb connections that no prefix allows are judged by name.")?;
        }
        for warning in &self.warnings {
            let text = format!("{} {}", warning.pointer, warning.message);
            writeln!(out, "{} {}", style.warning("warning:"), printable(text.trim_start()))?;
        }
        Ok(())
    }
}

impl Human for Detached {
    fn human(&self, out: &mut dyn Write, _: Style) -> io::Result<()> {
        writeln!(out, "{} is detached; its interface is unfiltered now", self.id)
    }
}

impl Human for Rotated {
    fn human(&self, out: &mut dyn Write, _: Style) -> io::Result<()> {
        writeln!(out, "all tokens of before are invalid; `show --tokens` has the new ones")
    }
}

/// The reasons that occurred, in their own order.
fn counters(counters: &Counters) -> Table<4> {
    let mut table = Table::new(["REASON", "DECISION", "PACKETS", "BYTES"]);
    for reason in Reason::ALL {
        if let Some(counter) = counters.get(reason.name()).filter(|counter| counter.packets > 0) {
            table.row([
                reason.name().to_owned(),
                reason.decision().name().to_owned(),
                counter.packets.to_string(),
                counter.bytes.to_string(),
            ]);
        }
    }
    table
}

/// How many were allowed, and how many denied.
fn packets(counters: &Counters) -> (u64, u64) {
    let sum = |decision| {
        let reasons = Reason::ALL.iter().filter(|reason| reason.decision() == decision);
        let packets = reasons.filter_map(|reason| counters.get(reason.name())).map(|counter| counter.packets);
        packets.fold(0, u64::saturating_add)
    };
    (sum(filter_common::Decision::Allow), sum(filter_common::Decision::Deny))
}

fn addresses(addrs: &[IpAddr], identity: Identity) -> String {
    match identity {
        Identity::Any => "any (unchecked)".to_owned(),
        Identity::Checked => addrs.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn created(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
