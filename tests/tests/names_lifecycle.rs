//! Names while the daemon comes and goes, while sandboxes come and go, and while somebody wants too much.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

mod names_support;
#[path = "common/wire.rs"]
#[allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "as in its own module")]
mod wire;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use filter_tests::hickory_proto::rr::RecordType;
use filter_tests::{Ending, Netns, Sandbox, Server, Service, Talk, Topology};
use names_support::dns::{addresses, ask, ask_raw, query};
use names_support::hello::{Hello, PADDING, hello};
use names_support::timed::{Connections, errno, eventually, tool};
use names_support::{
    ACCESS_DENIED, AT_ONCE, Answer, EVIL, GOOD, Ground, ID, PATIENCE, Row, SHORT, WILD, alone, at, counted,
    ip, names, usual_policy,
};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Servers of the host's own at the ports that names are about. What is for the inspector must never get there.
struct Decoys(Vec<Server>);

impl Decoys {
    fn on(host: &Netns) -> Result<Self> {
        let tcp = [443, 80, 53].map(|port| Server::start(host, Service::TcpEcho, port));
        let all = tcp.into_iter().chain([Server::start(host, Service::UdpEcho, 53)]);
        Ok(Self(all.collect::<Result<_>>()?))
    }

    fn ensure_untouched(&self) -> Result<()> {
        for decoy in &self.0 {
            let (connections, datagrams) = (decoy.connections(), decoy.datagrams());
            ensure!((connections, datagrams) == (0, 0), "port {}: {connections} {datagrams}", decoy.port());
        }
        Ok(())
    }
}

/// Nothing by name gets anywhere, and whoever tries knows at once. Says how many attempts were refused.
fn is_closed(ground: &Ground) -> Result<u64> {
    let frames = ground.frames()?;
    let asked = ground.zone.asked().len();
    for family in [0, 1] {
        for to in [EVIL[family], GOOD[family]] {
            for port in [443, 80] {
                let heard = ground.sandbox.talk(at(to, port), &Talk::new().say(hello("allowed.test")))?;
                let refused = heard.ending == Ending::Unreached(Some(Errno::ECONNREFUSED));
                ensure!(refused && heard.took < AT_ONCE, "{to} {port}: {}", heard.summary());
            }
        }
    }
    let resolver = at("8.8.8.8", 53);
    let bytes = query("allowed.test", RecordType::A).to_vec()?;
    let attempt = ask_raw(&ground.sandbox, resolver, &bytes);
    ensure!(attempt.errno() == Some(Errno::EHOSTUNREACH) && attempt.took < AT_ONCE, "{attempt:?}");
    let heard = ground.sandbox.talk(resolver, &Talk::new())?;
    ensure!(heard.ending == Ending::Unreached(Some(Errno::ECONNREFUSED)), "{}", heard.summary());
    ensure!(ground.frames()? == frames && ground.zone.asked().len() == asked, "something arrived");
    Ok(8 + 2)
}

#[test]
fn without_a_daemon_names_are_closed_and_nothing_leaks() -> Result<()> {
    let mut ground = Ground::usual()?;
    let decoys = Decoys::on(ground.topology.host())?;
    let said = hello("allowed.test");
    let mut refused = 0;
    for crash in [true, false] {
        let mut relay = ground.sandbox.tcp_connect(at(EVIL[0], 443), PATIENCE).result?;
        relay.write_all(&said)?;
        relay.read_exact(&mut vec![0; said.len()])?;
        let mut peeking = ground.sandbox.tcp_connect(at(EVIL[1], 443), PATIENCE).result?;
        peeking.write_all(&said[..20])?;
        if crash {
            ground.daemon.kill9()?
        } else {
            ground.daemon.stop()?
        }
        // What was open is over, and is told so.
        let start = Instant::now();
        for stream in [&mut relay, &mut peeking] {
            let end = stream.read(&mut [0; 16]);
            ensure!(start.elapsed() < AT_ONCE, "it hangs: {end:?}");
            ensure!(
                matches!(end, Ok(0)) || end.as_ref().err().and_then(errno) == Some(Errno::ECONNRESET),
                "{end:?}"
            );
        }
        refused += is_closed(&ground)?;
        refused += is_closed(&ground)?;
        // A rule for an address needs no daemon.
        let heard =
            ground.sandbox.talk(at("203.0.113.10", 443), &Talk::new().say(&said).until(&said).end())?;
        ensure!(heard.bytes == said, "{}", heard.summary());
        ground.daemon.start()?;
        let show = ground.show()?;
        ensure!(
            counted(&show, "inspector_down") == refused,
            "{} of {refused}",
            counted(&show, "inspector_down")
        );
        ground.reaches(at(EVIL[0], 443), &said, "allowed.test", GOOD[0])?;
        ground.denied(&[Row::tls("denied", at(EVIL[1], 443), hello("denied.test"), "name_not_allowed")
            .named("denied.test")])?;
        let answer = ask(&ground.sandbox, at("8.8.8.8", 53), &query("allowed.test", RecordType::A))?;
        ensure!(addresses(&answer) == [ip(GOOD[0])]);
        drop((relay, peeking));
        ground.control.settles(ID, 0, Duration::from_secs(10))?;
    }
    // What was refused meanwhile is told by the next daemon.
    let told = ground
        .daemon
        .wait_event(|event| event["reason"] == "inspector_down" && event["dport"] == 443, PATIENCE)?;
    ensure!(told["event"] == "deny" && told["sandbox"] == ID && told["rule"] == "/denyOut/0", "{told}");
    decoys.ensure_untouched()
}

