//! The table, for the terminal and for the documentation.

use std::fs;
use std::path::Path;

use anstyle::AnsiColor;
use anyhow::{Context as _, Result};

use super::compare::{Contender, Goal, Row, Unit, Verdict};

const END: &str = "<!-- up to here -->";

/// What a bench found.
#[derive(Debug)]
pub struct Report {
    /// The bench's name, as on the command line.
    pub bench: &'static str,
    /// Who has a column, in this order.
    pub contenders: Vec<Contender>,
    /// What it was found on, and remarks.
    pub machine: String,
    /// The table.
    pub rows: Vec<Row>,
}

impl Report {
    /// Prints the table; in colour on a terminal.
    pub fn print(&self) {
        let lines: Vec<_> =
            [self.head()].into_iter().chain(self.rows.iter().map(|row| self.cells(row))).collect();
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head().len()).map(width).collect();
        anstream::println!("\n{}\n", self.machine);
        for line in &lines {
            let mut text = String::new();
            for (place, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Numbers stand under each other; words begin at the same place.
                let padded =
                    if self.is_number(place) { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
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
    pub fn write(&self, path: &Path) -> Result<()> {
        replace(path, self.bench, &self.markdown())
    }

    fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let rules = (0..self.head().len()).map(|place| if self.is_number(place) { "---:" } else { "---" });
        let mut text = format!("{}\n\n{}", self.machine, line(self.head()));
        text.push_str(&format!("|{}|\n", rules.collect::<Vec<_>>().join("|")));
        text.extend(self.rows.iter().map(|row| line(self.cells(row))));
        text
    }

    fn head(&self) -> Vec<String> {
        let names = self.contenders.iter().map(ToString::to_string);
        let ratios = self.compared().map(|who| format!("{who} / none"));
        let ends = ["to reach", ""].map(str::to_owned);
        [String::new()].into_iter().chain(names).chain(ratios).chain(ends).collect()
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let none = || "—".to_owned();
        let value =
            |who: &Contender| row.median(*who).map_or_else(none, |median| absolute(row, *who, median));
        let ratio = |who: Contender| {
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
        let ends = [self.goal(row), verdict.to_owned()];
        [row.name.clone()]
            .into_iter()
            .chain(self.contenders.iter().map(value))
            .chain(self.compared().map(ratio))
            .chain(ends)
            .collect()
    }

    fn goal(&self, row: &Row) -> String {
        let Goal { ratio, at_most, ahead } = row.goal;
        let sign = if row.unit.is_yield() { '≥' } else { '≤' };
        let peers: Vec<_> = self.contenders.iter().filter(|who| who.is_peer()).collect();
        let peers = match peers.as_slice() {
            [one] => one.to_string(),
            _ => "both".to_owned(),
        };
        let parts = [
            ratio.map(|ratio| format!("{sign} {ratio:.2}")),
            at_most.map(|limit| format!("≤ {}", short(row.unit, limit))),
            ahead.then(|| format!("ahead of {peers}")),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Who has a ratio.
    fn compared(&self) -> impl Iterator<Item = Contender> {
        self.contenders.iter().copied().filter(|who| *who != Contender::Nothing)
    }

    /// Whether the column at `place` has figures: all but the row's name, its goal and the verdict.
    fn is_number(&self, place: usize) -> bool {
        (1..=self.contenders.len() + self.compared().count()).contains(&place)
    }
}

fn absolute(row: &Row, who: Contender, median: f64) -> String {
    match row.unit {
        Unit::Gigabits => format!("{median:.2} Gbit/s"),
        Unit::PerSecond => format!("{median:.0} /s"),
        Unit::Nanoseconds => format!("{median:.0} ns"),
        Unit::Microseconds => format!("{median:.0} µs"),
        Unit::Milliseconds => {
            let slowest = row.quantile(who, 0.99).unwrap_or(median);
            format!("{median:.1} ms (p99 {slowest:.1})")
        }
        Unit::CpuSeconds => format!("{median:.3} s"),
        Unit::Kilobytes => format!("{median:.1} kB"),
        Unit::Number => format!("{median:.2}"),
    }
}

/// A limit as people write it.
fn short(unit: Unit, limit: f64) -> String {
    match unit {
        Unit::Gigabits => format!("{limit} Gbit/s"),
        Unit::PerSecond => format!("{limit} /s"),
        Unit::Nanoseconds => format!("{limit} ns"),
        Unit::Microseconds => format!("{limit} µs"),
        Unit::Milliseconds => format!("{limit} ms"),
        Unit::CpuSeconds => format!("{limit} s"),
        Unit::Kilobytes => format!("{limit} kB"),
        Unit::Number => format!("{limit:.2}"),
    }
}

/// Puts what `bench` found between its marks in `path`.
pub fn replace(path: &Path, bench: &str, findings: &str) -> Result<()> {
    let begin = format!("<!-- `cargo xtask bench {bench} --write` replaces what follows -->");
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        parts.with_context(|| format!("{} lacks the lines {begin} and {END}", path.display()))?;
    let text = format!("{before}{begin}\n\n{findings}\n{END}{after}");
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A number of prefixes as people say it.
pub fn count(number: usize) -> String {
    match number {
        1_000_000.. => format!("{}M", number / 1_000_000),
        1_000.. => format!("{}k", number / 1_000),
        _ => number.to_string(),
    }
}
