//! `bench gateway`: the rows, in order. Requests to a service in a sandbox, at its public URL.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::lane::Lane;
use super::compare::{Contender, Goal, Progress, Row, Unit, What, compare_all};
use super::names::{haproxy, nginx};
use super::report::Report;
use super::{Options, machine};

mod lane;
mod load;
mod peers;
mod service;

/// Who is compared.
const CONTENDERS: [Contender; 4] =
    [Contender::Nothing, Contender::Filter, Contender::Nginx, Contender::Haproxy];

/// What a download has.
const GIGABYTE: u64 = 1_000_000_000;

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
    /// HTTP requests over 1, 64 and 512 connections
    Requests,
    /// Messages of WebSockets
    Websockets,
    /// One large answer
    Download,
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
        Duration::from_millis(if self.options.quick { 500 } else { 3000 })
    }
}

/// Builds the lanes, measures, prints.
pub fn run(args: &Args, binary: &Path) -> Result<ExitCode> {
    let (contenders, versions) = contenders();
    let machine = machine::describe(&versions)?;
    machine::warn_if_busy()?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Two descriptors for each connection, here and in the contenders.
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let progress = Progress::new();
    progress.show("making the lanes");
    let build = |who: &Contender| Lane::build(*who, binary).with_context(|| format!("the lane of {who}"));
    let lanes: Vec<Lane> = contenders.iter().map(build).collect::<Result<_>>()?;
    let rows = measure(args, &lanes.iter().collect::<Vec<_>>(), &progress)?;
    drop((lanes, progress));
    let report = Report { bench: "gateway", contenders, machine: format!("{machine}."), rows };
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
    let nginx = found(Contender::Nginx, nginx::ensure().and_then(|()| nginx::version()));
    let haproxy = found(Contender::Haproxy, haproxy::ensure().and_then(|()| haproxy::version()));
    let peers: Vec<_> = [nginx, haproxy].into_iter().flatten().collect();
    let there = |who: &Contender| !who.is_peer() || peers.iter().any(|(peer, _)| peer == who);
    (
        CONTENDERS.into_iter().filter(there).collect(),
        peers.iter().map(|(_, version)| version.clone()).collect(),
    )
}

fn measure(args: &Args, lanes: &[&Lane], progress: &Progress) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let (rounds, time) = (args.options.rounds(9), args.time());
    if args.wants(Part::Requests) {
        for connections in [1, 64, 512] {
            let name = format!("requests, {connections} connections");
            rows.extend(rates(lanes, rounds, name, progress, |lane| {
                load::requests(lane, connections, time)
            })?);
        }
    }
    if args.wants(Part::Websockets) {
        let name = "WebSocket echo, 64 connections".to_owned();
        rows.extend(rates(lanes, rounds, name, progress, |lane| load::echoes(lane, 64, time))?);
    }
    if args.wants(Part::Download) {
        let size = if args.options.quick { GIGABYTE / 10 } else { GIGABYTE };
        let whats: [What; 2] = [
            ("download of 1 GB".to_owned(), Unit::Gigabits, Goal::AHEAD),
            ("… CPU a gigabyte".to_owned(), Unit::CpuSeconds, Goal::AHEAD),
        ];
        rows.extend(compare_all(lanes, rounds, whats, progress, |lane| {
            let before = machine::busy()?;
            let took = load::download(lane, size)?;
            let busy = machine::busy()?.saturating_sub(before);
            let bits = size as f64 * 8.0;
            Ok([bits / took.as_secs_f64() / 1e9, busy.as_secs_f64() * GIGABYTE as f64 / size as f64])
        })?);
    }
    Ok(rows)
}

/// How much of some work is done, how long each piece takes, and what it costs.
fn rates(
    lanes: &[&Lane],
    rounds: usize,
    name: String,
    progress: &Progress,
    load: impl Fn(&Lane) -> Result<load::Outcome>,
) -> Result<[Row; 4]> {
    let whats: [What; 4] = [
        (name, Unit::PerSecond, Goal::AHEAD),
        ("… p50".to_owned(), Unit::Microseconds, Goal::AHEAD),
        ("… p99".to_owned(), Unit::Microseconds, Goal::AHEAD),
        ("… CPU for 1,000".to_owned(), Unit::CpuSeconds, Goal::AHEAD),
    ];
    compare_all(lanes, rounds, whats, progress, |lane| {
        let before = machine::busy()?;
        let outcome = load(lane)?;
        let busy = machine::busy()?.saturating_sub(before);
        ensure!(outcome.count() > 0, "nothing was answered");
        let each = busy.as_secs_f64() / outcome.count() as f64;
        Ok([outcome.per_second(), outcome.microseconds(0.5), outcome.microseconds(0.99), each * 1000.0])
    })
}
