//! `bench names`: the rows, in order. Connections and requests that are judged by the name they ask for.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::lane::Lane;
use self::load::Outcome;
use self::servers::{Manner, Server};
use super::compare::{Contender, Goal, Ground as _, Progress, Row, Unit, What, compare_all};
use super::report::Report;
use super::{Options, machine, nft};

mod book;
mod bulk;
pub mod capsule;
mod flows;
pub mod haproxy;
mod hello;
pub mod lane;
mod load;
pub mod nginx;
mod peer;
mod servers;
mod slowloris;
mod update;

/// Who is compared.
const CONTENDERS: [Contender; 4] =
    [Contender::Nothing, Contender::Filter, Contender::Nginx, Contender::Haproxy];

/// Open files that the row of open connections needs, here and in the contenders.
const DESCRIPTORS: u64 = 250_000;

/// Connections that requests are sent over.
const REQUESTERS: usize = 64;

/// What to measure and how long.
#[derive(clap::Args)]
pub struct Args {
    /// Only these rows
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<Part>,
    /// Sandboxes of the rows of open connections [default: 1100; with --quick 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4000))]
    sandboxes: Option<u16>,
    #[command(flatten)]
    options: Options,
}

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// TLS connections a second, 2, 16 and 64 at once
    Connections,
    /// One and four streams
    Bulk,
    /// HTTP requests over connections that stay
    Requests,
    /// 10,000 names replaced
    Update,
    /// A sandbox that begins connections and does not go on, and its neighbour
    Slowloris,
    /// Many sandboxes with open connections
    Flows,
}

impl Args {
    /// What all benches can be told.
    pub fn options(&self) -> &Options {
        &self.options
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn count(&self, full: usize) -> usize {
        if self.options.quick { full / 5 } else { full }
    }

    fn time(&self) -> Duration {
        Duration::from_millis(if self.options.quick { 500 } else { 1500 })
    }

    fn sandboxes(&self) -> u16 {
        self.sandboxes.unwrap_or(if self.options.quick { 20 } else { 1100 })
    }
}

/// Builds the lanes, measures, prints.
pub fn run(args: &Args, binary: &Path) -> Result<ExitCode> {
    let (contenders, versions) = contenders();
    let machine = machine::describe(&versions)?;
    machine::warn_if_busy()?;
    let descriptors = descriptors()?;
    let progress = Progress::new();
    progress.show("making the lanes");
    let build =
        |who: Contender| Lane::build(who, binary, descriptors).with_context(|| format!("the lane of {who}"));
    let lanes: Vec<Lane> = contenders.iter().map(|who| build(*who)).collect::<Result<_>>()?;
    let mut found = Found::default();
    let measured = measure(args, &lanes, &progress, &mut found).inspect_err(|_| {
        let log = lanes.iter().find_map(Lane::log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        last.iter().rev().for_each(|line| eprintln!("\ndaemon: {line}"));
    });
    drop(lanes);
    let measured = measured.and_then(|()| {
        if args.wants(Part::Flows) {
            found.rows.extend(flows::run(&contenders, build, args.sandboxes(), descriptors, &progress)?);
        }
        Ok(())
    });
    drop(progress);
    let machine = [vec![format!("{machine}.")], found.remarks].concat().join(" ");
    let report = Report { bench: "names", contenders, machine, rows: found.rows };
    if measured.is_err() {
        // The rows before the one that failed took long enough.
        report.print();
    }
    measured?;
    args.options.publish(&report)?;
    Ok(ExitCode::SUCCESS)
}

/// What came out so far.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    remarks: Vec<String>,
}

/// How many files each process may have open, which is as many as are needed where that may be had. What is
/// started later inherits it.
fn descriptors() -> Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if most >= DESCRIPTORS || setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        return Ok(most);
    }
    Ok(DESCRIPTORS)
}

/// Who can be compared here, and what the others are.
fn contenders() -> (Vec<Contender>, Vec<String>) {
    let peers = || {
        let nft = nft::short_version(&nft::version()?);
        let found = |contender: Contender, version: Result<String>| {
            version
                .inspect_err(|error| eprintln!("warning: {contender} is not compared: {error:#}"))
                .ok()
                .map(|version| (contender, version))
        };
        let nginx = found(Contender::Nginx, nginx::ensure().and_then(|()| nginx::version()));
        let haproxy = found(Contender::Haproxy, haproxy::ensure().and_then(|()| haproxy::version()));
        anyhow::Ok((nft, [nginx, haproxy].into_iter().flatten().collect::<Vec<_>>()))
    };
    match peers() {
        Ok((nft, peers)) => {
            let versions = [nft].into_iter().chain(peers.iter().map(|(_, version)| version.clone()));
            let there = |who: &Contender| !who.is_peer() || peers.iter().any(|(peer, _)| peer == who);
            (CONTENDERS.into_iter().filter(there).collect(), versions.collect())
        }
        Err(error) => {
            eprintln!("warning: nobody is compared, for want of nftables: {error:#}");
            (CONTENDERS.into_iter().filter(|who| !who.is_peer()).collect(), Vec::new())
        }
    }
}

