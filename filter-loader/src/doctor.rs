//! Whether this host can do what the filter needs, and whether it is doing it.

mod firewall;
mod privilege;

use std::path::Path;

use aya::util::KernelVersion;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::Config;
use crate::daemon::Core;
use crate::daemon::registry::Sandbox;
use crate::error::ControlError;
use crate::kernel::links::links_dir;
use crate::kernel::object::{foreign_maps, maps_dir};

/// How a finding stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, but worth knowing.
    Warning,
    /// Does not work.
    Failed,
}

impl Status {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Finding {
    /// What.
    pub check: String,
    /// How it stands.
    pub status: Status,
    /// What was found and, unless it is as it should be, what to do.
    pub detail: String,
}

impl Finding {
    /// A finding.
    pub fn new(check: impl Into<String>, status: Status, detail: impl Into<String>) -> Self {
        Self { check: check.into(), status, detail: detail.into() }
    }
}

/// Looks at the host. Needs no daemon.
pub fn of_host(config: &Config) -> Vec<Finding> {
    vec![
        privilege::finding(),
        kernel_version(),
        btf(),
        bpffs(&config.paths.bpffs_dir),
        pinned_maps(config),
        pinned_links(config),
        forwarding(),
        firewall::finding(&config.inspector.marks),
    ]
}

/// Looks at a running daemon from inside: what every sandbox should have, and has.
///
/// # Errors
/// If the kernel's maps cannot be read.
pub fn of_daemon(core: &Core) -> Result<Value, ControlError> {
    let mut findings = Vec::new();
    let hook = if core.kernel.links.is_tcx() { "TCX links, pinned" } else { "clsact filters" };
    findings.push(Finding::new("attachment", Status::Ok, hook));
    for sandbox in core.registry.all() {
        findings.push(of_sandbox(core, &sandbox)?);
    }
    findings.extend(leftovers(core)?);
    findings.extend(core.way_to_inspector()?);
    let lost = core.kernel.sandboxes.events_lost()?;
    if lost > 0 {
        findings.push(Finding::new(
            "events",
            Status::Warning,
            format!("{lost} were lost, ever: the ring was full; the daemon had too little time, or was away"),
        ));
    }
    Ok(json!(findings))
}

/// How what is enforced for a sandbox compares with what is wanted.
fn of_sandbox(core: &Core, sandbox: &Sandbox) -> Result<Finding, ControlError> {
    let check = format!("sandbox {}", sandbox.id);
    let failed = |what: &str| {
        let detail = format!("{} {what}; restart the daemon, or detach and attach it", sandbox.iface);
        Ok(Finding::new(check.clone(), Status::Failed, detail))
    };
    let in_force = sandbox.in_force();
    if !core.kernel.links.are_attached(sandbox.id.as_str(), &sandbox.iface) {
        return failed("is not filtered: its programs or their pins are gone");
    }
    let entry = core.kernel.sandboxes.on_interface(sandbox.ifindex)?;
    if entry.is_none_or(|entry| entry.tenant != sandbox.tenant || entry.slot != sandbox.slot) {
        return failed("is not known to the kernel as its own: everything is dropped");
    }
    let word = core.kernel.words.load(sandbox.slot);
    let lease = in_force.lease.as_ref();
    if word.generation() != in_force.generation || lease.is_none_or(|lease| lease.slot() != word.slot()) {
        return failed("is judged by another policy than the one that is wanted");
    }
    if let Some(lease) = lease
        && !core.kernel.policies.holds(lease)?
    {
        return failed("is judged by a policy that somebody else has written");
    }
    if in_force.wanted.is_some() {
        let detail =
            "everything is allowed to learn what it does; ending `learn` puts its own policy in force";
        return Ok(Finding::new(check, Status::Warning, detail));
    }
    if !sandbox.is_checked() {
        let detail =
            "enforced, but its source addresses are not checked (--addr any); attach it with --addr IP";
        return Ok(Finding::new(check, Status::Warning, detail));
    }
    let detail = format!("generation {} enforced on {}", in_force.generation, sandbox.iface);
    Ok(Finding::new(check, Status::Ok, detail))
}

/// Pins of sandboxes that nobody knows.
fn leftovers(core: &Core) -> Result<Option<Finding>, ControlError> {
    let known = core.registry.all();
    let mut unknown = core.kernel.links.pinned()?;
    unknown.retain(|name| !known.iter().any(|sandbox| sandbox.id.as_str() == name));
    Ok((!unknown.is_empty()).then(|| {
        let detail = format!("{} are nobody's; restart the daemon, which removes them", unknown.join(", "));
        Finding::new("pins", Status::Warning, detail)
    }))
}

fn kernel_version() -> Finding {
    /// Timers in maps, batch writes to tries, going through a map, coarse clocks.
    const NEEDED: KernelVersion = KernelVersion::new(5, 17, 0);
    const TCX: KernelVersion = KernelVersion::new(6, 6, 0);
    match KernelVersion::current() {
        Ok(version) if version >= TCX => Finding::new("kernel", Status::Ok, release()),
        Ok(version) if version >= NEEDED => Finding::new(
            "kernel",
            Status::Warning,
            format!("{}: no TCX before 6.6, clsact filters are used instead", release()),
        ),
        Ok(_) => Finding::new(
            "kernel",
            Status::Failed,
            format!("{}: the programs need 5.17 or later; boot a newer kernel", release()),
        ),
        Err(error) => Finding::new("kernel", Status::Failed, format!("its version cannot be read: {error}")),
    }
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Finding::new("BTF", Status::Ok, "the kernel describes its types")
    } else {
        Finding::new(
            "BTF",
            Status::Warning,
            "/sys/kernel/btf/vmlinux is missing: maps with timers need a kernel built with CONFIG_DEBUG_INFO_BTF",
        )
    }
}

