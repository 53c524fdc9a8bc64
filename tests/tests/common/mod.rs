//! What the tests of the packet filter share: a sandbox behind a daemon, and proof of a denial.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test says that something is wrong"
)]

pub mod wire;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Attempt, Daemon, Netns, Recording, Sandbox, Server, Service, Topology};
use nix::errno::Errno;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use wire::{MARKER, Seen};

/// How long something may take that should happen at once, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long a refusal may take: less than until a second attempt, on a machine that is busy.
pub const AT_ONCE: Duration = Duration::from_millis(500);
/// The sandbox's name in the daemon.
pub const ID: &str = "s1";

/// Allowed by [`usual_policy`], and not.
pub const ALLOWED: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
pub const DENIED: [&str; 2] = ["198.51.100.7", "2001:db8:198::7"];

pub fn usual_policy() -> Value {
    json!({"allowOut": ["203.0.113.0/24", "2001:db8:113::/48"], "denyOut": ["0.0.0.0/0"]})
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

/// A topology with one sandbox, attached as [`ID`].
pub struct Ground {
    // Dropped first: it cleans up after itself with the others still there.
    pub daemon: Daemon,
    pub sandbox: Sandbox,
    /// What the internet gets.
    pub arrived: Recording,
    /// What the sandbox gets.
    pub answers: Recording,
    pub topology: Topology,
    next_port: AtomicU16,
}

/// What an event about a denial must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub reason: &'static str,
    pub rule: Option<&'static str>,
    pub proto: String,
    pub src: Option<IpAddr>,
    pub sport: Option<u16>,
    pub dst: Option<IpAddr>,
    pub dport: Option<u16>,
}

impl Told {
    /// Of a packet that nothing is said about but that it was refused.
    pub fn nothing(reason: &'static str) -> Self {
        let proto = "unknown".to_owned();
        Self { reason, rule: None, proto, src: None, sport: None, dst: None, dport: None }
    }

    /// Of a packet without ports.
    pub fn packet(
        reason: &'static str,
        rule: Option<&'static str>,
        proto: impl ToString,
        src: IpAddr,
        dst: IpAddr,
    ) -> Self {
        let proto = proto.to_string();
        Self { reason, rule, proto, src: Some(src), sport: None, dst: Some(dst), dport: None }
    }

    /// Of a packet with ports.
    pub fn flow(
        reason: &'static str,
        rule: Option<&'static str>,
        proto: &str,
        src: SocketAddr,
        dst: SocketAddr,
    ) -> Self {
        Self {
            sport: Some(src.port()),
            dport: Some(dst.port()),
            ..Self::packet(reason, rule, proto, src.ip(), dst.ip())
        }
    }

    pub fn is(&self, event: &Value) -> bool {
        let address = |field: &str| event[field].as_str().and_then(|text| text.parse::<IpAddr>().ok());
        let port = |field: &str| event[field].as_u64().and_then(|port| u16::try_from(port).ok());
        event["event"] == "deny"
            && event["decision"] == "deny"
            && event["reason"] == self.reason
            && event["rule"].as_str() == self.rule
            && event["proto"] == self.proto.as_str()
            && (address("src"), address("dst")) == (self.src, self.dst)
            && (port("sport"), port("dport")) == (self.sport, self.dport)
    }
}

/// What the sandbox must be told of a frame that is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Reset,
    Prohibited,
    Nothing,
    /// Either is fine: it was made by hand, and the kernel that it comes from has an opinion about it.
    Whatever,
}

/// A frame that must be denied.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: &'static str,
    pub frame: Vec<u8>,
    pub told: Told,
    pub answer: Answer,
}

/// The state before an attempt.
pub struct Before {
    show: Value,
    events: usize,
    arrived: usize,
    answers: usize,
}

impl Ground {
    pub fn new(policy: &Value) -> Result<Self> {
        Self::with_config(policy, "")
    }

    pub fn usual() -> Result<Self> {
        Self::new(&usual_policy())
    }

