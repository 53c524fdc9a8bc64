//! `build-ebpf`: the kernel programs, from source to `target/bpf/filter.o`.
//!
//! They are a workspace of their own, for a target whose `core` has to be built from source. Stable Rust does
//! that when `RUSTC_BOOTSTRAP=1`; it is set here for the nested cargo only, so that no other build sees it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::tool::{self, output};

/// Newer releases want an LLVM of the machine; this one uses the LLVM that rustc brings along.
const BPF_LINKER: &str = "0.10.4";
const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// Builds the programs; cargo decides what has to be done again.
pub fn run() -> Result<()> {
    let sysroot = check_rustc()?;
    ensure_rust_src(&sysroot)?;
    let linker = ensure_linker()?;

    let mut path = vec![linker];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    tool::run(
        nested("cargo")
            .args(["build", "--release", "--bin", "filter"])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("PATH", env::join_paths(path).context("a directory in PATH has a colon in its name")?),
        "the lines above say why the kernel programs do not build",
    )?;
    install(&source().join("target/bpfel-unknown-none/release/filter"))
}

fn source() -> PathBuf {
    tool::root().join("filter-ebpf")
}

/// A command in the kernel programs' workspace, without what the outer cargo and its caller set for theirs.
/// The toolchain stays the caller's: `cargo +1.95.0 xtask build-ebpf` means what it says.
fn nested(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(source());
    let leaks = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTC"];
    let prefixes = ["CARGO_BUILD_", "CARGO_TARGET_", "CARGO_PROFILE_", "CARGO_PKG_", "CARGO_MANIFEST_"];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if leaks.contains(&&*text) || prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

fn check_rustc() -> Result<PathBuf> {
    let Some(version) = output(nested("rustc").arg("--version"))? else {
        bail!("no working rustc; install Rust with rustup (https://rustup.rs)");
    };
    // "rustc 1.95.0 (59807616e 2026-04-14)"
    let mut numbers = version.split([' ', '.']).skip(1).map_while(|part| part.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST_RUSTC {
        let (major, minor) = OLDEST_RUSTC;
        bail!("{version} is too old: {major}.{minor} or newer is needed; run `rustup update stable`");
    }
    let sysroot = output(nested("rustc").args(["--print", "sysroot"]))?.context("rustc has no sysroot")?;
    Ok(PathBuf::from(sysroot))
}

fn ensure_rust_src(sysroot: &Path) -> Result<()> {
    if sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        return Ok(());
    }
    eprintln!("The source of Rust's core library is missing: adding the component rust-src.");
    tool::run(
        nested("rustup").args(["component", "add", "rust-src"]),
        "the sources of Rust's core library are needed: check the network, or install your distribution's \
         rust-src package",
    )
}

/// The directory with a bpf-linker of the right version. Another version on the machine stays as it is.
fn ensure_linker() -> Result<PathBuf> {
    let wanted = format!("bpf-linker {BPF_LINKER}");
    let own = tool::target_dir().join("tools");
    for bin in env::split_paths(&env::var_os("PATH").unwrap_or_default()).chain([own.join("bin")]) {
        if output(nested("bpf-linker").env("PATH", &bin).arg("--version"))?.is_some_and(|it| it == wanted) {
            return Ok(bin);
        }
    }
    eprintln!("bpf-linker {BPF_LINKER} is missing: building it, which takes a minute, once.");
    tool::run(
        nested("cargo")
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--root"])
            .arg(&own),
        "the kernel programs cannot be linked without it: check the network, and run the command again",
    )?;
    Ok(own.join("bin"))
}

/// Copies the object to where the loader takes it from, without DWARF where the machine has llvm-strip: a
/// sixth of the size. BTF, which describes the maps to the kernel, stays.
fn install(built: &Path) -> Result<()> {
    let directory = tool::target_dir().join("bpf");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let (fresh, object) = (directory.join("filter.o.new"), directory.join("filter.o"));

    let stripped = output(Command::new("llvm-strip").arg("--strip-debug").arg("-o").arg(&fresh).arg(built))?;
    if stripped.is_none() {
        fs::copy(built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    }
    // An object that is as it was keeps its time stamp, so that the loader is not built again.
    if fs::read(&fresh)? == fs::read(&object).unwrap_or_default() {
        fs::remove_file(&fresh)?;
    } else {
        fs::rename(&fresh, &object).with_context(|| format!("cannot write {}", object.display()))?;
    }
    eprintln!("Kernel programs: {}", object.display());
    Ok(())
}
