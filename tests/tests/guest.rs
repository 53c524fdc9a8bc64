//! A virtual machine with a kernel and a card of its own, filtered on its tap device.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::wire::Seen;
use common::{ALLOWED, DENIED, ID, PATIENCE, Told, counted, eventually, ip, usual_policy};
use filter_tests::{Daemon, Guest, Recording, Service, Topology};
use serde_json::{Value, json};

/// How long a machine may take that is emulated, on a computer that is busy.
const BOOT: Duration = Duration::from_secs(60);
const BYTES: u64 = 512 * 1024;

/// What the guest tries. `took` is in hundredths of a second.
const SCRIPT: &str = r#"
get() { printf "GET / HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n" | nc -w 3 $1 80 | tail -n 1; }
clock() { read -r up rest < /proc/uptime; echo "${up%.*}${up#*.}"; }
connect() { from=$(clock); text=$(nc -w 3 "$1" 80 < /dev/null 2>&1); say "connect $1 took $(($(clock) - from)) $text"; }
say "up"
for to in 203.0.113.10 2001:db8:113::10; do say "get $to $(get $to 2>&1)"; done
for to in 198.51.100.7 2001:db8:198::7 169.254.169.254; do connect $to; done
for to in 203.0.113.10 2001:db8:113::10 198.51.100.7 2001:db8:198::7; do
    if ping -c 1 -W 1 $to > /dev/null 2>&1; then say "ping $to answered"; else say "ping $to nothing"; fi
done
say "hops $(traceroute -n -q 1 -w 1 -m 3 203.0.113.10 2>&1 | awk 'NR > 1 { print $2 }' | xargs)"
dd if=/dev/zero bs=1024 count=512 2> /dev/null | nc 203.0.113.10 9
say "sent"
(from=$(clock); nc 203.0.113.10 10 > /dev/null 2>&1; say "cut") &
say "waiting"
until text=$(get 198.51.100.7 2> /dev/null) && [ "$text" ]; do sleep 0.05; done
say "updated $text"
wait
say "connect after the update"
connect 203.0.113.10
say "end"
"#;

#[test]
fn a_virtual_machine_is_filtered() -> Result<()> {
    let topology = Topology::new()?;
    let daemon = Daemon::start_on(&topology)?;
    let _http = topology.serve(Service::Http, 80)?;
    let sink = topology.serve(Service::TcpSink, 9)?;
    let stream = topology.serve(Service::TcpStream { bytes_per_second: Some(100_000) }, 10)?;
    let arrived = Recording::start(topology.internet(), "eth0")?;

    let mut guest = Guest::boot(&topology, 1, SCRIPT)?;
    let addresses = [guest.v4().into(), guest.v6().into()];
    daemon.attach_interface(ID, &guest.host_interface(), &addresses, &guest.mac_text(), &usual_policy())?;
    guest.wait_for("up", BOOT)?;

    for to in ALLOWED {
        let page = guest.wait_for(&format!("get {to}"), PATIENCE * 3)?;
        ensure!(page == format!("hello from {}", SocketAddr::new(ip(to), 80)), "{to}: {page}");
    }
    for to in ["198.51.100.7", "2001:db8:198::7", "169.254.169.254"] {
        let said = guest.wait_for(&format!("connect {to} took"), PATIENCE * 3)?;
        let (took, text) = said.split_once(' ').context("no message")?;
        ensure!(text.contains("Connection refused"), "{to}: {text}");
        // An emulated machine starts a program in a tenth of a second.
        ensure!(took.parse::<u32>()? < 100, "{to}: refused after {took} hundredths of a second");
        let from = guest_address(&guest, to);
        let (reason, rule) =
            if to.starts_with("169") { ("guarded", None) } else { ("denied_cidr", Some("/denyOut/0")) };
        is_denied(&daemon, &arrived, reason, rule, "tcp", from, SocketAddr::new(ip(to), 80))?;
    }
    for to in ALLOWED {
        ensure!(guest.wait_for(&format!("ping {to}"), PATIENCE * 3)? == "answered", "ping {to}");
    }
    for to in DENIED {
        ensure!(guest.wait_for(&format!("ping {to}"), PATIENCE * 3)? == "nothing", "ping {to}");
        let proto = if ip(to).is_ipv4() { "icmp" } else { "icmpv6" };
        let from = guest_address(&guest, to);
        is_denied(
            &daemon,
            &arrived,
            "denied_cidr",
            Some("/denyOut/0"),
            proto,
            from,
            SocketAddr::new(ip(to), 0),
        )?;
    }
    // UDP out, and the errors about it in.
    let hops = guest.wait_for("hops", PATIENCE * 3)?;
    ensure!(hops == "10.203.1.1 203.0.113.10", "hops: {hops}");
    // Large frames with checksums left to the card, as its driver has negotiated.
    guest.wait_for("sent", PATIENCE * 3)?;
    eventually(|| Ok(sink.bytes_in() == BYTES)).with_context(|| format!("{} bytes came", sink.bytes_in()))?;

    // While it runs, another policy: what was open is cut, what was closed is open.
    guest.wait_for("waiting", PATIENCE)?;
    eventually(|| Ok(stream.open() == 1)).context("no stream")?;
    let start = Instant::now();
    daemon.update(ID, &json!({"allowOut": ["198.51.100.0/24"], "denyOut": ["0.0.0.0/0"]}))?;
    guest.wait_for("cut", PATIENCE)?;
    ensure!(start.elapsed() < Duration::from_secs(2), "cut after {:?}", start.elapsed());
    ensure!(guest.wait_for("updated", PATIENCE)? == "hello from 198.51.100.7:80");
    let said = guest.wait_for("connect 203.0.113.10 took", PATIENCE)?;
    ensure!(said.contains("Connection refused"), "{said}");
    guest.wait_for("end", PATIENCE)?;

    let show = daemon.show(ID)?;
    for reason in ["malformed", "spoofed", "neighbour_claim"] {
        ensure!(counted(&show, reason) == 0, "an honest guest is {reason}: {show}");
    }
    Ok(())
}

fn guest_address(guest: &Guest, to: &str) -> std::net::IpAddr {
    if ip(to).is_ipv4() { guest.v4().into() } else { guest.v6().into() }
}

/// Counted, told, and not arrived. Which port the guest took is its own affair.
fn is_denied(
    daemon: &Daemon,
    arrived: &Recording,
    reason: &'static str,
    rule: Option<&'static str>,
    proto: &str,
    from: std::net::IpAddr,
    to: SocketAddr,
) -> Result<()> {
    ensure!(daemon.packets(ID, reason)? > 0, "{reason} is not counted");
    let generation = daemon.show(ID)?["generation"].clone();
    let told = |event: &Value| {
        let sport = event["sport"].as_u64().and_then(|port| u16::try_from(port).ok());
        let told = Told::packet(reason, rule, proto, from, to.ip());
        let told = Told { sport, dport: (to.port() != 0).then_some(to.port()), ..told };
        told.is(event) && event["generation"] == generation
    };
    daemon.wait_event(told, PATIENCE).with_context(|| format!("{from} to {to}"))?;
    let frames = arrived.frames()?;
    ensure!(
        !frames.iter().filter_map(|frame| Seen::parse(frame)).any(|seen| seen.to == to.ip()),
        "it arrived"
    );
    Ok(())
}
