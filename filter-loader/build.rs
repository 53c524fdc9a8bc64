//! Takes the kernel programs into the binary.
//!
//! They are built by `cargo xtask build-ebpf`, not here: this script would have to build Rust's core
//! library again for every profile and every tool that looks at the crate.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let object = target.join("bpf/filter.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed=build.rs");
    let Some(out) = env::var_os("OUT_DIR") else {
        println!("cargo::error=cargo did not set OUT_DIR");
        return;
    };
    if let Err(error) = fs::copy(&object, Path::new(&out).join("filter.o")) {
        println!(
            "cargo::error=no kernel programs at {}: {error}. Build them first: cargo xtask build-ebpf",
            object.display()
        );
    }
}