#[test]
fn a_daemon_that_restarts_under_load_judges_nothing_wrong() -> Result<()> {
    let mut ground = Ground::usual()?;
    let decoys = Decoys::on(ground.topology.host())?;
    let stop = AtomicBool::new(false);
    let Ground { daemon, sandbox, .. } = &mut ground;
    let sandbox = &*sandbox;
    let counts = thread::scope(|scope| -> Result<Vec<(u64, u64)>> {
        let clients: Vec<_> =
            [("allowed.test", 0), ("denied.test", 0), ("allowed.test", 1), ("denied.test", 1)]
                .into_iter()
                .map(|(name, family)| {
                    let stop = &stop;
                    scope.spawn(move || -> Result<(u64, u64)> {
                        let said = hello(name);
                        let (mut served, mut closed) = (0, 0);
                        while !stop.load(Ordering::Relaxed) {
                            let good = name == "allowed.test";
                            let talk = Talk::new().say(&said);
                            let talk = if good { talk.until(&said).end() } else { talk };
                            let heard = sandbox.talk(at(EVIL[family], 443), &talk)?;
                            ensure!(heard.took < Duration::from_secs(2), "{}", heard.summary());
                            match heard.ending {
                                Ending::End if good && heard.bytes == said => served += 1,
                                Ending::End if !good && heard.alert().is_some() => served += 1,
                                // The daemon went away under it.
                                Ending::Reset | Ending::Unreached(Some(Errno::ECONNREFUSED)) => closed += 1,
                                Ending::End if heard.bytes.is_empty() => closed += 1,
                                Ending::End | Ending::Silence | Ending::Unreached(_) => {
                                    return Err(anyhow!("{name}: {}", heard.summary()));
                                }
                            }
                            sleep(Duration::from_millis(1));
                        }
                        Ok((served, closed))
                    })
                })
                .collect();
        let mut restarts = || -> Result<()> {
            for round in 0..4 {
                sleep(Duration::from_millis(150));
                if round % 2 == 0 {
                    daemon.kill9()?
                } else {
                    daemon.stop()?
                }
                sleep(Duration::from_millis(100));
                daemon.start()?;
            }
            sleep(Duration::from_millis(150));
            Ok(())
        };
        let restarted = restarts();
        stop.store(true, Ordering::Relaxed);
        let counts =
            clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client failed"))?);
        let counts = counts.collect::<Result<Vec<_>>>()?;
        restarted.map(|()| counts)
    })?;
    println!("served and closed: {counts:?}");
    for (served, closed) in counts {
        ensure!(served > 10 && closed > 2, "{served} served, {closed} closed");
    }
    let reached: Vec<_> =
        ground.echo.as_ref().context("no echo")?.accepted().iter().map(|one| one.local.ip()).collect();
    ensure!(reached.iter().all(|address| GOOD.map(ip).contains(address)), "{reached:?}");
    ensure!(EVIL.iter().all(|evil| ground.arrived.frames_to(ip(evil)).is_ok_and(|frames| frames == 0)));
    decoys.ensure_untouched()?;
    ground.control.settles(ID, 0, Duration::from_secs(10))
}

