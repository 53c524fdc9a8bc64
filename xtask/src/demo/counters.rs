//! Last act: what the filter counted, as `show --json` prints it.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Findings;
use super::paint::{Style, say, title};
use super::stage::{ALPHA, BETA, GAMMA, Stage};

/// What must have been counted by now.
const EXPECTED: [(&str, &[&str]); 3] = [
    (ALPHA, &["allowed_cidr", "denied_cidr", "guarded", "connection_limit", "reply"]),
    (BETA, &["default", "denied_cidr", "guarded", "reply"]),
    (GAMMA, &["allowed_name", "dns", "name_not_allowed", "denied_cidr", "reply"]),
];

pub fn play(stage: &Stage, findings: &mut Findings) -> Result<()> {
    title("6. What the filter counted (`sandbox-filter show ID --json`)");
    for (id, expected) in EXPECTED {
        let show = stage.daemon.show(id)?;
        let connections = show.get("connections").context("`show` has no connections")?;
        say(Style::Plain, &format!("  {id}: generation {}, connections {connections}", show["generation"]));
        let counters = show.get("counters").and_then(Value::as_object).context("`show` has no counters")?;
        for (reason, counter) in counters {
            let packets = counter.get("packets").and_then(Value::as_u64).unwrap_or(0);
            let bytes = counter.get("bytes").and_then(Value::as_u64).unwrap_or(0);
            if packets > 0 {
                say(Style::Faint, &format!("    {reason:<18}{packets:>9} packets {bytes:>12} bytes"));
            }
        }
        for reason in expected {
            let counted = show.pointer(&format!("/counters/{reason}/packets")).and_then(Value::as_u64);
            findings.expect(counted > Some(0), format!("{id} has no packet counted as {reason}"));
        }
        if id == ALPHA {
            let number = |name| connections.get(name).and_then(Value::as_u64);
            findings.expect(
                number("peak") == Some(2500),
                format!("the peak of alpha is {}", connections["peak"]),
            );
            findings.expect(number("refused") > Some(0), "no refused connection of alpha was counted");
        }
    }
    Ok(())
}
