//! What the maps cost: all of them when they are empty, and a sandbox that does nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod fixtures;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use filter_common::layout::{Budget, Counters, MAX_SANDBOXES, Sandbox, Throttle};
use fixtures::machine::{PATIENT, load};

/// Measured when this was written: see `the_maps_fit` with `--nocapture`. Most of it is the table
/// of connections, which is as large when it is empty; then the counters of all sandboxes that could be, and
/// the rings.
const CEILING: u64 = 68 << 20;
/// Of the arrays that have an entry a sandbox, and of a policy of its own.
const SANDBOX_CEILING: u64 = 1024;

/// Bytes that the kernel has allocated for a map.
fn memory(fd: BorrowedFd<'_>) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.expect("a map says what it takes").trim().parse().unwrap()
}

#[expect(clippy::wildcard_enum_match_arm, reason = "aya knows kinds of maps that nobody uses here")]
fn data(map: &Map) -> &MapData {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::RingBuf(data)
        | Map::SockMap(data)
        | Map::ArrayOfMaps(data) => data,
        _ => panic!("a map of a kind that this test does not know: {map:?}"),
    }
}

fn costs(ebpf: &Ebpf) -> Vec<(String, u64)> {
    let mut costs: Vec<(String, u64)> =
        ebpf.maps().map(|(name, map)| (name.to_owned(), memory(data(map).fd().as_fd()))).collect();
    costs.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    costs
}

#[test]
fn the_maps_fit() {
    let ebpf = load(&PATIENT);
    let costs = costs(&ebpf);
    let total: u64 = costs.iter().map(|(_, bytes)| bytes).sum();
    for (name, bytes) in &costs {
        println!("{name:>16} {bytes:>10} bytes");
    }
    println!("{:>16} {total:>10} bytes, at most {CEILING}", "all of them");
    assert!(costs.iter().all(|(_, bytes)| *bytes > 0), "a map that takes nothing");
    assert!(total <= CEILING, "the maps take {total} bytes; if that is meant, raise the ceiling");
}

#[test]
fn an_idle_sandbox_costs_next_to_nothing() {
    let ebpf = load(&PATIENT);
    let costs = costs(&ebpf);
    let arrays = ["SANDBOXES", "POLICY_WORDS", "BUDGETS", "COUNTERS", "THROTTLES"];
    let all: u64 =
        costs.iter().filter(|(name, _)| arrays.contains(&name.as_str())).map(|(_, bytes)| bytes).sum();
    let each = all / u64::from(MAX_SANDBOXES);
    println!("{each} bytes a sandbox, allocated for {MAX_SANDBOXES} when the maps are made");
    let entries = size_of::<Sandbox>() + size_of::<u64>() + size_of::<Budget>();
    let entries = (entries + size_of::<Counters>() + size_of::<Throttle>()) as u64;
    assert!(each >= entries, "an array that is left out here");
    assert!(each <= SANDBOX_CEILING, "{each} bytes a sandbox; if that is meant, raise the ceiling");
}