#[test]
fn a_new_tenant_starts_from_nothing() -> Result<()> {
    let ground = Ground::usual()?;
    let said = hello("allowed.test");
    let mut relay = ground.sandbox.tcp_connect(at(EVIL[0], 443), PATIENCE).result?;
    relay.write_all(&said)?;
    relay.read_exact(&mut vec![0; said.len()])?;
    let peeking = ground.sandbox.tcp_connect(at(EVIL[1], 443), PATIENCE).result?;
    let mut web = ground.sandbox.tcp_connect(at(EVIL[0], 80), PATIENCE).result?;
    web.write_all(b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n")?;
    ensure!(web.read(&mut [0; 500])? > 0);
    ask(&ground.sandbox, at("8.8.8.8", 53), &query("allowed.test", RecordType::A))?;

    ground.control.detach(ID)?;
    let start = Instant::now();
    for (what, mut stream) in [("relay", &relay), ("peeking", &peeking), ("web", &web)] {
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let end = stream.read(&mut [0; 64]);
        let over = matches!(end, Ok(0)) || end.as_ref().err().and_then(errno) == Some(Errno::ECONNRESET);
        ensure!(
            over && start.elapsed() < Duration::from_secs(1),
            "{what}: {end:?} after {:?}",
            start.elapsed()
        );
    }
    // Its server hears of it as well.
    let server = ground.echo.as_ref().context("no echo")?;
    eventually("the server's end is over", PATIENCE, || Ok(server.open() == 0))?;

    ground.daemon.attach(ID, &ground.sandbox, &names(&["denied.test"]))?;
    // What there was to be told of the old one has been told.
    sleep(Duration::from_millis(250));
    let before = ground.before()?;
    let show = ground.show()?;
    ensure!(
        show["generation"] == 1 && Connections::of(&show)?.active == 0 && Connections::of(&show)?.peak == 0,
        "{show}"
    );
    for reason in ["allowed_name", "name_not_allowed", "dns", "dns_refused", "revoked"] {
        ensure!(counted(&show, reason) == 0, "{reason} is {}", counted(&show, reason));
    }
    // A leftover of the old tenant's goes nowhere.
    let frames = ground.frames()?;
    let _ = relay.write_all(b"more");
    ensure!(ground.frames()? == frames);
    ground.reaches(at(GOOD[0], 443), &hello("denied.test"), "denied.test", EVIL[0])?;
    let row = Row::tls("the old name", at(GOOD[0], 443), &said, "name_not_allowed");
    ground.denied(&[row.named("allowed.test")])?;
    let mut told = ground.events(&before)?.into_iter();
    ensure!(!told.any(|event| event["serverName"] == "allowed.test" && event["decision"] == "allow"));
    Ok(())
}

/// What there is on a host that an inspector could have left: rules, routes, programs that look for sockets.
fn traces(host: &Netns) -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    for family in ["-4", "-6"] {
        for what in ["rule", "route"] {
            let args: &[&str] = if what == "rule" {
                &[family, "rule", "show"]
            } else {
                &[family, "route", "show", "table", "all"]
            };
            for line in tool(host, "ip", args)?.lines() {
                traces.insert(format!(
                    "{family} {what} {}",
                    line.split(" expires ").next().unwrap_or_default().trim()
                ));
            }
        }
    }
    let own = host.path().metadata()?.ino();
    let links: Value = serde_json::from_str(&tool(host, "bpftool", &["-j", "link", "show"])?)?;
    for link in links.as_array().context("no list")? {
        if link["type"] == "netns" && link["netns_ino"] == own {
            traces.insert(format!("link {}", link["attach_type"]));
        }
    }
    Ok(traces)
}

#[test]
fn cleanup_leaves_nothing() -> Result<()> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let before = traces(topology.host())?;
    let mut ground = Ground::around(SHORT, topology, sandbox)?;
    let host = ground.topology.host().clone();
    ensure!(traces(&host)? == before, "a daemon without names needs nothing");
    ground.daemon.attach(ID, &ground.sandbox, &json!({"denyOut": ["0.0.0.0/0"]}))?;
    ensure!(traces(&host)? == before, "a policy without names needs nothing");
    ground.update(&usual_policy())?;
    let with_names = traces(&host)?;
    let new: Vec<_> = with_names.difference(&before).collect();
    for what in ["-4 rule", "-6 rule", "-4 route", "-6 route", "link"] {
        ensure!(new.iter().any(|trace| trace.starts_with(what)), "no {what} is new: {new:?}");
    }
    ground.reaches(at(EVIL[0], 443), &hello("allowed.test"), "allowed.test", GOOD[0])?;
    // It stays while the daemon is away, and is made once.
    ground.daemon.kill9()?;
    ensure!(traces(&host)? == with_names);
    ground.daemon.start()?;
    ensure!(traces(&host)? == with_names, "{:?}", traces(&host)?.difference(&with_names).collect::<Vec<_>>());
    ground.daemon.stop()?;
    ground.daemon.cli(&["cleanup", "--force"])?.success()?;
    let after = traces(&host)?;
    ensure!(
        after == before,
        "left: {:?}; missing: {:?}",
        after.difference(&before),
        before.difference(&after)
    );
    let pins = ground.daemon.pins();
    ensure!(!pins.exists() || std::fs::read_dir(pins)?.count() == 0, "pins are left");
    Ok(())
}

