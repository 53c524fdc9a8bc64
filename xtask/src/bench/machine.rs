//! What the figures were taken on: nothing that tells one machine from another of its kind.

use std::fs;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// One line about the machine. `peers` are what it is compared with.
pub fn describe(peers: &[String]) -> Result<String> {
    let cores = available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    // Behind the numbers there may be the name of whoever built it.
    let kernel: String = kernel.chars().take_while(|sign| sign.is_ascii_digit() || *sign == '.').collect();
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kibibytes: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .context("/proc/meminfo does not say how much memory there is")?;
    Ok(format!(
        "{cores} cores ({}), {} GiB, Linux {kernel}{}, load {:.1} before the run",
        std::env::consts::ARCH,
        (kibibytes + (1 << 19)) >> 20,
        peers.iter().map(|peer| format!(", {peer}")).collect::<String>(),
        load()?
    ))
}

/// Says so where other work will show in the figures.
pub fn warn_if_busy() -> Result<()> {
    if load()? > 0.3 {
        eprintln!("warning: the machine is not quiet; ratios will scatter, absolute figures will be too bad");
    }
    Ok(())
}

/// How many tasks wanted to run, on average of the last minute.
fn load() -> Result<f64> {
    let loads = fs::read_to_string("/proc/loadavg")?;
    loads.split(' ').next().and_then(|load| load.parse().ok()).context("/proc/loadavg has no number")
}

/// Time that the processors of the machine have worked since it started, all of them together.
pub fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    // user nice system idle iowait irq softirq steal …, in hundredths of a second (proc(5)).
    let times: Vec<u64> = stat
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("cpu "))
        .map(|line| line.split_whitespace().map_while(|time| time.parse().ok()).collect())
        .unwrap_or_default();
    let &[user, nice, system, _, _, irq, softirq, ..] = times.as_slice() else {
        bail!("/proc/stat does not say how long the processors worked");
    };
    Ok(Duration::from_millis((user + nice + system + irq + softirq) * 10))
}

/// Bytes of memory that the kernel has for itself and does not give back when others need it.
pub fn kernel_memory() -> Result<u64> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let of = |wanted: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        number.with_context(|| format!("/proc/meminfo has no {wanted}"))
    };
    Ok((of("SUnreclaim")? + of("Percpu")? + of("PageTables")? + of("KernelStack")?) << 10)
}
