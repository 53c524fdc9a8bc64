//! Public URLs with the clients that people have, to the services that people run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod gateway_support;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Ca, Netns, Process, WebServer, node, python};
use gateway_support::{
    DOMAIN, GATEWAY, ID, PATIENCE, PORT, Stand, client, deny_all, eventually, host, host_of, output, secured,
};
use serde_json::{Value, json};

const TOKEN: &str = "e2b-traffic-access-token";
/// A browser on a busy machine.
const BROWSER: Duration = Duration::from_secs(120);

/// Files that are gone with the test.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("sandbox-filter-{}-{name}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<String> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program inside a sandbox, once it listens.
fn service(
    inside: &Netns,
    host: &Netns,
    at: IpAddr,
    port: u16,
    program: &Path,
    args: &[&str],
) -> Result<Process> {
    let mut command = inside.command(program)?;
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let process = Process::start(command)?;
    eventually("the service listens", || Ok(host.tcp_connect((at, port), PATIENCE).is_ok()))?;
    Ok(process)
}

impl Stand {
    fn service(&self, port: u16, program: &Path, args: &[&str]) -> Result<Process> {
        service(&self.sandbox, self.host(), self.sandbox.v4().into(), port, program, args)
    }

    fn curl(&self, args: &[&str]) -> Result<String> {
        let mut command = self.host().command("curl")?;
        command.args(["--silent", "--show-error", "--max-time", "60"]).args(args);
        output(command, Duration::from_secs(70))
    }
}

#[test]
fn pythons_own_web_server() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let files = Files::new("pages")?;
    files.write("index.html", "<h1>It works</h1>")?;
    let directory = files.0.to_string_lossy();
    let _server = stand.service(
        8000,
        Path::new("python3"),
        &["-m", "http.server", "8000", "--directory", &directory],
    )?;
    let url = format!("http://{}/", host_of(8000, ID));
    ensure!(stand.curl(&[&url])? == "<h1>It works</h1>");
    ensure!(stand.curl(&["--http2-prior-knowledge", &url])? == "<h1>It works</h1>");
    ensure!(stand.curl(&["-o", "/dev/null", "-w", "%{http_code}", &format!("{url}none")])? == "404");
    // As Python's users ask.
    let script = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode(), end='')";
    let host = host_of(8000, ID);
    let names = [host.trim_end_matches(":8080").to_owned()];
    let asked = output(client(stand.host(), &names, "python3", &["-c", script, &url])?, PATIENCE)?;
    ensure!(asked == "<h1>It works</h1>");
    let charged = stand.charged()?;
    ensure!(charged["peak"] == 0, "{charged}");
    Ok(())
}

#[test]
fn a_service_at_the_second_of_two_addresses() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let files = Files::new("second")?;
    files.write("index.html", "over IPv6")?;
    let (directory, at) = (files.0.to_string_lossy(), stand.sandbox.v6());
    let args = ["-m", "http.server", "8006", "--directory", &directory, "--bind", &at.to_string()];
    let _server = service(&stand.sandbox, stand.host(), at.into(), 8006, Path::new("python3"), &args)?;
    ensure!(stand.curl(&[&format!("http://{}/", host_of(8006, ID))])? == "over IPv6");
    Ok(())
}

#[test]
fn curl_in_both_versions_of_http() -> Result<()> {
    let stand = Stand::new(&secured())?;
    let files = Files::new("upload")?;
    let body: Vec<u8> = filter_tests::pattern(0, 20 << 20);
    let upload = files.write("upload", &body)?;
    let url = format!("http://{}", host());
    let token = format!("{TOKEN}: {}", stand.token);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let refused = stand.curl(&[version, "-w", " %{http_code}", &url])?;
        ensure!(refused.contains("is missing") && refused.ends_with(" 403"), "{version}: {refused}");
        let found = stand.curl(&[version, "-H", &token, &url])?;
        ensure!(found.starts_with("hello from"), "{version}: {found}");
        // Cookies that HTTP/2 sends apart are one header behind.
        stand.curl(&[version, "-H", &token, "-b", "a=1; b=2; e2b-traffic-access-token=x; c=3", &url])?;
        let seen = stand.web.requests().pop().unwrap();
        ensure!(
            gateway_support::headers(&seen.head, "cookie") == ["a=1; b=2; c=3"],
            "{version}: {}",
            seen.head
        );
        ensure!(seen.host == host() && seen.line == "GET / HTTP/1.1", "{version}: {}", seen.head);
        // curl waits to be told to go on before it sends so much.
        for expect in ["Expect: 100-continue", "Expect:"] {
            let path = files.0.join("echo");
            let to = path.to_string_lossy();
            stand.curl(&[
                version,
                "-H",
                &token,
                "-H",
                expect,
                "-X",
                "POST",
                "-T",
                &upload,
                "-o",
                &to,
                &format!("{url}/echo"),
            ])?;
            ensure!(fs::read(&path)? == body, "{version} {expect}");
        }
        for kind in ["down", "down-chunked", "down-close"] {
            let path = files.0.join("down");
            stand.curl(&[
                version,
                "-H",
                &token,
                "-o",
                &path.to_string_lossy(),
                &format!("{url}/{kind}/5000000"),
            ])?;
            ensure!(fs::read(&path)? == filter_tests::pattern(0, 5_000_000), "{version} {kind}");
        }
        let head = stand.curl(&[version, "-H", &token, "-I", &format!("{url}/down/5000000")])?;
        ensure!(head.to_lowercase().contains("content-length: 5000000"), "{version}: {head}");
    }
    Ok(())
}

