//! The daemon comes and goes, and so do interfaces: enforcement stays, state is taken over, nothing is left behind.

mod support_b;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use filter_tests::{Daemon, Sandbox, Service, Topology};
use nix::errno::Errno;
use serde_json::{Value, json};

use support_b::{
    A, B, Control, PATIENCE, Probes, SHORT_TIMEOUTS, SILENT, all_but, dial, errno, eventually, generation,
    listen, only, packets, pair, pinned_links, programs_on, reaches, refused_packets, tool, tries,
};

struct Stand {
    daemon: Daemon,
    control: Control,
    sandbox: Sandbox,
    topology: Topology,
}

/// A sandbox `one` under a policy.
fn stand(config: &str, policy: &Value) -> Result<Stand> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let daemon = Daemon::on(&topology).config(config).start()?;
    daemon.attach("one", &sandbox, policy)?;
    Ok(Stand { control: Control::of(&daemon), daemon, sandbox, topology })
}

#[test]
fn enforcement_needs_no_daemon() -> Result<()> {
    let limited =
        json!({ "allowOut": [A, SILENT], "denyOut": ["0.0.0.0/0"], "limits": { "egressConnections": 5 } });
    for way in ["auto", "clsact"] {
        let config = format!("{SHORT_TIMEOUTS}\n[kernel]\nattach = \"{way}\"\n");
        let Stand { mut daemon, control, sandbox, topology } = stand(&config, &limited)?;
        let _echo = topology.serve(Service::TcpEcho, 7)?;
        let mut held = sandbox.tcp_connect((A, 7), PATIENCE).result?;
        assert!(!reaches(&sandbox, (B, 7))?);
        assert!(reaches(&sandbox, (A, 7))?);
        let before = control.show("one")?;

        daemon.kill9()?;
        assert!(control.show("one").is_err());
        assert!(reaches(&sandbox, (A, 7))? && !reaches(&sandbox, (B, 7))?);
        held.write_all(b"!")?;
        held.read_exact(&mut [0])?;
        // The limit holds, and the timer runs.
        let start = Instant::now();
        sandbox.send_syns((SILENT, 80), 2000..2004)?;
        assert!(!reaches(&sandbox, (A, 7))?, "five are open");
        eventually("half-open connections end", PATIENCE * 2, || reaches(&sandbox, (A, 7)))?;
        assert!(start.elapsed() > Duration::from_millis(800), "too early: {:?}", start.elapsed());

        daemon.start()?;
        let after = control.show("one")?;
        for field in
            ["generation", "policyHash", "policy", "ifindex", "addrs", "mac", "createdAt", "enforced"]
        {
            assert_eq!(after[field], before[field], "{way}: {field}");
        }
        control.settles("one", 1, PATIENCE)?;
        let connections = control.connections("one")?;
        assert_eq!(connections.peak, 5, "{way}");
        assert!(connections.refused >= 1, "{way}");
        for reason in ["allowed_cidr", "denied_cidr"] {
            assert!(packets(&after, reason)? > packets(&before, reason)?, "{reason} went on counting");
        }
        held.write_all(b"!")?;
        held.read_exact(&mut [0])?;
        drop(held);
        control.settles("one", 0, PATIENCE)?;
        assert_eq!(programs_on(topology.host(), sandbox.host_interface())?, 2);
    }
    Ok(())
}

