//! The table, row by row.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::fixtures::machine::Machine;
use crate::fixtures::table::{Fixture, all, check};

/// Rows are dealt out to a few tests, so that they run side by side.
const PARTS: usize = 4;

fn run(part: usize) {
    let mut machine = Machine::new();
    let rows: Vec<Fixture> = all().into_iter().skip(part).step_by(PARTS).collect();
    let mut failed = Vec::new();
    for row in &rows {
        // A row that fails does not keep the others from being run.
        if catch_unwind(AssertUnwindSafe(|| check(&mut machine, row))).is_err() {
            eprintln!("^^^ {}", row.name);
            failed.push(row.name.as_str());
        }
    }
    assert!(failed.is_empty(), "{} of {} rows fail:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

#[test]
fn every_row_holds_1() {
    run(0);
}

#[test]
fn every_row_holds_2() {
    run(1);
}

#[test]
fn every_row_holds_3() {
    run(2);
}

#[test]
fn every_row_holds_4() {
    run(3);
}

#[test]
fn rows_have_names_of_their_own() {
    let mut names: Vec<String> = all().into_iter().map(|row| row.name).collect();
    names.sort_unstable();
    let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect();
    assert!(twice.is_empty(), "{twice:?}");
}
