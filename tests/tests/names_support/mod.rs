//! What the tests of names share: a sandbox with names in its policy, servers behind them, and proof of a denial.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test says that something is wrong"
)]

pub mod dns;
pub mod hello;
#[path = "../support_b/mod.rs"]
pub mod timed;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use filter_tests::{
    Capture, Daemon, Ending, Heard, Netns, Sandbox, Server, Service, Talk, Topology, WebServer, Zone,
};
use nix::errno::Errno;
use serde_json::{Value, json};

use timed::Control;

/// How long anything may take that should happen at once, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a refusal may take.
pub const AT_ONCE: Duration = Duration::from_millis(500);
/// The sandbox's name in the daemon.
pub const ID: &str = "s1";

/// Where `allowed.test` leads, in both families.
pub const GOOD: [&str; 2] = ["198.51.100.10", "2001:db8:198::10"];
/// Where `b.wild.test` leads.
pub const WILD: [&str; 2] = ["198.51.100.11", "2001:db8:198::11"];
/// What a sandbox that wants out has of its own.
pub const EVIL: [&str; 2] = ["198.51.100.66", "2001:db8:198::66"];
/// Allowed as an address.
pub const CIDR: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];

/// Timeouts that a test can wait for.
pub const SHORT: &str = "[inspector]\npeek_timeout = \"700ms\"\ndial_timeout = \"1500ms\"\n\
                         [timeouts]\ntcp_half_open = \"1s\"\ntcp_closing = \"1s\"\nudp = \"1s\"\nicmp = \"1s\"\n";

/// The policy that the catalogue of hostile inputs is about.
pub fn usual_policy() -> Value {
    json!({
        "allowOut": ["allowed.test", "*.wild.test", "203.0.113.0/24", "2001:db8:113::/48"],
        "denyOut": ["0.0.0.0/0"],
    })
}

/// Only these names.
pub fn names(names: &[&str]) -> Value {
    json!({"allowOut": names, "denyOut": ["0.0.0.0/0"]})
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

pub fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(text), port)
}

/// Alert descriptions (RFC 8446 section 6.2).
pub const ACCESS_DENIED: u8 = 49;
pub const INTERNAL_ERROR: u8 = 80;
pub const UNRECOGNIZED_NAME: u8 = 112;

/// A sandbox, attached as [`ID`], whose policy has names; DNS, a web server on 80 and an echo on 443.
pub struct Ground {
    // Dropped first: it cleans up after itself with the others still there.
    pub daemon: Daemon,
    pub control: Control,
    pub sandbox: Sandbox,
    pub zone: Zone,
    pub web: WebServer,
    /// Sends back what reaches port 443, so that a client sees which bytes did.
    pub echo: Option<Server>,
    pub arrived: Capture,
    pub topology: Topology,
}

/// What a client is told of a denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A TLS alert, and the end.
    Alert(u8),
    /// An HTTP response of the filter's own, and the end.
    Status(u16),
    /// The end, without a word.
    Closed,
    /// A reset.
    Reset,
    /// No connection at all.
    Refused,
}

/// Something that must be denied.
#[derive(Clone, Debug)]
pub struct Row {
    pub what: String,
    pub to: SocketAddr,
    pub talk: Talk,
    pub reason: &'static str,
    pub rule: Option<&'static str>,
    /// What the event must name.
    pub name: Option<String>,
    pub answer: Answer,
    /// What a response of the server's before the denial ends with.
    pub after: Option<Vec<u8>>,
}

/// The state before an attempt.
pub struct Before {
    pub show: Value,
    events: usize,
    pub tls: u64,
    pub web: usize,
    frames: u64,
}

/// Serialises what measures time or fills the machine, within a test binary.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: OnceLock<Mutex<()>> = OnceLock::new();
    ALONE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// A zone with the usual names.
pub fn usual_zone(topology: &Topology) -> Result<Zone> {
    Zone::serve(
        topology.internet(),
        &[
            ("allowed.test", &GOOD),
            ("b.wild.test", &WILD),
            ("a.b.wild.test", &WILD),
            ("wild.test", &EVIL),
            ("evilwild.test", &EVIL),
            ("denied.test", &EVIL),
            ("allowed.test.evil.test", &EVIL),
        ],
    )
}

impl Ground {
    pub fn usual() -> Result<Self> {
        Self::with(SHORT, &usual_policy())
    }

    pub fn with(config: &str, policy: &Value) -> Result<Self> {
        let topology = Topology::new()?;
        let sandbox = topology.sandbox(1)?;
        let ground = Self::around(config, topology, sandbox)?;
        ground.daemon.attach(ID, &ground.sandbox, policy)?;
        Ok(ground)
    }