#[test]
fn nothing_is_judged_otherwise_while_the_daemon_restarts() -> Result<()> {
    for way in ["tcx", "clsact"] {
        let Stand { mut daemon, control, sandbox, topology } =
            stand(&format!("[kernel]\nattach = \"{way}\"\n"), &only(&[A]))?;
        let _echo = topology.serve(Service::TcpEcho, 7)?;
        let _udp = topology.serve(Service::UdpEcho, 53)?;
        let mut held = sandbox.tcp_connect((A, 7), PATIENCE).result?;
        let probes =
            Probes::start(&sandbox, (A, 7).into(), (B, 7).into())?.and_udp(&sandbox, (A, 53).into())?;
        for round in 0..5 {
            if round == 2 {
                daemon.stop()?;
            } else {
                daemon.kill9()?;
            }
            sleep(Duration::from_millis(50));
            daemon.start()?;
            assert_eq!(control.show("one")?["enforced"], json!(true), "{way}");
        }
        let asked = probes.finish().context(way)?;
        println!("{way}: {} probes, the longest {:?}", asked.sent, asked.longest);
        let show = control.show("one")?;
        assert_eq!(generation(&show)?, 1, "nothing had to be replaced");
        assert_eq!(refused_packets(&show)?, packets(&show, "denied_cidr")?);
        held.write_all(b"!")?;
        held.read_exact(&mut [0])?;
        drop(held);
        // Datagrams count until they are idle.
        eventually("only the datagrams are left", PATIENCE, || Ok(control.active("one")? == 1))?;
    }
    Ok(())
}

/// Changes what is written down of a sandbox.
fn rewrite(daemon: &Daemon, id: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = daemon.state_dir().join(format!("sandboxes/{id}.json"));
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    change(&mut record);
    Ok(fs::write(path, record.to_string())?)
}

#[test]
fn what_differs_from_the_record_is_repaired() -> Result<()> {
    let Stand { mut daemon, control, sandbox, topology } = stand("", &only(&[A]))?;
    let listener = listen(topology.internet(), (A, 70))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let (mut ours, mut theirs) = pair(&sandbox, &listener)?;
    // Another policy.
    daemon.stop()?;
    let other =
        daemon.cli_with_input(&["check", "--policy", "-", "--json"], &only(&[B]).to_string())?.json()?;
    rewrite(&daemon, "one", |record| record["policy"] = other["policy"].clone())?;
    daemon.start()?;
    assert!(reaches(&sandbox, (B, 7))? && !reaches(&sandbox, (A, 7))?);
    let show = control.show("one")?;
    assert_eq!((&show["policy"]["allowOut"], &show["enforced"]), (&json!([B]), &json!(true)));
    assert_eq!(generation(&show)?, 2);
    for end in [&mut ours, &mut theirs] {
        let error = end.read(&mut [0]).err();
        assert_eq!(error.as_ref().and_then(errno), Some(Errno::ECONNRESET), "the old connection is cut");
    }

    // An earlier generation than the kernel's: an update had been flipped but was taken back on disk.
    daemon.stop()?;
    rewrite(&daemon, "one", |record| record["generation"] = json!(1))?;
    daemon.start()?;
    assert!(reaches(&sandbox, (B, 7))? && !reaches(&sandbox, (A, 7))?);
    assert_eq!(generation(&control.show("one")?)?, 3, "a generation is never used twice");

    // Programs that somebody took off.
    daemon.stop()?;
    for link in pinned_links(&daemon)? {
        fs::remove_file(link)?;
    }
    eventually("nobody filters", PATIENCE, || reaches(&sandbox, (A, 7)))?;
    daemon.start()?;
    assert!(reaches(&sandbox, (B, 7))? && !reaches(&sandbox, (A, 7))?);
    assert_eq!(control.show("one")?["enforced"], json!(true));

    // A record that nobody can read is an error, not a reason to open anything.
    daemon.stop()?;
    rewrite(&daemon, "one", |record| record["policy"] = json!({ "allowOut": 1 }))?;
    let run = daemon.cli(&["run"])?;
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("one"), "{}", run.stderr);
    assert!(reaches(&sandbox, (B, 7))? && !reaches(&sandbox, (A, 7))?);
    Ok(())
}

