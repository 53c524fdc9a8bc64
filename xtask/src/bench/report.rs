//! The table, for the terminal and for the documentation.

use std::fs;
use std::path::Path;

use anstyle::AnsiColor;
use anyhow::{Context as _, Result};

use super::compare::{Goal, Row, Unit, Verdict};
use super::lane::Contender;

const BEGIN: &str = "<!-- `cargo xtask bench dataplane --write` replaces what follows -->";
const END: &str = "<!-- up to here -->";

const HEAD: [&str; 8] = [
    "",
    "no filter",
    "sandbox-filter",
    "nftables",
    "sandbox-filter / none",
    "nftables / none",
    "to reach",
    "",
];

/// Prints the table; in colour on a terminal.
pub fn print(machine: &str, rows: &[Row]) {
    let lines: Vec<[String; 8]> =
        [HEAD.map(str::to_owned)].into_iter().chain(rows.iter().map(cells)).collect();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    anstream::println!("\n{machine}\n");
    for line in &lines {
        let mut text = String::new();
        for (place, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Numbers stand under each other; words begin at the same place.
            let padded =
                if (1..=5).contains(&place) { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            let colour = match cell.as_str() {
                "✓" => AnsiColor::Green.on_default(),
                "✗" => AnsiColor::Red.on_default().bold(),
                _ => anstyle::Style::new(),
            };
            text.push_str(&format!("{colour}{padded}{colour:#}  "));
        }
        anstream::println!("{}", text.trim_end());
    }
}

/// Puts the table between the marks in `path`.
pub fn write(path: &Path, machine: &str, rows: &[Row]) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        parts.with_context(|| format!("{} lacks the lines {BEGIN} and {END}", path.display()))?;
    let text = format!("{before}{BEGIN}\n\n{}\n{END}{after}", markdown(machine, rows));
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn markdown(machine: &str, rows: &[Row]) -> String {
    let line = |cells: &[String; 8]| format!("| {} |\n", cells.join(" | "));
    let mut text = format!("{machine}\n\n{}", line(&HEAD.map(str::to_owned)));
    text.push_str("|---|---:|---:|---:|---:|---:|---|---|\n");
    text.extend(rows.iter().map(|row| line(&cells(row))));
    text
}

fn cells(row: &Row) -> [String; 8] {
    let none = || "—".to_owned();
    let value = |who| row.median(who).map_or_else(none, |median| absolute(row, who, median));
    let ratio = |who| {
        let quartiles = [0.5, 0.25, 0.75].map(|share| row.ratio(who, share));
        let [Some(median), Some(low), Some(high)] = quartiles else { return none() };
        format!("{median:.3} ({low:.2}–{high:.2})")
    };
    let verdict = match row.verdict() {
        Some(Verdict::Reached) => "✓",
        Some(Verdict::Level) => "≈",
        Some(Verdict::Missed) => "✗",
        None => "",
    };
    [
        row.name.clone(),
        value(Contender::Nothing),
        value(Contender::Filter),
        value(Contender::Nftables),
        ratio(Contender::Filter),
        ratio(Contender::Nftables),
        goal(row),
        verdict.to_owned(),
    ]
}

fn absolute(row: &Row, who: Contender, median: f64) -> String {
    match row.unit {
        Unit::Gigabits => format!("{median:.2} Gbit/s"),
        Unit::Connections => format!("{median:.0} /s"),
        Unit::Nanoseconds => format!("{median:.0} ns"),
        Unit::Milliseconds => {
            let slowest = row.quantile(who, 0.99).unwrap_or(median);
            format!("{median:.1} ms (p99 {slowest:.1})")
        }
    }
}

fn goal(row: &Row) -> String {
    let Goal { ratio, at_most, ahead_of_nftables } = row.goal;
    let sign = if row.unit.is_yield() { '≥' } else { '≤' };
    let parts = [
        ratio.map(|ratio| format!("{sign} {ratio:.2}")),
        at_most.map(|limit| format!("≤ {limit:.0} ms")),
        ahead_of_nftables.then(|| "ahead of nftables".to_owned()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A number of prefixes as people say it.
pub fn count(number: usize) -> String {
    match number {
        1_000_000.. => format!("{}M", number / 1_000_000),
        1_000.. => format!("{}k", number / 1_000),
        _ => number.to_string(),
    }
}
