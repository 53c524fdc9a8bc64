//! HAProxy as a filter of names: `req.ssl_sni`, and a proxy for HTTP.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use filter_tests::Netns;

use super::book::{self, Book};
use super::capsule::Capsule;
use super::peer::{HTTP, Peer, TLS};
use crate::tool;

const MAP: &str = "/run/names.map";
const SOCKET: &str = "stats.sock";
/// Of one command on the socket: what its buffer surely holds.
const PIECE: usize = 12 << 10;
const PATIENCE: Duration = Duration::from_secs(30);
/// Pipes for splicing, two descriptors each: more than any row has.
const PIPES: u64 = 500;

/// A running HAProxy.
#[derive(Debug)]
pub struct Haproxy(Capsule);

impl Haproxy {
    /// Starts it in the network of `host`.
    pub fn start(host: &Netns, book: &Book, descriptors: u64) -> Result<Self> {
        let files = [("haproxy.cfg", &*config(descriptors)), ("names.map", &*map(book))];
        let haproxy = Self(Capsule::start(
            host,
            &files,
            &["/usr/sbin/haproxy", "-q", "-db", "-f", "/run/haproxy.cfg"],
        )?);
        haproxy.0.wait_for(host, TLS)?;
        haproxy.0.wait_for(host, HTTP)?;
        Ok(haproxy)
    }

    fn ask(&self, command: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.0.path(SOCKET)).context("HAProxy does not answer")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(command.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Peer for Haproxy {
    fn prepare(&self, _: &Book) -> Result<()> {
        Ok(())
    }

    /// A new version of the map beside the one in use, which then takes its place.
    fn replace(&self, book: &Book) -> Result<()> {
        let answer = self.ask(&format!("prepare map {MAP}\n"))?;
        let version = answer.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        ensure!(!version.is_empty(), "HAProxy does not prepare a map: {answer}");
        let mut piece = String::new();
        let send = |piece: &mut String| {
            let answer = self.ask(&format!("add map @{version} {MAP} <<\n{piece}\n"))?;
            piece.clear();
            ensure!(answer.trim().is_empty(), "HAProxy does not take names: {answer}");
            Ok(())
        };
        for line in map(book).lines() {
            if piece.len() + line.len() > PIECE {
                send(&mut piece)?;
            }
            piece.push_str(line);
            piece.push('\n');
        }
        send(&mut piece)?;
        let answer = self.ask(&format!("commit map @{version} {MAP}\n"))?;
        ensure!(answer.trim().is_empty(), "HAProxy does not put the names in force: {answer}");
        Ok(())
    }

    fn processes(&self) -> Result<Vec<u32>> {
        self.0.processes()
    }
}

/// The number, after "HAProxy version ".
pub fn version() -> Result<String> {
    let text = tool::output(Command::new("/usr/sbin/haproxy").arg("-v"))?.context("cannot run HAProxy")?;
    let word = text.split_whitespace().nth(2).unwrap_or_default();
    Ok(format!("HAProxy {}", word.split('-').next().unwrap_or_default()))
}

/// Whether it is there; installs it where it is missing.
pub fn ensure() -> Result<()> {
    tool::ensure(&[("haproxy", "haproxy")], "the comparison with HAProxy")
}

fn map(book: &Book) -> String {
    book.entries().map(|(name, server)| format!("{name} {}\n", book::server(server))).collect()
}

fn config(descriptors: u64) -> String {
    // Two sockets each, or it does not start; and what it needs besides.
    let connections = descriptors.saturating_sub(2 * PIPES + 300) / 2;
    format!(
        "global
    nbthread 2
    maxconn {connections}
    stats socket /run/{SOCKET} mode 600 level admin
    maxpipes {PIPES}
    tune.pipesize 262144
defaults
    timeout connect 10s
    timeout client 10m
    timeout server 10m
    timeout http-keep-alive 75s
    maxconn {connections}
    backlog 4096
frontend tls
    mode tcp
    option splice-auto
    bind :{TLS}
    tcp-request inspect-delay 5s
    tcp-request content set-var(txn.to) req.ssl_sni,lower,map_str_ip({MAP}) if {{ req.ssl_hello_type 1 }}
    tcp-request content set-dst var(txn.to) if {{ var(txn.to) -m found }}
    tcp-request content accept if {{ var(txn.to) -m found }}
    tcp-request content reject if WAIT_END or {{ req.ssl_hello_type 1 }}
    default_backend tls
backend tls
    mode tcp
    option splice-auto
    server any 0.0.0.0:443
frontend http
    mode http
    bind :{HTTP}
    http-request set-var(txn.to) req.hdr(host),field(1,:),lower,map_str_ip({MAP})
    http-request deny unless {{ var(txn.to) -m found }}
    http-request set-dst var(txn.to)
    default_backend http
backend http
    mode http
    http-reuse always
    server any 0.0.0.0:80
"
    )
}
