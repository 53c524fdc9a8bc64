//! mitmproxy as a transparent proxy that sets a header in requests to one host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use filter_tests::{Netns, Process, python};

use super::lane::{HEADER, HOST};
use super::peers::Peer;
use crate::bench::names::peer::TLS;

/// What is compared.
pub const VERSION: &str = "mitmproxy 11.0.2";
const PACKAGE: &str = "mitmproxy==11.0.2";
const PATIENCE: Duration = Duration::from_secs(30);

/// Where it is; installs it where it is missing.
pub fn ensure() -> Result<PathBuf> {
    Ok(python("mitmproxy", &[PACKAGE])?.join("bin/mitmdump"))
}

/// Starts it in the network of `host`; gives the authority that it makes for itself, too.
pub fn start(host: &Netns, directory: &Path, upstream_ca: &Path) -> Result<(Peer, String)> {
    let mut command = host.command(ensure()?)?;
    let option = |name: &str, value: &str| format!("{name}={value}");
    command.args(["--quiet", "--mode", "transparent", "--listen-port", &TLS.to_string()]);
    for option in [
        option("confdir", &directory.display().to_string()),
        option("ssl_verify_upstream_trusted_ca", &upstream_ca.display().to_string()),
        option("modify_headers", &format!("/~d {HOST}/{}/{}", HEADER.0, HEADER.1)),
        // It would keep whatever passes.
        option("flow_detail", "0"),
        option("stream_large_bodies", "64k"),
        option("http2", "false"),
    ] {
        command.args(["--set", &option]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut process = Process::start(command)?;
    let certificate = directory.join("mitmproxy-ca-cert.pem");
    let deadline = Instant::now() + PATIENCE;
    while !certificate.exists() || !host.tcp_connect(([127, 0, 0, 1], TLS), PATIENCE).is_ok() {
        if let Some(status) = process.ended()? {
            bail!("mitmproxy has ended: {status}; the lines above say why");
        }
        if Instant::now() > deadline {
            bail!("mitmproxy does not listen within {PATIENCE:?}");
        }
        sleep(Duration::from_millis(50));
    }
    let trusted = fs::read_to_string(&certificate).context("mitmproxy's certificate")?;
    Ok((Peer::Process { _process: process }, trusted))
}