fn bpffs(dir: &Path) -> Finding {
    use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    if statfs(existing).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        Finding::new("bpffs", Status::Ok, dir.display().to_string())
    } else {
        Finding::new(
            "bpffs",
            Status::Failed,
            format!("{} is not on a BPF file system; mount -t bpf bpf /sys/fs/bpf", dir.display()),
        )
    }
}

fn pinned_maps(config: &Config) -> Finding {
    let bpffs = &config.paths.bpffs_dir;
    match foreign_maps(bpffs) {
        Ok(None) if maps_dir(bpffs).exists() => Finding::new("maps", Status::Ok, "pinned"),
        Ok(None) => Finding::new("maps", Status::Ok, "none yet"),
        Ok(Some((path, found))) => Finding::new(
            "maps",
            Status::Failed,
            format!(
                "{} has layout {found}, this version another; run that version, or clean up with cleanup --force",
                path.display()
            ),
        ),
        Err(error) => Finding::new("maps", Status::Failed, error.to_string()),
    }
}

fn pinned_links(config: &Config) -> Finding {
    let pinned = std::fs::read_dir(links_dir(&config.paths.bpffs_dir)).map_or(0, Iterator::count);
    let running = std::os::unix::net::UnixStream::connect(&config.paths.socket).is_ok();
    if pinned > 0 && !running {
        let detail = format!(
            "{pinned} sandboxes are filtered without a daemon at {}: connections by name are refused; start it",
            config.paths.socket.display()
        );
        return Finding::new("links", Status::Warning, detail);
    }
    Finding::new("links", Status::Ok, format!("of {pinned} sandboxes pinned"))
}

fn forwarding() -> Finding {
    let on = |path| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
    if on("/proc/sys/net/ipv4/ip_forward") {
        Finding::new("forwarding", Status::Ok, "on")
    } else {
        Finding::new(
            "forwarding",
            Status::Warning,
            "net.ipv4.ip_forward is 0: allowed packets go no further than this host; sysctl -w net.ipv4.ip_forward=1",
        )
    }
}