    pub fn with_config(policy: &Value, config: &str) -> Result<Self> {
        let topology = Topology::new()?;
        let daemon = Daemon::on(&topology).config(config).start()?;
        let sandbox = topology.sandbox(1)?;
        daemon.attach(ID, &sandbox, policy)?;
        Self::around(topology, daemon, sandbox)
    }

    /// Around a sandbox that is attached already.
    pub fn around(topology: Topology, daemon: Daemon, sandbox: Sandbox) -> Result<Self> {
        let arrived = Recording::start(topology.internet(), "eth0")?;
        let answers = Recording::start(&sandbox, Sandbox::INTERFACE)?;
        Ok(Self { daemon, sandbox, arrived, answers, topology, next_port: AtomicU16::new(20_000) })
    }

    /// TCP and UDP echo on port 7 of everything that the internet owns.
    pub fn echo(&self) -> Result<[Server; 2]> {
        Ok([self.topology.serve(Service::TcpEcho, 7)?, self.topology.serve(Service::UdpEcho, 7)?])
    }

    /// A port that nothing here has used.
    pub fn port(&self) -> u16 {
        self.next_port.fetch_add(1, Ordering::Relaxed)
    }

    /// Where the sandbox's packets to `to` come from.
    pub fn from(&self, to: IpAddr) -> SocketAddr {
        SocketAddr::new(self.sandbox.address_like(to), self.port())
    }

    /// A frame of the sandbox to its gateway.
    pub fn frame(&self, (ethertype, packet): (u16, Vec<u8>)) -> Vec<u8> {
        wire::ethernet(self.sandbox.gateway_mac(), self.sandbox.mac(), ethertype, &packet)
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.sandbox.frames()?.send(frame)
    }

    /// TCP, UDP and ping all get through and back.
    pub fn reaches(&self, to: &str) -> Result<()> {
        let to = ip(to);
        let answer = self.sandbox.tcp_exchange((to, 7), b"hello", PATIENCE).result;
        ensure!(answer.with_context(|| format!("TCP to {to}"))? == b"hello");
        let answer = self.sandbox.udp_exchange((to, 7), b"hello", PATIENCE).result;
        ensure!(answer.with_context(|| format!("UDP to {to}"))? == b"hello");
        self.sandbox.ping(to, PATIENCE).result.with_context(|| format!("ping to {to}"))
    }

    /// TCP, UDP and ping are all refused at once, counted, told, and do not arrive.
    pub fn is_denied(&self, to: &str, reason: &'static str, rule: Option<&'static str>) -> Result<()> {
        self.tcp_is_denied(to, reason, rule)?;
        self.udp_is_denied(to, reason, rule)?;
        self.ping_is_denied(to, reason, rule)
    }

    pub fn tcp_is_denied(&self, to: &str, reason: &'static str, rule: Option<&'static str>) -> Result<()> {
        let to = SocketAddr::new(ip(to), 7);
        let (before, from) = (self.before()?, self.from(to.ip()));
        let attempt = connect(&self.sandbox, from, to);
        ensure_refused(&attempt, Errno::ECONNREFUSED).with_context(|| format!("TCP to {to}"))?;
        self.ensure_denied(&before, &[Told::flow(reason, rule, "tcp", from, to)])
    }

    pub fn udp_is_denied(&self, to: &str, reason: &'static str, rule: Option<&'static str>) -> Result<()> {
        let to = SocketAddr::new(ip(to), 7);
        let (before, from) = (self.before()?, self.from(to.ip()));
        let attempt = ask(&self.sandbox, from, to);
        ensure_refused(&attempt, prohibited(to.ip())).with_context(|| format!("UDP to {to}"))?;
        self.ensure_denied(&before, &[Told::flow(reason, rule, "udp", from, to)])
    }

    pub fn ping_is_denied(&self, to: &str, reason: &'static str, rule: Option<&'static str>) -> Result<()> {
        let to = ip(to);
        let before = self.before()?;
        let attempt = self.sandbox.ping(to, PATIENCE);
        ensure_refused(&attempt, prohibited(to)).with_context(|| format!("ping to {to}"))?;
        let proto = if to.is_ipv4() { "icmp" } else { "icmpv6" };
        self.ensure_denied(&before, &[Told::packet(reason, rule, proto, self.sandbox.address_like(to), to)])
    }