fn measure(
    args: &Args,
    lanes: &[Lane],
    progress: &Progress,
    Found { rows, remarks }: &mut Found,
) -> Result<()> {
    let all: Vec<&Lane> = lanes.iter().collect();
    let rounds = args.options.rounds(9);
    if args.wants(Part::Connections) {
        for (at_once, goal) in [(2, Goal::AHEAD), (16, Goal::AHEAD), (64, Goal::ratio(0.65))] {
            let count = args.count(if at_once == 2 { 4_000 } else { 10_000 });
            let what = (format!("TLS connections, {at_once} at once"), goal);
            rows.extend(rates(&all, rounds, what, Manner::Brief, progress, |lane| {
                load::connections(lane.sandbox(), at_once, count)
            })?);
        }
    }
    if args.wants(Part::Bulk) {
        rows.extend(bulk(&all, rounds, (1, "TLS bulk, one stream"), args.time(), progress)?);
        rows.extend(bulk(&all, rounds, (4, "TLS bulk, four streams"), args.time(), progress)?);
    }
    if args.wants(Part::Requests) {
        let what = (format!("HTTP requests, {REQUESTERS} connections"), Goal::ratio(0.5));
        let time = args.time();
        rows.extend(rates(&all, rounds, what, Manner::Http, progress, |lane| {
            load::requests(lane.sandbox(), REQUESTERS, time)
        })?);
    }
    if args.wants(Part::Update) {
        let (update, remark) = update::run(&all, rounds, progress)?;
        rows.extend(update);
        remarks.push(remark);
    }
    if args.wants(Part::Slowloris) {
        rows.extend(slowloris(&all, rounds, args.count(5_000), progress)?);
    }
    Ok(())
}

/// Short work of many clients, whose server behaves in this manner: how much of it, how long each waits, and what
/// it costs.
fn rates(
    lanes: &[&Lane],
    rounds: usize,
    (name, goal): (String, Goal),
    manner: Manner,
    progress: &Progress,
    load: impl Fn(&Lane) -> Result<Outcome>,
) -> Result<[Row; 4]> {
    let whats: [What; 4] = [
        (name, Unit::PerSecond, goal),
        ("… p50".to_owned(), Unit::Microseconds, Goal::AHEAD),
        ("… p99".to_owned(), Unit::Microseconds, Goal::AHEAD),
        ("… CPU for 1,000".to_owned(), Unit::CpuSeconds, Goal::AHEAD),
    ];
    compare_all(lanes, rounds, whats, progress, |lane| {
        let _server = Server::start(lane.internet(), manner)?;
        lane.forget()?;
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
        (name.to_owned(), Unit::Gigabits, Goal::ratio(0.6)),
        ("… CPU a gigabyte".to_owned(), Unit::CpuSeconds, Goal::AHEAD),
    ];
    compare_all(lanes, rounds, whats, progress, |lane| {
        lane.forget()?;
        let before = machine::busy()?;
        let transfer = bulk::run(lane, streams, time)?;
        let busy = machine::busy()?.saturating_sub(before);
        Ok([transfer.gigabits_per_second(), busy.as_secs_f64() * 1e9 / transfer.bytes as f64])
    })
}

fn slowloris(lanes: &[&Lane], rounds: usize, count: usize, progress: &Progress) -> Result<[Row; 2]> {
    progress.show("making the attackers");
    let attackers: Vec<_> =
        lanes.iter().map(|lane| Ok((lane.contender(), slowloris::attacker(lane)?))).collect::<Result<_>>()?;
    let whats = [
        ("a neighbour's p99, 16 connections at once".to_owned(), Unit::Microseconds, Goal::default()),
        (
            "… times, with 1,000 hellos begun beside it".to_owned(),
            Unit::Number,
            Goal { at_most: Some(1.1), ..Goal::AHEAD },
        ),
    ];
    compare_all(lanes, rounds, whats, progress, |lane| {
        let attacker = attackers.iter().find(|(who, _)| *who == lane.contender());
        let (_, attacker) = attacker.context("no attacker")?;
        slowloris::run(lane, attacker, count)
    })
}
