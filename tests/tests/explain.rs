//! What `explain` says of a connection is what becomes of it, and saying so changes nothing.

mod names_support;

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Daemon, Server, Service, Talk};
use serde_json::{Value, json};

use names_support::hello::{Hello, hello};
use names_support::{GOOD, Ground, ID, PATIENCE, SHORT, WILD, at, counted, ip, moved, names, usual_policy};

/// What the command says, and its exit code.
fn explain(daemon: &Daemon, args: &[&str]) -> Result<(i32, Value)> {
    let output = daemon.cli(&[&["explain", "--json"], args].concat())?;
    let said = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((output.code, said))
}

#[test]
fn a_denial_is_noticed_understood_and_fixed() -> Result<()> {
    let Ground { daemon, sandbox, .. } = &Ground::with(SHORT, &names(&["allowed.test"]))?;
    let fetch = || sandbox.http_get(at(WILD[0], 80), "b.wild.test", PATIENCE).result;
    assert_eq!(fetch()?.status, 403);

    let mut denials = Vec::new();
    names_support::timed::eventually("it is seen", PATIENCE, || {
        let seen =
            daemon.cli(&["observe", "--sandbox", ID, "--decision", "deny", "-o", "json"])?.success()?;
        denials = seen.stdout.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        Ok(denials.iter().any(|denial| denial["serverName"] == "b.wild.test"))
    })?;
    let denial = denials.iter().find(|denial| denial["serverName"] == "b.wild.test").context("no denial")?;

    let target = format!("http://{}", denial["serverName"].as_str().context("no name")?);
    let (code, said) = explain(daemon, &[ID, &target])?;
    assert_eq!(code, 10);
    for field in ["decision", "reason", "rule", "generation"] {
        assert_eq!(said[field], denial[field], "{field}: {said} {denial}");
    }
    daemon.update(ID, &names(&["allowed.test", "*.wild.test"]))?;
    let (code, said) = explain(daemon, &[ID, &target])?;
    assert_eq!((code, &said["rule"], &said["generation"]), (0, &json!("/allowOut/1"), &json!(2)));
    assert_eq!(fetch()?.status, 200);
    Ok(())
}

