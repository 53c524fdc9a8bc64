//! What a sandbox takes that does nothing.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use filter_tests::{Daemon, Topology};
use serde_json::{Value, json};

use super::stand::{CLIENTS, at_once};
use super::{percentile, usage};
use crate::bench::client::{ATTACHMENTS, Control};

/// Interfaces that are attached for the figure of memory: behind the first ones, which fill pools.
const IDLE: [usize; 2] = [100, 1_100];
/// What one may take of both.
const MOST_KIB: f64 = 16.0;

/// What attached interfaces take that share a policy and are silent.
pub fn of_an_idle_sandbox(binary: &Path) -> Result<String> {
    let topology = Topology::new()?;
    let daemon = Daemon::on(&topology).binary(binary).start()?;
    let control = Control::new(daemon.socket());
    let [first, all] = IDLE;
    topology.host().add_pairs("idle", all)?;
    let policy = json!({ "allowOut": ["203.0.113.0/24"], "denyOut": ["0.0.0.0/0"] });
    let attach = |n: usize| -> Result<Value> {
        let [.., high, low] = n.to_be_bytes();
        control.ask(
            "POST",
            ATTACHMENTS,
            Some(&json!({
                "id": format!("idle-{n}"), "iface": format!("idle{n}"), "policy": policy,
                "addrs": { "list": [format!("10.9.{high}.{low}")] }, "mac": format!("02:00:00:00:{high:02x}:{low:02x}"),
            })),
        )
    };
    let detach = |n: usize| control.ask("DELETE", &format!("{ATTACHMENTS}/idle-{n}"), None);
    let in_use = || -> Result<[f64; 2]> {
        // What the kernel frees in time is freed by then.
        thread::sleep(Duration::from_secs(2));
        Ok([
            usage::resident(&usage::process(&daemon)?)? as f64,
            usage::slab()? + usage::kernel(&["Percpu", "PageTables", "KernelStack"])? as f64,
        ])
    };
    at_once(CLIENTS, first, |n| attach(n + 1))?;
    let count = all - first;
    let mut each = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        let before = in_use()?;
        at_once(CLIENTS, count, |n| attach(n + first + 1))?;
        let there = in_use()?;
        at_once(CLIENTS, count, |n| detach(n + first + 1))?;
        let after = in_use()?;
        for place in 0..2 {
            each[place].push((there[place] - before[place]) / count as f64);
            // Nothing of the daemon's own is given back to the system, but the kernel's is.
            if place == 1 {
                each[place].push((there[place] - after[place]) / count as f64);
            }
        }
    }
    let [daemon, kernel] = each.map(|values| percentile(&values, 50));
    let verdict = if daemon + kernel <= MOST_KIB { '✓' } else { '✗' };
    Ok(format!(
        "An idle sandbox under a policy that others have too: {daemon:.1} KiB of the daemon's memory and {kernel:.1} KiB \
         of the kernel's. To reach: ≤ {MOST_KIB} KiB {verdict}"
    ))
}