/// Deletes the rules that lead to the inspector, as somebody who tidies up does.
fn delete_rules(host: &Netns) -> Result<usize> {
    let mut deleted = 0;
    for family in ["-4", "-6"] {
        for line in tool(host, "ip", &[family, "rule", "show"])?.lines() {
            let Some((priority, _)) = line.split_once(':') else { continue };
            if line.contains("fwmark") {
                tool(host, "ip", &[family, "rule", "del", "priority", priority])?;
                deleted += 1;
            }
        }
    }
    Ok(deleted)
}

#[test]
fn without_its_routing_rules_nothing_leaks_and_they_come_back() -> Result<()> {
    let ground = Ground::usual()?;
    let decoys = Decoys::on(ground.topology.host())?;
    let host = ground.topology.host();
    let whole = traces(host)?;
    let said = hello("allowed.test");
    // The daemon can do nothing about it for now.
    let daemon = Pid::from_raw(i32::try_from(ground.daemon.id().context("no daemon")?)?);
    kill(daemon, Signal::SIGSTOP)?;
    let leaked = (|| -> Result<()> {
        ensure!(delete_rules(host)? == 4);
        let patience = Duration::from_millis(300);
        for to in EVIL.iter().chain(&GOOD) {
            for port in [443, 80] {
                let heard = ground.sandbox.talk(at(to, port), &Talk::new().say(&said).patience(patience))?;
                ensure!(matches!(heard.ending, Ending::Unreached(_)), "{to} {port}: {}", heard.summary());
            }
        }
        let bytes = query("allowed.test", RecordType::A).to_vec()?;
        ensure!(ask_raw(&ground.sandbox, at("8.8.8.8", 53), &bytes).result.is_err());
        for to in EVIL.iter().chain(&GOOD).chain(&["8.8.8.8"]) {
            ensure!(ground.arrived.frames_to(ip(to))? == 0, "something arrived at {to}");
        }
        decoys.ensure_untouched()
    })();
    kill(daemon, Signal::SIGCONT)?;
    leaked?;
    eventually("the rules are back", PATIENCE, || Ok(traces(host)? == whole))?;
    ground.control.settles(ID, 0, Duration::from_secs(10))?;
    ground.reaches(at(EVIL[0], 443), &said, "allowed.test", GOOD[0])?;

    // With the daemon awake it is soon over, and never wrong.
    for round in 0..10 {
        ensure!(delete_rules(host)? == 4, "round {round}");
        let heard = ground.sandbox.talk(at(EVIL[0], 443), &Talk::new().say(&said).until(&said).end())?;
        ensure!(heard.bytes.is_empty() || heard.bytes == said, "{}", heard.summary());
        eventually("the rules are back", PATIENCE, || Ok(traces(host)? == whole))?;
    }
    ensure!(ground.arrived.frames_to(ip(EVIL[0]))? == 0, "something arrived");
    decoys.ensure_untouched()?;
    // A connection tried meanwhile may be half open for a while.
    ground.control.settles(ID, 0, Duration::from_secs(10))?;
    ground.reaches(at(EVIL[1], 443), &said, "allowed.test", GOOD[1])
}

#[test]
fn a_lookup_program_that_is_taken_off_is_noticed() -> Result<()> {
    let mut ground = Ground::usual()?;
    let finding = |ground: &Ground| -> Result<Value> {
        let doctor: Value = serde_json::from_str(&ground.daemon.cli(&["doctor", "--json"])?.stdout)?;
        let mut findings = doctor["findings"].as_array().into_iter().flatten();
        findings.find(|one| one["check"] == "inspector").cloned().context("no such finding")
    };
    ensure!(finding(&ground)?["status"] == "ok", "{}", finding(&ground)?);
    // The link stays where it is pinned, and does nothing any more.
    let pin = ground.daemon.pins().join("to_inspector");
    tool(ground.topology.host(), "bpftool", &["link", "detach", "pinned", pin.to_str().context("a path")?])?;
    ensure!(pin.exists());
    let found = finding(&ground)?;
    ensure!(found["status"] == "failed" && found["detail"].to_string().contains("restart"), "{found}");
    ground.daemon.restart()?;
    ensure!(finding(&ground)?["status"] == "ok", "{}", finding(&ground)?);
    ground.reaches(at(EVIL[0], 443), &hello("allowed.test"), "allowed.test", GOOD[0])
}

