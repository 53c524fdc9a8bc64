//! Fair comparison: the contenders take turns in every round, so that whatever else the machine does hits all
//! of them, and the figure is the ratio within a round.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};

use super::lane::{Contender, Lane};

/// What a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Gigabits a second.
    Gigabits,
    /// Connections a second.
    Connections,
    /// Nanoseconds a packet.
    Nanoseconds,
    /// Milliseconds from asking to being enforced.
    Milliseconds,
}

impl Unit {
    /// Whether more of it is better.
    pub fn is_yield(self) -> bool {
        match self {
            Self::Gigabits | Self::Connections => true,
            Self::Nanoseconds | Self::Milliseconds => false,
        }
    }
}

/// What the product shall reach in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goal {
    /// The ratio to no filter: at least so much of a yield, at most so much of a cost.
    pub ratio: Option<f64>,
    /// At most so much, in the row's unit.
    pub at_most: Option<f64>,
    /// Better than nftables.
    pub ahead_of_nftables: bool,
}

impl Goal {
    /// Better than nftables, and nothing else.
    pub const AHEAD: Self = Self { ratio: None, at_most: None, ahead_of_nftables: true };

    /// Better than nftables, and close enough to no filter.
    pub const fn ratio(ratio: f64) -> Self {
        Self { ratio: Some(ratio), ..Self::AHEAD }
    }

    /// Better than nftables, and quick.
    pub const fn at_most(limit: f64) -> Self {
        Self { at_most: Some(limit), ..Self::AHEAD }
    }
}

/// What was measured: a sample a round for each contender that took part.
#[derive(Debug)]
pub struct Row {
    /// What it is about.
    pub name: String,
    /// Of the samples.
    pub unit: Unit,
    /// What the product shall reach.
    pub goal: Goal,
    samples: Vec<(Contender, Vec<f64>)>,
}

impl Row {
    /// A row of samples. Those with the same place in their lists were taken one after the other.
    pub fn new(name: impl Into<String>, unit: Unit, goal: Goal, samples: Vec<(Contender, Vec<f64>)>) -> Self {
        Self { name: name.into(), unit, goal, samples }
    }

    fn of(&self, contender: Contender) -> Option<&[f64]> {
        let found = self.samples.iter().find(|(who, _)| *who == contender);
        found.map(|(_, samples)| samples.as_slice()).filter(|samples| !samples.is_empty())
    }

    /// The value that `share` of the samples do not exceed.
    pub fn quantile(&self, contender: Contender, share: f64) -> Option<f64> {
        quantile(self.of(contender)?, share)
    }

    /// The middle of all samples.
    pub fn median(&self, contender: Contender) -> Option<f64> {
        self.quantile(contender, 0.5)
    }

    /// The rounds' ratios to no filter: where `share` of them end.
    pub fn ratio(&self, contender: Contender, share: f64) -> Option<f64> {
        self.ratio_between(contender, Contender::Nothing, share)
    }

    fn ratio_between(&self, contender: Contender, base: Contender, share: f64) -> Option<f64> {
        let pairs = self.of(contender)?.iter().zip(self.of(base)?);
        quantile(&pairs.map(|(one, other)| one / other).collect::<Vec<_>>(), share)
    }

    /// Whether the product reached its goal; nothing where it has none, or nothing to be compared with.
    pub fn verdict(&self) -> Option<Verdict> {
        let Goal { ratio, at_most, ahead_of_nftables } = self.goal;
        let near = ratio.and_then(|limit| {
            let ratio = self.ratio(Contender::Filter, 0.5)?;
            Some(if self.unit.is_yield() { ratio >= limit } else { ratio <= limit })
        });
        let quick = at_most.and_then(|limit| Some(self.median(Contender::Filter)? <= limit));
        let known = |reached| if reached { Verdict::Reached } else { Verdict::Missed };
        let ahead = if ahead_of_nftables { self.ahead() } else { None };
        [near.map(known), quick.map(known), ahead].into_iter().flatten().max()
    }

