//! `lint`: what a machine can say about the code without running it.

use std::process::Command;

use anyhow::Result;

use crate::tool::{self, output};

/// Of cargo-deny.
const DENY: &str = "0.20.2";

/// Checks everything; the first thing that is wrong ends it.
pub fn run() -> Result<()> {
    crate::build_ebpf::run()?;
    for directory in [tool::root().to_owned(), tool::root().join("filter-ebpf")] {
        let mut format = Command::new("cargo");
        format.current_dir(directory).args(["fmt", "--all", "--check"]);
        tool::run(&mut format, "`cargo fmt --all` there puts it right")?;
    }
    tool::run(
        Command::new("cargo").current_dir(tool::root()).args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
        "the lines above say what to change",
    )?;
    tool::run(
        Command::new("cargo").current_dir(tool::root()).env("RUSTDOCFLAGS", "-D warnings").args([
            "doc",
            "--workspace",
            "--no-deps",
            "--quiet",
        ]),
        "the lines above say what to change",
    )?;
    deny()
}

/// Licences, duplicate and banned crates, sources. Advisories need a database from the network, which not
/// every machine reaches: `cargo deny check advisories` asks for those.
fn deny() -> Result<()> {
    if output(Command::new("cargo-deny").arg("--version"))?.is_none() {
        eprintln!("cargo-deny is missing: building it, which takes some minutes, once.");
        tool::run(
            Command::new("cargo").args(["install", "cargo-deny", "--version", DENY, "--locked"]),
            "the dependencies cannot be checked without it: check the network, and run the command again",
        )?;
    }
    for directory in [tool::root().to_owned(), tool::root().join("filter-ebpf")] {
        let mut check = Command::new("cargo");
        check.current_dir(&directory).args(["deny", "--config"]).arg(tool::root().join("deny.toml"));
        check.args(["check", "bans", "licenses", "sources"]);
        tool::run(&mut check, "the lines above name the dependency")?;
    }
    Ok(())
}
