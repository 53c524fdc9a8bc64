//! The host takes an address, or gives one up: every sandbox's policy is replaced at once, and each keeps what is
//! its own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

#[path = "support_b/mod.rs"]
mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Daemon, Sandbox, Service, Topology};
use serde_json::json;
use support::{A, B, Control, PATIENCE, SILENT, all_but, eventually, generation, only, packets};

/// One goes on, the other leads to an address that will be the host's.
struct Open {
    kept: TcpStream,
    lost: TcpStream,
}

fn is_alive(stream: &mut TcpStream) -> Result<bool> {
    stream.write_all(b"still there?")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    Ok(answer == *b"still there?")
}

#[test]
fn an_address_that_the_host_takes_is_guarded_in_every_sandbox_and_no_other_connection_suffers() -> Result<()>
{
    const LOST: &str = "203.0.113.77";
    let topology = Topology::new()?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let daemon = Daemon::start_on(&topology)?;
    let control = Control::of(&daemon);
    let lost = LOST.parse()?;
    // Equal policies, which share what they are compiled to, and others.
    let policies = [
        json!({}),
        json!({}),
        only(&[A, lost]),
        only(&[A, lost]),
        all_but(&[SILENT]),
        json!({ "allowOut": ["203.0.113.0/24", "allowed.test"], "denyOut": ["0.0.0.0/0"] }),
    ];
    let mut sandboxes: Vec<(String, Sandbox, Open)> = Vec::new();
    for (n, policy) in (1..).zip(&policies) {
        let (id, sandbox) = (format!("s{n}"), topology.sandbox(n)?);
        control.attach(&id, &sandbox, policy)?;
        let open = |to| -> Result<TcpStream> {
            let stream = sandbox.tcp_connect((to, 7), PATIENCE).result?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let open = Open { kept: open(A)?, lost: open(lost)? };
        sandboxes.push((id, sandbox, open));
    }
    let ids: Vec<String> = sandboxes.iter().map(|(id, ..)| id.clone()).collect();
    let generations = |expected: u64| -> Result<bool> {
        let all = ids.iter().map(|id| generation(&control.show(id)?));
        Ok(all.collect::<Result<Vec<_>>>()?.iter().all(|generation| *generation == expected))
    };

    topology.host().add_address("lo", format!("{LOST}/32").parse()?)?;
    eventually("every policy is replaced", PATIENCE, || generations(2))?;
    for (id, sandbox, open) in &mut sandboxes {
        // The sandbox hears of it; what else it has goes on.
        let error = open.lost.read(&mut [0]).err().with_context(|| format!("{id}: no reset"))?;
        ensure!(error.kind() == ErrorKind::ConnectionReset, "{id}: {error}");
        ensure!(is_alive(&mut open.kept)?, "{id} lost another connection");
        let before = packets(&control.show(id)?, "guarded")?;
        ensure!(!sandbox.tcp_connect((lost, 7), PATIENCE).is_ok(), "{id} reaches the host");
        ensure!(packets(&control.show(id)?, "guarded")? > before, "{id} was refused for another reason");
        control.settles(id, 1, PATIENCE)?;
    }
    for (id, ..) in &sandboxes {
        daemon.wait_event(
            |event| event["sandbox"] == id.as_str() && event["reason"] == "guarded" && event["dst"] == LOST,
            PATIENCE,
        )?;
    }

    let mut give_up: Command = topology.host().command("ip")?;
    ensure!(give_up.args(["address", "del", &format!("{LOST}/32"), "dev", "lo"]).status()?.success());
    eventually("every policy is replaced again", PATIENCE, || generations(3))?;
    for (id, sandbox, open) in &mut sandboxes {
        ensure!(is_alive(&mut open.kept)?, "{id} lost a connection");
        sandbox
            .tcp_connect((lost, 7), PATIENCE)
            .result
            .with_context(|| format!("{id}: not reached again"))?;
    }
    // Taken and given up in quick succession: whatever comes last is in force.
    for _ in 0..5 {
        topology.host().add_address("lo", format!("{LOST}/32").parse()?)?;
        let mut give_up = topology.host().command("ip")?;
        ensure!(give_up.args(["address", "del", &format!("{LOST}/32"), "dev", "lo"]).status()?.success());
    }
    for (id, sandbox, open) in &mut sandboxes {
        eventually("it is reached again", Duration::from_secs(5), || {
            Ok(sandbox.tcp_connect((lost, 7), PATIENCE).is_ok())
        })?;
        ensure!(is_alive(&mut open.kept)?, "{id} lost a connection");
    }
    ensure!(sandboxes[2].1.tcp_connect((B, 7), PATIENCE).errno().is_some(), "a policy was opened");
    Ok(())
}
