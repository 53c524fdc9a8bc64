//! Sandboxes that come and go, and what is left of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::stand::{CLIENTS, Stand, at_once};
use super::usage;

/// Makes and ends sandboxes, and looks what is left of them.
pub fn run(rounds: u32, binary: &Path) -> Result<String> {
    let stand = Stand::new(binary)?;
    let round = |count: usize| -> Result<()> {
        at_once(CLIENTS, count, |_| stand.kill(&stand.create()?.0)).map(drop)
    };
    round(200)?;
    let before = Holdings::of(&stand)?;
    let begun = Instant::now();
    round(rounds as usize)?;
    let took = begun.elapsed();
    // The kernel clears namespaces and tries a little later.
    thread::sleep(Duration::from_secs(3));
    let after = Holdings::of(&stand)?;
    Ok(format!(
        "{rounds} sandboxes made and ended in {:.0} s. What is in use before and after:\n\n{}",
        took.as_secs_f64(),
        Holdings::table(&[("before", &before), ("after", &after)])
    ))
}

/// What a daemon and its host have in use.
struct Holdings {
    resident_kib: u64,
    descriptors: usize,
    threads: usize,
    links: usize,
    namespaces: usize,
    pins: usize,
    files: usize,
    slab_kib: u64,
}

impl Holdings {
    fn of(stand: &Stand) -> Result<Self> {
        let process = usage::process(&stand.daemon)?;
        let count = |path: PathBuf| fs::read_dir(path).map(Iterator::count).unwrap_or(0);
        let namespaces = fs::read_dir("/run/netns")?.flatten();
        let ours = namespaces.filter(|entry| entry.file_name().to_string_lossy().starts_with("sbx-i"));
        Ok(Self {
            resident_kib: usage::resident(&process)?,
            descriptors: count(process.join("fd")),
            threads: count(process.join("task")),
            links: stand.topology.host().links()?.len(),
            namespaces: ours.count(),
            pins: count(stand.daemon.pins().join("links")),
            files: count(stand.daemon.state_dir().join("made"))
                + count(stand.daemon.state_dir().join("sandboxes")),
            slab_kib: usage::kernel(&["Slab"])?,
        })
    }

    fn table(rows: &[(&str, &Self)]) -> String {
        let mut table = String::from(
            "|  | daemon, KiB | descriptors | threads | links | namespaces | pins | files | kernel, KiB |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        for (name, held) in rows {
            let Self { resident_kib, descriptors, threads, links, namespaces, pins, files, slab_kib } = held;
            table.push_str(&format!(
                "| {name} | {resident_kib} | {descriptors} | {threads} | {links} | {namespaces} | {pins} | {files} \
                 | {slab_kib} |\n"
            ));
        }
        table
    }
}
