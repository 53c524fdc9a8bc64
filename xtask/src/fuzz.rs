//! `fuzz`: the inspector's parsers against inputs that nobody thought of.
//!
//! libFuzzer needs the branches of the code counted. The stable compiler does that when it is told how, so
//! neither a nightly one nor cargo-fuzz is asked for. Without AddressSanitizer: the parsers have no `unsafe`
//! that it could watch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::tool::{self, output};

/// How rustc counts branches for libFuzzer: LLVM's SanitizerCoverage pass and its options.
const COVERAGE: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // Counters of one function in two places are two branches to libFuzzer.
    "-Ccodegen-units=1",
];

/// No parser looks at more than 64 KiB and what comes behind.
const LONGEST: usize = 70_000;

/// What to fuzz.
#[derive(clap::Args)]
pub struct Args {
    /// The target: one of those in filter-inspector/fuzz/fuzz_targets, or `all`
    name: String,
    /// For how long, for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Builds the targets and runs them from the seeds in the repository; what fails is kept there.
pub fn run(args: &Args) -> Result<ExitCode> {
    let fuzz = tool::root().join("filter-inspector/fuzz");
    let names = names(&fuzz)?;
    let chosen: Vec<_> = names.iter().filter(|name| args.name == "all" || args.name == **name).collect();
    if chosen.is_empty() {
        bail!("there is no target {}; there are {}", args.name, names.join(", "));
    }
    tool::ensure(&[("c++", "g++")], "libFuzzer")?;
    let programs = build(&fuzz)?;
    let mut failed = Vec::new();
    for name in chosen {
        eprintln!("\n== {name}, for {} s", args.seconds);
        if !fuzz_one(&fuzz, &programs, name, args.seconds)? {
            failed.push(name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!(
            "failed: {}; the inputs are in filter-inspector/fuzz/crashes, and \
             `cargo test -p filter-inspector --test replay` tries them again",
            failed.join(", ")
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn names(fuzz: &Path) -> Result<Vec<String>> {
    let targets = fuzz.join("fuzz_targets");
    let entries = fs::read_dir(&targets).with_context(|| format!("cannot read {}", targets.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.path().file_stem().unwrap_or_default().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Builds all targets; gives the directory that they are in.
fn build(fuzz: &Path) -> Result<PathBuf> {
    let version = output(Command::new("rustc").arg("-vV"))?.unwrap_or_default();
    let Some(host) = version.lines().find_map(|line| line.strip_prefix("host: ")) else {
        bail!("`rustc -vV` does not say what machine this is; is Rust installed?");
    };
    let target = tool::target_dir().join("fuzz");
    let mut build = Command::new("cargo");
    build
        .current_dir(fuzz)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"));
    // With a target named, build scripts and macros are built without the counters, which need libFuzzer.
    build.args(["build", "--release", "--bins", "--target", host]);
    tool::run(&mut build, "the lines above say what to change")?;
    Ok(target.join(host).join("release"))
}

/// Whether nothing was found.
fn fuzz_one(fuzz: &Path, programs: &Path, name: &str, seconds: u32) -> Result<bool> {
    // What libFuzzer finds interesting is kept for the next run, but not in the repository.
    let found = tool::target_dir().join("fuzz/corpus").join(name);
    let crashes = fuzz.join("crashes").join(name);
    for directory in [&found, &crashes] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut run = Command::new(programs.join(name));
    run.args([&found, &fuzz.join("seeds").join(name), &crashes]);
    run.arg(format!("-artifact_prefix={}/", crashes.display()));
    run.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={LONGEST}"));
    // An input that takes longer is one that costs more than it should.
    run.args(["-timeout=5", "-print_final_stats=1"]);
    let status = run.status().with_context(|| format!("cannot start the target {name}"))?;
    // Git has no empty directories, so neither shall the work tree.
    _ = fs::remove_dir(&crashes);
    _ = fs::remove_dir(fuzz.join("crashes"));
    Ok(status.success())
}
