//! Whether this host can do what the filter needs, and whether it is doing it.

use std::path::Path;

use aya::util::KernelVersion;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::Config;
use crate::daemon::Core;
use crate::error::ControlError;
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
        privilege(),
        kernel_version(),
        btf(),
        bpffs(&config.paths.bpffs_dir),
        pinned_maps(config),
        forwarding(),
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
    for summary in core.list()? {
        let check = format!("sandbox {}", summary.id);
        findings.push(if !summary.enforced {
            Finding::new(
                check,
                Status::Failed,
                format!(
                    "{} is not filtered as asked for; restart the daemon, or detach and attach it",
                    summary.iface
                ),
            )
        } else if summary.addrs.is_empty() {
            Finding::new(
                check,
                Status::Warning,
                "enforced, but its source addresses are not checked (--addr any)",
            )
        } else {
            Finding::new(
                check,
                Status::Ok,
                format!("generation {} enforced on {}", summary.generation, summary.iface),
            )
        });
    }
    findings.extend(core.way_to_inspector()?);
    let lost = core.kernel.sandboxes.events_lost()?;
    if lost > 0 {
        findings.push(Finding::new(
            "events",
            Status::Warning,
            format!("{lost} were lost: the ring was full"),
        ));
    }
    Ok(json!(findings))
}

fn privilege() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::new("privilege", Status::Ok, "root")
    } else {
        Finding::new("privilege", Status::Failed, "not root: programs cannot be loaded; run it through sudo")
    }
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
