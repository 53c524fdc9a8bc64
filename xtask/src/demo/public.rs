//! An act of its own: public URLs, to sandboxes that reach next to nothing themselves.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use filter_tests::{Server, Service};
use serde_json::Value;

use super::Findings;
use super::paint::{Style, line, title};
use super::stage::{ALPHA, BETA, PATIENCE, Stage};

/// Where the daemon serves them unless it is told otherwise.
const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);
const PORT: u16 = 3000;

pub fn play(stage: &Stage, findings: &mut Findings) -> Result<()> {
    title("5. Public URLs: every port of every sandbox, for those who may");
    let _services =
        [Server::start(&stage.alpha, Service::Http, PORT)?, Server::start(&stage.beta, Service::Http, PORT)?];
    let before = charged(stage)?;
    let show = stage.daemon.cli_json(&["show", BETA, "--tokens"])?;
    let token = show["trafficAccessToken"].as_str().context("beta has no token")?;
    let shown = format!("e2b-traffic-access-token: {token}\r\n");
    for (port, id, head, status, what) in [
        (PORT, ALPHA, "", 200, "open to everybody"),
        (PORT + 1, ALPHA, "", 502, "nobody listens there"),
        (PORT, "nobody", "", 502, "no such sandbox"),
        (PORT, BETA, "", 403, "without its token"),
        (PORT, BETA, &shown, 200, "with its token"),
    ] {
        let host = format!("{port}-{id}.sandbox.localhost");
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{head}Connection: close\r\n\r\n");
        let answer =
            stage.host().tcp_exchange(SocketAddr::from(GATEWAY), request.as_bytes(), PATIENCE).result;
        let answer = answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let found = answer.get(9..12).unwrap_or("nothing").to_owned();
        let fits = found == status.to_string();
        let (mark, style) = match (fits, status) {
            (true, 200) => ("✓", Style::Good),
            (true, _) => ("✗", Style::Denied),
            (false, _) => ("?", Style::Bad),
        };
        line(&[(style, format!("  {mark} http://{host}/ {found}")), (Style::Faint, format!("  {what}"))]);
        findings.expect(fits, format!("http://{host}/ ({what}): {found} instead of {status}"));
    }
    let after = charged(stage)?;
    findings.expect(before == after, format!("callers were charged to alpha: {before}, then {after}"));
    Ok(())
}

/// Connections that were ever counted against alpha's limit at the same time, and now.
fn charged(stage: &Stage) -> Result<Value> {
    Ok(stage.daemon.show(ALPHA)?["connections"].clone())
}
