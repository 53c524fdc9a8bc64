//! Leaves nothing behind: every namespace, pin directory and working directory is noted here before it is made,
//! and removed on drop, on a signal, or, when this process was killed, by the next one that starts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

pub const NAMESPACES: &str = "/run/netns";
pub const BPFFS: &str = "/sys/fs/bpf";
pub const RUN: &str = "/run";
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

static TRACES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A name of this process that no other uses: `sf-<pid>-<n>-<role>`.
pub fn fresh_name(role: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("sf-{}-{}-{role}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Notes that `path` is about to be made.
pub fn note(path: &Path) {
    traces().insert(path.to_owned());
}

/// Removes what was noted; nothing there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    let mut traces = traces();
    traces.remove(path);
    remove_trace(path)
}

/// Once a process: checks that it may do its work, sweeps up after dead ones, and listens for signals.
pub fn start() -> Result<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| prepare().map_err(|error| format!("{error:#}")));
    started.clone().map_err(anyhow::Error::msg)
}

fn prepare() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "network namespaces need root: run `cargo xtask test` (or `cargo xtask demo`), which asks for it"
        );
    }
    fs::create_dir_all(NAMESPACES).with_context(|| format!("cannot create {NAMESPACES}"))?;
    mount_bpffs()?;
    // A test may hold some thousand connections, client's and server's end both.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    for directory in [NAMESPACES, BPFFS, RUN] {
        sweep(Path::new(directory));
    }
    if let Ok(groups) = control_groups() {
        sweep(&groups);
    }
    remove_on_signal()
}

fn mount_bpffs() -> Result<()> {
    let kind = nix::sys::statfs::statfs(BPFFS).with_context(|| format!("no {BPFFS}"))?.filesystem_type();
    if kind != nix::sys::statfs::BPF_FS_MAGIC {
        nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount bpffs on {BPFFS}"))?;
    }
    Ok(())
}

/// Removes what processes that are no more left in `directory`, and what one with our number did.
fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(owner) else { continue };
        let alive = Path::new(&format!("/proc/{owner}")).exists();
        if alive && owner != process::id() {
            continue;
        }
        // What cannot be removed now is tried again by the next process.
        if let Err(error) = remove_trace(&entry.path()) {
            eprintln!("warning: cannot remove {}: {error}", entry.path().display());
        }
    }
}

/// The process that made `sf-<pid>-…`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("sf-")?.split('-').next()?.parse().ok()
}

fn remove_on_signal() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen for signals")?;
    thread::Builder::new().name("janitor".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("Interrupted: cleaning up.");
            // Held until the end, so that no other thread makes anything new. Child processes, the daemon
            // among them, die with this process.
            let traces = traces();
            for path in &*traces {
                if let Err(error) = remove_trace(path) {
                    eprintln!("warning: cannot remove {}: {error}", path.display());
                }
            }
            process::exit(128 + signal);
        }
    })?;
    Ok(())
}

/// Where control groups are: version 2 of them, whether the machine has the others besides or not.
pub fn control_groups() -> Result<PathBuf> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let found = places.into_iter().find(|place| place.join("cgroup.procs").exists());
    found.context("no control groups (version 2): mount -t cgroup2 cgroup /sys/fs/cgroup")
}

fn remove_trace(path: &Path) -> io::Result<()> {
    if path.starts_with(CONTROL_GROUPS) {
        return remove_group(path);
    }
    let result = if path.starts_with(NAMESPACES) {
        // The namespace itself lives on until its last process or socket is gone; its name goes now.
        // Not mounted: the file alone is what is left.
        let _ = nix::mount::umount2(path, MntFlags::MNT_DETACH);
        fs::remove_file(path)
    } else {
        fs::remove_dir_all(path)
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a control group and those below it, and ends what is left in them.
fn remove_group(path: &Path) -> io::Result<()> {
    // Not there before Linux 5.14.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    for entry in fs::read_dir(path).into_iter().flatten() {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    // A process counts until the kernel has taken it apart.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            other => return gone(other),
        }
    }
}

fn traces() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // A set of paths is whole whatever thread panicked while it held the lock.
    TRACES.lock().unwrap_or_else(PoisonError::into_inner)
}
