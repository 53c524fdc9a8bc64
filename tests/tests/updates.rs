//! A policy is replaced as a whole and at once: nothing is judged by a mixture, what is still allowed goes on,
//! what is not is cut, and whoever asked for the update knows when it holds.

mod support_b;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use filter_tests::{Daemon, Sandbox, Service, Topology};
use nix::errno::Errno;
use serde_json::{Value, json};

use support_b::{
    A, B, Control, PATIENCE, Probes, SILENT, all_but, dial, errno, eventually, generation, listen, only,
    pair, reaches, refused_packets, tries,
};

/// Within this both ends of a connection that lost its permission know it.
const CUT: Duration = Duration::from_secs(1);

struct Stand {
    daemon: Daemon,
    control: Control,
    sandbox: Sandbox,
    topology: Topology,
}

/// A sandbox `one` under a policy.
fn stand(policy: &Value) -> Result<Stand> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let daemon = Daemon::start_on(&topology)?;
    daemon.attach("one", &sandbox, policy)?;
    Ok(Stand { control: Control::of(&daemon), daemon, sandbox, topology })
}

#[test]
fn it_holds_when_the_update_returns() -> Result<()> {
    let Stand { daemon, control, sandbox, topology } = &stand(&only(&[A]))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    for round in 0..50 {
        let (now, before) = if round % 2 == 0 { (B, A) } else { (A, B) };
        // Both ways to ask.
        if round % 10 == 0 {
            daemon.update("one", &only(&[now]))?;
        } else {
            control.update("one", &only(&[now]))?;
        }
        assert!(!reaches(sandbox, (before, 7))?, "round {round}");
        assert!(reaches(sandbox, (now, 7))?, "round {round}");
    }
    assert_eq!(generation(&control.show("one")?)?, 51);
    Ok(())
}

/// What ended a connection at one end, and how long after `start`.
fn end_of(start: Instant, mut work: impl FnMut() -> io::Result<usize>) -> (Option<Errno>, Duration) {
    loop {
        match work() {
            Ok(0) => return (None, start.elapsed()),
            Ok(_) => {}
            Err(error) => return (errno(&error), start.elapsed()),
        }
    }
}

#[test]
fn connections_that_lost_their_permission_are_reset_at_both_ends() -> Result<()> {
    let Stand { control, sandbox, topology, .. } = &stand(&json!({}))?;
    for address in [A, "2001:db8:113::10".parse()?] {
        let listener = listen(topology.internet(), (address, 70))?;
        let idle = pair(sandbox, &listener)?;
        let talked = pair(sandbox, &listener)?;
        (&talked.0).write_all(b"question")?;
        (&talked.1).read_exact(&mut [0; 8])?;
        (&talked.1).write_all(b"answer")?;
        (&talked.0).read_exact(&mut [0; 6])?;
        let download = pair(sandbox, &listener)?;
        let upload = pair(sandbox, &listener)?;
        let kept_listener = listen(topology.internet(), (B, 70))?;
        let kept = pair(sandbox, &kept_listener)?;

        thread::scope(|scope| -> Result<()> {
            type End<'a> = thread::ScopedJoinHandle<'a, (Option<Errno>, Duration)>;
            let start = Instant::now();
            let reading = |stream: TcpStream| -> End<'_> {
                scope.spawn(move || {
                    let mut buffer = vec![0; 65_536];
                    end_of(start, || (&stream).read(&mut buffer))
                })
            };
            let writing = |stream: TcpStream| -> End<'_> {
                scope.spawn(move || {
                    let data = vec![b'.'; 65_536];
                    end_of(start, || (&stream).write(&data))
                })
            };
            let ends = [
                ("idle, sandbox", reading(idle.0)),
                ("idle, server", reading(idle.1)),
                ("quiet, sandbox", reading(talked.0)),
                ("quiet, server", reading(talked.1)),
                ("download, sandbox", reading(download.0)),
                ("download, server", writing(download.1)),
                ("upload, sandbox", writing(upload.0)),
                ("upload, server", reading(upload.1)),
            ];
            sleep(Duration::from_millis(300));
            let cut = start.elapsed();
            control.update("one", &all_but(&[address]))?;
            for (what, end) in ends {
                let (how, when) = end.join().map_err(|_| anyhow!("a thread failed"))?;
                let after = when.checked_sub(cut).with_context(|| format!("{what} ended early: {how:?}"))?;
                println!("{address}, {what}: {how:?} after {after:?}");
                // Whoever writes may hear of it as a broken pipe.
                ensure!(
                    matches!(how, Some(Errno::ECONNRESET | Errno::EPIPE)),
                    "{what}: {how:?} after {after:?}"
                );
                ensure!(after < CUT, "{what}: {after:?}");
            }
            Ok(())
        })?;
        assert_eq!(control.active("one")?, 1, "the one that is still allowed");
        (&kept.0).write_all(b"still here")?;
        (&kept.1).read_exact(&mut [0; 10])?;
        control.update("one", &json!({}))?;
    }
    Ok(())
}

