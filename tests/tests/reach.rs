//! Who may be reached: allow and deny rules in both families, their precedence, and the guard that no policy opens.

mod common;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::wire::{self, Segment};
use common::{ALLOWED, Answer, DENIED, Ground, ID, PATIENCE, Row, Told, ip, usual_policy};
use filter_tests::{Daemon, Topology};
use serde_json::{Value, json};

const ALL_TRAFFIC: Option<&str> = Some("/denyOut/0");

#[test]
fn only_what_is_allowed_is_reached() -> Result<()> {
    let ground = Ground::usual()?;
    let _servers = ground.echo()?;
    for to in ALLOWED {
        ground.reaches(to)?;
    }
    for to in DENIED.into_iter().chain(["8.8.8.8", "2001:4860:4860::8888"]) {
        ground.is_denied(to, "denied_cidr", ALL_TRAFFIC)?;
    }
    // One does not disturb the other.
    for to in ALLOWED {
        ground.reaches(to)?;
    }
    let show = ground.daemon.show(ID)?;
    ensure!(common::counted(&show, "allowed_cidr") > 0 && common::counted(&show, "default") == 0);
    Ok(())
}

#[test]
fn precedence_not_length_decides() -> Result<()> {
    let ground = Ground::new(&json!({}))?;
    let _servers = ground.echo()?;
    let wide = ["203.0.113.0/24", "2001:db8:113::/64"];
    let narrow = ["203.0.113.10", "2001:db8:113::10"];
    let others = ["203.0.113.11", "2001:db8:113::11"];

    // An exception in what is denied.
    ground.daemon.update(ID, &json!({"allowOut": narrow, "denyOut": wide}))?;
    for family in 0..2 {
        ground.reaches(narrow[family])?;
        ground.is_denied(others[family], "denied_cidr", Some(["/denyOut/0", "/denyOut/1"][family]))?;
        ground.reaches(DENIED[family])?;
    }
    // A longer denial does not win over an allowed range,
    ground.daemon.update(ID, &json!({"allowOut": wide, "denyOut": narrow}))?;
    for to in narrow {
        ground.reaches(to)?;
    }
    // but does where denials come first,
    let policy = json!({"allowOut": wide, "denyOut": narrow, "precedence": "deny-first"});
    ground.daemon.update(ID, &policy)?;
    for family in 0..2 {
        ground.is_denied(narrow[family], "denied_cidr", Some(["/denyOut/0", "/denyOut/1"][family]))?;
        ground.reaches(others[family])?;
    }
    // and there no exception survives.
    let policy = json!({"allowOut": narrow, "denyOut": wide, "precedence": "deny-first"});
    ground.daemon.update(ID, &policy)?;
    for family in 0..2 {
        ground.is_denied(narrow[family], "denied_cidr", Some(["/denyOut/0", "/denyOut/1"][family]))?;
    }
    Ok(())
}

#[test]
fn without_internet_access_only_what_is_allowed_is_left() -> Result<()> {
    let ground = Ground::new(&json!({"allowInternetAccess": false, "allowOut": [ALLOWED[0]]}))?;
    let _servers = ground.echo()?;
    ground.reaches(ALLOWED[0])?;
    for to in [ALLOWED[1], DENIED[0], DENIED[1]] {
        ground.is_denied(to, "denied_cidr", Some("/allowInternetAccess"))?;
    }
    Ok(())
}

#[test]
fn the_empty_policy_denies_nothing() -> Result<()> {
    let ground = Ground::new(&json!({}))?;
    let _servers = ground.echo()?;
    for to in ALLOWED.into_iter().chain(DENIED) {
        ground.reaches(to)?;
    }
    let show = ground.daemon.show(ID)?;
    ensure!(common::counted(&show, "default") > 0 && common::counted(&show, "allowed_cidr") == 0);
    Ok(())
}

/// A policy that asks for all of the platform.
fn greedy() -> Value {
    json!({"allowOut": [
        "0.0.0.0/0", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.2.0/24", "192.168.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "64:ff9b::/96", "2001:db8::/32",
        "2002::/16", "fc00::/7", "fe80::/10", "ff00::/8",
    ]})
}

