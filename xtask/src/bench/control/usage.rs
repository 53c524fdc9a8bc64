//! Memory in use, as the kernel tells it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use filter_tests::Daemon;

pub fn process(daemon: &Daemon) -> Result<PathBuf> {
    Ok(PathBuf::from(format!("/proc/{}", daemon.id().context("the daemon does not run")?)))
}

pub fn resident(process: &Path) -> Result<u64> {
    field(&fs::read_to_string(process.join("status"))?, "VmRSS")
}

pub fn kernel(names: &[&str]) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    names.iter().map(|name| field(&text, name)).sum()
}

/// Objects that the kernel has in use, in KiB; not the pages that they lie in, of which others of their kind keep
/// whole ones.
pub fn slab() -> Result<f64> {
    let text = fs::read_to_string("/proc/slabinfo").context("cannot read /proc/slabinfo")?;
    // name <active_objs> <num_objs> <objsize> … (slabinfo(5)), behind two lines of headings.
    let bytes = text.lines().skip(2).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let active: f64 = fields.next()?.parse().ok()?;
        let size: f64 = fields.nth(1)?.parse().ok()?;
        Some(active * size)
    });
    Ok(bytes.sum::<f64>() / 1024.0)
}

/// A line such as `VmRSS:   123 kB`.
fn field(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value
        .and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no {name}"))
}