#[test]
fn a_route_that_is_flushed_comes_back() -> Result<()> {
    let ground = Ground::usual()?;
    let decoys = Decoys::on(ground.topology.host())?;
    let host = ground.topology.host();
    let (whole, said) = (traces(host)?, hello("allowed.test"));
    for family in ["-4", "-6"] {
        tool(host, "ip", &[family, "route", "flush", "table", "5380"])?;
    }
    let talk = Talk::new().say(&said).until(&said).end().patience(Duration::from_secs(1));
    let heard = ground.sandbox.talk(at(EVIL[0], 443), &talk)?;
    ensure!(heard.bytes.is_empty() || heard.bytes == said, "{}", heard.summary());
    ensure!(ground.arrived.frames_to(ip(EVIL[0]))? == 0, "something arrived");
    decoys.ensure_untouched()?;
    eventually("the routes are back", PATIENCE, || Ok(traces(host)? == whole))?;
    ground.control.settles(ID, 0, Duration::from_secs(10))?;
    ground.reaches(at(EVIL[1], 443), &said, "allowed.test", GOOD[1])
}

#[test]
fn the_inspectors_sockets_serve_punted_connections_only() -> Result<()> {
    /// Public URLs and metrics, which answer whoever is on the host.
    const FOR_THE_HOST: [u16; 2] = [8080, 9464];
    let ground = Ground::usual()?;
    let host = ground.topology.host();
    let before = ground.before()?;
    let listeners = host.run(|| {
        let mut found = Vec::new();
        // Lines of: number, local address and port, remote ones, state (0A is LISTEN; 07 an unconnected datagram's).
        for (table, state) in [("tcp", "0A"), ("tcp6", "0A")] {
            for line in std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))?.lines().skip(1) {
                let fields: Vec<_> = line.split_whitespace().collect();
                let (Some(local), Some(now)) = (fields.get(1), fields.get(3)) else { continue };
                let (address, port) = local.split_once(':').context("no port")?;
                ensure!(!address.chars().all(|digit| digit == '0'), "the daemon listens everywhere: {line}");
                if *now == state {
                    let family = if table == "tcp" { "127.0.0.1" } else { "::1" };
                    found.push(at(family, u16::from_str_radix(port, 16)?));
                }
            }
        }
        Ok(found)
    })?;
    ensure!(
        listeners.iter().any(SocketAddr::is_ipv4) && listeners.iter().any(SocketAddr::is_ipv6),
        "{listeners:?}"
    );
    for to in listeners {
        for said in [hello("allowed.test"), b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_vec()] {
            if !FOR_THE_HOST.contains(&to.port()) {
                // From the host itself it is a connection of nobody's, and is closed.
                let heard = host.talk(to, &Talk::new().say(&said))?;
                let closed = matches!(
                    heard.ending,
                    Ending::End | Ending::Reset | Ending::Unreached(Some(Errno::ECONNRESET))
                );
                ensure!(
                    heard.bytes.is_empty() && closed && heard.took < AT_ONCE,
                    "{to}: {}",
                    heard.summary()
                );
            }
            // From the sandbox it is the sandbox's own loopback; from outside, nobody's.
            let gateway = at(&ground.sandbox.gateway_v4().to_string(), to.port());
            let heard = ground.sandbox.talk(gateway, &Talk::new().say(&said))?;
            ensure!(heard.ending == Ending::Unreached(Some(Errno::ECONNREFUSED)), "{}", heard.summary());
            let outside = at(&ground.topology.host_addresses()[0].to_string(), to.port());
            let heard = ground.topology.internet().talk(outside, &Talk::new().say(&said))?;
            ensure!(heard.ending == Ending::Unreached(Some(Errno::ECONNREFUSED)), "{}", heard.summary());
        }
    }
    ground.ensure_nothing_arrived_but(&before, 0).context("something was dialled")?;
    ensure!(ground.zone.asked().is_empty() && ground.arrived.frames_to(ip(GOOD[0]))? == 0);
    // The host's own connections to such ports are its own.
    let said = hello("denied.test");
    let heard = host.talk(at(EVIL[0], 443), &Talk::new().say(&said).until(&said).end())?;
    ensure!(heard.bytes == said, "{}", heard.summary());
    Ok(())
}

/// Connections that were opened and say nothing.
fn silent(sandbox: &Sandbox, to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    sandbox.run(|| (0..count).map(|_| Ok(TcpStream::connect_timeout(&to, PATIENCE)?)).collect())
}

