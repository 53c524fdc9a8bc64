//! What the figures were taken on: nothing that tells one machine from another of its kind.

use std::fs;
use std::thread::available_parallelism;

use anyhow::{Context as _, Result};

/// One line about the machine. `nft` is what it is compared with, if anything.
pub fn describe(nft: Option<&str>) -> Result<String> {
    let cores = available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    // Behind the numbers there may be the name of whoever built it.
    let kernel: String = kernel.chars().take_while(|sign| sign.is_ascii_digit() || *sign == '.').collect();
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kibibytes: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .context("/proc/meminfo does not say how much memory there is")?;
    let number = nft.and_then(|text| text.split_whitespace().find(|word| word.starts_with('v')));
    let nft = number.map_or_else(|| "no nftables".to_owned(), |number| format!("nftables {number}"));
    Ok(format!(
        "{cores} cores ({}), {} GiB, Linux {kernel}, {nft}, load {:.1} before the run",
        std::env::consts::ARCH,
        (kibibytes + (1 << 19)) >> 20,
        load()?
    ))
}

/// How many tasks wanted to run, on average of the last minute.
pub fn load() -> Result<f64> {
    let loads = fs::read_to_string("/proc/loadavg")?;
    loads.split(' ').next().and_then(|load| load.parse().ok()).context("/proc/loadavg has no number")
}
