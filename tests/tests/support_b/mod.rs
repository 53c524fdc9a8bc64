//! What the tests of things that take time share: counts, updates, restarts.
#![allow(dead_code, reason = "each of the test programs uses a part of it")]

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use filter_tests::{Api, Daemon, Netns, Sandbox};
use nix::errno::Errno;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// How long anything may take that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long a refusal may take: less than until a second attempt, on a machine that is busy.
pub const AT_ONCE: Duration = Duration::from_millis(500);
/// A server.
pub const A: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
/// Another one.
pub const B: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
/// An address that never answers.
pub const SILENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 250));
/// The timer goes once around all connections in this time, so that one may end as much too late.
pub const ROUND: Duration = Duration::from_millis(2100);
/// Idle timeouts that a test can wait for. Open TCP connections are left in peace.
pub const SHORT_TIMEOUTS: &str =
    "[timeouts]\ntcp_half_open = \"1s\"\ntcp_closing = \"1s\"\nudp = \"1s\"\nicmp = \"1s\"\n";

/// A policy that allows these destinations and nothing else.
pub fn only(destinations: &[IpAddr]) -> Value {
    let allowed: Vec<String> = destinations.iter().map(ToString::to_string).collect();
    json!({ "allowOut": allowed, "denyOut": ["0.0.0.0/0"] })
}

/// A policy that denies these destinations and nothing else.
pub fn all_but(destinations: &[IpAddr]) -> Value {
    let denied: Vec<String> = destinations.iter().map(ToString::to_string).collect();
    json!({ "denyOut": denied })
}

/// Waits until something holds.
pub fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !holds()? {
        ensure!(Instant::now() < deadline, "within {patience:?} it did not happen that {what}");
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The daemon's own routes, spoken to directly: a command is a process, and some tests ask a thousand times.
#[derive(Clone, Debug)]
pub struct Control(Api);

impl Control {
    /// That of a daemon.
    pub fn of(daemon: &Daemon) -> Self {
        Self(daemon.api())
    }

    /// Asks, and gives what the daemon answers, or the error object that it refuses with.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Result<Value, Value>> {
        let mut answer = self.0.ask(method, path, body)?;
        if (200..300).contains(&answer.status) {
            return Ok(Ok(answer.body));
        }
        match answer.body.get_mut("error") {
            Some(error) => Ok(Err(error.take())),
            None => bail!("that is no answer: {answer:?}"),
        }
    }

    fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.ask(method, path, body)?.map_err(|error| anyhow!("refused: {error}"))
    }

    /// `attach`
    pub fn attach(&self, id: &str, sandbox: &Sandbox, policy: &Value) -> Result<Value> {
        let addrs = [IpAddr::from(sandbox.v4()), sandbox.v6().into()];
        let request = json!({
            "id": id, "iface": sandbox.host_interface(), "addrs": { "list": addrs },
            "mac": sandbox.mac_text(), "policy": policy,
        });
        self.must("POST", "/v1/attachments", Some(&request))
    }

    /// `update`
    pub fn update(&self, id: &str, policy: &Value) -> Result<Value> {
        self.must("PUT", &format!("/v1/attachments/{id}/policy"), Some(policy))
    }

    /// `show`
    pub fn show(&self, id: &str) -> Result<Value> {
        self.must("GET", &format!("/v1/attachments/{id}"), None)
    }

    /// `detach`
    pub fn detach(&self, id: &str) -> Result<()> {
        self.must("DELETE", &format!("/v1/attachments/{id}"), None).map(drop)
    }

    /// The connections of a sandbox.
    pub fn connections(&self, id: &str) -> Result<Connections> {
        Connections::of(&self.show(id)?)
    }

    /// How many connections it has open.
    pub fn active(&self, id: &str) -> Result<u64> {
        Ok(self.connections(id)?.active)
    }

    /// Waits for a count, and that it stays.
    pub fn settles(&self, id: &str, active: u64, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let now = self.connections(id)?;
            if now.active == active {
                sleep(Duration::from_millis(50));
                let then = self.connections(id)?;
                ensure!(then.active == active, "{id} came to {active} connections and went on to {then:?}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{id} has not {active} connections in {patience:?}: {now:?}");
            sleep(Duration::from_millis(10));
        }
    }

    /// Packets of a sandbox for a reason.
    pub fn packets(&self, id: &str, reason: &str) -> Result<u64> {
        packets(&self.show(id)?, reason)
    }

    /// The ids of all sandboxes.
    pub fn ids(&self) -> Result<Vec<String>> {
        let reply = self.must("GET", "/v1/attachments", None)?;
        let list = reply.as_array().context("no list in the answer")?;
        Ok(list.iter().filter_map(|one| Some(one.get("id")?.as_str()?.to_owned())).collect())
    }
}

/// `connections` of `show`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Open now.
    pub active: u64,
    /// How many may be.
    pub limit: u64,
    /// The most there were.
    pub peak: u64,
    /// Refused over the limit.
    pub refused: u64,
}

