//! What goes on for longer, or in both directions: WebSocket, server-sent events, gRPC, bulk, half-closed
//! connections, QUIC and its fallback, either family alone.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Output, Process, program};
use serde_json::json;

use crate::fetch::{CLIENT_PY, virtual_environment};
use crate::names_support::{GOOD, WILD, ip};
use crate::place::{Place, complaint, said, success};

/// Runs a client of `client.py` in the sandbox.
fn python(place: &Place, client: &str, url: &str) -> Result<Output> {
    place.run(virtual_environment()?.join("bin/python"), &["-c", CLIENT_PY, client, url])
}

/// Runs one for the allowed name over TLS and without, and for another name.
fn works(place: &Place, client: &str, schemes: [&str; 2], path: &str, result: &str) -> Result<()> {
    for scheme in schemes {
        let before = place.before()?;
        let url = format!("{scheme}://allowed.test{path}");
        let got = success(python(place, client, &url)?, &url)?;
        ensure!(got.trim() == result, "{url}: {got}");
        place.ensure_allowed(&before).with_context(|| url.clone())?;

        let before = place.before()?;
        let output = python(place, client, &format!("{scheme}://denied.test{path}"))?;
        let complains = if scheme == schemes[0] { "unrecognized name" } else { "403" };
        ensure!(output.code != 0 && complaint(&output).contains(complains), "{}", said(&output));
        place.ensure_denied(&before, "name_not_allowed")?;
    }
    Ok(())
}

#[test]
fn websockets() -> Result<()> {
    works(&Place::new()?, "websocket", ["wss", "ws"], "/ws", "one two 200000 three")
}

#[test]
fn server_sent_events() -> Result<()> {
    let all = "event 0, event 1, event 2, event 3";
    works(&Place::new()?, "events", ["https", "http"], "/events", all)
}

#[test]
fn grpc() -> Result<()> {
    let place = Place::new()?;
    let python_program = virtual_environment()?.join("bin/python");
    let (certificate, key) = place.ca.issue("b.wild.test")?;
    let home = place.userland.home();
    fs::write(home.join("certificate.pem"), certificate)?;
    fs::write(home.join("key.pem"), key)?;
    let mut command = place.topology.internet().command(&python_program)?;
    command.args(["-c", CLIENT_PY, "grpc-server", WILD[0]]).stdout(Stdio::piped());
    command.arg(home.join("certificate.pem")).arg(home.join("key.pem"));
    let mut server = Process::start(command)?;
    let mut log = BufReader::new(server.child().stdout.take().context("no standard output")?).lines();
    ensure!(log.next().transpose()?.as_deref() == Some("ready"), "no gRPC server");

    place.zone.set("b.wild.test", &WILD[..1])?;
    let before = place.before()?;
    let got = success(python(&place, "grpc-call", "https://b.wild.test")?, "gRPC")?;
    ensure!(got.trim() == "hello one two 100000", "{got}");
    let asked = log.next().transpose()?.context("the server was not asked")?;
    ensure!(asked.contains("asked by"), "{asked}");
    place.ensure_name_counted(&before, "b.wild.test")?;
    place.ensure_nothing_denied(&before)?;

    let before = place.before()?;
    let output = python(&place, "grpc-call", "https://denied.test")?;
    ensure!(output.code != 0 && said(&output).contains("UNAVAILABLE"), "{}", said(&output));
    place.ensure_denied(&before, "name_not_allowed")
}

/// Down, and up again the same bytes.
fn carries(place: &Place, scheme: &str, length: u64) -> Result<()> {
    let before = place.before()?;
    let script = r#"curl -sS --fail "$1/down/$2" -o bulk && curl -sS --fail -T bulk "$1/up" && rm bulk"#;
    let page = format!("{scheme}://allowed.test");
    let told = success(place.run("sh", &["-ec", script, "sh", &page, &length.to_string()])?, scheme)?;
    ensure!(told == format!("{length} bytes, all right\n"), "{told}");
    place.ensure_allowed(&before)?;
    let told = place.wait_event(&before, |event| {
        event["event"] == "close" && event["bytesOut"].as_u64().is_some_and(|bytes| bytes >= length)
    })?;
    ensure!(told["serverName"] == "allowed.test", "{told}");
    Ok(())
}

#[test]
fn large_downloads_and_uploads() -> Result<()> {
    let place = Place::new()?;
    carries(&place, "https", 16 << 20)?;
    carries(&place, "http", 16 << 20)
}

#[test]
fn a_client_that_ends_its_side_first() -> Result<()> {
    let place = Place::new()?;
    let before = place.before()?;
    let got = success(python(&place, "half-close", "http://allowed.test/down/3000000")?, "half-closed")?;
    ensure!(got.trim() == "3000000 bytes", "{got}");
    place.ensure_allowed(&before).map(drop)
}

#[test]
fn a_client_of_http3_falls_back() -> Result<()> {
    let place = Place::new()?;
    let before = place.before()?;
    let got = success(python(&place, "http3", "https://allowed.test/http3")?, "curl with HTTP/3")?;
    ensure!(got.contains("as allowed.test"), "{got}");
    let visits = place.ensure_asked(&before)?;
    ensure!(visits.len() == 1 && visits[0].version == "HTTP/2.0", "{visits:?}");
    ensure!(
        place.denied(&before)?.iter().all(|(reason, _)| reason == "denied_cidr"),
        "{:?}",
        place.denied(&before)
    );
    place.wait_event(&before, |event| {
        event["event"] == "deny"
            && event["proto"] == "udp"
            && event["dport"] == 443
            && event["reason"] == "denied_cidr"
    })?;
    let arrived = place.arrived.count(|flow| flow.protocol == 17 && flow.port == 443)?.frames;
    ensure!(arrived == 0, "{arrived} datagrams arrived at port 443");
    Ok(())
}

#[test]
fn with_either_family_alone() -> Result<()> {
    let fetch = |place: &Place, family: usize| -> Result<()> {
        let before = place.before()?;
        let got = success(place.run("curl", &["-sS", "https://allowed.test/"])?, "curl")?;
        ensure!(got.contains("as allowed.test"), "{got}");
        place.ensure_allowed(&before)?;
        let source = place.sandbox.address_like(ip(GOOD[family])).to_string();
        place.wait_event(&before, |event| event["event"] == "open" && event["src"] == source)?;
        let before = place.before()?;
        let output = place.run("curl", &["-sS", "https://denied.test/"])?;
        ensure!(said(&output).contains("unrecognized name"), "{}", said(&output));
        place.ensure_denied(&before, "name_not_allowed")
    };
    let place = Place::new()?;
    place.sandbox.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
    fetch(&place, 0)?;

    let resolver = "2001:4860:4860::8888";
    let policy = json!({
        "allowOut": ["allowed.test"], "denyOut": ["0.0.0.0/0"], "dns": { "servers": [resolver] },
    });
    let place = Place::with(&policy, resolver)?;
    let mut flush = place.sandbox.command(program("ip")?)?;
    success(Output::of(flush.args(["-4", "address", "flush", "dev", "eth0"]))?, "ip")?;
    fetch(&place, 1)
}
