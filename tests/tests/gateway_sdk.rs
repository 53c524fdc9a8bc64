//! Public URLs as E2B's SDKs, unmodified, know them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod api_common;
mod gateway_support;

use anyhow::{Context as _, Result, ensure};
use api_common::{Stand, inside};
use filter_tests::{SdkKind, WebServer};
use gateway_support::{Answer, GATEWAY, answer, say_in};
use serde_json::{Value, json};

fn get(stand: &Stand, host: &str, path: &str, lines: &[&str]) -> Result<Answer> {
    let more: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n");
    answer(&say_in(stand.topology.host(), GATEWAY, request.as_bytes())?)
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no text"))
}

#[test]
fn a_host_that_works_and_a_sandbox_that_runs() -> Result<()> {
    let stand = Stand::new()?;
    for kind in SdkKind::ALL {
        let mut sdk = stand.sdk(kind)?;
        let network = json!({ "deny_out": ["0.0.0.0/0"], "allow_public_traffic": false });
        let made = sdk.must("create", json!({ "secure": true, "network": network }))?;
        let (id, host) = (text(&made["sandboxID"])?.to_owned(), text(&made["host"])?.to_owned());
        let token = format!("e2b-traffic-access-token: {}", text(&made["trafficAccessToken"])?);
        ensure!(host == format!("3000-{id}.sandbox.localhost"), "{kind:?}: {host}");

        ensure!(get(&stand, &host, "/", &[])?.status == 403, "{kind:?}");
        let closed = get(&stand, &host, "/", &[&token])?;
        ensure!(closed.status == 502 && closed.json()?["port"] == 3000, "{kind:?}: {closed:?}");
        let _web = WebServer::start(&inside(&id)?, 3000)?;
        ensure!(get(&stand, &host, "/", &[&token])?.status == 200, "{kind:?}");

        ensure!(sdk.must("running", json!({ "id": id }))? == json!(false), "{kind:?}: nobody listens yet");
        let controller = WebServer::start(&inside(&id)?, 49983)?;
        controller.set("/health", b"HTTP/1.1 204 No Content\r\n\r\n");
        ensure!(sdk.must("running", json!({ "id": id }))? == json!(true), "{kind:?}");
        let asked = controller.requests().pop().context("nobody asked")?;
        ensure!(asked.line == "GET /health HTTP/1.1", "{kind:?}: {asked:?}");
        ensure!(gateway_support::headers(&asked.head, "e2b-sandbox-id").is_empty(), "{kind:?}: {asked:?}");

        // Signed by the SDK, checked by the gateway.
        let url =
            sdk.must("download_url", json!({ "id": id, "path": "/home/user/a b.txt", "seconds": 60 }))?;
        let path =
            text(&url)?.split_once("/files").map(|(_, query)| format!("/files{query}")).context("no path")?;
        let at = format!("49983-{id}.sandbox.localhost");
        let found = get(&stand, &at, &path, &[])?;
        ensure!(found.status == 200, "{kind:?} {path}: {found:?}");
        let forged = get(&stand, &at, &path.replace("a%20b", "b").replace("a+b", "b"), &[])?;
        ensure!(
            forged.status == 401 && forged.json()?["message"] == "invalid signature",
            "{kind:?}: {forged:?}"
        );
        let bare = get(&stand, &at, "/files?path=/x", &[])?;
        ensure!(bare.json()?["message"] == "missing signature query parameter", "{kind:?}: {bare:?}");

        sdk.must("kill", json!({ "id": id }))?;
        ensure!(
            get(&stand, &host, "/", &[&token])?.json()?["message"] == "The sandbox was not found",
            "{kind:?}"
        );
    }
    Ok(())
}

#[test]
fn a_sandbox_that_is_not_secure_has_an_open_controller() -> Result<()> {
    let stand = Stand::new()?;
    let body = json!({ "templateID": "base", "timeout": 300, "secure": false });
    let made = stand.ask(api_common::KEY, "POST", "/sandboxes", Some(&body))?.success()?;
    let id = text(&made["sandboxID"])?.to_owned();
    let _controller = WebServer::start(&inside(&id)?, 49983)?;
    ensure!(get(&stand, &format!("49983-{id}.sandbox.localhost"), "/", &[])?.status == 200);
    stand.kill(&id)
}