#[test]
fn half_open_connections_are_refused_when_they_lose_their_permission() -> Result<()> {
    let Stand { control, sandbox, .. } = &stand(&json!({}))?;
    for silent in [SILENT, "2001:db8:113:0:dead::1".parse()?] {
        thread::scope(|scope| -> Result<()> {
            let connect = scope.spawn(|| sandbox.tcp_connect((silent, 80), PATIENCE));
            eventually("the connection is counted", PATIENCE, || Ok(control.active("one")? == 1))?;
            let start = Instant::now();
            control.update("one", &only(&[A]))?;
            let attempt = connect.join().map_err(|_| anyhow!("a thread failed"))?;
            println!("{silent}: {attempt:?}, {:?} after the update", start.elapsed());
            ensure!(attempt.errno() == Some(Errno::ECONNREFUSED), "{attempt:?}");
            ensure!(start.elapsed() < CUT);
            Ok(())
        })?;
        assert_eq!(control.active("one")?, 0);
        control.update("one", &json!({}))?;
    }
    Ok(())
}

#[test]
fn many_connections_are_cut_at_once() -> Result<()> {
    let Stand { control, sandbox, topology, .. } = &stand(&json!({}))?;
    let echo = topology.serve(Service::TcpEcho, 7)?;
    let held =
        sandbox.run(|| (0..2000).map(|_| Ok(dial((A, 7), 0, PATIENCE)?)).collect::<Result<Vec<_>>>())?;
    eventually("the server has them all", PATIENCE, || Ok(echo.open() == 2000))?;
    let start = Instant::now();
    control.update("one", &only(&[B]))?;
    println!("the update took {:?}", start.elapsed());
    assert_eq!(control.active("one")?, 0);
    for mut stream in held {
        let end = stream.read(&mut [0]);
        assert_eq!(end.as_ref().err().and_then(errno), Some(Errno::ECONNRESET), "{end:?}");
    }
    assert!(start.elapsed() < CUT, "{:?}", start.elapsed());
    eventually("the server knows it too", CUT, || Ok(echo.open() == 0))
}

#[test]
fn kept_connections_lose_nothing() -> Result<()> {
    let Stand { daemon, control, sandbox, topology } = &stand(&only(&[A]))?;
    let neighbour = topology.sandbox(2)?;
    daemon.attach("two", &neighbour, &only(&[A]))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let streams = [sandbox, &neighbour].map(|sandbox| sandbox.tcp_connect((A, 7), PATIENCE).result);
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let (done, mut checks) = (&done, Vec::new());
        for stream in streams {
            checks.push(scope.spawn(move || echoed_whole(&stream?, done)));
        }
        for round in 0..20_u8 {
            // Different each time, and each allows the connection by another rule.
            let policy = match round % 3 {
                0 => only(&[A, [192, 88, 99, round].into()]),
                1 => json!({ "allowOut": ["203.0.113.0/24"], "denyOut": ["0.0.0.0/0"] }),
                _ => all_but(&[B]),
            };
            control.update("one", &policy)?;
            sleep(Duration::from_millis(20));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for check in checks {
            let bytes = check.join().map_err(|_| anyhow!("a thread failed"))??;
            println!("{bytes} bytes there and back");
            ensure!(bytes > 100_000, "{bytes}");
        }
        Ok(())
    })?;
    for (id, generations) in [("one", 21), ("two", 1)] {
        let show = control.show(id)?;
        assert_eq!(refused_packets(&show)?, 0, "{show}");
        assert_eq!(generation(&show)?, generations, "an update is one sandbox's affair");
    }
    Ok(())
}

/// Sends numbers to an echo server and compares what comes back, until `done`.
fn echoed_whole(stream: &TcpStream, done: &std::sync::atomic::AtomicBool) -> Result<u64> {
    const PIECE: u64 = 4096;
    let (mut reader, mut writer) = (stream, stream);
    let mut next = 0_u64;
    while !done.load(std::sync::atomic::Ordering::Relaxed) {
        let numbers: Vec<u8> =
            (next..next + PIECE).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
        writer.write_all(&numbers)?;
        let mut back = vec![0; numbers.len()];
        reader.read_exact(&mut back)?;
        ensure!(back == numbers, "other bytes came back after {} of them", next * 8);
        next += PIECE;
    }
    Ok(next * 8)
}

