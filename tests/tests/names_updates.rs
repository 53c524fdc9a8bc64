//! A policy with names is replaced as a whole: what was judged by name is judged again by name, what may not go
//! on is cut at both ends, and what may loses nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

mod names_support;

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use filter_tests::hickory_proto::op::{Message, ResponseCode};
use filter_tests::hickory_proto::rr::RecordType;
use filter_tests::{Behaviour, Ending, Talk, pattern};
use names_support::dns::{addresses, ask, ask_over_tcp, code, query};
use names_support::hello::hello;
use names_support::timed::{errno, eventually, listen};
use names_support::{
    AT_ONCE, Answer, CIDR, EVIL, GOOD, Ground, ID, PATIENCE, Row, SHORT, WILD, at, counted, ip, names,
    usual_policy,
};
use nix::errno::Errno;
use serde_json::{Value, json};

/// Within this both ends of a connection that lost its permission know it.
const CUT: Duration = Duration::from_secs(1);

/// Three policies, under each of which every one of two hosts gets an answer of its own.
fn in_turn(n: u64) -> Value {
    match n % 3 {
        // The names stand at other places, so that a rule's number tells the policies apart.
        0 => json!({"allowOut": ["one.test", "unused.test"], "denyOut": ["0.0.0.0/0"]}),
        1 => json!({"allowOut": ["192.0.2.99", "unused.test", "two.test"], "denyOut": ["0.0.0.0/0"]}),
        _ => json!({"allowOut": ["198.51.100.66/32", "2001:db8:198::66/128"], "denyOut": ["0.0.0.0/0"]}),
    }
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It was answered from there.
    From(&'static str),
    Refused,
    /// The connection was reset, as of one that was open when its policy went.
    Cut,
}

/// What a request for a host comes to under a policy.
fn expected(host: &str, policy: u64, family: usize) -> Outcome {
    match (host, policy % 3) {
        ("one.test", 0) => Outcome::From(GOOD[family]),
        ("two.test", 1) => Outcome::From(WILD[family]),
        (_, 2) => Outcome::From(EVIL[family]),
        _ => Outcome::Refused,
    }
}

fn one_request(ground: &Ground, host: &str, family: usize) -> Result<Outcome> {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let heard = ground.sandbox.talk(at(EVIL[family], 80), &Talk::new().say(request))?;
    let text = String::from_utf8_lossy(&heard.bytes).into_owned();
    let served = [GOOD, WILD, EVIL].map(|addresses| addresses[family]).into_iter();
    let mut served =
        served.filter(|address| text.contains(&format!("hello from {} as {host}\n", at(address, 80))));
    match (served.next(), heard.ending) {
        (Some(address), Ending::End) => Ok(Outcome::From(address)),
        (None, Ending::End) if text.starts_with("HTTP/1.1 403 ") => Ok(Outcome::Refused),
        // In the middle of the handshake it looks like a refusal.
        (_, Ending::Reset | Ending::Unreached(Some(Errno::ECONNREFUSED))) => Ok(Outcome::Cut),
        _ => bail!("{}", heard.summary()),
    }
}

#[test]
fn one_generation_decides() -> Result<()> {
    const UPDATES: u64 = 90;
    let ground = Ground::with(SHORT, &in_turn(0))?;
    ground.zone.set("one.test", &GOOD)?;
    ground.zone.set("two.test", &WILD)?;
    let before = ground.before()?;
    // The first policy is in force: one update was begun and done.
    let (begun, done, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (judged, certain) = thread::scope(|scope| -> Result<(u64, u64)> {
        let clients: Vec<_> = [("one.test", 0), ("two.test", 0), ("one.test", 1), ("two.test", 1)]
            .into_iter()
            .map(|(host, family)| {
                let (ground, begun, done, stop) = (&ground, &begun, &done, &stop);
                scope.spawn(move || -> Result<(u64, u64)> {
                    let (mut judged, mut certain) = (0, 0);
                    while !stop.load(Ordering::SeqCst) {
                        let first = done.load(Ordering::SeqCst);
                        let outcome = one_request(ground, host, family)?;
                        let last = begun.load(Ordering::SeqCst);
                        let possible: RangeInclusive<u64> = first..=last;
                        let right = possible.clone().any(|policy| expected(host, policy, family) == outcome)
                            || (outcome == Outcome::Cut && first < last);
                        ensure!(right, "{host}: {outcome:?} under {possible:?}");
                        judged += 1;
                        certain += u64::from(first == last);
                    }
                    Ok((judged, certain))
                })
            })
            .collect();
        let updates = || -> Result<()> {
            for n in 1..=UPDATES {
                begun.store(n, Ordering::SeqCst);
                ground.update(&in_turn(n))?;
                done.store(n, Ordering::SeqCst);
                sleep(Duration::from_millis(if n % 2 == 0 { 1 } else { 30 }));
            }
            Ok(())
        };
        let updated = updates();
        stop.store(true, Ordering::SeqCst);
        let mut sums = (0, 0);
        for client in clients {
            let (judged, certain) = client.join().map_err(|_| anyhow!("a client failed"))??;
            sums = (sums.0 + judged, sums.1 + certain);
        }
        updated.map(|()| sums)
    })?;
    println!("{judged} requests during {UPDATES} updates, {certain} of them between two");
    ensure!(judged > 100 && certain > 20, "{judged} requests, {certain} between two updates");
    // What was told names the policy that decided, and the entry of that one.
    sleep(Duration::from_millis(300));
    let mut told = 0;
    for event in ground.events(&before)? {
        let generation = event["generation"].as_u64().context("no generation")? - 1;
        let (reason, name) =
            (event["reason"].as_str().unwrap_or(""), event["serverName"].as_str().unwrap_or(""));
        let rule = event["rule"].as_str();
        let right = match (event["event"].as_str().unwrap_or(""), reason) {
            ("open", "allowed_name") => {
                told += 1;
                (name == "one.test" && generation % 3 == 0 || name == "two.test" && generation % 3 == 1)
                    && rule.is_none_or(|rule| {
                        rule == if generation % 3 == 0 { "/allowOut/0" } else { "/allowOut/2" }
                    })
            }
            ("deny", "name_not_allowed") => {
                told += 1;
                (name == "two.test" && generation % 3 == 0) || (name == "one.test" && generation % 3 == 1)
            }
            _ => true,
        };
        ensure!(right, "{event}");
    }
    ensure!(told > 50, "{told} were told");
    ground.control.settles(ID, 0, PATIENCE)
}

/// What ended a connection at one end, and how long after `start`. One that goes on and on is timed out.
fn end_of(start: Instant, mut work: impl FnMut() -> io::Result<usize>) -> (Option<Errno>, Duration) {
    loop {
        match work() {
            Ok(0) => return (None, start.elapsed()),
            Ok(_) if start.elapsed() > PATIENCE => return (Some(Errno::ETIMEDOUT), start.elapsed()),
            Ok(_) => {}
            Err(error) => return (errno(&error), start.elapsed()),
        }
    }
}

/// A relay, both ends of it in the test's hand, through which `opening` has gone.
fn relay(
    ground: &Ground,
    listener: &TcpListener,
    to: SocketAddr,
    opening: &[u8],
) -> Result<(TcpStream, TcpStream)> {
    let mut ours = ground.sandbox.tcp_connect(to, PATIENCE).result?;
    ours.write_all(opening)?;
    let (mut theirs, _) = listener.accept()?;
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
    }
    let mut first = vec![0; opening.len()];
    theirs.read_exact(&mut first)?;
    ensure!(first == opening, "something else arrived");
    Ok((ours, theirs))
}

#[test]
fn connections_that_lost_their_name_are_reset_at_both_ends() -> Result<()> {
    let mut ground = Ground::usual()?;
    ground.echo = None;
    let said = hello("allowed.test");
    for family in [0, 1] {
        let to = at(EVIL[family], 443);
        let listener = listen(ground.topology.internet(), at(GOOD[family], 443))?;
        let kept_listener = listen(ground.topology.internet(), at(WILD[family], 443))?;
        let before = ground.before()?;
        let open = || relay(&ground, &listener, to, &said);
        let (idle, talked, download, upload) = (open()?, open()?, open()?, open()?);
        (&talked.1).write_all(b"answer")?;
        (&talked.0).read_exact(&mut [0; 6])?;
        let half = open()?;
        half.0.shutdown(Shutdown::Write)?;
        ensure!((&half.1).read(&mut [0])? == 0);
        let mut kept = relay(&ground, &kept_listener, to, &hello("b.wild.test"))?;
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
                ("half-closed, sandbox", reading(half.0)),
                ("half-closed, server", writing(half.1)),
            ];
            sleep(Duration::from_millis(300));
            let cut = start.elapsed();
            ground.update(&names(&["*.wild.test"]))?;
            for (what, end) in ends {
                let (how, when) = end.join().map_err(|_| anyhow!("a thread failed"))?;
                let after = when.checked_sub(cut).with_context(|| format!("{what} ended early: {how:?}"))?;
                // Whoever writes may hear of it as a broken pipe.
                ensure!(
                    matches!(how, Some(Errno::ECONNRESET | Errno::EPIPE)),
                    "{what}: {how:?} after {after:?}"
                );
                ensure!(after < CUT, "{what}: {after:?}");
            }
            Ok(())
        })?;
        // The one that is still allowed goes on, and is the only one that counts.
        kept.0.write_all(b"still")?;
        kept.1.read_exact(&mut [0; 5])?;
        ground.control.settles(ID, 1, PATIENCE)?;
        let generation = ground.show()?["generation"].clone();
        eventually("all five are told", PATIENCE, || {
            let events = ground.events(&before)?;
            let revoked = events.iter().filter(|event| {
                event["reason"] == "revoked"
                    && event["event"] == "deny"
                    && event["serverName"] == "allowed.test"
                    && event["resolvedIp"] == GOOD[family]
                    && event["generation"] == generation
            });
            Ok(revoked.count() == 5)
        })?;
        ground.ensure_moved(&before, &[("revoked", 5)])?;
        drop(kept);
        ground.control.settles(ID, 0, PATIENCE)?;
        ground.update(&usual_policy())?;
    }
    Ok(())
}

