//! One sandbox uses something up. It is refused, it is told how much it was refused, and nobody else notices.

mod support_b;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use filter_tests::{Daemon, Sandbox, Service, Topology};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use support_b::{A, B, Control, PATIENCE, dial, eventually, only, packets, reaches, refused_packets, reset};

struct Stand {
    daemon: Daemon,
    control: Control,
    sandbox: Sandbox,
    neighbour: Sandbox,
    topology: Topology,
}

/// A sandbox `one` under a policy, and its neighbour `two` that may reach A alone.
fn stand(config: &str, policy: &Value) -> Result<Stand> {
    let topology = Topology::new()?;
    let (sandbox, neighbour) = (topology.sandbox(1)?, topology.sandbox(2)?);
    let daemon = Daemon::on(&topology).config(config).start()?;
    daemon.attach("one", &sandbox, policy)?;
    daemon.attach("two", &neighbour, &only(&[A]))?;
    Ok(Stand { control: Control::of(&daemon), daemon, sandbox, neighbour, topology })
}

/// How long the neighbour's connections take, in order, while `work` goes on.
fn latencies(neighbour: &Sandbox, work: impl FnOnce() -> Result<()> + Send) -> Result<Vec<Duration>> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let measure = scope.spawn(|| {
            neighbour.run(|| {
                let mut took = Vec::new();
                while !done.load(Ordering::Relaxed) || took.len() < 50 {
                    let start = Instant::now();
                    let stream = dial((A, 7), 0, PATIENCE)?;
                    took.push(start.elapsed());
                    reset(stream)?;
                    sleep(Duration::from_millis(1));
                }
                took.sort();
                Ok(took)
            })
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        let took = measure.join().map_err(|_| anyhow!("a thread failed"))?;
        result.and(took)
    })
}

fn quantiles(sorted: &[Duration]) -> String {
    let at = |percent: usize| {
        sorted.get((sorted.len() * percent / 100).min(sorted.len() - 1)).copied().unwrap_or_default()
    };
    format!("{} connections: median {:?}, p99 {:?}, longest {:?}", sorted.len(), at(50), at(99), at(100))
}

/// Resident memory of the daemon in KiB.
fn memory(daemon: &Daemon) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{}/status", daemon.id().context("the daemon is not running")?))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(resident.trim().trim_end_matches(" kB").parse()?)
}

/// Denials of a sandbox that were told, one by one or folded, and what is said to be missing.
fn told(daemon: &Daemon, id: &str) -> Result<(u64, u64)> {
    let events = daemon.events()?;
    let denials = events.iter().filter(|event| event["event"] == "deny" && event["sandbox"] == id);
    let dropped = events.iter().filter_map(|event| event["dropped"].as_u64());
    Ok((denials.filter_map(|event| event["count"].as_u64()).sum(), dropped.sum()))
}

#[test]
fn a_flood_of_denied_packets_is_the_flooders_own_affair() -> Result<()> {
    const FLOOD: u32 = 50_000;
    let Stand { daemon, control, sandbox, neighbour, topology } = &stand("", &only(&[A]))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let capture = topology.capture()?;
    let process = daemon.id();
    let quiet = latencies(neighbour, || {
        sleep(Duration::from_millis(300));
        Ok(())
    })?;
    let before = memory(daemon)?;

    let start = Instant::now();
    let loud = latencies(neighbour, || {
        let frames = sandbox.frames()?;
        for n in 0..FLOOD {
            let mut frame = Vec::with_capacity(64);
            let to = IpAddr::from([198, 51, 100, (n % 250) as u8]);
            let packet = sandbox.packet_to(to)?.tcp(1024 + (n / 250 % 200) as u16, 80, n, 64_240).syn();
            packet.write(&mut frame, &[])?;
            frames.send(&frame)?;
        }
        Ok(())
    })?;
    println!("{FLOOD} packets in {:?}", start.elapsed());
    println!("quiet: {}\nloud:  {}", quantiles(&quiet), quantiles(&loud));

    let show = control.show("one")?;
    assert_eq!(packets(&show, "denied_cidr")?, u64::from(FLOOD), "each is counted");
    assert_eq!((control.active("one")?, refused_packets(&control.show("two")?)?), (0, 0));
    let escaped = capture
        .count(|flow| matches!(flow.destination, IpAddr::V4(to) if to.octets()[..3] == [198, 51, 100]))?;
    assert_eq!(escaped.frames, 0, "none of them got out");
    // Told in part; what was not is said.
    let refused = || {
        let show = control.show("one")?;
        // The sandbox's kernel reports the multicast groups it listens to, which is refused as well.
        Ok::<_, anyhow::Error>(refused_packets(&show)? + packets(&show, "protocol")?)
    };
    eventually("told and untold denials are all there were", PATIENCE, || {
        let (told, dropped) = told(daemon, "one")?;
        Ok(told + dropped == refused()?)
    })
    .with_context(|| format!("{:?} of {:?}", told(daemon, "one"), refused()))?;
    let (told, dropped) = told(daemon, "one")?;
    println!("{told} denials told, {dropped} dropped");
    assert!(dropped > 0 && told > 0);
    let after = memory(daemon)?;
    println!("the daemon had {before} KiB, then {after} KiB");
    assert!(after < before + 16 * 1024, "{before} KiB, then {after} KiB");
    assert_eq!((daemon.id(), process.is_some()), (process, true));
    assert_eq!(control.ids()?, ["one", "two"]);
    assert!(
        reaches(sandbox, (A, 7))? && !reaches(sandbox, (B, 7))?,
        "the flooder's own connections work too"
    );
    Ok(())
}

