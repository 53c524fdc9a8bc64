//! Public URLs over TLS: one certificate for all sandboxes, and each connection for one of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod gateway_support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use filter_tests::{Ca, WebServer};
use gateway_support::{DOMAIN, ID, PORT, Stand, deny_all, eventually, headers, host, host_of, output};

/// A gateway over TLS, two sandboxes behind it, and what clients trust.
struct Secured {
    stand: Stand,
    other: WebServer,
    _other: filter_tests::Sandbox,
    directory: PathBuf,
}

impl Secured {
    fn new(name: &str, ca: &Ca) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("sandbox-filter-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let secured = |file: &str| directory.join(file).to_string_lossy().into_owned();
        issue(ca, &directory)?;
        fs::write(directory.join("ca.pem"), ca.pem())?;
        let config = format!(
            "[ingress]\ntls = {{ cert = '{}', key = '{}' }}\nhead_timeout = '2s'\n",
            secured("cert.pem"),
            secured("key.pem")
        );
        let stand = Stand::with(&config, &deny_all())?;
        let sandbox = stand.topology.sandbox(2)?;
        stand.daemon.attach("other", &sandbox, &deny_all())?;
        let other = WebServer::start(&sandbox, PORT)?;
        Ok(Self { stand, other, _other: sandbox, directory })
    }

    /// Asks at `url`, and for `host` if that is another; what came, and the status.
    fn ask(&self, version: &str, url: &str, host: Option<&str>) -> Result<(String, u16)> {
        let ca = self.directory.join("ca.pem");
        let mut command = self.stand.host().command("curl")?;
        command.args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "-w",
            " %{http_code}",
            version,
            "--cacert",
        ]);
        command.arg(ca).arg(url);
        command.args(host.iter().flat_map(|host| ["-H".to_owned(), format!("Host: {host}")]));
        // They count where the host names nobody.
        command.args(["-H", "E2b-Sandbox-Id: other", "-H", &format!("E2b-Sandbox-Port: {PORT}")]);
        let said = output(command, Duration::from_secs(30))?;
        let (text, status) = said.rsplit_once(' ').unwrap();
        Ok((text.to_owned(), status.parse()?))
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn issue(ca: &Ca, directory: &std::path::Path) -> Result<()> {
    let (cert, key) = ca.issue(&format!("*.{DOMAIN}"))?;
    fs::write(directory.join("cert.pem"), cert)?;
    fs::write(directory.join("key.pem"), key)?;
    Ok(())
}

#[test]
fn a_connection_is_for_the_sandbox_that_it_was_opened_for() -> Result<()> {
    let secured = Secured::new("misdirected", &Ca::new()?)?;
    let url = format!("https://{}/", host());
    for version in ["--http1.1", "--http2"] {
        let (text, status) = secured.ask(version, &url, None)?;
        ensure!(status == 200 && text.starts_with("hello"), "{version}: {status} {text}");
        let seen = secured.stand.web.requests().pop().unwrap();
        ensure!(headers(&seen.head, "x-forwarded-proto") == ["https"], "{}", seen.head);
        // Another port of the sandbox is the sandbox's.
        ensure!(secured.ask(version, &url, Some(&host_of(3001, ID)))?.1 == 502);
        for host in [
            host_of(PORT, "other"),
            format!("sandbox.{DOMAIN}"),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
        ] {
            let (text, status) = secured.ask(version, &url, Some(&host))?;
            ensure!(status == 421, "{version} {host}: {status} {text}");
        }
        let (_, status) = secured.ask(version, &url, Some("1-x.example.com"))?;
        ensure!(status == 400);
    }
    ensure!(secured.other.connections() == 0);
    Ok(())
}

#[test]
fn a_new_certificate_is_taken_into_use_while_requests_go_on() -> Result<()> {
    let secured = Secured::new("reload", &Ca::new()?)?;
    let url = format!("https://{}/", host());
    ensure!(secured.ask("--http2", &url, None)?.1 == 200);
    // Of an authority that clients do not know yet; then a file that is none; then one that they do.
    let next = Ca::new()?;
    issue(&next, &secured.directory)?;
    eventually("the new certificate is in use", || Ok(secured.ask("--http2", &url, None).is_err()))?;
    fs::write(secured.directory.join("ca.pem"), next.pem())?;
    ensure!(secured.ask("--http2", &url, None)?.1 == 200);
    fs::write(secured.directory.join("cert.pem"), "nonsense")?;
    eventually("the daemon says so", || Ok(secured.stand.daemon.log().contains("the old one stays in use")))?;
    ensure!(secured.ask("--http1.1", &url, None)?.1 == 200);
    Ok(())
}

#[test]
fn with_a_certificate_nothing_is_in_clear() -> Result<()> {
    let secured = Secured::new("clear", &Ca::new()?)?;
    let said = secured.stand.say(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host()).as_bytes())?;
    ensure!(!String::from_utf8_lossy(&said).contains("HTTP"), "{said:?}");
    ensure!(secured.stand.web.connections() == 0);
    // Whoever does not finish a handshake is not waited for.
    let begun = std::time::Instant::now();
    secured.stand.say(b"\x16\x03\x01")?;
    ensure!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    Ok(())
}
