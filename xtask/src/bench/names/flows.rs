//! Many sandboxes, each with many connections that stay open: what each connection takes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use filter_tests::Sandbox;

use super::book::{self, Book};
use super::hello::{self, hello};
use super::lane::Lane;
use super::servers::{Manner, Server, TLS};
use crate::bench::compare::{Contender, Goal, Ground as _, Progress, Row, Unit};
use crate::bench::{machine, report};

/// Connections of each sandbox.
const EACH: usize = 50;
/// Descriptors that the product reserves for a connection, two of them for the pipes of bulk.
const DESCRIPTORS: usize = 4;
/// Descriptors that a process needs for other things.
const RESERVED: usize = 300;
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

/// Opens them in lane after lane: memory and descriptors for each connection. Where a process may not have so
/// many open files, each sandbox has fewer.
pub fn run(lanes: &[&Lane], sandboxes: u16, descriptors: u64, progress: &Progress) -> Result<[Row; 3]> {
    let mut samples: [Vec<(Contender, Vec<f64>)>; 3] = Default::default();
    let fit = usize::try_from(descriptors)?.saturating_sub(RESERVED) / DESCRIPTORS / usize::from(sandboxes);
    let each = fit.clamp(1, EACH);
    let flows = usize::from(sandboxes) * each;
    for lane in lanes {
        let (before, after) = hold(lane, (sandboxes, each), progress)
            .with_context(|| format!("{} connections, {}", report::count(flows), lane.contender()))?;
        let share = |before: u64, after: u64| after.saturating_sub(before) as f64 / flows as f64;
        let values = [
            share(before.resident, after.resident) / 1000.0,
            share(before.kernel, after.kernel) / 1000.0,
            share(before.descriptors, after.descriptors),
        ];
        for (samples, value) in samples.iter_mut().zip(values) {
            samples.push((lane.contender(), vec![value]));
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

fn hold(lane: &Lane, (count, each): (u16, usize), progress: &Progress) -> Result<(Holding, Holding)> {
    let _server = Server::start(lane.internet(), Manner::Patient)?;
    lane.forget()?;
    let who = lane.contender();
    let mut sandboxes = Vec::new();
    for number in 0..count {
        progress.show(&format!("open connections, {who}: sandbox {} of {count}", number + 1));
        sandboxes.push(lane.join(FIRST + number)?);
    }
    // Once, so that what is made at the first use is there.
    drop(open(sandboxes.first().context("no sandbox")?, each)?);
    let before = Holding::of(lane)?;
    let mut streams = Vec::new();
    for (number, sandbox) in sandboxes.iter().enumerate() {
        progress.show(&format!("open connections, {who}: of sandbox {} of {count}", number + 1));
        streams.extend(open(sandbox, each)?);
    }
    let after = Holding::of(lane)?;
    ensure!(streams.iter().all(is_open), "connections did not stay open");
    drop(streams);
    for number in 0..count {
        lane.leave(FIRST + number)?;
    }
    Ok((before, after))
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