    /// Around a sandbox that is not attached yet.
    pub fn around(config: &str, topology: Topology, sandbox: Sandbox) -> Result<Self> {
        let zone = usual_zone(&topology)?;
        let web = WebServer::start(topology.internet(), 80)?;
        let echo = Some(topology.serve(Service::TcpEcho, 443)?);
        let daemon = Daemon::on(&topology).config(config).start()?;
        let arrived = topology.capture()?;
        Ok(Self { control: Control::of(&daemon), daemon, sandbox, zone, web, echo, arrived, topology })
    }

    pub fn update(&self, policy: &Value) -> Result<()> {
        self.control.update(ID, policy).map(drop)
    }

    pub fn show(&self) -> Result<Value> {
        self.control.show(ID)
    }

    /// Connections at the echo on 443.
    pub fn tls_connections(&self) -> u64 {
        self.echo.as_ref().map_or(0, Server::connections)
    }

    /// TCP that arrived in the internet and is no question to a DNS server.
    pub fn frames(&self) -> Result<u64> {
        Ok(self.arrived.count(|flow| flow.protocol == 6 && flow.port != 53)?.frames)
    }

    pub fn before(&self) -> Result<Before> {
        self.settle()?;
        Ok(Before {
            show: self.show()?,
            events: self.daemon.events()?.len(),
            tls: self.tls_connections(),
            web: self.web.connections(),
            frames: self.frames()?,
        })
    }

    /// Waits for what is still to come of exchanges before: an acknowledgement may be put off for 40 ms.
    fn settle(&self) -> Result<()> {
        const PUT_OFF: Duration = Duration::from_millis(60);
        let mut seen = self.frames()?;
        for _ in 0..5 {
            if seen == 0 {
                break;
            }
            sleep(PUT_OFF);
            let now = self.frames()?;
            if now == seen {
                break;
            }
            seen = now;
        }
        Ok(())
    }

    /// The events since.
    pub fn events(&self, before: &Before) -> Result<Vec<Value>> {
        Ok(self.daemon.events()?.split_off(before.events))
    }

    /// Nothing has reached the internet since, of TCP.
    pub fn ensure_nothing_arrived(&self, before: &Before) -> Result<()> {
        let (tls, web, frames) = (self.tls_connections(), self.web.connections(), self.frames()?);
        ensure!(
            (tls, web, frames) == (before.tls, before.web, before.frames),
            "{} connections arrived at 443, {} at 80, {} frames in all: {:?}",
            tls - before.tls,
            web - before.web,
            frames - before.frames,
            self.arrived.flows()?
        );
        Ok(())
    }

    /// But for so many connections to port 443, nothing has reached the internet since.
    pub fn ensure_nothing_arrived_but(&self, before: &Before, connections: u64) -> Result<()> {
        let (tls, web) = (self.tls_connections() - before.tls, self.web.connections() - before.web);
        ensure!((tls, web) == (connections, 0), "{tls} connections arrived at 443, {web} at 80");
        Ok(())
    }

    /// Each row by itself is denied for its reason and no other, told, and does not arrive.
    pub fn denied(&self, rows: &[Row]) -> Result<()> {
        self.denied_before_arrival(rows, true)
    }

    /// The same, of connections that had something allowed before it.
    pub fn denied_later(&self, rows: &[Row]) -> Result<()> {
        self.denied_before_arrival(rows, false)
    }

    fn denied_before_arrival(&self, rows: &[Row], nothing_arrives: bool) -> Result<()> {
        let all = self.before()?;
        let mut told = Vec::new();
        for row in rows {
            let before = self.before()?;
            let heard = self.sandbox.talk(row.to, &row.talk)?;
            row.check(&heard).with_context(|| row.what.clone())?;
            self.ensure_moved(&before, &[(row.reason, 1)]).with_context(|| row.what.clone())?;
            if nothing_arrives {
                self.ensure_nothing_arrived(&before).with_context(|| row.what.clone())?;
            }
            told.push((row, heard));
        }
        for (row, heard) in told {
            self.ensure_told(&all, row, &heard)?;
        }
        self.control.settles(ID, 0, PATIENCE)
    }

