//! `bench transforms`: the rows, in order. HTTPS requests that a header is set in on the way.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::lane::Lane;
use self::server::Server;
use super::compare::{Contender, Goal, Progress, Row, Unit, What, compare_all};
use super::names::load::Outcome;
use super::names::{haproxy, nginx};
use super::report::Report;
use super::{Options, machine, nft};

mod lane;
mod load;
mod mitmproxy;
mod peers;
mod server;

/// Who is compared.
const CONTENDERS: [Contender; 5] =
    [Contender::Nothing, Contender::Filter, Contender::Nginx, Contender::Haproxy, Contender::Mitmproxy];
/// How many times what mitmproxy does is to be reached.
const TIMES: f64 = 10.0;

/// What to measure and how long.
#[derive(clap::Args)]
pub struct Args {
    /// Only these rows
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<Part>,
    #[command(flatten)]
    options: Options,
}

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Requests over 2 and 32 connections that stay
    Requests,
    /// Connections with one request each
    Connections,
    /// One and four large answers
    Bulk,
}

impl Args {
    /// What all benches can be told.
    pub fn options(&self) -> &Options {
        &self.options
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn time(&self) -> Duration {
        Duration::from_millis(if self.options.quick { 500 } else { 1500 })
    }
}

/// Builds the lanes, measures, prints.
pub fn run(args: &Args, binary: &Path) -> Result<ExitCode> {
    let (contenders, versions) = contenders();
    let machine = machine::describe(&versions)?;
    machine::warn_if_busy()?;
    let progress = Progress::new();
    progress.show("making the lanes");
    let build = |who: &Contender| Lane::build(*who, binary).with_context(|| format!("the lane of {who}"));
    let lanes: Vec<Lane> = contenders.iter().map(build).collect::<Result<_>>()?;
    let mut rows = Vec::new();
    let measured = measure(args, &lanes, &progress, &mut rows);
    drop(lanes);
    drop(progress);
    let machine = [vec![format!("{machine}.")], times(&rows)].concat().join(" ");
    let report = Report { bench: "transforms", contenders, machine, rows };
    if measured.is_err() {
        report.print();
    }
    measured?;
    args.options.publish(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// Who can be compared here, and what the others are.
fn contenders() -> (Vec<Contender>, Vec<String>) {
    let found = |contender: Contender, version: Result<String>| {
        version
            .inspect_err(|error| eprintln!("warning: {contender} is not compared: {error:#}"))
            .ok()
            .map(|version| (contender, version))
    };
    let there = nft::version().map(|version| nft::short_version(&version));
    let peers: Vec<_> = match &there {
        Ok(_) => [
            found(Contender::Nginx, nginx::ensure().and_then(|()| nginx::version())),
            found(Contender::Haproxy, haproxy::ensure().and_then(|()| haproxy::version())),
            found(Contender::Mitmproxy, mitmproxy::ensure().map(|_| mitmproxy::VERSION.to_owned())),
        ]
        .into_iter()
        .flatten()
        .collect(),
        Err(error) => {
            eprintln!("warning: nobody is compared, for want of nftables: {error:#}");
            Vec::new()
        }
    };
    let is_there = |who: &Contender| !who.is_peer() || peers.iter().any(|(peer, _)| peer == who);
    let versions = there.into_iter().chain(peers.iter().map(|(_, version)| version.clone()));
    (CONTENDERS.into_iter().filter(is_there).collect(), versions.collect())
}

fn measure(args: &Args, lanes: &[Lane], progress: &Progress, rows: &mut Vec<Row>) -> Result<()> {
    let all: Vec<&Lane> = lanes.iter().collect();
    let (rounds, time) = (args.options.rounds(9), args.time());
    if args.wants(Part::Requests) {
        for at_once in [2, 32] {
            let name = format!("HTTPS requests, {at_once} connections");
            rows.extend(rates(&all, rounds, name, progress, |lane| load::requests(lane, at_once, time))?);
        }
    }
    if args.wants(Part::Connections) {
        let name = "HTTPS connections, 16 at once".to_owned();
        rows.extend(rates(&all, rounds, name, progress, |lane| load::connections(lane, 16, time))?);
    }
    if args.wants(Part::Bulk) {
        for (streams, name) in [(1, "HTTPS bulk, one stream"), (4, "HTTPS bulk, four streams")] {
            rows.extend(bulk(&all, rounds, (streams, name), time, progress)?);
        }
    }
    Ok(())
}

/// Short work of many clients: how much of it, how long each waits, and what it costs.
fn rates(
    lanes: &[&Lane],
    rounds: usize,
    name: String,
    progress: &Progress,
    load: impl Fn(&Lane) -> Result<Outcome>,
) -> Result<[Row; 4]> {
    let whats: [What; 4] = [
        (name, Unit::PerSecond, Goal::AHEAD),
        ("… p50".to_owned(), Unit::Microseconds, Goal::AHEAD),
        ("… p99".to_owned(), Unit::Microseconds, Goal::AHEAD),
        ("… CPU for 1,000".to_owned(), Unit::CpuSeconds, Goal::AHEAD),
    ];
    compare_all(lanes, rounds, whats, progress, |lane| {
        let _server = Server::start(lane.internet(), lane.ca(), lane.expects_header())?;
        let before = machine::busy()?;
        let outcome = load(lane)?;
        let busy = machine::busy()?.saturating_sub(before);
        ensure!(outcome.count() > 0, "nothing was answered");
        let each = busy.as_secs_f64() / outcome.count() as f64;
        Ok([outcome.per_second(), outcome.microseconds(0.5), outcome.microseconds(0.99), each * 1000.0])
    })
}

fn bulk(
    lanes: &[&Lane],
    rounds: usize,
    (streams, name): (usize, &str),
    time: Duration,
    progress: &Progress,
) -> Result<[Row; 2]> {
    let whats = [
        (name.to_owned(), Unit::Gigabits, Goal::AHEAD),
        ("… CPU a gigabyte".to_owned(), Unit::CpuSeconds, Goal::AHEAD),
    ];
    compare_all(lanes, rounds, whats, progress, |lane| {
        let _server = Server::start(lane.internet(), lane.ca(), lane.expects_header())?;
        let before = machine::busy()?;
        let (bytes, took) = load::bulk(lane, streams, time)?;
        let busy = machine::busy()?.saturating_sub(before);
        Ok([bytes as f64 * 8.0 / took.as_nanos() as f64, busy.as_secs_f64() * 1e9 / bytes as f64])
    })
}

/// What each rate is in terms of mitmproxy's.
fn times(rows: &[Row]) -> Vec<String> {
    let sentence = |row: &Row| {
        let own = row.median(Contender::Filter)? / row.median(Contender::Mitmproxy)?;
        let verdict = if own >= TIMES { "✓" } else { "✗" };
        Some(format!("{}: {own:.1} times mitmproxy's ({verdict} {TIMES:.0}).", row.name))
    };
    rows.iter().filter(|row| row.unit == Unit::PerSecond).filter_map(sentence).collect()
}
