//! `demo`: the filter at work, in half a minute, on a machine that has nothing but Rust.
//!
//! Everything runs in network namespaces that are gone afterwards; no packet leaves the machine. Each act shows
//! what was really observed and notes where that is not what should be, which makes the exit code non-zero.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::{build_ebpf, tool};
use paint::{Style, say};
use stage::Stage;

mod counters;
mod limit;
mod names;
mod paint;
mod public;
mod reach;
mod stage;
mod transfer;
mod update;

/// Options of the demo.
#[derive(clap::Args)]
pub struct Args {
    /// Show this binary instead of building one
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// Builds what is missing, becomes root, and plays the acts.
pub fn run(args: &Args) -> Result<ExitCode> {
    let binary = match &args.binary {
        Some(path) => path.canonicalize().with_context(|| format!("no binary at {}", path.display()))?,
        None => build()?,
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(become_root(&binary));
    }
    play(&binary)
}

/// What was observed and should not be.
#[derive(Default)]
pub struct Findings(Vec<String>);

impl Findings {
    /// Notes `what` unless it holds.
    pub fn expect(&mut self, holds: bool, what: impl Into<String>) {
        if !holds {
            self.0.push(what.into());
        }
    }
}

fn play(binary: &Path) -> Result<ExitCode> {
    let start = Instant::now();
    let mut findings = Findings::default();
    let stage = Stage::build(binary)?;
    reach::play(&stage, &mut findings)?;
    update::play(&stage, &mut findings)?;
    limit::play(&stage, &mut findings)?;
    names::play(&stage, &mut findings)?;
    public::play(&stage, &mut findings)?;
    counters::play(&stage, &mut findings)?;
    drop(stage);

    let seconds = start.elapsed().as_secs_f32();
    if findings.0.is_empty() {
        say(Style::Good, &format!("\nAll as it should be, in {seconds:.1} s. Everything is cleaned up."));
        return Ok(ExitCode::SUCCESS);
    }
    say(Style::Bad, &format!("\nNot as it should be ({seconds:.1} s):"));
    for finding in &findings.0 {
        say(Style::Bad, &format!("  - {finding}"));
    }
    Ok(ExitCode::FAILURE)
}

fn build() -> Result<PathBuf> {
    build_ebpf::run()?;
    tool::run(
        Command::new("cargo").current_dir(tool::root()).args([
            "build",
            "--release",
            "--package",
            "filter-loader",
            "--bin",
            "sandbox-filter",
        ]),
        "the lines above say why the daemon does not build",
    )?;
    Ok(tool::target_dir().join("release/sandbox-filter"))
}

/// Starts the demo again under sudo, without cargo: nothing is built as root. Returns only on failure.
fn become_root(binary: &Path) -> anyhow::Error {
    eprintln!("The demo makes network namespaces, which needs root: asking sudo.");
    let this = match std::env::current_exe() {
        Ok(path) => path,
        Err(error) => return error.into(),
    };
    let error = Command::new("sudo").arg("--").arg(this).args(["demo", "--binary"]).arg(binary).exec();
    anyhow::Error::new(error).context("cannot start sudo; run `cargo xtask demo` as root")
}