    /// All rows at the same time, for those that take their time.
    pub fn denied_together(&self, rows: &[Row]) -> Result<()> {
        let before = self.before()?;
        let heard = thread::scope(|scope| {
            let talks: Vec<_> =
                rows.iter().map(|row| scope.spawn(|| self.sandbox.talk(row.to, &row.talk))).collect();
            talks.into_iter().map(|talk| talk.join().unwrap()).collect::<Result<Vec<_>>>()
        })?;
        let mut expected: Vec<(&str, u64)> = Vec::new();
        for (row, heard) in rows.iter().zip(&heard) {
            row.check(heard).with_context(|| row.what.clone())?;
            match expected.iter_mut().find(|(reason, _)| *reason == row.reason) {
                Some((_, count)) => *count += 1,
                None => expected.push((row.reason, 1)),
            }
        }
        self.ensure_moved(&before, &expected)?;
        self.ensure_nothing_arrived(&before)?;
        for (row, heard) in rows.iter().zip(&heard) {
            self.ensure_told(&before, row, heard)?;
        }
        self.control.settles(ID, 0, PATIENCE)
    }

    /// Of all denials only these have been counted since, and so often.
    pub fn ensure_moved(&self, before: &Before, expected: &[(&str, u64)]) -> Result<()> {
        let mut expected: Vec<_> =
            expected.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        expected.sort();
        let moved = self.moved(before)?;
        ensure!(moved == expected, "counted were {moved:?}, not {expected:?}");
        Ok(())
    }

    /// The denials that have been counted since.
    pub fn moved(&self, before: &Before) -> Result<Vec<(String, u64)>> {
        moved(&before.show, &self.show()?)
    }

    fn ensure_told(&self, before: &Before, row: &Row, heard: &Heard) -> Result<()> {
        self.wait_event(before, |event| row.is_told(event, heard, &before.show["generation"]))
            .with_context(|| format!("{}: not told as {row:?}", row.what))
            .map(drop)
    }