#[test]
fn http_connections_are_judged_by_the_name_of_their_last_request() -> Result<()> {
    let ground = Ground::usual()?;
    let get = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let greeting = |address: &str, host: &str| format!("hello from {} as {host}\n", at(address, 80));
    let open = |hosts: &[(&str, &str)]| -> Result<TcpStream> {
        let mut stream = ground.sandbox.tcp_connect(at(EVIL[0], 80), PATIENCE).result?;
        for (host, address) in hosts {
            stream.write_all(get(host).as_bytes())?;
            let (mut heard, wanted) = (Vec::new(), greeting(address, host));
            while !heard.ends_with(wanted.as_bytes()) {
                let mut buffer = [0; 1024];
                let count = stream.read(&mut buffer)?;
                ensure!(count > 0);
                heard.extend_from_slice(&buffer[..count]);
            }
        }
        Ok(stream)
    };
    let (allowed, wild) = (("allowed.test", GOOD[0]), ("b.wild.test", WILD[0]));
    let mut cut = open(&[wild, allowed])?;
    let mut kept = open(&[allowed, wild])?;
    let mut tunnel = ground.sandbox.tcp_connect(at(EVIL[0], 80), PATIENCE).result?;
    tunnel.write_all(
        b"GET /ws HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    )?;
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tunnel.read_exact(&mut byte)?;
        heard.extend(byte);
    }
    tunnel.write_all(b"ping")?;
    tunnel.read_exact(&mut [0; 4])?;
    let before = ground.before()?;
    let start = Instant::now();
    ground.update(&names(&["*.wild.test"]))?;
    for stream in [&mut cut, &mut tunnel] {
        let end = stream.read(&mut [0; 64]);
        ensure!(end.as_ref().err().and_then(errno) == Some(Errno::ECONNRESET), "{end:?}");
    }
    ensure!(start.elapsed() < CUT, "{:?}", start.elapsed());
    ground.ensure_moved(&before, &[("revoked", 2)])?;
    // The one that asked for something else last goes on, with what is allowed now.
    kept.write_all(get("b.wild.test").as_bytes())?;
    ensure!(kept.read(&mut [0; 64])? > 0);
    kept.write_all(get("allowed.test").as_bytes())?;
    let mut rest = String::new();
    kept.read_to_string(&mut rest)?;
    ensure!(rest.contains("HTTP/1.1 403") && rest.contains("name_not_allowed"), "{rest}");
    ground.ensure_moved(&before, &[("revoked", 2), ("name_not_allowed", 1)])?;
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn what_is_still_allowed_loses_nothing() -> Result<()> {
    const UPDATES: usize = 100;
    let mut ground = Ground::usual()?;
    ground.echo = None;
    let policies = [
        names(&["allowed.test", "*.wild.test"]),
        names(&["unused.test", "*.test"]),
        json!({"allowOut": ["a.test", "*", "203.0.113.0/24"], "denyOut": ["0.0.0.0/0"]}),
        json!({"allowOut": ["allowed.test", "b.wild.test"], "denyOut": ["0.0.0.0/0"], "dns": {"mode": "strict"}}),
    ];
    let listener = listen(ground.topology.internet(), at(GOOD[0], 443))?;
    let wild = listen(ground.topology.internet(), at(WILD[1], 443))?;
    let relays = [
        relay(&ground, &listener, at(EVIL[0], 443), &hello("allowed.test"))?,
        relay(&ground, &listener, at(EVIL[0], 443), &hello("allowed.test"))?,
        relay(&ground, &wild, at(EVIL[1], 443), &hello("b.wild.test"))?,
    ];
    let web = ground.sandbox.tcp_connect(at(EVIL[0], 80), PATIENCE).result?;
    web.set_read_timeout(Some(PATIENCE))?;
    let before = ground.before()?;
    let stop = AtomicBool::new(false);
    let moved = thread::scope(|scope| -> Result<u64> {
        let mut flows = Vec::new();
        // Up one of them and down the others, at some pace, so that it takes as long as the updates do.
        let (stop, ground) = (&stop, &ground);
        for (n, (ours, theirs)) in relays.iter().enumerate() {
            let (from, to) = if n == 0 { (ours, theirs) } else { (theirs, ours) };
            flows.push(scope.spawn(move || flow(from, to, stop)));
        }
        flows.push(scope.spawn(|| {
            let (mut web, mut count) = (&web, 0_u64);
            while !stop.load(Ordering::Relaxed) {
                web.write_all(b"GET /down/70000 HTTP/1.1\r\nHost: b.wild.test\r\n\r\n")?;
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n";
                let mut heard = vec![0; head.len() + 70_000];
                web.read_exact(&mut heard)?;
                ensure!(heard.starts_with(head) && heard.ends_with(&pattern(0, 70_000)), "a wrong byte");
                count += heard.len() as u64;
            }
            Ok(count)
        }));
        let updates = || -> Result<()> {
            for n in 0..UPDATES {
                ground.update(&policies[n % policies.len()])?;
                sleep(Duration::from_millis(5));
            }
            Ok(())
        };
        let updated = updates();
        stop.store(true, Ordering::Relaxed);
        let mut moved = 0;
        for flow in flows {
            moved += flow.join().map_err(|_| anyhow!("a flow failed"))??;
        }
        updated.map(|()| moved)
    })?;
    println!("{moved} bytes during {UPDATES} updates");
    ensure!(moved > 1 << 20);
    ground.ensure_moved(&before, &[])?;
    ensure!(ground.show()?["generation"] == UPDATES + 1);
    drop((relays, web));
    ground.control.settles(ID, 0, PATIENCE)
}

/// Moves the pattern from one end to the other until it is told to stop, and says how much.
fn flow(mut from: &TcpStream, mut to: &TcpStream, stop: &AtomicBool) -> Result<u64> {
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<u64> {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                from.write_all(&pattern(sent, 20_000))?;
                sent += 20_000;
                sleep(Duration::from_millis(2));
            }
            from.shutdown(Shutdown::Write)?;
            Ok(sent)
        });
        let mut got = 0;
        let mut buffer = vec![0; 65_536];
        loop {
            let count = to.read(&mut buffer).with_context(|| format!("behind {got} bytes"))?;
            if count == 0 {
                break;
            }
            ensure!(buffer[..count] == pattern(got, count), "a wrong byte behind {got}");
            got += count as u64;
        }
        let sent = sender.join().map_err(|_| anyhow!("the sender failed"))??;
        ensure!(sent == got, "{got} of {sent} bytes");
        Ok(got)
    })
}

