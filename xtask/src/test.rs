//! `test`: every tier, one command.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::tool::{self, output};

/// A part of the tests, cheapest first.
struct Tier {
    name: &'static str,
    what: &'static [&'static str],
}

const TIERS: &[Tier] = &[
    Tier {
        name: "unit and property tests",
        what: &[
            "-p",
            "filter-common",
            "-p",
            "filter-policy",
            "-p",
            "filter-inspector",
            "-p",
            "filter-gateway",
            "-p",
            "xtask",
            "--all-targets",
        ],
    },
    Tier { name: "loader", what: &["-p", "filter-loader", "--lib", "--bins"] },
    Tier { name: "packet fixtures, verifier, memory, layout", what: &["-p", "filter-loader", "--test", "*"] },
    Tier { name: "network namespaces and guests", what: &["-p", "filter-tests"] },
];

/// Which tests.
#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// Runs all tiers, also when one fails, and says which did.
pub fn run(args: &Args) -> Result<ExitCode> {
    let runner = root_runner()?;
    tool::ensure(filter_tests::PROGRAMS, "`cargo xtask test`")?;
    crate::build_ebpf::run()?;
    tool::run(
        Command::new("cargo").current_dir(tool::root()).args(["build", "-p", "filter-loader"]),
        "the daemon does not build",
    )?;
    let daemon = tool::target_dir().join("debug/sandbox-filter");
    let mut failed = Vec::new();
    for tier in TIERS {
        eprintln!("\n== {}", tier.name);
        let begun = Instant::now();
        let mut command = Command::new("cargo");
        command.current_dir(tool::root()).arg("test").args(tier.what).arg("--no-fail-fast");
        command.env("SANDBOX_FILTER_BIN", &daemon);
        command.envs(runner.clone());
        command.args(args.filter.iter().flat_map(|filter| ["--", filter]));
        let passed = command.status()?.success();
        eprintln!(
            "== {}: {} in {:.0?}",
            tier.name,
            if passed { "passed" } else { "FAILED" },
            begun.elapsed()
        );
        if !passed {
            failed.push(tier.name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}; the lines above say what", failed.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

/// What makes cargo start each test as root: nothing is built as root, and nothing but tests runs so.
fn root_runner() -> Result<Option<(String, String)>> {
    if nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    if output(Command::new("sudo").arg("--version"))?.is_none() {
        bail!("the tests load programs into the kernel and there is no sudo; run `cargo xtask test` as root");
    }
    eprintln!("The tests load programs into the kernel and make network namespaces: asking sudo for each.");
    let version = output(Command::new("rustc").arg("-vV"))?.unwrap_or_default();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    let key = format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_"));
    Ok(Some((key, "sudo --preserve-env --".to_owned())))
}