#[test]
fn the_platform_is_never_reached() -> Result<()> {
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let (sandbox, other) = (topology.sandbox(1)?, topology.sandbox(2)?);
    daemon.attach(ID, &sandbox, &greedy())?;
    daemon.attach("s2", &other, &greedy())?;
    let ground = Ground::around(topology, daemon, sandbox)?;
    let _servers = ground.echo()?;
    for to in ALLOWED {
        ground.reaches(to)?;
    }

    let (gateway, neighbour) = (ground.sandbox.gateway_v4(), other.v4());
    let own: Vec<String> = ground.topology.host_addresses().map(|address| address.to_string()).into();
    let whole =
        [neighbour.to_string(), other.v6().to_string(), gateway.to_string(), own[0].clone(), own[1].clone()];
    for to in whole.iter().map(String::as_str).chain(["169.254.169.254"]) {
        ground.is_denied(to, "guarded", None)?;
    }
    // Sockets refuse some of these themselves.
    let to = [
        "0.0.0.1",
        "10.99.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "172.16.9.9",
        "192.0.0.8",
        "192.168.1.1",
        "198.18.0.1",
        "240.0.0.1",
        "64:ff9b::808:808",
        "2002:808:808::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "::1",
    ];
    let row = |to: &str, answer| {
        let (from, to) = (ground.from(ip(to)), std::net::SocketAddr::new(ip(to), 80));
        let segment = Segment::syn(from.port(), 80).bytes(from.ip(), to.ip(), wire::MARKER);
        let frame = ground.frame(wire::ip(from.ip(), to.ip(), wire::TCP, segment));
        Row { name: "guard", frame, told: Told::flow("guarded", None, "tcp", from, to), answer }
    };
    let mut rows: Vec<_> = to.iter().map(|to| row(to, Answer::Reset)).collect();
    rows.extend(["224.0.0.251", "255.255.255.255", "ff02::fb"].map(|to| row(to, Answer::Nothing)));
    ground.frames_are_denied(&rows)?;
    ensure!(
        common::counted(&ground.daemon.show("s2")?, "inbound") == 0,
        "something came to the other sandbox"
    );
    Ok(())
}

#[test]
fn the_operator_opens_and_adds_to_the_guard() -> Result<()> {
    let config = "[guard]\nopen = [\"10.77.0.0/16\"]\ndeny = [\"203.0.113.32/27\", \"2001:db8:113::/120\"]";
    let topology = Topology::builder().owns("10.77.0.0/16".parse()?).owns("10.78.0.0/16".parse()?).build()?;
    let daemon = Daemon::on(&topology).config(config).start()?;
    let sandbox = topology.sandbox(1)?;
    daemon.attach(ID, &sandbox, &json!({}))?;
    let ground = Ground::around(topology, daemon, sandbox)?;
    let _servers = ground.echo()?;
    ground.reaches("10.77.0.9")?;
    ground.reaches(ALLOWED[0])?;
    for to in ["10.78.0.9", "203.0.113.40", "2001:db8:113::10"] {
        ground.is_denied(to, "guarded", None)?;
    }
    // What is open is the policy's to decide.
    ground.daemon.update(ID, &usual_policy())?;
    ground.is_denied("10.77.0.9", "denied_cidr", ALL_TRAFFIC)?;
    Ok(())
}

#[test]
fn an_address_that_the_host_takes_is_guarded_within_a_second() -> Result<()> {
    let ground = Ground::usual()?;
    let _servers = ground.echo()?;
    for to in ["203.0.113.77", "2001:db8:113::77"] {
        ground.reaches(to)?;
        let start = Instant::now();
        ground
            .topology
            .host()
            .add_address("lo", format!("{to}/{}", if ip(to).is_ipv4() { 32 } else { 128 }).parse()?)?;
        let generation = ground.daemon.show(ID)?["generation"].clone();
        // Until then the host answers: nobody listens there.
        while ground.daemon.show(ID)?["generation"] == generation
            && ground.sandbox.ping(ip(to), PATIENCE).is_ok()
            && start.elapsed() < Duration::from_secs(1)
        {
            sleep(Duration::from_millis(20));
        }
        ground.is_denied(to, "guarded", None)?;
        ensure!(start.elapsed() < Duration::from_secs(2), "guarded after {:?}", start.elapsed());
    }
    Ok(())
}

#[test]
fn no_address_is_missed_while_sandboxes_come_and_go() -> Result<()> {
    let ground = Ground::new(&json!({}))?;
    let other = ground.topology.sandbox(2)?;
    let host = ground.topology.host().clone();
    let adding = std::thread::spawn(move || -> Result<()> {
        for last in 100..160 {
            host.add_address("lo", format!("203.0.113.{last}/32").parse()?)?;
        }
        Ok(())
    });
    let mut rounds = 0;
    while !adding.is_finished() || rounds < 10 {
        ground.daemon.attach("s2", &other, &json!({}))?;
        ground.daemon.cli(&["detach", "s2"])?.success()?;
        rounds += 1;
    }
    adding.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    for to in ["203.0.113.100", "203.0.113.130", "203.0.113.159"] {
        common::eventually(|| Ok(!ground.sandbox.ping(ip(to), PATIENCE).is_ok()))?;
        ground.is_denied(to, "guarded", None)?;
    }
    Ok(())
}