#[test]
fn an_exchange_of_datagrams_is_revoked() -> Result<()> {
    let Stand { control, sandbox, topology, .. } = &stand(&json!({}))?;
    let server = topology.internet().run(|| Ok(UdpSocket::bind((A, 90))?))?;
    server.set_read_timeout(Some(Duration::from_millis(200)))?;
    sandbox.run(|| {
        let client = UdpSocket::bind("0.0.0.0:0")?;
        client.connect((A, 90))?;
        client.set_read_timeout(Some(Duration::from_millis(200)))?;
        client.send(b"1")?;
        let (_, peer) = server.recv_from(&mut [0; 8])?;
        server.send_to(b"2", peer)?;
        client.recv(&mut [0; 8])?;
        ensure!(control.active("one")? == 1);

        control.update("one", &only(&[B]))?;
        ensure!(control.active("one")? == 0);
        // Neither way.
        server.send_to(b"3", peer)?;
        let came = client.recv(&mut [0; 8]);
        ensure!(came.is_err(), "an answer came through: {came:?}");
        client.send(b"4")?;
        let refused = client.recv(&mut [0; 8]);
        ensure!(refused.as_ref().err().and_then(errno) == Some(Errno::EHOSTUNREACH), "{refused:?}");
        let came = server.recv_from(&mut [0; 8]);
        ensure!(came.is_err(), "a question came through: {came:?}");
        ensure!(control.active("one")? == 0);
        Ok(())
    })?;
    // A ping to the same place as well.
    assert_eq!(sandbox.ping(A, PATIENCE).errno(), Some(Errno::EHOSTUNREACH));
    Ok(())
}

#[test]
fn every_policy_has_a_number_and_a_hash() -> Result<()> {
    let Stand { daemon, control, sandbox, .. } = &stand(&only(&[A]))?;
    let hash = |show: &Value| show["policyHash"].as_str().map(str::to_owned).context("no hash");
    let first = control.show("one")?;
    assert_eq!(generation(&first)?, 1);
    let second = control.update("one", &only(&[B]))?;
    assert_eq!((generation(&second)?, second["enforced"].as_bool()), (2, Some(true)));
    assert_ne!(hash(&first)?, hash(&second)?);
    // The same content again: another number, the same hash, however it is written.
    let third = control.update("one", &json!({ "deny_out": ["0.0.0.0/0"], "allow_out": [A] }))?;
    assert_eq!((generation(&third)?, hash(&third)?), (3, hash(&first)?));
    assert_eq!(third["policy"], first["policy"]);

    assert!(!reaches(sandbox, (B, 7))?);
    let event = daemon.wait_event(|event| event["event"] == "deny" && event["dst"] == json!(B), PATIENCE)?;
    assert_eq!((&event["generation"], &event["rule"]), (&json!(3), &json!("/denyOut/0")));
    // Everything is replaced: what is left out is cleared.
    let cleared = daemon.cli_json(&["update", "one", "--clear"])?;
    assert_eq!(cleared["policy"]["denyOut"], json!([]));
    Ok(())
}