#[test]
fn a_refusal_before_the_body_is_read_arrives() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let files = Files::new("early")?;
    let upload = files.write("upload", vec![b'u'; 20 << 20])?;
    let early = stand.curl(&["-T", &upload, "-w", " %{http_code}", &format!("http://{}/early", host())])?;
    ensure!(early == "early\n 413", "{early}");
    Ok(())
}

#[test]
fn a_large_body_waits_for_whoever_is_slow() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let before = resident(&stand)?;
    // A gigabyte is offered, and a client takes next to nothing of it.
    let found = stand.curl(&[
        "--limit-rate",
        "100k",
        "--max-time",
        "3",
        "-o",
        "/dev/null",
        &format!("http://{}/down/200000000", host()),
    ]);
    ensure!(found.is_err(), "it takes longer than that");
    let grown = resident(&stand)?.saturating_sub(before);
    ensure!(grown < 32 << 20, "the gateway holds {grown} bytes");
    Ok(())
}

fn resident(stand: &Stand) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", stand.daemon.id().context("no daemon")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

#[test]
fn nodes_fetch() -> Result<()> {
    let stand = Stand::new(&secured())?;
    let host = host();
    let names = [host.trim_end_matches(":8080").to_owned()];
    let url = format!("http://{host}");
    let script = include_str!("gateway_support/programs/fetch.mjs");
    let args = ["--input-type=module", "-e", script, "--", &url, &stand.token];
    let said: Value = serde_json::from_str(&output(
        client(stand.host(), &names, "node", &args)?,
        Duration::from_secs(60),
    )?)?;
    let length = (0..50).map(|number| format!("part {number};").len() * 1000).sum::<usize>();
    ensure!(
        said == json!({
            "without": 403, "page": [200, true], "echo": [200, length, true], "down": 3_000_000, "many": true
        }),
        "{said}"
    );
    Ok(())
}

#[test]
fn events_come_one_by_one() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let server = include_str!("gateway_support/programs/events_server.py");
    let _service = stand.service(8001, Path::new("python3"), &["-c", server, "8001"])?;
    let host = host_of(8001, ID);
    let names = [host.trim_end_matches(":8080").to_owned()];
    let asking = include_str!("gateway_support/programs/events_client.py");
    let said =
        output(client(stand.host(), &names, "python3", &["-c", asking, &host])?, Duration::from_secs(60))?;
    ensure!(said.trim() == "text/event-stream", "{said}");
    // What goes up in chunks arrives whole, and what has a length keeps it.
    let files = Files::new("chunks")?;
    let upload = files.write("upload", vec![b'u'; 8 << 20])?;
    for header in ["Transfer-Encoding: chunked", "X: y"] {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let found = stand.curl(&[version, "-H", header, "-T", &upload, &format!("http://{host}/up")])?;
            ensure!(found.starts_with("8388608 "), "{version} {header}: {found}");
        }
    }
    Ok(())
}

#[test]
fn a_websocket() -> Result<()> {
    let stand = Stand::new(&secured())?;
    let home = python("websockets-15.0.1", &["websockets==15.0.1"])?.join("bin/python");
    let server = include_str!("gateway_support/programs/ws_server.py");
    let _service = stand.service(9000, &home, &["-c", server, "9000"])?;
    let host = host_of(9000, ID);
    let names = [host.trim_end_matches(":8080").to_owned()];
    let asking = include_str!("gateway_support/programs/ws_client.py");
    let args = ["-c", asking, &format!("ws://{host}/"), &stand.token];
    let home = home.to_string_lossy();
    let said: Value =
        serde_json::from_str(&output(client(stand.host(), &names, &home, &args)?, Duration::from_secs(60))?)?;
    let expected =
        json!({ "without": 403, "subprotocol": "chat", "large": true, "closed": [4001, "as told"] });
    ensure!(said == expected, "{said}");
    Ok(())
}

