//! What an operator sees of sandboxes: what happened, what happens, and how much of it is missing.

mod support_b;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use filter_tests::{Daemon, Process, Sandbox, Service, Topology};
use serde_json::{Value, json};

use support_b::{A, B, Control, PATIENCE, eventually, only, reaches};

struct Stand {
    daemon: Daemon,
    control: Control,
    sandbox: Sandbox,
    neighbour: Sandbox,
    topology: Topology,
}

/// Sandboxes `one` and `two`, which may reach `A` and nothing else.
fn stand() -> Result<Stand> {
    let topology = Topology::new()?;
    let (sandbox, neighbour) = (topology.sandbox(1)?, topology.sandbox(2)?);
    let daemon = Daemon::start_on(&topology)?;
    daemon.attach("one", &sandbox, &only(&[A]))?;
    daemon.attach("two", &neighbour, &only(&[A]))?;
    Ok(Stand { control: Control::of(&daemon), daemon, sandbox, neighbour, topology })
}

fn documents(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}

/// `observe` with more arguments, as documents.
fn observed(daemon: &Daemon, args: &[&str]) -> Result<Vec<Value>> {
    documents(&daemon.cli(&[&["observe", "-o", "json"], args].concat())?.success()?.stdout)
}

/// `observe --follow`, and the lines that it prints.
fn follow(daemon: &Daemon, args: &[&str]) -> Result<(Process, Receiver<String>)> {
    let mut command = daemon.command(&[&["observe", "--follow"], args].concat())?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut process = Process::start(command)?;
    let stdout = process.child().stdout.take().context("no standard output")?;
    let (lines, seen) = channel();
    thread::spawn(move || {
        // Ends with the process.
        let lines_of = BufReader::new(stdout).lines();
        lines_of.map_while(std::io::Result::ok).try_for_each(|line| lines.send(line))
    });
    Ok((process, seen))
}

fn wait_line(lines: &Receiver<String>, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = lines.recv_timeout(left).context("no such line")?;
        if wanted(&line) {
            return Ok(line);
        }
    }
}

#[test]
fn what_happened_is_shown_and_can_be_filtered() -> Result<()> {
    let Stand { daemon, sandbox, neighbour, topology, .. } = &stand()?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    assert!(reaches(sandbox, (A, 7))? && !reaches(sandbox, (B, 7))? && !reaches(neighbour, (B, 7))?);
    eventually("all of it is told", PATIENCE, || {
        let one = observed(daemon, &["--sandbox", "one"])?;
        let happened = |what: &str| one.iter().any(|event| event["event"] == what);
        Ok(happened("open")
            && happened("close")
            && happened("deny")
            && !observed(daemon, &["--sandbox", "two"])?.is_empty())
    })?;

    let all = observed(daemon, &[])?;
    let denied = observed(daemon, &["--decision", "deny"])?;
    let allowed = observed(daemon, &["--decision", "allow", "--sandbox", "one", "--since", "5m"])?;
    assert!(denied.len() < all.len() && denied.iter().all(|event| event["decision"] == "deny"), "{denied:?}");
    assert!(allowed.iter().all(|event| event["decision"] == "allow" && event["sandbox"] == "one"));
    assert_eq!(observed(daemon, &["--since", "0s"])?.len(), 0);

    let denial = denied.iter().find(|event| event["sandbox"] == "one" && event["dport"] == 7);
    let denial = denial.context("no denial")?;
    for (field, value) in [
        ("schema", json!(1)),
        ("event", json!("deny")),
        ("reason", json!("denied_cidr")),
        ("rule", json!("/denyOut/0")),
        ("generation", json!(1)),
        ("proto", json!("tcp")),
        ("src", json!(sandbox.v4().to_string())),
        ("dst", json!(B.to_string())),
        ("count", json!(1)),
    ] {
        assert_eq!(denial[field], value, "{field} of {denial}");
    }
    let closed = allowed.iter().find(|event| event["event"] == "close").context("no close")?;
    assert!(closed["bytesOut"].as_u64() > Some(0) && closed["durationMs"].is_u64(), "{closed}");
    // The file of events and the API tell the same.
    assert_eq!(daemon.events()?.iter().filter(|event| *event == denial).count(), 1);

    let text = daemon.cli(&["observe", "--sandbox", "one", "--decision", "deny"])?.success()?.stdout;
    let line = text.lines().find(|line| line.contains(&format!("{B}:7"))).context("no line")?;
    for part in ["one deny", "denied_cidr", "tcp", "rule /denyOut/0", "generation 1"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!text.contains('\u{1b}'), "no colours where nobody sees them");
    Ok(())
}