    /// The first event since that `wanted` picks.
    pub fn wait_event(&self, before: &Before, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let events = self.events(before)?;
            if let Some(event) = events.iter().find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            if Instant::now() >= deadline {
                let last: Vec<_> = events.iter().rev().take(6).rev().map(Value::to_string).collect();
                bail!("no such event; the last of {}:\n{}", events.len(), last.join("\n"));
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// The connection reached `address`, with these bytes, which came back; and was told.
    pub fn reaches(&self, to: SocketAddr, hello: &[u8], name: &str, address: &str) -> Result<()> {
        let before = self.before()?;
        let tail = b"and more";
        let talk = Talk::new().say(hello).until(hello).say(tail).until(tail).end();
        self.reaches_by(&before, to, &talk, &[hello, tail].concat(), name, address)
    }

    /// The same, by any conversation that gets back all that it says.
    pub fn reaches_by(
        &self,
        before: &Before,
        to: SocketAddr,
        talk: &Talk,
        said: &[u8],
        name: &str,
        address: &str,
    ) -> Result<()> {
        let heard = self.sandbox.talk(to, talk)?;
        ensure!(
            heard.bytes == said && heard.ending == Ending::End,
            "not all of {} bytes came back: {}",
            said.len(),
            heard.summary()
        );
        let accepted = self.echo.as_ref().context("no echo")?.accepted();
        let last = accepted.last().context("nothing was accepted")?;
        ensure!(last.local == at(address, to.port()), "it arrived at {}, not {address}", last.local);
        ensure!(self.tls_connections() == before.tls + 1, "{} arrived", self.tls_connections() - before.tls);
        for (event, bytes) in [("open", 0), ("close", said.len())] {
            let told = self.wait_event(before, |told| {
                told["event"] == event && told["sport"] == heard.from.port() && told["dport"] == to.port()
            })?;
            ensure!(
                told["reason"] == "allowed_name"
                    && told["decision"] == "allow"
                    && told["serverName"] == name
                    && told["resolvedIp"] == address
                    && told["dst"] == to.ip().to_string()
                    && told["src"] == self.sandbox.address_like(to.ip()).to_string()
                    && (told["bytesOut"] == bytes && told["bytesIn"] == bytes),
                "{event} is told as {told}"
            );
        }
        self.ensure_moved(before, &[])
    }
}

/// The denials that have been counted between two looks.
pub fn moved(before: &Value, after: &Value) -> Result<Vec<(String, u64)>> {
    const ALLOWED: [&str; 6] = ["allowed_cidr", "allowed_name", "dns", "default", "reply", "neighbour"];
    let counters = after["counters"].as_object().context("no counters")?;
    let mut moved = Vec::new();
    for (reason, counter) in counters {
        let (now, then) = (&counter["packets"], &before["counters"][reason]["packets"]);
        let more = now.as_u64().unwrap_or(0) - then.as_u64().unwrap_or(0);
        // Reports of multicast listeners, which the sandbox's kernel sends when it likes, count as `protocol`;
        // so does an acknowledgement of a connection that is over.
        if more > 0 && !ALLOWED.contains(&reason.as_str()) && reason != "protocol" {
            moved.push((reason.clone(), more));
        }
    }
    moved.sort();
    Ok(moved)
}

pub fn counted(show: &Value, reason: &str) -> u64 {
    show.pointer(&format!("/counters/{reason}/packets")).and_then(Value::as_u64).unwrap_or(0)
}

impl Row {
    /// A hello that is denied.
    pub fn tls(what: &str, to: SocketAddr, hello: impl AsRef<[u8]>, reason: &'static str) -> Self {
        let alert = match reason {
            "name_not_allowed" | "no_name" | "bad_name" => UNRECOGNIZED_NAME,
            "unresolved" => INTERNAL_ERROR,
            _ => ACCESS_DENIED,
        };
        let rule = match reason {
            "name_not_allowed" | "no_name" | "bad_name" => Some("/denyOut/0"),
            _ => None,
        };
        Self {
            what: what.to_owned(),
            to,
            talk: Talk::new().say(hello),
            reason,
            rule,
            name: None,
            answer: Answer::Alert(alert),
            after: None,
        }
    }

    /// A request that is denied.
    pub fn http(
        what: &str,
        to: SocketAddr,
        request: impl AsRef<[u8]>,
        reason: &'static str,
        status: u16,
    ) -> Self {
        Self {
            talk: Talk::new().say(request),
            answer: Answer::Status(status),
            ..Self::tls(what, to, b"", reason)
        }
    }

    pub fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    pub fn by(self, rule: Option<&'static str>) -> Self {
        Self { rule, ..self }
    }

    pub fn saying(self, talk: Talk) -> Self {
        Self { talk, ..self }
    }

    pub fn answered(self, answer: Answer) -> Self {
        Self { answer, ..self }
    }

    /// The client heard the refusal, and nothing else.
    fn check(&self, heard: &Heard) -> Result<()> {
        let seen = || heard.summary();
        match self.answer {
            Answer::Alert(description) => {
                ensure!(heard.alert() == Some((2, description)) && heard.ending == Ending::End, "{}", seen());
            }
            Answer::Status(status) => {
                let start = match &self.after {
                    Some(end) => {
                        let at = heard.bytes.windows(end.len()).rposition(|window| window == end);
                        at.with_context(seen)? + end.len()
                    }
                    None => 0,
                };
                let own = Heard { bytes: heard.bytes[start..].to_vec(), ..heard.clone() };
                let answer = own.http().with_context(seen)?;
                ensure!(answer.status == status && heard.ending == Ending::End, "{}", seen());
                if !answer.body.is_empty() {
                    let body: Value = serde_json::from_str(&answer.body).with_context(seen)?;
                    ensure!(
                        body["reason"] == self.reason
                            && body["rule"].as_str() == self.rule
                            && body["host"].as_str() == self.name.as_deref()
                            && body["hint"].as_str().is_some_and(|hint| !hint.is_empty())
                            && body["error"].is_string(),
                        "the body is {body}"
                    );
                }
                for wanted in
                    ["Content-Type: application/json", "Connection: close", "Cache-Control: no-store"]
                {
                    ensure!(answer.head.contains(wanted), "no {wanted}: {}", seen());
                }
            }
            Answer::Closed => ensure!(heard.bytes.is_empty() && heard.ending == Ending::End, "{}", seen()),
            Answer::Reset => ensure!(heard.bytes.is_empty() && heard.ending == Ending::Reset, "{}", seen()),
            Answer::Refused => {
                let refused = Ending::Unreached(Some(Errno::ECONNREFUSED));
                ensure!(heard.ending == refused && heard.took < AT_ONCE, "{}", seen());
            }
        }
        Ok(())
    }

    fn is_told(&self, event: &Value, heard: &Heard, generation: &Value) -> bool {
        event["event"] == "deny"
            && event["decision"] == "deny"
            && event["sandbox"] == ID
            && event["reason"] == self.reason
            && event["rule"].as_str() == self.rule
            && event["serverName"].as_str() == self.name.as_deref()
            && event["sport"] == heard.from.port()
            && event["dport"] == self.to.port()
            && event["dst"] == self.to.ip().to_string()
            && event["proto"] == "tcp"
            && event["generation"] == *generation
    }
}

/// Runs `curl` inside a namespace, and gives its exit code, what it printed and what it complained of.
pub fn curl(netns: &Netns, args: &[&str]) -> Result<(i32, String, String)> {
    let mut command = netns.command("curl")?;
    command.args(["-sS", "--max-time", "8", "--noproxy", "*"]).args(args);
    let output = command.output().context("this test needs `curl`: apt-get install curl")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}
