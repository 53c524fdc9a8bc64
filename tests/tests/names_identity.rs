//! Whose a connection by name is, where addresses are not checked: two sandboxes cannot have the same ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

mod names_support;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use filter_tests::etherparse::PacketBuilder;
use filter_tests::{Sandbox, pattern};
use names_support::hello::hello;
use names_support::{EVIL, GOOD, Ground, PATIENCE, at, counted, moved, usual_policy};
use std::io::{Read as _, Write as _};

/// A SYN that says that it is from somebody else.
fn syn_from(sandbox: &Sandbox, from: SocketAddr, to: SocketAddr) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(sandbox.mac(), sandbox.gateway_mac());
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => anyhow::bail!("{from} and {to} are of two families"),
    };
    let segment = ip.tcp(from.port(), to.port(), 1, 64_240).syn();
    let mut frame = Vec::new();
    segment.write(&mut frame, &[])?;
    Ok(frame)
}

#[test]
fn the_ends_of_another_sandboxs_connection_are_its_own() -> Result<()> {
    const OTHER: &str = "s2";
    let ground = Ground::usual()?;
    let other = ground.topology.sandbox(2)?;
    let attach = ["attach", OTHER, "--iface", other.host_interface(), "--addr", "any", "--policy", "-"];
    ground.daemon.cli_with_input(&attach, &usual_policy().to_string())?.success()?;
    let frames = other.frames()?;
    for (to, reached) in [(EVIL[0], GOOD[0]), (EVIL[1], GOOD[1])] {
        let to = at(to, 443);
        let mut stream = ground.sandbox.tcp_connect(to, PATIENCE).result?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let own = stream.local_addr()?;
        let said = hello("allowed.test");
        stream.write_all(&said)?;
        let mut echoed = vec![0; said.len()];
        stream.read_exact(&mut echoed)?;

        let before = ground.before()?;
        let (show, seen) = (ground.control.show(OTHER)?, other_events(&ground, OTHER)?.len());
        frames.send(&syn_from(&other, own, to)?)?;
        names_support::timed::eventually("it is counted", PATIENCE, || {
            Ok(counted(&ground.control.show(OTHER)?, "spoofed") > counted(&show, "spoofed"))
        })?;
        let denied = moved(&show, &ground.control.show(OTHER)?)?;
        ensure!(denied == [("spoofed".to_owned(), 1)], "{denied:?}");
        names_support::timed::eventually("it is told", PATIENCE, || {
            Ok(other_events(&ground, OTHER)?.iter().skip(seen).any(|event| event["reason"] == "spoofed"))
        })?;
        // Nothing of it got anywhere, and the one whose connection it is notices nothing.
        ground.ensure_nothing_arrived(&before)?;
        ground.ensure_moved(&before, &[])?;
        let more = pattern(0, 100_000);
        let mut echoed = vec![0; more.len()];
        let mut writer = stream.try_clone()?;
        std::thread::scope(|scope| -> Result<()> {
            let writing = scope.spawn(|| writer.write_all(&more));
            stream.read_exact(&mut echoed)?;
            writing.join().unwrap()?;
            Ok(())
        })?;
        ensure!(echoed == more, "what came back is not what was said");
        let accepted = ground.echo.as_ref().context("no echo")?.accepted();
        ensure!(accepted.last().context("nobody came")?.local == at(reached, 443), "{accepted:?}");
        ensure!(ground.control.active(OTHER)? == 0, "it was counted as a connection of the other's");
    }
    Ok(())
}

fn other_events(ground: &Ground, id: &str) -> Result<Vec<serde_json::Value>> {
    let events = ground.daemon.events()?.into_iter();
    Ok(events.filter(|event| event["sandbox"] == id && event["event"] == "deny").collect())
}