    /// Each frame is denied for its reason and no other, answered as it should be, told, and does not arrive.
    pub fn frames_are_denied(&self, rows: &[Row]) -> Result<()> {
        let all = self.before()?;
        let sender = self.sandbox.frames()?;
        for row in rows {
            let before = self.before()?;
            sender.send(&row.frame)?;
            let sent = Instant::now();
            if matches!(row.answer, Answer::Reset | Answer::Prohibited) {
                eventually(|| Ok(self.answers_since(&before)?.iter().any(|seen| answers(seen, row))))
                    .with_context(|| format!("{}: no {:?}", row.name, row.answer))?;
                ensure!(sent.elapsed() < AT_ONCE, "{}: answered after {:?}", row.name, sent.elapsed());
            }
            let reason = row.told.reason;
            eventually(|| Ok(self.daemon.packets(ID, reason)? > counted(&before.show, reason)))
                .with_context(|| format!("{}: {reason} is not counted; {}", row.name, self.moved(&before)))?;
            let moved = self.moved(&before);
            let expected = if reason == "protocol" { String::new() } else { format!("{reason} +1") };
            ensure!(moved == expected, "{}: {moved}", row.name);
            // An answer would be there before the counter's reader is.
            let unexpected =
                |seen: &&Seen| seen.is_reset() || seen.icmp().is_some_and(|icmp| is_error(seen, icmp));
            let expected = usize::from(row.answer != Answer::Nothing);
            let got = self.answers_since(&before)?.iter().filter(unexpected).count();
            ensure!(
                got == expected || row.answer == Answer::Whatever,
                "{}: {got} answers, not {expected}",
                row.name
            );
        }
        let told: Vec<_> = rows.iter().map(|row| row.told.clone()).collect();
        self.ensure_denied(&all, &told)
    }

    pub fn before(&self) -> Result<Before> {
        Ok(Before {
            show: self.daemon.show(ID)?,
            events: self.daemon.events()?.len(),
            arrived: self.arrived.count()?,
            answers: self.answers.count()?,
        })
    }

    /// Since `before`: every denial has been counted and told, under the generation in force and as often as it
    /// happened, and nothing of it has arrived in the internet.
    pub fn ensure_denied(&self, before: &Before, told: &[Told]) -> Result<()> {
        let show = self.daemon.show(ID)?;
        for one in told {
            let alike = told.iter().filter(|other| *other == one).count() as u64;
            let of_reason = told.iter().filter(|other| other.reason == one.reason).count() as u64;
            let more = counted(&show, one.reason).saturating_sub(counted(&before.show, one.reason));
            ensure!(more >= of_reason, "{} was counted {more} times, not {of_reason}", one.reason);
            // Those of the same flow are folded for a second.
            eventually(|| Ok(self.times_told(before, one)? >= alike)).with_context(|| {
                let last: Vec<_> = self
                    .daemon
                    .events()
                    .unwrap_or_default()
                    .iter()
                    .rev()
                    .take(4)
                    .map(Value::to_string)
                    .collect();
                format!("not told {alike} times: {one:?}; the last events:\n{}", last.join("\n"))
            })?;
        }
        for frame in self.arrived.since(before.arrived)? {
            ensure!(!contains(&frame, MARKER), "a marked frame arrived: {frame:02x?}");
            let Some(seen) = Seen::parse(&frame) else {
                ensure!(frame[12..14] == [0x08, 0x06], "something else than IP arrived: {frame:02x?}");
                continue;
            };
            for one in told {
                let ports =
                    if seen.is_tcp() { (Some(seen.sport()), Some(seen.dport())) } else { (None, None) };
                let of_it =
                    one.dst == Some(seen.to) && (ports.0.is_none() || ports == (one.sport, one.dport));
                ensure!(!of_it, "it arrived: {seen:?}");
            }
        }
        Ok(())
    }

    /// What the sandbox received since.
    pub fn answers_since(&self, before: &Before) -> Result<Vec<Seen>> {
        Ok(self.answers.since(before.answers)?.iter().filter_map(|frame| Seen::parse(frame)).collect())
    }