#[test]
fn what_happens_is_shown_when_it_does_and_repetitions_are_folded() -> Result<()> {
    let Stand { daemon, sandbox, neighbour, .. } = &mut stand()?;
    let (mut process, lines) = follow(daemon, &["--sandbox", "one", "-o", "json", "--since", "0s"])?;
    // It has begun when it shows something.
    eventually("it shows something", PATIENCE, || {
        assert!(!reaches(sandbox, (B, 7))?);
        Ok(lines.recv_timeout(Duration::from_millis(200)).is_ok())
    })?;
    assert!(!reaches(neighbour, (B, 9))?);
    let socket = sandbox.run(|| Ok(std::net::UdpSocket::bind((sandbox.v4(), 5000))?))?;
    for _ in 0..20 {
        // What is refused comes back as an error of the next one.
        let _ = socket.send_to(b"?", SocketAddr::new(B, 99));
    }
    let count =
        |line: &str| serde_json::from_str::<Value>(line).ok().and_then(|event| event["count"].as_u64());
    let mut told = 0;
    let mut of_it = 0;
    while told < 20 {
        let line = wait_line(&lines, |line| line.contains("\"dport\":99"))?;
        assert!(!line.contains("\"sandbox\":\"two\""), "{line}");
        told += count(&line).context("no count")?;
        of_it += 1;
    }
    assert!(told == 20 && of_it < 10, "{told} denials in {of_it} lines");
    assert!(process.ended()?.is_none(), "it goes on");
    // Whoever follows does not keep the daemon from stopping.
    let start = Instant::now();
    daemon.stop()?;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    process.wait(PATIENCE)?;
    Ok(())
}

/// Resident memory of the daemon in KiB.
fn memory(daemon: &Daemon) -> Result<u64> {
    let id = daemon.id().context("the daemon is not running")?;
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(resident.trim().trim_end_matches(" kB").parse()?)
}

/// SYNs to an address that is denied, each another connection, for so long; how many.
fn flood(sandbox: &Sandbox, time: Duration) -> Result<u64> {
    let mut frames = Vec::new();
    for n in 0..4096_u32 {
        let mut frame = Vec::new();
        let to = IpAddr::from([198, 51, 100, (n % 250) as u8]);
        sandbox.packet_to(to)?.tcp(1024 + n as u16, 80, n, 64_240).syn().write(&mut frame, &[])?;
        frames.push(frame);
    }
    let sender = sandbox.frames()?;
    let start = Instant::now();
    let mut sent = 0;
    for batch in frames.chunks(256).cycle() {
        if start.elapsed() >= time {
            break;
        }
        sender.send_all(batch)?;
        sent += batch.len() as u64;
    }
    Ok(sent)
}

#[test]
fn a_flood_of_denials_blocks_nobody_fills_no_memory_and_is_counted_in_full() -> Result<()> {
    const TIME: Duration = Duration::from_secs(3);
    let Stand { daemon, control, sandbox, neighbour, topology } = &stand()?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    // One who looks, and one who never reads what he asked for.
    let (_process, lines) = follow(daemon, &["--sandbox", "one", "-o", "json"])?;
    let mut stalled = UnixStream::connect(daemon.socket())?;
    stalled.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")?;
    stalled.read_exact(&mut [0; 12])?;
    flood(sandbox, Duration::from_millis(500))?;
    let before = memory(daemon)?;

    let sent = flood(sandbox, TIME)?;
    println!("{} denials/s", sent / TIME.as_secs());
    assert!(reaches(neighbour, (A, 7))? && !reaches(neighbour, (B, 7))?, "others are judged as ever");
    let after = memory(daemon)?;
    println!("the daemon had {before} KiB, then {after} KiB");
    assert!(after < before + 24 * 1024, "{before} KiB, then {after} KiB");

    // Every single one is counted, and is either told or known to be missing.
    let denied = || -> Result<u64> {
        let counters = control.show("one")?["counters"].take();
        let packets = |reason: &str| counters[reason]["packets"].as_u64().unwrap_or(0);
        Ok(packets("denied_cidr") + packets("protocol"))
    };
    assert!(denied()? >= sent);
    let (mut told, mut missing) = (0, 0);
    // Losses are told once a second.
    while let Ok(line) = lines.recv_timeout(PATIENCE) {
        let told_of: Value = serde_json::from_str(&line)?;
        told += told_of["count"].as_u64().unwrap_or(0);
        missing += told_of["dropped"].as_u64().unwrap_or(0);
    }
    println!("{told} told, {missing} missing");
    assert!(told > 0 && missing > 0 && told + missing == denied()?);
    assert!(control.ids()? == ["one", "two"], "and the daemon answers");
    Ok(())
}