#[test]
fn names_count_and_the_next_is_refused() -> Result<()> {
    const LIMIT: usize = 2500;
    let _alone = alone();
    let config = SHORT.replace("700ms", "60s");
    let ground = Ground::with(&config, &usual_policy())?;
    let peer = ground.topology.sandbox(2)?;
    ground.daemon.attach("s2", &peer, &usual_policy())?;
    let start = Instant::now();
    // Many that say nothing, a few that go through, and a few that need no name.
    let said = hello("allowed.test");
    let mut relays = silent(&ground.sandbox, at(EVIL[0], 443), 100)?;
    for relay in &mut relays {
        relay.write_all(&said)?;
        relay.read_exact(&mut vec![0; said.len()])?;
    }
    let mut held = silent(&ground.sandbox, at("203.0.113.10", 443), 400)?;
    held.extend(silent(&ground.sandbox, at(EVIL[0], 443), 800)?);
    held.extend(silent(&ground.sandbox, at(EVIL[1], 443), 600)?);
    held.extend(silent(&ground.sandbox, at(EVIL[0], 80), LIMIT - 1900)?);
    println!("{LIMIT} connections in {:?}", start.elapsed());
    let connections = Connections::of(&ground.show()?)?;
    ensure!((connections.active, connections.refused) == (LIMIT as u64, 0), "{connections:?}");
    let before = ground.before()?;
    for (n, to) in [at(EVIL[0], 443), at(EVIL[1], 80), at("203.0.113.10", 443)].into_iter().enumerate() {
        let heard = ground.sandbox.talk(to, &Talk::new().say(&said))?;
        let refused = heard.ending == Ending::Unreached(Some(Errno::ECONNREFUSED)) && heard.took < AT_ONCE;
        ensure!(refused, "{to}: {}", heard.summary());
        ground.ensure_moved(&before, &[("connection_limit", n as u64 + 1)])?;
    }
    let bytes = query("allowed.test", RecordType::A).to_vec()?;
    let attempt = ask_raw(&ground.sandbox, at("8.8.8.8", 53), &bytes);
    ensure!(attempt.errno() == Some(Errno::EHOSTUNREACH), "{attempt:?}");
    ensure!(Connections::of(&ground.show()?)?.refused == 4);
    let told =
        ground.wait_event(&before, |event| event["reason"] == "connection_limit" && event["dport"] == 443)?;
    ensure!(told["event"] == "deny" && told["proto"] == "tcp", "{told}");
    // Others do not notice.
    for _ in 0..20 {
        let heard = peer.talk(at(EVIL[0], 443), &Talk::new().say(&said).until(&said).end())?;
        ensure!(heard.bytes == said && heard.took < AT_ONCE, "{}", heard.summary());
    }
    // One place that is given back is one that is taken.
    drop(held.pop());
    ground.control.settles(ID, LIMIT as u64 - 1, PATIENCE)?;
    let heard = ground.sandbox.talk(at(EVIL[0], 443), &Talk::new().say(&said).until(&said).end())?;
    ensure!(heard.bytes == said, "{}", heard.summary());
    drop((held, relays));
    ground.control.settles(ID, 0, Duration::from_secs(15))?;
    ground.control.settles("s2", 0, Duration::from_secs(15))
}

#[test]
fn connections_that_are_never_finished_are_bounded_and_end() -> Result<()> {
    const LIMIT: u64 = 2500;
    let _alone = alone();
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let ground = Ground::around(SHORT, topology, sandbox)?;
    ground.daemon.attach("s2", &ground.sandbox, &usual_policy())?;
    // A guest that never answers: a namespace's kernel would reset what it does not know of.
    let tap = ground.topology.tap(1, false)?;
    let mac = tap.mac().map(|byte| format!("{byte:02x}")).join(":");
    let own = [IpAddr::from(tap.v4()), tap.v6().into()];
    ground.daemon.attach_interface(ID, &tap.host_interface(), &own, &mac, &usual_policy())?;
    let before = ground.before()?;
    let syns = |to: &str, ports: std::ops::Range<u16>| -> Result<()> {
        let to = ip(to);
        let from = if to.is_ipv4() { own[0] } else { own[1] };
        for port in ports {
            let segment = wire::Segment::syn(port, 443).bytes(from, to, b"");
            let (ethertype, packet) = wire::ip(from, to, wire::TCP, segment);
            tap.send(&wire::ethernet(tap.gateway_mac(), tap.mac(), ethertype, &packet))?;
        }
        Ok(())
    };
    syns(EVIL[0], 10_000..12_000)?;
    syns(EVIL[1], 10_000..12_000)?;
    let connections = Connections::of(&ground.show()?)?;
    ensure!(connections.peak <= LIMIT && connections.peak > LIMIT / 2, "{connections:?}");
    ensure!(connections.refused >= 4000 - LIMIT, "{connections:?}");
    // Its neighbour does not notice.
    let said = hello("allowed.test");
    for _ in 0..10 {
        let heard = ground.sandbox.talk(at(EVIL[0], 443), &Talk::new().say(&said).until(&said).end())?;
        ensure!(heard.bytes == said && heard.took < Duration::from_secs(1), "{}", heard.summary());
    }
    let moved = ground.moved(&before)?;
    ensure!(moved.iter().map(|(reason, _)| reason.as_str()).eq(["connection_limit"]), "{moved:?}");
    ensure!(ground.arrived.frames_to(ip(EVIL[0]))? == 0);
    ground.control.settles(ID, 0, Duration::from_secs(20))?;
    ground.control.settles("s2", 0, PATIENCE)
}