#[test]
fn from_names_to_addresses_and_back() -> Result<()> {
    let ground = Ground::usual()?;
    let addresses_only = json!({"allowOut": ["203.0.113.0/24"], "denyOut": ["0.0.0.0/0"]});
    for _ in 0..3 {
        ground.reaches(at(EVIL[0], 443), &hello("allowed.test"), "allowed.test", GOOD[0])?;
        let mut named = ground.sandbox.tcp_connect(at(EVIL[0], 443), PATIENCE).result?;
        let mut plain = ground.sandbox.tcp_connect(at(CIDR[0], 443), PATIENCE).result?;
        for stream in [&mut named, &mut plain] {
            stream.write_all(&hello("allowed.test"))?;
            stream.read_exact(&mut vec![0; hello("allowed.test").len()])?;
        }
        ground.update(&addresses_only)?;
        let end = named.read(&mut [0]);
        ensure!(end.as_ref().err().and_then(errno) == Some(Errno::ECONNRESET), "{end:?}");
        plain.write_all(b"still")?;
        plain.read_exact(&mut [0; 5])?;
        let rule = Some("/denyOut/0");
        drop(plain);
        ground.control.settles(ID, 0, PATIENCE)?;
        let row = |what, port| {
            Row::tls(what, at(GOOD[0], port), "", "denied_cidr").by(rule).answered(Answer::Refused)
        };
        ground.denied(&[row("443", 443), row("80", 80), row("DNS", 53)])?;
        let asked = ask(&ground.sandbox, at("8.8.8.8", 53), &query("allowed.test", RecordType::A));
        ensure!(asked.is_err(), "DNS is still open: {asked:?}");
        ground.update(&usual_policy())?;
        let answer = ask(&ground.sandbox, at("8.8.8.8", 53), &query("allowed.test", RecordType::A))?;
        ensure!(addresses(&answer) == [ip(GOOD[0])], "{answer}");
        ground.control.settles(ID, 0, Duration::from_secs(8))?;
    }
    Ok(())
}