impl Connections {
    /// Those in a document of `show`.
    pub fn of(show: &Value) -> Result<Self> {
        let field = |name: &str| {
            show.pointer(&format!("/connections/{name}")).and_then(Value::as_u64).context("no connections")
        };
        Ok(Self {
            active: field("active")?,
            limit: field("limit")?,
            peak: field("peak")?,
            refused: field("refused")?,
        })
    }
}

/// Packets for a reason in a document of `show`.
pub fn packets(show: &Value, reason: &str) -> Result<u64> {
    show.pointer(&format!("/counters/{reason}/packets")).and_then(Value::as_u64).context("no such counter")
}

/// Packets that were refused for any reason, in a document of `show`; reports of multicast listeners, which
/// the kernel of a guest sends by itself, aside.
pub fn refused_packets(show: &Value) -> Result<u64> {
    let reasons =
        ["malformed", "spoofed", "guarded", "fragment", "denied_cidr", "connection_limit", "capacity"];
    reasons.iter().chain(&["inbound", "revoked"]).map(|reason| packets(show, reason)).sum()
}

/// The number of the policy in a document of `show`.
pub fn generation(show: &Value) -> Result<u64> {
    show.get("generation").and_then(Value::as_u64).context("no generation")
}

/// Listens inside a namespace.
pub fn listen(netns: &Netns, at: impl Into<SocketAddr>) -> Result<TcpListener> {
    let at = at.into();
    netns.run(|| TcpListener::bind(at).with_context(|| format!("cannot listen at {at}")))
}

/// Connects from where the calling thread is; from a certain port unless it is 0.
pub fn dial(to: impl Into<SocketAddr>, from_port: u16, patience: Duration) -> io::Result<TcpStream> {
    let to = to.into();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if from_port != 0 {
        socket.set_reuse_address(true)?;
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        socket.bind(&SocketAddr::new(any, from_port).into())?;
    }
    socket.connect_timeout(&to.into(), patience)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// Closes with a reset.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// A connection, both ends of it in the test's hand.
pub fn pair(sandbox: &Sandbox, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let ours = sandbox.tcp_connect(listener.local_addr()?, PATIENCE).result?;
    let (theirs, _) = listener.accept()?;
    theirs.set_read_timeout(Some(PATIENCE))?;
    theirs.set_write_timeout(Some(PATIENCE))?;
    Ok((ours, theirs))
}

/// The errno of an error.
pub fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// Whether a connection to `to` is made (and ended), or refused at once. Anything else is an error.
pub fn reaches(netns: &Netns, to: impl Into<SocketAddr>) -> Result<bool> {
    let to = to.into();
    let attempt = netns.tcp_connect(to, PATIENCE);
    match attempt.errno() {
        None if attempt.is_ok() => {
            reset(attempt.result?)?;
            Ok(true)
        }
        Some(Errno::ECONNREFUSED) => Ok(false),
        _ => bail!("neither connected to {to} nor refused: {attempt:?}"),
    }
}

/// Asks again and again in the background, and notes every answer that is not as it should be.
#[derive(Debug)]
pub struct Probes {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Asked>>>,
}

/// What came of probes.
#[derive(Debug, Default)]
pub struct Asked {
    /// How many were sent.
    pub sent: u64,
    /// The longest that an answer took.
    pub longest: Duration,
    /// The wrong ones.
    pub wrong: Vec<String>,
}

impl Probes {
    /// No answer, right or wrong, may take longer: a lost SYN would cost a second.
    const LIMIT: Duration = Duration::from_millis(800);

    /// Probes from a namespace: connections to `allowed` must be made, those to `denied` refused.
    pub fn start(netns: &Netns, allowed: SocketAddr, denied: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (to, right) in [(allowed, None), (denied, Some(Errno::ECONNREFUSED))] {
            let stop = Arc::clone(&stop);
            threads.push(netns.spawn(move || {
                let mut asked = Asked::default();
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let answer = dial(to, 0, PATIENCE);
                    let took = start.elapsed();
                    asked.sent += 1;
                    asked.longest = asked.longest.max(took);
                    let found = match answer {
                        Ok(stream) => {
                            reset(stream)?;
                            None
                        }
                        Err(error) => errno(&error).or(Some(Errno::UnknownErrno)),
                    };
                    if found != right || took > Self::LIMIT {
                        asked.wrong.push(format!("{to}: {found:?} after {took:?}"));
                    }
                    sleep(Duration::from_millis(1));
                }
                Ok(asked)
            })?);
        }
        Ok(Self { stop, threads })
    }

    /// Adds datagrams to an echo server, one after the other; all must come back.
    pub fn and_udp(mut self, netns: &Netns, echo: SocketAddr) -> Result<Self> {
        let stop = Arc::clone(&self.stop);
        self.threads.push(netns.spawn(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(echo)?;
            socket.set_read_timeout(Some(Self::LIMIT))?;
            let mut asked = Asked::default();
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                let mut answer = [0; 8];
                let sent = asked.sent.to_be_bytes();
                let came = socket.send(&sent).and_then(|_| socket.recv(&mut answer));
                asked.longest = asked.longest.max(start.elapsed());
                if came.is_err() || answer != sent {
                    asked.wrong.push(format!("datagram {}: {came:?}", asked.sent));
                }
                asked.sent += 1;
                sleep(Duration::from_millis(1));
            }
            Ok(asked)
        })?);
        Ok(self)
    }

    /// Stops, and makes sure that every answer was right.
    pub fn finish(mut self) -> Result<Asked> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Asked::default();
        for thread in self.threads.drain(..) {
            let asked = thread.join().map_err(|_| anyhow!("a probe failed"))??;
            ensure!(asked.sent > 0, "a probe did not get to ask");
            all.sent += asked.sent;
            all.longest = all.longest.max(asked.longest);
            all.wrong.extend(asked.wrong);
        }
        ensure!(
            all.wrong.is_empty(),
            "{} of {} wrong: {:?}",
            all.wrong.len(),
            all.sent,
            all.wrong.iter().take(9)
        );
        Ok(all)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // The test has failed already, and says why.
            let _ = thread.join();
        }
    }
}