#[test]
fn it_has_the_form_that_scripts_rely_on() -> Result<()> {
    let Ground { daemon, .. } = &Ground::usual()?;
    let (code, said) = explain(daemon, &[ID, "https://allowed.test/path"])?;
    let steps = said["steps"].as_array().context("no steps")?.len();
    assert!(code == 0 && steps >= 3, "{said}");
    let expected = json!({
        "decision": "allow", "reason": "allowed_name", "rule": "/allowOut/0", "name": "allowed.test",
        "address": GOOD[0], "port": 443, "proto": "tcp", "generation": 1, "steps": said["steps"],
    });
    assert_eq!(said, expected);
    let (code, said) = explain(daemon, &[ID, "allowed.test:22"])?;
    assert_eq!((code, &said["reason"], &said["address"]), (10, &json!("denied_cidr"), &json!(GOOD[0])));
    let (code, said) = explain(daemon, &[ID, "nowhere.test"])?;
    assert_eq!((code, &said["reason"], &said["address"]), (10, &json!("unresolved"), &Value::Null));

    let text = daemon.cli(&["explain", ID, "8.8.8.8:53/udp"])?.success()?.stdout;
    assert!(text.starts_with("allow  dns\n") && text.contains("1. "), "{text}");
    for (args, code) in [
        (["explain", "nobody", "a.test"].as_slice(), 3),
        (&["explain", ID, "ftp://a.test"], 2),
        (&["explain", ID], 2),
        (&["explain", "a.test"], 2),
        (&["explain", "--policy", "/nowhere", "a.test"], 2),
        (&["explain", ID, "a.test", "--policy", "/nowhere"], 2),
    ] {
        let output = daemon.cli(args)?;
        assert!(output.code == code && output.stderr.lines().count() == 1, "{args:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn a_policy_is_judged_by_a_daemon_or_without_one() -> Result<()> {
    let mut ground = Ground::usual()?;
    let daemon = &mut ground.daemon;
    let policy = daemon.config().with_file_name("policy.json");
    std::fs::write(&policy, usual_policy().to_string())?;
    let policy = policy.to_str().context("a path")?.to_owned();
    let targets = [
        ("https://allowed.test", 0, "allowed_name"),
        ("https://other.test", 10, "name_not_allowed"),
        ("203.0.113.9:22", 0, "allowed_cidr"),
        ("198.51.100.9:22", 10, "denied_cidr"),
        ("10.1.1.1:80", 10, "guarded"),
    ];
    for (target, code, reason) in targets {
        // Nobody answers for that name.
        let reason = if target == "https://other.test" { "unresolved" } else { reason };
        let (ended, said) = explain(daemon, &["--policy", &policy, target])?;
        assert_eq!(
            (ended, &said["reason"], &said["generation"]),
            (code, &json!(reason), &Value::Null),
            "{said}"
        );
    }
    daemon.stop()?;
    for (target, code, reason) in targets {
        let (ended, said) = explain(daemon, &["--policy", &policy, target])?;
        assert_eq!((ended, &said["reason"]), (code, &json!(reason)), "{said}");
        assert!(said["steps"][0].as_str().is_some_and(|step| step.contains("no daemon")), "{said}");
    }
    assert_eq!(daemon.cli(&["explain", ID, "203.0.113.9:22"])?.code, 5);
    Ok(())
}

/// What is there of a sandbox, and of the filter in the kernel.
fn state(ground: &Ground) -> Result<Value> {
    let mut show = ground.show()?;
    // The sandbox's kernel says something of its own accord, now and then.
    for reason in ["protocol", "neighbour", "neighbour_claim"] {
        show["counters"][reason].take();
    }
    let pins = std::process::Command::new("find").arg(ground.daemon.pins()).output()?.stdout;
    let mut pins: Vec<_> = String::from_utf8(pins)?.lines().map(ToOwned::to_owned).collect();
    pins.sort();
    Ok(json!({ "show": show, "pins": pins, "events": ground.daemon.events()?.len() }))
}

#[test]
fn it_leaves_no_trace_in_the_running_sandbox() -> Result<()> {
    let ground = Ground::with(SHORT, &{
        let mut policy = usual_policy();
        policy["limits"] = json!({ "egressConnections": 2 });
        policy
    })?;
    let _echo = ground.topology.serve(Service::TcpEcho, 7)?;
    let open = ground.sandbox.tcp_connect(at("203.0.113.10", 7), PATIENCE).result?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let (before, arrived) = (state(&ground)?, ground.frames()?);
    for target in ["203.0.113.10:7", "198.51.100.7:7", "10.0.0.1:7", "https://allowed.test", "http://x.test"]
    {
        for _ in 0..3 {
            explain(&ground.daemon, &[ID, target])?;
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(state(&ground)?, before);
    assert_eq!(ground.frames()?, arrived, "nothing was sent but queries");

    // What is there is what the answer is about.
    let more = ground.sandbox.tcp_connect(at("203.0.113.11", 7), PATIENCE).result?;
    let (code, said) = explain(&ground.daemon, &[ID, "203.0.113.12:7"])?;
    assert_eq!((code, &said["reason"]), (10, &json!("connection_limit")), "{said}");
    drop((open, more));
    Ok(())
}

/// Numbers that are the same every time (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn some<'a>(&mut self, of: &[&'a str]) -> Vec<&'a str> {
        of.iter().copied().filter(|_| self.below(3) == 0).collect()
    }

    fn policy(&mut self) -> Value {
        const ALLOWED: [&str; 10] = [
            "203.0.113.0/24",
            "203.0.113.10",
            "198.51.100.10/31",
            "2001:db8:113::/64",
            "2001:db8:198::10",
            "allowed.test",
            "*.wild.test",
            "b.wild.test",
            "*",
            "8.8.8.8",
        ];
        const DENIED: [&str; 5] =
            ["203.0.113.0/28", "198.51.100.0/24", "2001:db8:198::/64", "203.0.113.10", "8.8.8.8"];
        let allowed = self.some(&ALLOWED);
        let mut denied = self.some(&DENIED);
        if allowed.iter().any(|entry| entry.contains("test") || *entry == "*") || self.below(2) == 0 {
            denied.insert(self.below(denied.len() + 1), "0.0.0.0/0");
        }
        let precedence = ["allow-first", "allow-first", "deny-first"][self.below(3)];
        let mode = ["open", "strict"][self.below(2)];
        json!({ "allowOut": allowed, "denyOut": denied, "precedence": precedence, "dns": { "mode": mode } })
    }
}

/// Something to connect to: as `explain` is asked, and as a client does it.
struct Target {
    text: &'static str,
    /// Where a client that was told the name's address connects to.
    to: SocketAddr,
    doing: Doing,
}

#[derive(Clone, Copy)]
enum Doing {
    Tcp,
    Udp,
    Http(&'static str),
    Tls(&'static str),
    TlsWithoutName,
}

fn targets() -> Vec<Target> {
    let target = |text, to: &str, port, doing| Target { text, to: at(to, port), doing };
    vec![
        target("203.0.113.10:7", "203.0.113.10", 7, Doing::Tcp),
        target("203.0.113.77:7/udp", "203.0.113.77", 7, Doing::Udp),
        target("198.51.100.11:7", "198.51.100.11", 7, Doing::Tcp),
        target("198.51.100.9:7/udp", "198.51.100.9", 7, Doing::Udp),
        target("[2001:db8:113::10]:7", "2001:db8:113::10", 7, Doing::Tcp),
        target("[2001:db8:198::10]:7", "2001:db8:198::10", 7, Doing::Tcp),
        target("10.0.0.1:7", "10.0.0.1", 7, Doing::Tcp),
        target("8.8.8.8:7", "8.8.8.8", 7, Doing::Tcp),
        target("allowed.test:7", GOOD[0], 7, Doing::Tcp),
        target("http://allowed.test", GOOD[0], 80, Doing::Http("allowed.test")),
        target("https://allowed.test", GOOD[0], 443, Doing::Tls("allowed.test")),
        target("http://b.wild.test", WILD[0], 80, Doing::Http("b.wild.test")),
        target("https://only4.test", "198.51.100.20", 443, Doing::Tls("only4.test")),
        target("https://platform.test", "10.9.9.9", 443, Doing::Tls("platform.test")),
        target("http://203.0.113.10", "203.0.113.10", 80, Doing::Http("203.0.113.10")),
        target("198.51.100.10", "198.51.100.10", 443, Doing::TlsWithoutName),
    ]
}

impl Target {
    /// Whether a client gets through.
    fn succeeds(&self, ground: &Ground) -> Result<bool> {
        let sandbox = &ground.sandbox;
        Ok(match self.doing {
            Doing::Tcp => sandbox.tcp_exchange(self.to, b"hello", PATIENCE).is_ok(),
            Doing::Udp => sandbox.udp_exchange(self.to, b"hello", PATIENCE).is_ok(),
            Doing::Http(host) => {
                sandbox.http_get(self.to, host, PATIENCE).result.is_ok_and(|answer| answer.status == 200)
            }
            Doing::Tls(name) => self.echoes(ground, &hello(name))?,
            Doing::TlsWithoutName => self.echoes(ground, &Hello::new().bytes())?,
        })
    }

    fn echoes(&self, ground: &Ground, hello: &[u8]) -> Result<bool> {
        let heard = ground.sandbox.talk(self.to, &Talk::new().say(hello).until(hello).end())?;
        Ok(heard.bytes == hello)
    }
}

#[test]
fn it_says_what_becomes_of_real_connections() -> Result<()> {
    const POLICIES: usize = 12;
    const TARGETS: usize = 6;
    let ground = Ground::with(SHORT, &json!({}))?;
    let _echoes: [Server; 2] =
        [ground.topology.serve(Service::TcpEcho, 7)?, ground.topology.serve(Service::UdpEcho, 7)?];
    ground.zone.set("only4.test", &["198.51.100.20"])?;
    ground.zone.set("platform.test", &["10.9.9.9"])?;
    let targets = targets();
    let mut random = Random(0x5eed_0007);
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for round in 0..POLICIES {
        let policy = random.policy();
        ground.update(&policy)?;
        for _ in 0..TARGETS {
            let target = &targets[random.below(targets.len())];
            let context = || format!("round {round}: {} under {policy}", target.text);
            let before = ground.show()?;
            let question = json!({ "sandbox": ID, "target": target.text });
            let said = ground.control.ask("POST", "/v1/explain", Some(&question))?;
            let said = said.map_err(|error| anyhow::anyhow!("{error}")).with_context(context)?;
            // Of several addresses it says which one would do; a client has to take that one.
            let to = said["address"].as_str().map_or(target.to.ip(), ip);
            let family = to.is_ipv4() == target.to.is_ipv4();
            let reason = said["reason"].as_str().context("no reason")?;
            *seen.entry(reason.to_owned()).or_default() += 1;
            let to = if family || reason != "allowed_cidr" { target.to.ip() } else { to };
            let client =
                Target { to: SocketAddr::new(to, target.to.port()), text: target.text, doing: target.doing };
            let succeeded = client.succeeds(&ground).with_context(context)?;
            ensure!(
                succeeded == (said["decision"] == "allow"),
                "{}: it did {succeeded}, said was {said}",
                context()
            );
            let after = ground.show()?;
            if succeeded {
                let more = counted(&after, reason) > counted(&before, reason);
                ensure!(more, "{}: {reason} was not counted, said was {said}", context());
            } else {
                let moved = moved(&before, &after)?;
                let only = moved.iter().all(|(denial, _)| denial == reason) && !moved.is_empty();
                ensure!(only, "{}: counted was {moved:?}, said was {said}", context());
            }
        }
    }
    println!("{seen:?}");
    for reason in ["allowed_cidr", "allowed_name", "denied_cidr", "guarded", "name_not_allowed"] {
        ensure!(seen.contains_key(reason), "none was {reason}: {seen:?}");
    }
    Ok(())
}