#[test]
fn what_is_held_before_a_name_is_known_is_bounded() -> Result<()> {
    const CLIENTS: usize = 120;
    let _alone = alone();
    let config = SHORT.replace("700ms", "3s");
    let ground = Ground::with(&config, &usual_policy())?;
    let peer = ground.topology.sandbox(2)?;
    ground.daemon.attach("s2", &peer, &usual_policy())?;
    let large = Hello::of("allowed.test").and(PADDING, vec![0; 60_000]).bytes();
    let unfinished = &large[..large.len() - 1];
    let before = ground.before()?;
    let resident = || -> Result<u64> {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", ground.daemon.id().context("no daemon")?))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
    };
    let at_first = resident()?;
    thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let talk = Talk::new().say(unfinished).patience(Duration::from_secs(8));
                let ground = &ground;
                scope.spawn(move || ground.sandbox.talk(at(EVIL[0], 443), &talk))
            })
            .collect();
        sleep(Duration::from_millis(1500));
        // Its neighbour has its own share.
        let said = hello("allowed.test");
        let heard = peer.talk(at(EVIL[0], 443), &Talk::new().say(&said).until(&said).end())?;
        ensure!(heard.bytes == said && heard.took < AT_ONCE, "{}", heard.summary());
        let grown = resident()?.saturating_sub(at_first);
        ensure!(grown < 40 * 1024, "the daemon grew by {grown} KiB");
        for client in clients {
            let heard = client.join().map_err(|_| anyhow!("a client failed"))??;
            ensure!(heard.alert() == Some((2, ACCESS_DENIED)), "{}", heard.summary());
        }
        Ok(())
    })?;
    // Some were shed for the others' sake, who waited in vain.
    let moved = ground.moved(&before)?;
    println!("{moved:?}");
    ensure!(moved.iter().map(|(reason, _)| reason.as_str()).eq(["capacity", "peek_timeout"]), "{moved:?}");
    ensure!(moved.iter().map(|(_, count)| count).sum::<u64>() == CLIENTS as u64, "{moved:?}");
    ensure!(moved.iter().all(|(_, count)| *count > 20), "{moved:?}");
    let told = ground.wait_event(&before, |event| event["reason"] == "capacity")?;
    ensure!(told["event"] == "deny" && told["sandbox"] == ID && told["dport"] == 443, "{told}");
    ground.ensure_nothing_arrived_but(&before, 1)?;
    ground.control.settles(ID, 0, PATIENCE)?;
    // All of it is there again.
    ground.reaches(at(EVIL[0], 443), &large, "allowed.test", GOOD[0])
}

#[test]
fn a_flood_of_slow_hellos_ends() -> Result<()> {
    const CLIENTS: usize = 400;
    let _alone = alone();
    let config = SHORT.replace("700ms", "1500ms");
    let ground = Ground::with(&config, &usual_policy())?;
    let said = hello("allowed.test");
    let before = ground.before()?;
    let mut streams = silent(&ground.sandbox, at(EVIL[0], 443), CLIENTS)?;
    let start = Instant::now();
    let mut sent = 0;
    // Each gets a byte now and then, and none its end in time.
    while start.elapsed() < Duration::from_millis(2500) {
        for stream in &mut streams {
            let _ = stream.write_all(&said[sent..=sent]);
        }
        sent += 1;
        sleep(Duration::from_millis(150));
    }
    ground.ensure_moved(&before, &[("peek_timeout", CLIENTS as u64)])?;
    for stream in &mut streams {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut alert = [0; 7];
        stream.read_exact(&mut alert)?;
        ensure!(alert == [21, 3, 3, 0, 2, 2, ACCESS_DENIED], "{alert:?}");
    }
    drop(streams);
    ground.ensure_nothing_arrived(&before)?;
    ground.control.settles(ID, 0, Duration::from_secs(10))?;
    ground.reaches(at(EVIL[0], 443), &said, "allowed.test", GOOD[0])
}