/// Sends one datagram to each of `count` ports of addresses that never answer. Each is a connection.
fn spray(sandbox: &Sandbox, count: u32) -> Result<u32> {
    sandbox.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut sent = 0;
        for n in 0..count {
            let to = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 248)) + 1 + n / 60_000);
            // What is refused may come back as an error of a later call, which then has sent nothing.
            sent += u32::from(socket.send_to(b"?", (to, 1024 + (n % 60_000) as u16)).is_ok());
        }
        Ok(sent)
    })
}

/// A process that is stopped until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(daemon: &Daemon) -> Result<Self> {
        let id = Pid::from_raw(i32::try_from(daemon.id().context("the daemon is not running")?)?);
        kill(id, Signal::SIGSTOP)?;
        Ok(Self(id))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // The daemon is this test's own child.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn events_that_nobody_reads_are_counted_as_lost() -> Result<()> {
    const CONNECTIONS: u32 = 55_000;
    const BURST: u32 = 5000;
    let policy = json!({ "limits": { "egressConnections": 100_000 } });
    let Stand { daemon, control, sandbox, neighbour, topology } =
        &stand("[limits]\negress_ceiling = 100000\n[timeouts]\nudp = \"1s\"\n", &policy)?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    {
        let _stopped = Stopped::new(daemon)?;
        // The ring has room for some forty thousand, and one sandbox is told six thousand of in a tenth of a
        // second.
        for _ in 0..CONNECTIONS / BURST {
            spray(sandbox, BURST)?;
            sleep(Duration::from_millis(110));
        }
        assert!(
            reaches(neighbour, (A, 7))? && !reaches(neighbour, (B, 7))?,
            "verdicts do not wait for a reader"
        );
    }
    assert!(control.connections("one")?.peak > 1000);
    control.settles("one", 0, Duration::from_secs(10))?;
    let lost = daemon.cli_json(&["stats"])?["eventsLost"].as_u64().context("no eventsLost")?;
    println!("{lost} events were lost");
    assert!(lost > 0);
    // Tens of thousands of lines, of which few are worth parsing.
    let lines = || fs::read_to_string(daemon.config().with_file_name("events.jsonl"));
    let told_lost = |text: &str| -> u64 {
        let lines = text.lines().filter(|line| line.contains(r#""event":"dropped""#));
        lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()?["dropped"].as_u64()).sum()
    };
    // Besides those that found no room there may be some that came too fast.
    eventually("the loss is told", PATIENCE * 3, || Ok(told_lost(&lines()?) >= lost))?;
    let of_one = lines()?.lines().filter(|line| line.contains(r#""sandbox":"one""#)).count() as u64;
    let lost = told_lost(&lines()?);
    assert!(of_one + lost >= u64::from(CONNECTIONS), "{of_one} told, {lost} lost");
    let doctor = daemon.cli_json(&["doctor"])?;
    let warned = doctor["findings"].as_array().into_iter().flatten().any(|one| one["check"] == "events");
    assert!(warned, "{doctor}");
    Ok(())
}

#[test]
fn one_sandbox_cannot_use_up_the_room_of_all() -> Result<()> {
    /// More than the host gives a sandbox, and fewer than its policy does.
    const CONNECTIONS: u32 = 100_000;
    const CEILING: u32 = 32_768;
    let policy = json!({ "limits": { "egressConnections": 1_000_000 } });
    let Stand { daemon, control, sandbox, neighbour, topology } = &stand("", &policy)?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let start = Instant::now();
    let sent = spray(sandbox, CONNECTIONS)?;
    println!("{sent} datagrams in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(28), "some are idle already: this machine is too slow");
    let show = control.show("one")?;
    let (full, now) = (packets(&show, "capacity")?, support_b::Connections::of(&show)?);
    println!("{full} refused for want of room: {now:?}");
    assert_eq!(now.active, u64::from(CEILING), "{now:?}");
    assert_eq!(now.active + full, u64::from(sent), "each is either followed or refused");
    assert!(reaches(neighbour, (A, 7))?, "nobody else is refused anything");
    // The one that finds no room has taken its place in the budget before.
    assert!(now.active <= now.peak && now.peak <= now.active + 1, "{now:?}");
    assert_eq!(packets(&show, "connection_limit")?, 0);
    let told = || -> Result<bool> {
        let lines = fs::read_to_string(daemon.config().with_file_name("events.jsonl"))?;
        let denied = lines.lines().find(|line| line.contains(r#""reason":"capacity""#));
        Ok(denied
            .is_some_and(|line| line.contains(r#""event":"deny""#) && line.contains(r#""sandbox":"one""#)))
    };
    eventually("it is told", PATIENCE * 3, told)?;

    // All of them lose their permission at once, and nothing of them stays.
    let start = Instant::now();
    control.update("one", &only(&[A]))?;
    println!("the update took {:?}", start.elapsed());
    assert_eq!(control.active("one")?, 0);
    assert!(reaches(sandbox, (A, 7))? && reaches(neighbour, (A, 7))?);
    control.settles("one", 0, PATIENCE)?;
    control.settles("two", 0, PATIENCE)
}