#[test]
fn a_grpc_pair_in_clear_and_over_tls() -> Result<()> {
    let ca = Ca::new()?;
    let files = Files::new("grpc")?;
    let authority = files.write("ca.pem", ca.pem())?;
    let (cert, key) = ca.issue(&format!("*.{DOMAIN}"))?;
    let (cert, key) = (files.write("cert.pem", cert)?, files.write("key.pem", key)?);
    let home = python("grpcio-1.71.0", &["grpcio==1.71.0"])?.join("bin/python");
    let server = include_str!("gateway_support/programs/grpc_server.py");
    let asking = include_str!("gateway_support/programs/grpc_client.py");
    for (config, ca) in [
        (String::new(), ""),
        (format!("[ingress]\ntls = {{ cert = '{cert}', key = '{key}' }}\n"), authority.as_str()),
    ] {
        let stand = Stand::with(&config, &secured())?;
        let _service = stand.service(50051, &home, &["-c", server, "50051"])?;
        let mut command = stand.host().command(&home)?;
        command.args(["-c", asking, GATEWAY, &host_of(50051, ID), &stand.token, ca]);
        let said: Value = serde_json::from_str(&output(command, Duration::from_secs(90))?)?;
        let expected = json!({
            "unary": "cba", "trailer": "end", "large": true, "stream": ["ONE", "TWO", "THREE"], "count": 1000,
            "fail": ["FAILED_PRECONDITION", "not now"], "without": "PERMISSION_DENIED"
        });
        ensure!(said == expected, "{said}");
    }
    Ok(())
}

/// Where the browser's pictures are left for people to look at.
fn pictures() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pictures");
    fs::create_dir_all(&path)?;
    Ok(path.canonicalize()?)
}

fn browse(stand: &Stand, program: &str, args: &[&str]) -> Result<Value> {
    let home = node("puppeteer-core-24.8.2", &["puppeteer-core@24.8.2"])?;
    let mut command = stand.host().command("node")?;
    command.current_dir(&home).args(["--input-type=module", "-e", program, "--"]).args(args);
    let said = output(command, BROWSER).with_context(|| stand.daemon.log())?;
    serde_json::from_str(&said).context("the browser's report is no JSON")
}

#[test]
fn a_person_with_a_browser() -> Result<()> {
    let stand = Stand::new(&secured())?;
    let other = stand.topology.sandbox(2)?;
    stand.daemon.attach("other", &other, &deny_all())?;
    let _other = WebServer::start(&other, PORT)?;
    let files = Files::new("site")?;
    files.write(
        "index.html",
        "<!doctype html><meta charset=utf-8><title>App</title><h1>An app in a sandbox</h1>\
         <p><a href=second.html>second page</a></p><script>\
         fetch('data.txt').then(got => got.text()).then(text => {\
           const it = document.createElement('p'); it.id = 'loaded'; it.textContent = text; document.body.append(it) })\
         </script>",
    )?;
    files.write("data.txt", "loaded by script")?;
    files.write("second.html", "<!doctype html><title>App</title><h1>The second page</h1>")?;
    let directory = files.0.to_string_lossy();
    let _server = stand.service(
        8000,
        Path::new("python3"),
        &["-m", "http.server", "8000", "--directory", &directory],
    )?;
    let host = host_of(8000, ID);
    let (url, elsewhere) = (format!("http://{host}"), format!("http://{}", host_of(PORT, "other")));
    let pictures = pictures()?;
    let program = include_str!("gateway_support/programs/browser.mjs");
    let said = browse(&stand, program, &[&url, &stand.token, &elsewhere, &pictures.to_string_lossy()])?;
    let expected = json!({
        "refused": [403, "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"],
        "welcomed": [200, true, "loaded by script"],
        "cookies": [[TOKEN, host.trim_end_matches(":8080"), true, "Lax"]],
        "script": "",
        "clicked": "The second page",
        "tossed": true,
    });
    ensure!(said == expected, "{said}");
    Ok(())
}

#[test]
fn a_browser_over_tls_with_a_websocket_over_http2() -> Result<()> {
    let ca = Ca::new()?;
    let files = Files::new("browser-tls")?;
    let (cert, key) = ca.issue(&format!("*.{DOMAIN}"))?;
    let (cert, key) = (files.write("cert.pem", cert)?, files.write("key.pem", key)?);
    let stand =
        Stand::with(&format!("[ingress]\ntls = {{ cert = '{cert}', key = '{key}' }}\n"), &deny_all())?;
    let home = python("websockets-15.0.1", &["websockets==15.0.1"])?.join("bin/python");
    let server = include_str!("gateway_support/programs/ws_server.py");
    let page = files.write("page.html", "<!doctype html><title>Echo</title>")?;
    let _service = stand.service(9000, &home, &["-c", server, "9000", &page])?;
    let url = format!("https://{}/", host_of(9000, ID));
    let said = browse(&stand, include_str!("gateway_support/programs/browser_tls.mjs"), &[&url])?;
    ensure!(said == json!({ "status": 200, "protocol": "h2", "echo": "over and over" }), "{said}");
    Ok(())
}