#[test]
fn descriptors_that_are_used_up_come_back() -> Result<()> {
    const CLIENTS: usize = 300;
    let _alone = alone();
    let ground = Ground::usual()?;
    let said = hello("allowed.test");
    ground.reaches(at(EVIL[0], 443), &said, "allowed.test", GOOD[0])?;
    ground.control.settles(ID, 0, PATIENCE)?;
    let daemon = ground.daemon.id().context("no daemon")?.to_string();
    let open = std::fs::read_dir(format!("/proc/{daemon}/fd"))?.count();
    let host = ground.topology.host();
    let before = ground.before()?;
    let limit = |most: usize| tool(host, "prlimit", &["--pid", &daemon, &format!("--nofile={most}:")]);
    limit(open + 60)?;
    // More than there is room for: each is refused, in words or without, and none hangs.
    let heard = thread::scope(|scope| {
        let talk = Talk::new().patience(Duration::from_secs(8));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let (ground, talk) = (&ground, talk.clone());
                scope.spawn(move || ground.sandbox.talk(at(EVIL[n % 2], 443), &talk))
            })
            .collect();
        let heard =
            clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client failed"))?);
        heard.collect::<Result<Vec<_>>>()
    })?;
    let (mut told, mut reset) = (0, 0);
    for one in &heard {
        match one.ending {
            Ending::End if one.alert() == Some((2, ACCESS_DENIED)) => told += 1,
            Ending::Reset | Ending::Unreached(Some(Errno::ECONNRESET)) => reset += 1,
            Ending::End | Ending::Silence | Ending::Unreached(_) => ensure!(false, "{}", one.summary()),
        }
    }
    println!("{told} were told, {reset} were reset");
    ensure!(told > 10 && reset > 10, "{told} were told, {reset} were reset");
    limit(16_384)?;
    eventually("the daemon answers again", PATIENCE, || Ok(ground.show().is_ok()))?;
    let moved = ground.moved(&before)?;
    ensure!(
        moved == [("capacity".to_owned(), reset), ("peek_timeout".to_owned(), told)],
        "{moved:?}, not {reset} and {told}"
    );
    let event = ground.wait_event(&before, |event| event["reason"] == "capacity")?;
    ensure!(event["event"] == "deny" && event["dport"] == 443, "{event}");
    ground.ensure_nothing_arrived(&before)?;
    ground.control.settles(ID, 0, Duration::from_secs(10))?;
    ground.reaches(at(EVIL[0], 443), &said, "allowed.test", GOOD[0])
}

#[test]
fn the_limit_of_a_policy_holds_for_names() -> Result<()> {
    let mut policy = usual_policy();
    policy["limits"] = json!({"egressConnections": 5});
    let config = SHORT.replace("700ms", "20s");
    let ground = Ground::with(&config, &policy)?;
    let held = silent(&ground.sandbox, at(EVIL[0], 443), 5)?;
    for to in [at(EVIL[0], 443), at(EVIL[1], 80)] {
        let row = Row::tls("the sixth", to, "", "connection_limit").by(None).answered(Answer::Refused);
        let before = ground.before()?;
        let heard = ground.sandbox.talk(to, &row.talk)?;
        ensure!(heard.ending == Ending::Unreached(Some(Errno::ECONNREFUSED)), "{}", heard.summary());
        ground.ensure_moved(&before, &[("connection_limit", 1)])?;
    }
    // What is refused counts no longer than it takes.
    drop(held);
    ground.control.settles(ID, 0, PATIENCE)?;
    for _ in 0..30 {
        let heard = ground.sandbox.talk(at(EVIL[0], 443), &Talk::new().say(hello("denied.test")))?;
        ensure!(heard.alert().is_some(), "{}", heard.summary());
        eventually("its place is free", PATIENCE, || Ok(ground.control.active(ID)? < 5))?;
    }
    ensure!(counted(&ground.show()?, "name_not_allowed") == 30);
    ground.reaches(at(EVIL[0], 443), &hello("b.wild.test"), "b.wild.test", WILD[0])?;
    ground.control.settles(ID, 0, PATIENCE)
}