    /// What the internet received since.
    pub fn arrived_since(&self, before: &Before) -> Result<Vec<Seen>> {
        Ok(self.arrived.since(before.arrived)?.iter().filter_map(|frame| Seen::parse(frame)).collect())
    }

    /// Reasons of denials that have been counted since, without `protocol`: multicast listener reports of the
    /// sandbox's kernel count as that, and come when they like.
    pub fn moved(&self, before: &Before) -> String {
        const DENIALS: [&str; 9] = [
            "malformed",
            "spoofed",
            "neighbour_claim",
            "guarded",
            "fragment",
            "denied_cidr",
            "connection_limit",
            "capacity",
            "revoked",
        ];
        let Ok(show) = self.daemon.show(ID) else { return "no daemon".to_owned() };
        let more = DENIALS.map(|reason| (reason, counted(&show, reason) - counted(&before.show, reason)));
        let more = more.iter().filter(|(_, more)| *more > 0);
        more.map(|(reason, more)| format!("{reason} +{more}")).collect::<Vec<_>>().join(", ")
    }

    /// How often that has been told since, under the generation in force then.
    pub fn times_told(&self, before: &Before, told: &Told) -> Result<u64> {
        let events = self.daemon.events()?;
        let new = events.get(before.events..).unwrap_or_default();
        let generation = &before.show["generation"];
        let about = new.iter().filter(|event| told.is(event) && event["sandbox"] == ID);
        let about = about.filter(|event| event["generation"] == *generation);
        Ok(about.filter_map(|event| event["count"].as_u64()).sum())
    }
}

impl Before {
    pub fn show(&self) -> &Value {
        &self.show
    }
}

fn answers(seen: &Seen, row: &Row) -> bool {
    let right = match row.answer {
        Answer::Reset => seen.is_reset(),
        Answer::Prohibited => seen.is_prohibited(),
        Answer::Nothing | Answer::Whatever => false,
    };
    right && seen.checksums_right && Some(seen.from) == row.told.dst && Some(seen.to) == row.told.src
}

fn is_error(seen: &Seen, (kind, _): (u8, u8)) -> bool {
    if seen.from.is_ipv4() { matches!(kind, 3 | 5 | 11 | 12) } else { kind < 128 }
}

pub fn counted(show: &Value, reason: &str) -> u64 {
    show.pointer(&format!("/counters/{reason}/packets")).and_then(Value::as_u64).unwrap_or(0)
}

pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// What a refusal of anything but TCP looks like to a program.
pub fn prohibited(to: IpAddr) -> Errno {
    if to.is_ipv4() { Errno::EHOSTUNREACH } else { Errno::EACCES }
}

pub fn ensure_refused<T>(attempt: &Attempt<T>, errno: Errno) -> Result<()> {
    let error = attempt.result.as_ref().err();
    ensure!(attempt.errno() == Some(errno), "{error:?}, not {errno}");
    ensure!(attempt.took < AT_ONCE, "refused after {:?}", attempt.took);
    Ok(())
}

/// Connects from an address and port of one's choice.
pub fn connect(netns: &Netns, from: SocketAddr, to: SocketAddr) -> Attempt<std::net::TcpStream> {
    attempt(netns, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let stream = std::net::TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// One datagram from an address and port of one's choice, and the answer to it.
pub fn ask(netns: &Netns, from: SocketAddr, to: SocketAddr) -> Attempt<Vec<u8>> {
    attempt(netns, || {
        let socket = std::net::UdpSocket::bind(from)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(MARKER)?;
        let mut answer = vec![0; 2048];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    })
}

pub fn attempt<T: Send>(netns: &Netns, work: impl FnOnce() -> std::io::Result<T> + Send) -> Attempt<T> {
    netns
        .run(|| {
            let start = Instant::now();
            let result = work();
            Ok(Attempt { result, took: start.elapsed() })
        })
        .unwrap_or_else(|error| Attempt { result: Err(std::io::Error::other(error)), took: Duration::ZERO })
}

pub fn eventually(holds: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "it did not happen within {PATIENCE:?}");
        sleep(Duration::from_millis(2));
    }
    Ok(())
}