    /// Ahead or behind is where the middle half of the rounds is all on one side.
    fn ahead(&self) -> Option<Verdict> {
        let quartile = |share| self.ratio_between(Contender::Filter, Contender::Nftables, share);
        let (low, high) = (quartile(0.25)?, quartile(0.75)?);
        let (above, below) = (low > 1.0, high < 1.0);
        let (ahead, behind) = if self.unit.is_yield() { (above, below) } else { (below, above) };
        Some(match (ahead, behind) {
            (true, _) => Verdict::Reached,
            (false, true) => Verdict::Missed,
            (false, false) => Verdict::Level,
        })
    }
}

/// How a row ended, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The goal is reached.
    Reached,
    /// No difference to nftables shows.
    Level,
    /// It is not.
    Missed,
}

fn quantile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

/// Takes the samples of a row: a round that does not count, then `rounds` that do, each beginning with another
/// contender.
pub fn compare(
    lanes: &[&Lane],
    rounds: usize,
    (name, unit, goal): (String, Unit, Goal),
    progress: &Progress,
    work: impl Fn(&Lane) -> Result<f64>,
) -> Result<Row> {
    let mut samples: Vec<_> = lanes.iter().map(|lane| (lane.contender(), Vec::new())).collect();
    for round in 0..=rounds {
        for turn in 0..lanes.len() {
            let place = (turn + round) % lanes.len();
            let (Some(lane), Some((who, samples))) = (lanes.get(place), samples.get_mut(place)) else {
                continue;
            };
            progress.show(&format!("{name}: round {round} of {rounds}, {who}"));
            let sample = work(lane).with_context(|| format!("{name}, {who}"))?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    Ok(Row::new(name, unit, goal, samples))
}

/// A line on a terminal that says what is going on; nothing where there is no terminal.
pub struct Progress(bool);

impl Progress {
    /// On standard error.
    pub fn new() -> Self {
        Self(std::io::stderr().is_terminal())
    }

    /// Replaces the line.
    pub fn show(&self, text: &str) {
        if self.0 {
            eprint!("\r\x1b[K{text}");
            // A line that does not show is no loss.
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, goal: Goal) -> Row {
        let samples = vec![
            (Contender::Nothing, vec![100.0, 200.0, 100.0]),
            (Contender::Filter, vec![98.0, 196.0, 10.0]),
            (Contender::Nftables, vec![90.0, 180.0, 9.0]),
        ];
        Row::new("", unit, goal, samples)
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        assert_eq!(row(Unit::Gigabits, Goal::AHEAD).ratio(Contender::Filter, 0.5), Some(0.98));
        assert_eq!(row(Unit::Gigabits, Goal::AHEAD).median(Contender::Filter), Some(98.0));
    }

    #[test]
    fn goals_know_which_way_is_better() {
        assert_eq!(row(Unit::Gigabits, Goal::ratio(0.97)).verdict(), Some(Verdict::Reached));
        assert_eq!(row(Unit::Gigabits, Goal::ratio(0.99)).verdict(), Some(Verdict::Missed));
        assert_eq!(row(Unit::Nanoseconds, Goal::AHEAD).verdict(), Some(Verdict::Missed));
        let alone = Row::new("", Unit::Milliseconds, Goal::AHEAD, vec![(Contender::Filter, vec![1.0])]);
        assert_eq!(alone.verdict(), None);
    }

    #[test]
    fn what_scatters_around_nftables_is_level_with_it() {
        let samples = vec![
            (Contender::Filter, vec![1.0, 2.0, 3.0, 4.0]),
            (Contender::Nftables, vec![2.0, 1.0, 4.0, 3.0]),
        ];
        let row = Row::new("", Unit::Milliseconds, Goal::AHEAD, samples);
        assert_eq!(row.verdict(), Some(Verdict::Level));
    }
}