/// Runs a tool of the host inside a namespace and gives what it prints.
pub fn tool(netns: &Netns, program: &str, args: &[&str]) -> Result<String> {
    let output = netns
        .command(program)?
        .args(args)
        .output()
        .with_context(|| format!("this test needs `{program}`: apt-get install bpftool iproute2"))?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The tries that a daemon has: the numbers of the maps in its pinned map of maps. Some of them are empty and
/// kept ready, one is everybody's who has none, the others are policies in force.
pub fn tries(daemon: &Daemon, netns: &Netns) -> Result<BTreeSet<u64>> {
    let pin = daemon.pins().join("maps-v3/TRIES");
    let dump = tool(netns, "bpftool", &["-j", "map", "dump", "pinned", &pin.to_string_lossy()])?;
    let dump: Value = serde_json::from_str(&dump).context("bpftool prints no JSON")?;
    let entries = dump.as_array().context("bpftool prints no list")?;
    // A map's number, byte by byte: ["0xa1", "0x2b", "0x00", "0x00"].
    let number = |entry: &Value| {
        let bytes = entry.get("value")?.as_array()?.iter();
        bytes.rev().try_fold(0, |number, byte| {
            Some(number << 8 | u64::from_str_radix(byte.as_str()?.strip_prefix("0x")?, 16).ok()?)
        })
    };
    entries.iter().map(|entry| number(entry).context("bpftool prints something else")).collect()
}

/// Everything that is pinned for sandboxes, by path.
pub fn pinned_links(daemon: &Daemon) -> Result<Vec<PathBuf>> {
    let links = daemon.pins().join("links");
    let mut found = Vec::new();
    let Ok(sandboxes) = std::fs::read_dir(links) else { return Ok(found) };
    for sandbox in sandboxes {
        for link in std::fs::read_dir(sandbox?.path())? {
            found.push(link?.path());
        }
    }
    found.sort();
    Ok(found)
}

/// How many programs there are on an interface, by any way of attaching.
pub fn programs_on(host: &Netns, interface: &str) -> Result<usize> {
    // As in linux/bpf.h.
    const BPF_TCX_INGRESS: u32 = 46;
    const BPF_TCX_EGRESS: u32 = 47;
    let tcx = host.run(|| {
        let index = nix::net::if_::if_nametoindex(interface)?;
        [BPF_TCX_INGRESS, BPF_TCX_EGRESS]
            .into_iter()
            .map(|hook| programs_at(index, hook))
            .sum::<Result<usize>>()
    })?;
    let mut filters = 0;
    for (way, program) in [("ingress", "from_sandbox"), ("egress", "to_sandbox")] {
        let shown = tool(host, "tc", &["filter", "show", "dev", interface, way]).unwrap_or_default();
        filters += usize::from(shown.contains(program));
    }
    Ok(tcx + filters)
}

/// Asks the kernel itself: `bpftool` of many a distribution does not know this hook.
fn programs_at(index: u32, hook: u32) -> Result<usize> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    // `union bpf_attr`: index, hook, then flags, a list that is not wanted, and in word 6 how many there are.
    let mut attribute = [0_u32; 18];
    (attribute[0], attribute[1]) = (index, hook);
    // SAFETY: the attribute is larger than what the call uses of it, outlives it, and has no pointers.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, attribute.as_mut_ptr(), size_of_val(&attribute))
    };
    match Errno::result(result) {
        Ok(_) => Ok(usize::try_from(attribute[6])?),
        // Nothing was ever there.
        Err(Errno::ENOENT) => Ok(0),
        Err(error) => Err(error).context("cannot ask for the programs of an interface"),
    }
}
