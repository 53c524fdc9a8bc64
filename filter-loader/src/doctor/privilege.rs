//! Whether this process may do what the daemon has to.

use super::{Finding, Status};

const CHECK: &str = "privilege";
/// Names and numbers of `linux/capability.h`.
const NEEDED: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38)];
/// Stands for CAP_BPF and CAP_PERFMON too.
const CAP_SYS_ADMIN: u32 = 21;

/// Looks at this process.
pub(super) fn finding() -> Finding {
    if !nix::unistd::geteuid().is_root() {
        return Finding::new(
            CHECK,
            Status::Failed,
            "not root: programs cannot be loaded; run it through sudo",
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing(&status);
    if missing.is_empty() {
        return Finding::new(CHECK, Status::Ok, "root, with the capabilities that it takes");
    }
    let missing = missing.join(", ");
    Finding::new(
        CHECK,
        Status::Failed,
        format!(
            "root without {missing}: programs cannot be loaded; give the container or unit these capabilities"
        ),
    )
}

/// The capabilities that `/proc/PID/status` does not have as effective.
fn missing(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let has = |number: u32| effective >> number & 1 == 1;
    let lacks = |(name, number): (&'static str, u32)| {
        let stands_in = number != 12 && has(CAP_SYS_ADMIN);
        (!has(number) && !stands_in).then_some(name)
    };
    NEEDED.into_iter().filter_map(lacks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing("CapEff:\t000001ffffffffff\n"), [""; 0]);
        assert_eq!(missing("CapEff:\t0000000000200000\n"), ["CAP_NET_ADMIN"]);
        assert_eq!(missing("CapEff:\t0000008000001000\n"), ["CAP_PERFMON"]);
        assert_eq!(missing("").len(), 3);
    }
}
