//! `doctor` finds what is wrong, says what to do, and exits by it.

mod names_support;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Daemon, Netns};
use serde_json::Value;

use names_support::{Ground, ID, SHORT, usual_policy};

/// What is found, and the exit code.
fn findings(daemon: &Daemon) -> Result<(i32, Vec<Value>)> {
    let output = daemon.cli(&["doctor", "--json"])?;
    let said: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((output.code, said["findings"].as_array().context("no findings")?.clone()))
}

fn finding<'a>(findings: &'a [Value], check: &str) -> Result<&'a Value> {
    findings.iter().find(|one| one["check"] == check).with_context(|| format!("no {check} in {findings:?}"))
}

fn is(findings: &[Value], check: &str, status: &str, part: &str) -> Result<()> {
    let found = finding(findings, check)?;
    let says = found["detail"].as_str().is_some_and(|detail| detail.contains(part));
    ensure!(found["status"] == status && says, "{found}");
    Ok(())
}

fn run(netns: &Netns, program: &str, args: &[&str]) -> Result<()> {
    let mut command: Command = netns.command(program)?;
    let output = command.args(args).output().with_context(|| format!("this test needs `{program}`"))?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_healthy_host_is_found_so() -> Result<()> {
    let ground = Ground::usual()?;
    let (code, found) = findings(&ground.daemon)?;
    assert_eq!(code, 0, "{found:?}");
    for check in [
        "privilege",
        "kernel",
        "BTF",
        "bpffs",
        "maps",
        "links",
        "forwarding",
        "firewall",
        "attachment",
        "inspector",
    ] {
        ensure!(finding(&found, check)?["status"] != "failed", "{check}: {found:?}");
    }
    is(&found, &format!("sandbox {ID}"), "ok", "generation 1 enforced on sbx1")
}

#[test]
fn what_is_wrong_is_found_and_what_to_do_is_said() -> Result<()> {
    let mut ground = Ground::with(SHORT, &usual_policy())?;
    let host = ground.topology.host().clone();

    // A firewall that lets in what it knows.
    run(
        &host,
        "nft",
        &[
            "add table inet filter; add chain inet filter input { type filter hook input priority 0; policy drop; }",
        ],
    )?;
    is(
        &findings(&ground.daemon)?.1,
        "firewall",
        "warning",
        "nft insert rule inet filter input meta mark and 0x30000000",
    )?;
    // What it says to do is what helps.
    let rule = "meta mark and 0x30000000 == 0x10000000 accept";
    run(&host, "nft", &[&format!("insert rule inet filter input {rule}")])?;
    is(&findings(&ground.daemon)?.1, "firewall", "ok", "lets packets")?;
    run(&host, "nft", &["delete table inet filter"])?;

    // Identity that is not checked.
    let other = ground.topology.sandbox(2)?;
    ground.daemon.cli(&["attach", "loose", "--iface", other.host_interface(), "--addr", "any"])?.success()?;
    is(&findings(&ground.daemon)?.1, "sandbox loose", "warning", "--addr any")?;

    // Enforcement without a daemon.
    ground.daemon.stop()?;
    let (code, found) = findings(&ground.daemon)?;
    assert_eq!(code, 0, "warnings are no failures");
    is(&found, "links", "warning", "2 sandboxes are filtered without a daemon")?;
    is(&found, "daemon", "warning", "no daemon answers")?;
    ground.daemon.start()?;

    // Somebody has taken the programs off.
    let pin = ground.daemon.pins().join("links").join(ID).join("from_sandbox");
    std::fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
    let (code, found) = findings(&ground.daemon)?;
    assert_eq!(code, 1);
    is(&found, &format!("sandbox {ID}"), "failed", "restart the daemon")
}