#[test]
fn an_update_that_fails_changes_nothing() -> Result<()> {
    let ground = Ground::usual()?;
    let mut named = ground.sandbox.tcp_connect(at(EVIL[0], 443), PATIENCE).result?;
    let said = hello("allowed.test");
    named.write_all(&said)?;
    named.read_exact(&mut vec![0; said.len()])?;
    let before = ground.before()?;
    for (policy, pointer) in [
        (json!({"allowOut": ["denied.test", "https://x"], "denyOut": ["0.0.0.0/0"]}), "/allowOut/1"),
        (json!({"allowOut": ["denied.test"]}), "/allowOut"),
        (json!({"allowOut": ["a.*.b"], "denyOut": ["0.0.0.0/0"]}), "/allowOut/0"),
        (json!({"allowOut": ["denied.test"], "denyOut": ["0.0.0.0/0", "other.test"]}), "/denyOut/1"),
        (
            json!({"allowOut": ["denied.test"], "denyOut": ["0.0.0.0/0"], "dns": {"servers": ["nobody"]}}),
            "/dns",
        ),
        (json!({"allowOut": ["denied.test"], "denyOut": ["0.0.0.0/0"], "allowIn": []}), ""),
    ] {
        let refused = ground.control.ask("PUT", &format!("/v1/attachments/{ID}/policy"), Some(&policy))?;
        let error = refused.err().with_context(|| format!("it was taken: {policy}"))?;
        ensure!(error["code"] == "invalid_policy", "{error}");
        ensure!(error["pointer"].as_str().unwrap_or("").starts_with(pointer), "{policy}: {error}");
    }
    let after = ground.show()?;
    for field in ["generation", "policyHash", "policy", "enforced"] {
        ensure!(after[field] == before.show[field], "{field}");
    }
    named.write_all(b"still")?;
    named.read_exact(&mut [0; 5])?;
    ground.ensure_moved(&before, &[])?;
    drop(named);
    ground.control.settles(ID, 0, PATIENCE)?;
    ground.reaches(at(EVIL[0], 443), &said, "allowed.test", GOOD[0])?;
    ground
        .denied(&[Row::tls("denied", at(EVIL[0], 443), hello("denied.test"), "name_not_allowed")
            .named("denied.test")])
}

