//! `bench`: what the filter costs, next to no filter and to others of its kind, in one run on one machine.
//!
//! Everything runs in network namespaces that are gone afterwards; no packet leaves the machine. [`dataplane`],
//! [`names`], [`gateway`] and [`control`] have the rows. Each contender has a *lane* of its own ([`lane`], [`names::lane`]): the same
//! sandbox, host and internet, with another filter in between. [`compare`] measures the lanes in turn, and
//! [`report`] prints.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use self::report::Report;
use crate::{build_ebpf, tool};

mod client;
mod compare;
mod control;
mod dataplane;
mod flood;
mod gateway;
mod lane;
mod latency;
mod machine;
mod names;
mod nft;
mod prefixes;
mod report;
mod sys;
mod tcp;
mod transforms;

/// Options of the benches.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Throughput, connections, packets, updates: no filter, this filter and nftables side by side
    Dataplane(dataplane::Args),
    /// Connections and requests judged by name, updates: no filter, this filter, nginx and HAProxy side by side
    Names(names::Args),
    /// Requests that a header is set in: no filter, this filter, nginx, HAProxy and mitmproxy side by side
    Transforms(transforms::Args),
    /// Requests to sandboxes at their public URLs: asked directly, and through this gateway, nginx and HAProxy
    Gateway(gateway::Args),
    /// Making, updating and ending sandboxes through the API, by how many there are; memory of an idle one
    Control(control::Args),
}

/// What all benches can be told.
#[derive(clap::Args)]
struct Options {
    /// A few short rounds, nothing large: to see that it works, not what it says
    #[arg(long)]
    quick: bool,
    /// Rounds that each contender has in a row [with --quick fewer]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    rounds: Option<u8>,
    /// Put the table into this document, between its marks
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "quick"])]
    write: Option<PathBuf>,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

impl Options {
    fn rounds(&self, full: usize) -> usize {
        self.rounds.map_or(if self.quick { 3 } else { full }, usize::from)
    }

    fn publish(&self, report: &Report) -> Result<()> {
        report.print();
        self.write.as_ref().map_or(Ok(()), |path| report.write(path))
    }
}

impl Bench {
    fn options(&self) -> &Options {
        match self {
            Self::Dataplane(args) => args.options(),
            Self::Names(args) => args.options(),
            Self::Transforms(args) => args.options(),
            Self::Gateway(args) => args.options(),
            Self::Control(args) => args.options(),
        }
    }

    fn run(&self, binary: &Path) -> Result<ExitCode> {
        match self {
            Self::Dataplane(args) => dataplane::run(args, binary),
            Self::Names(args) => names::run(args, binary),
            Self::Transforms(args) => transforms::run(args, binary),
            Self::Gateway(args) => gateway::run(args, binary),
            Self::Control(args) => control::run(args, binary),
        }
    }
}

/// Builds what is missing, becomes root, and measures.
pub fn run(args: &Args) -> Result<ExitCode> {
    let bench = &args.bench;
    match bench.options().binary.as_deref() {
        // The generators must be fast, so they come out of a release build as well.
        Some(binary) if !cfg!(debug_assertions) => bench.run(binary),
        given => {
            let binary = match given {
                Some(path) => {
                    path.canonicalize().with_context(|| format!("no binary at {}", path.display()))?
                }
                None => tool::target_dir().join("release/sandbox-filter"),
            };
            build(given.is_none())?;
            Err(start_again(&tool::target_dir().join("release/xtask"), given.is_none().then_some(&binary)))
        }
    }
}

fn build(daemon_too: bool) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(tool::root()).args(["build", "--release", "--package", "xtask", "--bin", "xtask"]);
    if daemon_too {
        build_ebpf::run()?;
        cargo.args(["--package", "filter-loader", "--bin", "sandbox-filter"]);
    }
    tool::run(&mut cargo, "the lines above say why it does not build")
}

/// Starts the release build with the same arguments, as root. Returns only on failure.
fn start_again(program: &Path, binary: Option<&PathBuf>) -> anyhow::Error {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new(program)
    } else {
        eprintln!("The bench makes network namespaces, which needs root: asking sudo.");
        let mut sudo = Command::new("sudo");
        sudo.arg("--").arg(program);
        sudo
    };
    command.args(std::env::args_os().skip(1));
    command.args(binary.into_iter().flat_map(|path| ["--binary".as_ref(), path.as_os_str()]));
    let error = command.exec();
    anyhow::Error::new(error).context("cannot start the release build; run the bench as root")
}
