//! `bench`: what the filter costs, next to no filter and to nftables, in one run on one machine.
//!
//! Everything runs in network namespaces that are gone afterwards; no packet leaves the machine. [`dataplane`]
//! has the rows. Each contender has a *lane* of its own ([`lane`]): the same sandbox, host and internet, with
//! another filter in between. [`compare`] measures the lanes in turn, and [`report`] prints.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::{build_ebpf, tool};

mod compare;
mod control;
mod dataplane;
mod flood;
mod lane;
mod latency;
mod machine;
mod nft;
mod prefixes;
mod report;
mod sys;
mod tcp;

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
}

/// Builds what is missing, becomes root, and measures.
pub fn run(args: &Args) -> Result<ExitCode> {
    let Bench::Dataplane(args) = &args.bench;
    match args.binary() {
        // The generators must be fast, so they come out of a release build as well.
        Some(binary) if !cfg!(debug_assertions) => dataplane::run(args, binary),
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
    anyhow::Error::new(error)
        .context("cannot start the release build; run `cargo xtask bench dataplane` as root")
}
