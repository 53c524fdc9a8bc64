//! `bench dataplane`: the rows, in order.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::compare::{Contender, Goal, Ground as _, Progress, Row, Unit, compare};
use super::flood::{self, Flows};
use super::lane::Lane;
use super::prefixes::Prefixes;
use super::report::{self, Report};
use super::{Options, latency, machine, nft, tcp};

/// Who is compared.
const CONTENDERS: [Contender; 3] = [Contender::Nothing, Contender::Filter, Contender::Nftables];

/// What to measure and how long.
#[derive(clap::Args)]
pub struct Args {
    /// Only these rows
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<Part>,
    /// Numbers of prefixes in the rows of flows
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10, 1_000, 100_000, 1_000_000])]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    prefixes: Vec<u32>,
    #[command(flatten)]
    options: Options,
}

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// One TCP stream, segmentation offload on
    BulkGso,
    /// One TCP stream of 1500-byte packets
    #[value(name = "bulk-1500")]
    Bulk1500,
    /// Connections a second
    Connections,
    /// Packets of known flows, by number of prefixes
    CachedFlow,
    /// Packets of new flows, by number of prefixes
    NewFlow,
    /// Replacing a policy, by number of prefixes
    Replace,
    /// Attaching and detaching
    Attach,
    /// 100 updates at once
    Crowd,
}

impl Args {
    /// What all benches can be told.
    pub fn options(&self) -> &Options {
        &self.options
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn latency_rounds(&self) -> usize {
        if self.options.quick { 6 } else { 20 }
    }

    fn packets(&self, full: usize) -> usize {
        if self.options.quick { full / 5 } else { full }
    }
}

/// Builds the lanes, measures, prints.
pub fn run(args: &Args, binary: &Path) -> Result<ExitCode> {
    let nft =
        nft::version().inspect_err(|error| eprintln!("warning: nftables is not compared: {error:#}")).ok();
    let machine =
        machine::describe(&[nft.as_deref().map_or_else(|| "no nftables".to_owned(), nft::short_version)])?;
    machine::warn_if_busy()?;
    let progress = Progress::new();
    progress.show("making the lanes");
    let contenders = CONTENDERS.into_iter().filter(|who| nft.is_some() || *who != Contender::Nftables);
    let lanes: Vec<Lane> = contenders
        .map(|who| Lane::build(who, binary).with_context(|| format!("the lane of {who}")))
        .collect::<Result<_>>()?;

    let rows = measure(args, &lanes, &progress).inspect_err(|_| {
        let log = lanes.iter().find_map(Lane::log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        last.iter().rev().for_each(|line| eprintln!("\ndaemon: {line}"));
    })?;
    let start = if args.wants(Part::Replace) { latency::nft_start(&lanes, 9)? } else { None };
    let remark =
        start.map(|start| format!(". Of each nftables replacement {start:.1} ms are `nft` starting"));
    let machine = format!("{machine}{}.", remark.unwrap_or_default());
    drop(lanes);
    drop(progress);
    let report = Report { bench: "dataplane", contenders: CONTENDERS.to_vec(), machine, rows };
    args.options.publish(&report)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &Args, lanes: &[Lane], progress: &Progress) -> Result<Vec<Row>> {
    let all: Vec<&Lane> = lanes.iter().collect();
    let rounds = args.options.rounds(9);
    let time = Duration::from_millis(if args.options.quick { 500 } else { 1500 });
    let mut rows = Vec::new();

    for lane in lanes {
        lane.segmentation_offload(true)?;
    }
    if args.wants(Part::BulkGso) {
        let what = ("TCP, segmentation offload".to_owned(), Unit::Gigabits, Goal::ratio(0.97));
        rows.push(compare(&all, rounds, what, progress, |lane| tcp::bulk(lane, time))?);
    }
    for lane in lanes {
        lane.segmentation_offload(false)?;
    }
    if args.wants(Part::Bulk1500) {
        let what = ("TCP, 1500-byte packets".to_owned(), Unit::Gigabits, Goal::ratio(0.95));
        rows.push(compare(&all, rounds, what, progress, |lane| tcp::bulk(lane, time))?);
    }
    if args.wants(Part::Connections) {
        let count = args.packets(10_000);
        let what = ("TCP connections".to_owned(), Unit::PerSecond, Goal::ratio(0.97));
        rows.push(compare(&all, rounds, what, progress, |lane| tcp::connections(lane, count))?);
    }
    rows.extend(packets(args, lanes, progress)?);
    rows.extend(latencies(args, lanes, progress)?);
    Ok(rows)
}

/// Known and new flows, at each number of prefixes.
fn packets(args: &Args, lanes: &[Lane], progress: &Progress) -> Result<Vec<Row>> {
    let (mut known, mut new) = (Vec::new(), Vec::new());
    if !args.wants(Part::CachedFlow) && !args.wants(Part::NewFlow) {
        return Ok(known);
    }
    for size in args.prefixes.iter().map(|size| *size as usize) {
        if args.options.quick && size > 100_000 {
            continue;
        }
        let prefixes = Prefixes::random(size);
        let size = report::count(size);
        let mut ready = Vec::new();
        for lane in lanes {
            progress.show(&format!("{size} prefixes into {}", lane.contender()));
            if lane.allow(&prefixes)? {
                ready.push(lane);
            }
        }
        if args.wants(Part::CachedFlow) {
            let count = args.packets(400_000);
            let what = (format!("cached flow, {size} prefixes"), Unit::Nanoseconds, Goal::ratio(1.08));
            known.push(compare(&ready, args.options.rounds(9), what, progress, |lane| {
                flood::run(lane, Flows::Known, &prefixes, count)
            })?);
        }
        if args.wants(Part::NewFlow) {
            let count = args.packets(150_000);
            let what = (format!("new flow, {size} prefixes"), Unit::Nanoseconds, Goal::AHEAD);
            new.push(compare(&ready, args.options.rounds(9), what, progress, |lane| {
                flood::run(lane, Flows::New, &prefixes, count)
            })?);
        }
    }
    known.extend(new);
    Ok(known)
}

fn latencies(args: &Args, lanes: &[Lane], progress: &Progress) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if args.wants(Part::Replace) {
        for (size, goal) in
            [(10, Goal::AHEAD), (1_000, Goal::AHEAD), (10_000, Goal::at_most(40.0)), (100_000, Goal::AHEAD)]
        {
            rows.push(latency::replace(lanes, size, args.latency_rounds(), goal, progress)?);
        }
    }
    let filter = lanes.iter().find_map(|lane| Some((lane, lane.control()?)));
    let Some((lane, control)) = filter else { return Ok(rows) };
    if args.wants(Part::Attach) {
        rows.extend(latency::attach(lane, control, args.latency_rounds(), progress)?);
    }
    if args.wants(Part::Crowd) {
        rows.push(latency::crowd(lane, control, args.options.rounds(9).min(5), progress)?);
    }
    Ok(rows)
}
