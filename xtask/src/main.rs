//! Commands of this repository: `cargo xtask <command>`.
//!
//! Each command is a module with an `Args` and a `run`. A failure is one line that says what to do.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build_ebpf;
mod demo;
mod dist;
mod fuzz;
mod lint;
mod test;
mod tool;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Commands of this repository", disable_help_subcommand = true)]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the kernel programs into target/bpf/filter.o (installs the linker and rust-src where missing)
    BuildEbpf,
    /// Run every test there is (needs root: asks sudo)
    Test(test::Args),
    /// Check formatting, lints, licences and sources of dependencies
    Lint,
    /// Run a parser of the inspector against inputs that nobody thought of (installs a C++ compiler where missing)
    Fuzz(fuzz::Args),
    /// Show the filter at work in network namespaces of its own, in half a minute (needs root: asks sudo)
    Demo(demo::Args),
    /// Make a Debian package and a tar archive in target/dist
    Dist(dist::Args),
    /// Measure the filter against no filter and nftables (needs root: asks sudo)
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let done = match Xtask::parse().command {
        Command::BuildEbpf => build_ebpf::run().map(|()| ExitCode::SUCCESS),
        Command::Test(args) => test::run(&args),
        Command::Lint => lint::run().map(|()| ExitCode::SUCCESS),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Dist(args) => dist::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => bench::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