#[test]
fn what_is_under_way_is_judged_by_what_is_in_force_then() -> Result<()> {
    let config = SHORT.replace("700ms", "5s").replace("1500ms", "4s");
    let ground = Ground::with(&config, &usual_policy())?;
    let other = names(&["denied.test", "slow.wild.test"]);
    let to = at(EVIL[0], 443);
    let (allowed, denied) = (hello("allowed.test"), hello("denied.test"));
    // Half a hello, then an update, then the rest.
    let before = ground.before()?;
    let begin = |bytes: &[u8]| -> Result<TcpStream> {
        let mut stream = ground.sandbox.tcp_connect(to, PATIENCE).result?;
        stream.write_all(bytes)?;
        Ok(stream)
    };
    let (mut first, mut second) = (begin(&allowed[..50])?, begin(&denied[..50])?);
    let mut silent = ground.sandbox.tcp_connect(to, PATIENCE).result?;
    sleep(Duration::from_millis(100));
    ground.update(&other)?;
    first.write_all(&allowed[50..])?;
    let mut alert = Vec::new();
    first.read_to_end(&mut alert)?;
    ensure!(alert == [21, 3, 3, 0, 2, 2, names_support::UNRECOGNIZED_NAME], "{alert:?}");
    second.write_all(&denied[50..])?;
    second.read_exact(&mut vec![0; denied.len()])?;
    ground.ensure_moved(&before, &[("name_not_allowed", 1)])?;
    drop((first, second));
    // To a policy that allows the address itself: it is reached, whatever is said.
    let mut third = begin(&denied[..50])?;
    let direct = json!({"allowOut": ["allowed.test", "198.51.100.66/32"], "denyOut": ["0.0.0.0/0"]});
    sleep(Duration::from_millis(50));
    ground.update(&direct)?;
    third.write_all(&denied[50..])?;
    third.read_exact(&mut vec![0; denied.len()]).context("it was allowed, in another way")?;
    ensure!(ground.echo.as_ref().unwrap().accepted().last().unwrap().local == to);
    drop(third);
    ground.update(&other)?;
    // To addresses only: whoever has said nothing yet has nothing to wait for.
    ground.update(&json!({"denyOut": ["0.0.0.0/0"]}))?;
    let start = Instant::now();
    silent.write_all(&denied).ok();
    let end = silent.read(&mut [0; 16]);
    ensure!(start.elapsed() < CUT, "{:?}: {end:?}", start.elapsed());
    ensure!(!matches!(end, Ok(count) if count > 7), "{end:?}");
    drop(silent);
    ground.control.settles(ID, 0, PATIENCE)?;

    // A name that takes its time to resolve, and is not allowed any more once it has.
    ground.update(&usual_policy())?;
    ground.zone.set("slow.wild.test", &GOOD)?;
    ground.zone.behave("slow.wild.test", Behaviour::Slow(Duration::from_millis(1500)));
    let before = ground.before()?;
    let arrived = ground.tls_connections();
    let mut slow = begin(&hello("slow.wild.test"))?;
    sleep(Duration::from_millis(200));
    ground.update(&names(&["allowed.test"]))?;
    let mut end = Vec::new();
    let _ = slow.read_to_end(&mut end);
    ensure!(end.is_empty() || end == [21, 3, 3, 0, 2, 2, names_support::UNRECOGNIZED_NAME], "{end:?}");
    let told = ground
        .wait_event(&before, |event| event["event"] == "deny" && event["serverName"] == "slow.wild.test")?;
    ensure!(told["generation"] == ground.show()?["generation"], "{told}");
    ensure!(ground.events(&before)?.iter().all(|event| event["event"] != "open"), "it was opened");
    sleep(Duration::from_millis(100));
    // It may have been dialled, but not a byte was said.
    let server = ground.echo.as_ref().unwrap();
    ensure!(server.connections() <= arrived + 1);
    let bytes = server.bytes_in();
    ensure!(bytes == 2 * denied.len() as u64, "{bytes} bytes arrived in all");
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn queries_over_one_connection_are_judged_each_by_itself() -> Result<()> {
    let ground = Ground::usual()?;
    let to = at("8.8.8.8", 53);
    let mut stream = ground.sandbox.tcp_connect(to, PATIENCE).result?;
    let mut exchange = |name: &str| -> Result<ResponseCode> {
        let bytes = query(name, RecordType::A).to_vec()?;
        stream.write_all(&[&u16::try_from(bytes.len())?.to_be_bytes()[..], &bytes].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        Ok(code(&Message::from_vec(&answer)?))
    };
    ensure!(exchange("denied.test")? == ResponseCode::NoError);
    let mut strict = usual_policy();
    strict["dns"] = json!({"mode": "strict"});
    ground.update(&strict)?;
    ensure!(exchange("denied.test")? == ResponseCode::Refused);
    ensure!(exchange("allowed.test")? == ResponseCode::NoError);
    ground.update(&usual_policy())?;
    ensure!(exchange("denied.test")? == ResponseCode::NoError);
    // Another resolver: this one is closed, and so is the connection to it.
    let before = ground.before()?;
    ground.update(
        &json!({"allowOut": ["allowed.test"], "denyOut": ["0.0.0.0/0"], "dns": {"servers": ["1.1.1.1"]}}),
    )?;
    let start = Instant::now();
    let refused = exchange("allowed.test");
    ensure!(refused.as_ref().map_or(true, |code| *code == ResponseCode::Refused), "{refused:?}");
    ensure!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    ensure!(ground.moved(&before)?.iter().all(|(reason, _)| reason == "revoked" || reason == "dns_refused"));
    let fresh = ask_over_tcp(&ground.sandbox, at("1.1.1.1", 53), &[query("allowed.test", RecordType::A)])?;
    ensure!(addresses(&fresh[0]) == [ip(GOOD[0])]);
    Ok(())
}

#[test]
fn updates_at_the_same_time_leave_one_policy_whole() -> Result<()> {
    const EACH: u64 = 25;
    let ground = Ground::with(SHORT, &in_turn(0))?;
    ground.zone.set("one.test", &GOOD)?;
    ground.zone.set("two.test", &WILD)?;
    for _ in 0..3 {
        thread::scope(|scope| {
            let updates = [0, 1, 2].map(|n| {
                let ground = &ground;
                scope.spawn(move || (0..EACH).try_for_each(|_| ground.update(&in_turn(n))))
            });
            updates
                .into_iter()
                .try_for_each(|update| update.join().map_err(|_| anyhow!("a thread failed"))?)
        })?;
        let policy = ground.show()?["policy"]["allowOut"].clone();
        let last = match policy.to_string() {
            text if text.contains("one.test") => 0,
            text if text.contains("two.test") => 1,
            _ => 2,
        };
        let mut seen = HashMap::new();
        for host in ["one.test", "two.test"] {
            for family in [0, 1] {
                let outcome = one_request(&ground, host, family)?;
                ensure!(outcome == expected(host, last, family), "{host}: {outcome:?} under {policy}");
                seen.insert((host, family), outcome);
            }
        }
        ensure!(seen.len() == 4);
    }
    ensure!(counted(&ground.show()?, "capacity") == 0);
    ground.control.settles(ID, 0, PATIENCE)
}