#[test]
fn a_daemon_killed_in_the_middle_of_updates_leaves_one_policy() -> Result<()> {
    let Stand { mut daemon, control, sandbox, topology } = stand("", &only(&[A]))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let mut last = 1;
    for round in 0..10_u64 {
        let stop = AtomicBool::new(false);
        let acknowledged = thread::scope(|scope| -> Result<u64> {
            let burst = scope.spawn(|| {
                let mut acknowledged = 0;
                for address in [A, B].iter().cycle() {
                    match control.update("one", &only(&[*address])) {
                        Ok(show) => acknowledged = generation(&show).unwrap_or(0),
                        Err(_) => break,
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                acknowledged
            });
            // Any moment of an update, which takes some twenty milliseconds.
            sleep(Duration::from_millis(40) + Duration::from_micros(round * 2_300));
            let killed = daemon.kill9();
            stop.store(true, Ordering::Relaxed);
            killed?;
            burst.join().map_err(|_| anyhow!("a thread failed"))
        })?;
        let dead = [reaches(&sandbox, (A, 7))?, reaches(&sandbox, (B, 7))?];
        assert_ne!(dead[0], dead[1], "round {round}: one of the two is in force without a daemon");
        daemon.start()?;
        let show = control.show("one")?;
        assert_eq!(show["enforced"], json!(true), "round {round}");
        let now = [reaches(&sandbox, (A, 7))?, reaches(&sandbox, (B, 7))?];
        let shown = [A, B].map(|address| show["policy"]["allowOut"] == json!([address]));
        assert_eq!(now, shown, "round {round}: show and kernel agree");
        let generation = generation(&show)?;
        assert!(generation >= acknowledged.max(last), "{acknowledged}, {last}, then {generation}");
        last = generation;
        control.settles("one", 0, PATIENCE)?;
    }
    Ok(())
}

#[test]
fn one_daemon_a_state() -> Result<()> {
    let Stand { mut daemon, control, sandbox, topology } = stand("", &only(&[A]))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let second = daemon.cli(&["run"])?;
    assert_eq!(second.code, 4, "{second:?}");
    assert!(second.stderr.contains("another sandbox-filter daemon"), "{}", second.stderr);
    assert_eq!(control.ids()?, ["one"], "the first one goes on");

    daemon.stop()?;
    assert_eq!(programs_on(topology.host(), sandbox.host_interface())?, 2);
    assert!(reaches(&sandbox, (A, 7))? && !reaches(&sandbox, (B, 7))?);
    assert_eq!(daemon.cli(&["list"])?.code, 5);
    daemon.start()?;
    assert_eq!(control.ids()?, ["one"]);
    Ok(())
}

#[test]
fn an_interface_that_goes_takes_its_sandbox_along() -> Result<()> {
    let Stand { mut daemon, control, sandbox, topology } = stand("", &only(&[A]))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let nobody = |daemon: &Daemon| -> Result<()> {
        let control = Control::of(daemon);
        eventually("the sandbox is gone", PATIENCE, || Ok(control.ids()?.is_empty()))?;
        assert_eq!(daemon.cli(&["show", "one"])?.code, 3);
        assert_eq!(pinned_links(daemon)?, Vec::<std::path::PathBuf>::new());
        assert_eq!(fs::read_dir(daemon.state_dir().join("sandboxes"))?.count(), 0);
        Ok(())
    };
    let held = sandbox.tcp_connect((A, 7), PATIENCE).result?;
    // While the daemon runs.
    drop(sandbox);
    nobody(&daemon)?;
    drop(held);

    // The same name is another interface: nobody asked to filter it.
    let sandbox = topology.sandbox(1)?;
    assert!(control.ids()?.is_empty());
    assert!(reaches(&sandbox, (B, 7))?, "unfiltered");
    assert_eq!(programs_on(topology.host(), sandbox.host_interface())?, 0);
    let show = control.attach("one", &sandbox, &only(&[A]))?;
    assert_eq!((generation(&show)?, refused_packets(&show)?), (1, 0));
    assert_eq!(control.active("one")?, 0);
    assert!(!reaches(&sandbox, (B, 7))?);

    // While it does not, and the name comes back before it does.
    daemon.kill9()?;
    drop(sandbox);
    let sandbox = topology.sandbox(1)?;
    daemon.start()?;
    nobody(&daemon)?;
    assert!(reaches(&sandbox, (B, 7))?, "unfiltered");
    control.attach("one", &sandbox, &only(&[A]))?;
    daemon.stop()?;
    drop(sandbox);
    daemon.start()?;
    nobody(&daemon)
}

#[test]
fn a_new_tenant_starts_from_nothing() -> Result<()> {
    let Stand { daemon, control, sandbox, topology } = stand("", &json!({}))?;
    let echo = topology.serve(Service::TcpEcho, 7)?;
    let _udp = topology.serve(Service::UdpEcho, 53)?;
    let listener = listen(topology.internet(), (A, 70))?;
    let (mut old, old_peer) = pair(&sandbox, &listener)?;
    let more = sandbox.run(|| (0..50).map(|_| Ok(dial((A, 7), 0, PATIENCE)?)).collect::<Result<Vec<_>>>())?;
    assert!(sandbox.udp_exchange((A, 53), b"?", PATIENCE).is_ok());
    sandbox.send_syns((SILENT, 80), 2000..2010)?;
    control.update("one", &all_but(&[B]))?;
    assert!(!reaches(&sandbox, (B, 7))?);
    assert_eq!(control.active("one")?, 1 + 50 + 1 + 10);

    control.detach("one")?;
    let show = control.attach("one", &sandbox, &only(&[B]))?;
    assert_eq!(generation(&show)?, 1);
    let none = support_b::Connections::of(&show)?;
    assert_eq!((none.active, none.peak, none.refused), (0, 0, 0));
    let counted: u64 = show["counters"]
        .as_object()
        .context("no counters")?
        .values()
        .filter_map(|counter| counter["packets"].as_u64())
        .sum();
    assert!(counted <= 2, "but for a packet that was on its way, nothing is counted: {show}");
    // The old tenant's connection is no connection of the new one.
    old.write_all(b"?")?;
    let error = old.read(&mut [0]).err();
    assert_eq!(error.as_ref().and_then(errno), Some(Errno::ECONNRESET), "judged as any other packet");
    drop((old, old_peer, more));
    assert!(reaches(&sandbox, (B, 7))? && !reaches(&sandbox, (A, 7))?);
    control.settles("one", 0, PATIENCE)?;
    assert!(control.connections("one")?.peak <= 1);
    assert!(echo.connections() >= 51);

    // Another id on the same interface and address as well.
    control.detach("one")?;
    let show = control.attach("other", &sandbox, &only(&[A]))?;
    assert_eq!(generation(&show)?, 1);
    assert!(reaches(&sandbox, (A, 7))? && !reaches(&sandbox, (B, 7))?);
    let events = daemon.events()?;
    let last = events.iter().rev().find(|event| event["event"] == "deny").context("no denial was told")?;
    assert_eq!(last["generation"], json!(1));
    Ok(())
}

#[test]
fn conflicts_are_told() -> Result<()> {
    let Stand { daemon, control, sandbox, topology } = stand("", &only(&[A]))?;
    let second = topology.sandbox(2)?;
    let policy = only(&[B]).to_string();
    let attach = |id: &str, iface: &str, addr: &str| {
        daemon.cli_with_input(&["attach", id, "--iface", iface, "--addr", addr, "--policy", "-"], &policy)
    };
    let (own, other) = (sandbox.v4().to_string(), second.v4().to_string());
    for (id, iface, addr, what) in [
        ("one", second.host_interface(), &other, "sandbox one"),
        ("two", sandbox.host_interface(), &other, "interface sbx1"),
        ("two", second.host_interface(), &own, "address 10.200.1.2"),
    ] {
        let output = attach(id, iface, addr)?;
        assert_eq!(output.code, 4, "{what}: {output:?}");
        assert!(output.stderr.starts_with("error: ") && output.stderr.contains(what), "{}", output.stderr);
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    }
    // None of them left anything behind.
    assert_eq!(control.ids()?, ["one"]);
    assert_eq!(programs_on(topology.host(), second.host_interface())?, 0);
    assert_eq!(attach("two", second.host_interface(), &other)?.code, 0);
    Ok(())
}

/// Descriptors and resident memory (KiB) of a process.
fn footprint(daemon: &Daemon) -> Result<(usize, u64)> {
    let process = format!("/proc/{}", daemon.id().context("the daemon is not running")?);
    let status = fs::read_to_string(format!("{process}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib = resident.trim().trim_end_matches(" kB").parse()?;
    Ok((fs::read_dir(format!("{process}/fd"))?.count(), kib))
}

/// Names of everything in a directory tree.
fn tree(root: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(tree(&path)?);
        }
        found.push(path);
    }
    found.sort();
    Ok(found)
}

#[test]
fn two_hundred_sandboxes_come_and_go_without_a_trace() -> Result<()> {
    const ROUNDS: u32 = 200;
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let control = Control::of(&daemon);
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let sandboxes = [topology.sandbox(1)?, topology.sandbox(2)?];
    let round = |n: u32| -> Result<()> {
        let sandbox = sandboxes.get(n as usize % 2).context("two")?;
        let id = format!("s{}", n % 7);
        control.attach(&id, sandbox, &json!({ "denyOut": [format!("198.51.100.{}", n % 200)] }))?;
        if n.is_multiple_of(10) {
            ensure!(reaches(sandbox, (A, 7))?);
            // Half-open ones go with it too.
            sandbox.send_syns((SILENT, 80), 2000..2020)?;
        }
        control.detach(&id)
    };
    // What is allocated once is not a leak.
    (0..20).try_for_each(round)?;
    let pins = tree(daemon.pins())?;
    let ready = tries(&daemon, topology.host())?.len();
    let before = footprint(&daemon)?;
    let start = Instant::now();
    (0..ROUNDS).try_for_each(round)?;
    let after = footprint(&daemon)?;
    println!("{ROUNDS} rounds in {:?}; descriptors and KiB: {before:?}, then {after:?}", start.elapsed());
    assert!(after.0 <= before.0 + 2, "descriptors: {before:?}, then {after:?}");
    assert!(after.1 <= before.1 + 4096, "memory: {before:?}, then {after:?}");
    assert_eq!(tree(daemon.pins())?, pins);
    let tries = || tries(&daemon, topology.host());
    eventually("no policy is left", PATIENCE, || Ok(tries()?.len() <= ready))?;
    for sandbox in &sandboxes {
        assert_eq!(programs_on(topology.host(), sandbox.host_interface())?, 0);
    }
    assert_eq!(fs::read_dir(daemon.state_dir().join("sandboxes"))?.count(), 0);
    // No connection of theirs is left: the next one has all of its budget, and none to give back.
    let show = control.attach("last", &sandboxes[0], &json!({}))?;
    assert_eq!(support_b::Connections::of(&show)?.active, 0);
    Ok(())
}

#[test]
fn cleanup_leaves_nothing() -> Result<()> {
    for way in ["tcx", "clsact"] {
        let Stand { mut daemon, control, sandbox, topology } =
            stand(&format!("[kernel]\nattach = \"{way}\"\n"), &only(&[A]))?;
        let _echo = topology.serve(Service::TcpEcho, 7)?;
        let host = topology.host();
        assert_eq!(programs_on(host, sandbox.host_interface())?, 2, "{way}");
        assert_eq!(control.show("one")?["enforced"], json!(true), "{way}");
        assert!(!reaches(&sandbox, (B, 7))?);
        // A daemon runs.
        assert_eq!(daemon.cli(&["cleanup", "--force"])?.code, 4, "{way}");
        daemon.stop()?;
        // A sandbox is attached.
        let refused = daemon.cli(&["cleanup"])?;
        assert_eq!(refused.code, 4, "{way}: {refused:?}");
        assert!(!reaches(&sandbox, (B, 7))?, "{way}: and it is as before");
        let removed = daemon.cli_json(&["cleanup", "--force"])?;
        assert!(removed["removed"].as_array().is_some_and(|list| !list.is_empty()), "{removed}");

        assert!(!daemon.pins().exists(), "{way}: {:?}", tree(daemon.pins()));
        assert_eq!(fs::read_dir(daemon.state_dir().join("sandboxes"))?.count(), 0);
        assert_eq!(programs_on(host, sandbox.host_interface())?, 0, "{way}");
        let filters = tool(host, "tc", &["filter", "show", "dev", sandbox.host_interface(), "ingress"])?;
        assert!(!filters.contains("from_sandbox"), "{filters}");
        assert!(reaches(&sandbox, (B, 7))?, "{way}: unfiltered");
        assert_eq!(daemon.cli(&["cleanup"])?.code, 0, "{way}: nothing to do is fine");

        // And detach as well.
        daemon.start()?;
        control.attach("one", &sandbox, &only(&[A]))?;
        assert!(!reaches(&sandbox, (B, 7))?);
        control.detach("one")?;
        assert_eq!(programs_on(host, sandbox.host_interface())?, 0, "{way}");
        assert!(reaches(&sandbox, (B, 7))?, "{way}: unfiltered");
        assert_eq!(daemon.cli(&["detach", "one"])?.code, 3);
        daemon.stop()?;
        assert_eq!(daemon.cli(&["cleanup"])?.code, 0, "{way}: nobody is attached");
        assert!(!daemon.pins().exists());
    }
    Ok(())
}

#[test]
fn maps_of_another_version_are_not_touched() -> Result<()> {
    let Stand { mut daemon, control, sandbox, topology } = stand("", &only(&[A]))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    daemon.stop()?;
    let foreign = daemon.pins().join("maps-v999");
    fs::create_dir(&foreign)?;
    let run = daemon.cli(&["run"])?;
    assert_eq!(run.code, 1, "{run:?}");
    let said = run.stderr.lines().last().unwrap_or_default();
    assert!(
        said.starts_with("error: ") && said.contains("999") && said.contains("cleanup --force"),
        "{said}"
    );
    assert!(!reaches(&sandbox, (B, 7))? && reaches(&sandbox, (A, 7))?, "what was enforced still is");
    let findings = daemon.cli(&["doctor", "--json"])?;
    assert_eq!(findings.code, 1);
    let findings: Value = serde_json::from_str(&findings.stdout)?;
    let maps =
        findings["findings"].as_array().into_iter().flatten().find(|finding| finding["check"] == "maps");
    assert_eq!(maps.context("no such finding")?["status"], json!("failed"));
    fs::remove_dir(&foreign)?;
    daemon.start()?;
    assert_eq!(control.show("one")?["enforced"], json!(true));
    Ok(())
}

#[test]
fn the_hosts_own_addresses_are_out_of_reach_when_they_come_later() -> Result<()> {
    let Stand { control, sandbox, topology, .. } = &stand("", &json!({}))?;
    let host = topology.host();
    // An address of the internet's becomes the host's own.
    let late = SocketAddr::new([198, 51, 100, 99].into(), 8000);
    let _echo = topology.serve(Service::TcpEcho, 8000)?;
    assert!(reaches(sandbox, late)?);
    host.add_address("lo", "198.51.100.99/32".parse()?)?;
    let _listener = listen(host, late)?;
    eventually("it is guarded", PATIENCE, || Ok(!reaches(sandbox, late)?))?;
    assert!(control.packets("one", "guarded")? >= 1);
    assert!(reaches(sandbox, (A, 8000))?);
    let show = control.show("one")?;
    assert_eq!((generation(&show)?, &show["enforced"]), (2, &json!(true)));
    Ok(())
}
