//! Many sandboxes, each with many connections that stay open: what each connection takes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Netns, Sandbox};

use super::book::{self, Book};
use super::hello::{self, hello};
use super::lane::Lane;
use super::servers::{Manner, Server, TLS};
use crate::bench::compare::{Contender, Goal, Ground as _, Progress, Row, Unit};
use crate::bench::{machine, report};
use crate::tool;

/// Connections of each sandbox.
const EACH: usize = 50;
/// Descriptors of a connection in a contender.
const DESCRIPTORS: usize = 2;
/// Descriptors that a contender needs, or reserves, for other things.
const RESERVED: usize = 8_000;
/// The first number of those that join for this.
const FIRST: u16 = 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// What a contender holds.
#[derive(Clone, Copy, Debug, Default)]
struct Holding {
    resident: u64,
    kernel: u64,
    descriptors: u64,
}

/// Opens them in lane after lane, which are new ones, so that no memory is left over from other rows: memory and
/// descriptors for each connection. Where a process may not have so many open files, each sandbox has fewer.
pub fn run(
    contenders: &[Contender],
    build: impl Fn(Contender) -> Result<Lane>,
    sandboxes: u16,
    descriptors: u64,
    progress: &Progress,
) -> Result<[Row; 3]> {
    let mut samples: [Vec<(Contender, Vec<f64>)>; 3] = Default::default();
    let fit = usize::try_from(descriptors)?.saturating_sub(RESERVED) / DESCRIPTORS / usize::from(sandboxes);
    let each = fit.clamp(1, EACH);
    let flows = usize::from(sandboxes) * each;
    for who in contenders {
        let lane = build(*who)?;
        let [resident, kernel, descriptors] = hold(&lane, (sandboxes, each), progress)
            .with_context(|| format!("{} connections, {who}", report::count(flows)))?;
        let values = [resident / 1000.0, kernel / 1000.0, descriptors];
        for (samples, value) in samples.iter_mut().zip(values) {
            samples.push((*who, vec![value]));
        }
    }
    let [resident, kernel, descriptors] = samples;
    let peers = |samples: Vec<(Contender, Vec<f64>)>| {
        samples.into_iter().filter(|(who, _)| *who != Contender::Nothing).collect()
    };
    let name = format!("{sandboxes} sandboxes, {} connections: process memory each", report::count(flows));
    Ok([
        Row::new(name, Unit::Kilobytes, Goal::AHEAD, peers(resident)),
        Row::new("… kernel memory each, all ends of it", Unit::Kilobytes, Goal::AHEAD, kernel),
        Row::new("… descriptors each", Unit::Number, Goal::default(), peers(descriptors)),
    ])
}

/// Resident and kernel memory in bytes, and descriptors, for each connection of the second half.
fn hold(lane: &Lane, (count, each): (u16, usize), progress: &Progress) -> Result<[f64; 3]> {
    let _server = Server::start(lane.internet(), Manner::Patient)?;
    lane.forget()?;
    let who = lane.contender();
    let mut sandboxes = Vec::new();
    for number in 0..count {
        progress.show(&format!("open connections, {who}: sandbox {} of {count}", number + 1));
        let sandbox = lane.join(FIRST + number)?;
        introduce(lane.host(), &sandbox)?;
        sandboxes.push(sandbox);
    }
    let mut before = Holding::default();
    let mut streams = Vec::new();
    let first = sandboxes.len() / 2;
    for (number, sandbox) in sandboxes.iter().enumerate() {
        progress.show(&format!("open connections, {who}: of sandbox {} of {count}", number + 1));
        // The first half takes what the program had left over from its start.
        if number == first {
            before = Holding::of(lane)?;
        }
        streams.extend(open(sandbox, each)?);
    }
    let after = Holding::of(lane)?;
    let counted = ((sandboxes.len() - first) * each) as f64;
    ensure!(streams.iter().all(is_open), "connections did not stay open");
    drop(streams);
    for number in 0..count {
        lane.leave(FIRST + number)?;
    }
    Ok(after.since(before).map(|more| more as f64 / counted))
}

/// Tells host and sandbox each other's hardware address for good. The kernel's table of those that it finds out
/// has room for about a thousand, in all namespaces together.
fn introduce(host: &Netns, sandbox: &Sandbox) -> Result<()> {
    let gateway_mac = sandbox.gateway_mac().map(|byte| format!("{byte:02x}")).join(":");
    let neighbours = [
        (host, sandbox.v4(), sandbox.mac_text(), sandbox.host_interface()),
        (&**sandbox, sandbox.gateway_v4(), gateway_mac, Sandbox::INTERFACE),
    ];
    for (netns, address, mac, interface) in neighbours {
        let mut ip = netns.command("ip")?;
        ip.args([
            "neigh",
            "replace",
            &address.to_string(),
            "lladdr",
            &mac,
            "dev",
            interface,
            "nud",
            "permanent",
        ]);
        tool::run(&mut ip, "a sandbox and its host do not know each other")?;
    }
    Ok(())
}

fn open(sandbox: &Sandbox, count: usize) -> Result<Vec<TcpStream>> {
    let book = Book::new(book::USUAL, 0);
    sandbox.run(|| {
        (0..count)
            .map(|number| {
                let number = number % book::ASKED;
                let mut stream = TcpStream::connect_timeout(&book::at(number, TLS), PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(&hello(book.name(number)))?;
                let mut answer = hello::ANSWER;
                stream.read_exact(&mut answer).context("no answer")?;
                ensure!(answer == hello::ANSWER, "that is not what the server answers");
                stream.set_nonblocking(true)?;
                Ok(stream)
            })
            .collect()
    })
}

fn is_open(stream: &TcpStream) -> bool {
    let mut stream = stream;
    stream.read(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

impl Holding {
    /// What it is more than it was before.
    fn since(self, before: Self) -> [u64; 3] {
        [
            self.resident.saturating_sub(before.resident),
            self.kernel.saturating_sub(before.kernel),
            self.descriptors.saturating_sub(before.descriptors),
        ]
    }

    fn of(lane: &Lane) -> Result<Self> {
        let mut holding = Self { kernel: machine::kernel_memory()?, ..Self::default() };
        for process in lane.processes()? {
            let status = fs::read_to_string(format!("/proc/{process}/status"))?;
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kibibytes = resident.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            holding.resident += kibibytes.context("a process does not say how much memory it has")? << 10;
            holding.descriptors += fs::read_dir(format!("/proc/{process}/fd"))?.count() as u64;
        }
        Ok(holding)
    }
}