#[test]
fn an_update_that_fails_changes_nothing() -> Result<()> {
    let Stand { daemon, control, sandbox, topology } = &stand(&only(&[A]))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let mut stream = sandbox.tcp_connect((A, 7), PATIENCE).result?;
    let before = control.show("one")?;
    for (policy, pointer) in [
        (json!({ "allowOut": [B, "https://x"], "denyOut": ["0.0.0.0/0"] }), "/allowOut/1"),
        (json!({ "denyOut": ["nonsense"] }), "/denyOut/0"),
        (json!({ "allowOut": ["named.test"] }), ""),
        (json!({ "denyout": [] }), ""),
        (json!({ "limits": { "egressConnections": -1 } }), ""),
        (json!([]), ""),
        (json!({ "allowPublicTraffic": true }), "/allowPublicTraffic"),
    ] {
        let output =
            daemon.cli_with_input(&["update", "one", "--policy", "-", "--json"], &policy.to_string())?;
        assert_eq!(output.code, 2, "{policy}: {output:?}");
        let error: Value = serde_json::from_str(&output.stdout)?;
        if !pointer.is_empty() {
            assert_eq!(error["error"]["pointer"], json!(pointer), "{policy}: {error}");
        }
        // The daemon itself refuses it as well, the last one aside, which is a matter of the command line.
        if pointer != "/allowPublicTraffic" {
            let refused = control.ask("PUT", "/v1/attachments/one/policy", Some(&policy))?;
            let error = refused.err().context("the daemon took it")?;
            assert_eq!(error["code"], "invalid_policy", "{policy}");
        }
    }
    let after = control.show("one")?;
    for field in ["generation", "policyHash", "policy", "enforced"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert!(reaches(sandbox, (A, 7))? && !reaches(sandbox, (B, 7))?);
    stream.write_all(b"!")?;
    stream.read_exact(&mut [0])?;
    assert_eq!(daemon.cli(&["update", "nobody", "--clear"])?.code, 3);
    Ok(())
}

#[test]
fn updates_at_the_same_time_follow_one_another() -> Result<()> {
    const EACH: u64 = 25;
    let Stand { control, sandbox, topology, .. } = &stand(&only(&[A]))?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    thread::scope(|scope| {
        let updates = [A, B].map(|address| {
            scope
                .spawn(move || (0..EACH).try_for_each(|_| control.update("one", &only(&[address])).map(drop)))
        });
        updates.into_iter().try_for_each(|update| update.join().map_err(|_| anyhow!("a thread failed"))?)
    })?;
    let show = control.show("one")?;
    assert_eq!((generation(&show)?, show["enforced"].as_bool()), (1 + 2 * EACH, Some(true)));
    let holds = [A, B].map(|address| reaches(sandbox, (address, 7)));
    let [a, b] = holds;
    let (a, b) = (a?, b?);
    assert_ne!(a, b, "one of the two, not a mixture");
    assert_eq!(show["policy"]["allowOut"], json!([if a { A } else { B }]));
    Ok(())
}

#[test]
fn equal_policies_share_a_trie() -> Result<()> {
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let control = Control::of(&daemon);
    let host = topology.host();
    // Tries that are kept ready are made again a moment after one is used.
    let count = || -> Result<usize> {
        let mut last = tries(&daemon, host)?.len();
        eventually("the number of tries settles", PATIENCE, || {
            sleep(Duration::from_millis(150));
            let before = std::mem::replace(&mut last, tries(&daemon, host)?.len());
            Ok(before == last)
        })?;
        Ok(last)
    };
    let sandboxes = (1..=5).map(|n| topology.sandbox(n)).collect::<Result<Vec<_>>>()?;
    let (last, equal) = sandboxes.split_last().context("five")?;
    // The trie of those that have none is there after the first update.
    control.attach("s0", last, &only(&[A]))?;
    control.update("s0", &json!({}))?;
    control.detach("s0")?;
    let none = count()?;
    control.attach("s0", last, &only(&[B]))?;
    let before = count()?;
    assert_eq!(before, none + 1);
    for (n, sandbox) in equal.iter().enumerate() {
        // The same content, written in two ways.
        let policy = if n % 2 == 0 {
            only(&[A])
        } else {
            json!({ "deny_out": ["0.0.0.0/0"], "allow_out": ["203.0.113.10/32"] })
        };
        control.attach(&format!("e{n}"), sandbox, &policy)?;
    }
    let shared = count()?;
    assert_eq!(shared, before + 1, "four sandboxes, one trie");
    // One of them goes its own way, and the others do not notice.
    control.update("e0", &only(&[A, B]))?;
    let parted = count()?;
    assert_eq!(parted, shared + 1);
    control.update("s0", &only(&[A]))?;
    // It joins the others, and what nobody uses any more is gone.
    assert_eq!(count()?, parted - 1);
    for n in 0..equal.len() {
        control.detach(&format!("e{n}"))?;
    }
    control.detach("s0")?;
    assert_eq!(count()?, none);
    Ok(())
}

#[test]
fn a_thousand_replacements_under_load() -> Result<()> {
    const REPLACEMENTS: usize = 1000;
    /// A bound on the load, should an update hang; not a figure.
    const BUDGET: Duration = Duration::from_secs(180);
    let large = |second: u8| {
        let allowed = (0..999_u16).map(|n| format!("20.{second}.{}.{}/32", n / 250, n % 250));
        let allowed: Vec<_> = allowed.chain([A.to_string()]).collect();
        json!({ "allowOut": allowed, "denyOut": ["0.0.0.0/0"] })
    };
    let policies = [large(1), large(2)];
    let Stand { control, sandbox, topology, .. } = &stand(&policies[1])?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    let _udp = topology.serve(Service::UdpEcho, 53)?;
    let to = |address: IpAddr, port| SocketAddr::new(address, port);
    let probes = Probes::start(sandbox, to(A, 7), to(B, 7))?.and_udp(sandbox, to(A, 53))?;
    let start = Instant::now();
    for round in 0..REPLACEMENTS {
        control.update("one", &policies[round % 2]).with_context(|| format!("round {round}"))?;
        ensure!(start.elapsed() < BUDGET, "{round} replacements in {BUDGET:?}");
    }
    let took = start.elapsed();
    let asked = probes.finish()?;
    println!("{REPLACEMENTS} in {took:?}; {} probes, the longest {:?}", asked.sent, asked.longest);
    let show = control.show("one")?;
    assert_eq!(generation(&show)?, 1 + REPLACEMENTS as u64);
    // Nothing but the probes to B was refused.
    assert_eq!(refused_packets(&show)?, support_b::packets(&show, "denied_cidr")?);
    assert_eq!(support_b::packets(&show, "revoked")?, 0);
    Ok(())
}
