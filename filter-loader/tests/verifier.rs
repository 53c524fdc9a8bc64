//! The verifier accepts the programs, and does not have to look for long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod fixtures;

use std::collections::BTreeMap;
use std::path::Path;

use filter_loader::kernel::object::{classifier, load_object, lookup};
use fixtures::machine::{MARK, PATIENT, require_root};

const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../filter-ebpf/verifier-budget.toml");
const PROGRAMS: [&str; 5] = ["from_sandbox", "to_sandbox", "sweep", "inject", "to_inspector"];

#[test]
fn every_program_stays_within_its_budget() {
    require_root();
    let mut ebpf = load_object(None, &PATIENT, MARK).unwrap_or_else(|error| {
        // Too long for a terminal, and the end of it is what matters.
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verifier.log");
        std::fs::write(&log, format!("{error}\n{error:?}\n")).unwrap();
        panic!("the kernel does not take the programs; the verifier's log is in {}", log.display());
    });
    let text = std::fs::read_to_string(BUDGET).unwrap();
    let ceilings: BTreeMap<String, u32> = toml::from_str(&text).unwrap();
    assert_eq!(ceilings.len(), PROGRAMS.len(), "{BUDGET} names other programs than there are");
    let mut over = Vec::new();
    for name in PROGRAMS {
        let info = match name {
            "to_inspector" => lookup(&mut ebpf).unwrap().info().unwrap(),
            name => classifier(&mut ebpf, name).unwrap().info().unwrap(),
        };
        let count = info.verified_instruction_count().expect("Linux 5.16 tells how many there were");
        let ceiling = *ceilings.get(name).unwrap_or_else(|| panic!("{BUDGET} has no {name}"));
        let translated = info.size_translated().unwrap_or(0);
        println!(
            "{name:>12}: {count:>6} instructions verified of {ceiling:>6}, {translated} bytes translated"
        );
        if count > ceiling {
            over.push(format!("{name} needs {count} and may have {ceiling}"));
        }
    }
    assert!(over.is_empty(), "{}; if that is meant, raise it in {BUDGET}", over.join(", "));
}
