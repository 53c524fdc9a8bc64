//! Fair comparison: the contenders take turns in every round, so that whatever else the machine does hits all
//! of them, and the figure is the ratio within a round.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// Nobody: packets are routed.
    Nothing,
    /// The product.
    Filter,
    /// nftables with the same rules and connection tracking.
    Nftables,
    /// nginx, to which nftables redirects.
    Nginx,
    /// HAProxy, to which nftables redirects.
    Haproxy,
    /// mitmproxy, to which nftables redirects.
    Mitmproxy,
}

impl Contender {
    /// Whether it does the product's work in another way.
    pub fn is_peer(self) -> bool {
        match self {
            Self::Nothing | Self::Filter => false,
            Self::Nftables | Self::Nginx | Self::Haproxy | Self::Mitmproxy => true,
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "no filter",
            Self::Filter => "sandbox-filter",
            Self::Nftables => "nftables",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Mitmproxy => "mitmproxy",
        })
    }
}

/// Where one contender is measured.
pub trait Ground {
    /// Whose it is.
    fn contender(&self) -> Contender;
}

/// What a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Gigabits a second.
    Gigabits,
    /// Connections or requests a second.
    PerSecond,
    /// Nanoseconds a packet.
    Nanoseconds,
    /// Microseconds that a client waits.
    Microseconds,
    /// Milliseconds from asking to being enforced.
    Milliseconds,
    /// Seconds of processor time.
    CpuSeconds,
    /// Kilobytes of memory.
    Kilobytes,
    /// A plain number.
    Number,
}

impl Unit {
    /// Whether more of it is better.
    pub fn is_yield(self) -> bool {
        match self {
            Self::Gigabits | Self::PerSecond => true,
            Self::Nanoseconds
            | Self::Microseconds
            | Self::Milliseconds
            | Self::CpuSeconds
            | Self::Kilobytes
            | Self::Number => false,
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
    /// Better than each of the peers.
    pub ahead: bool,
}

impl Goal {
    /// Better than each of the peers, and nothing else.
    pub const AHEAD: Self = Self { ratio: None, at_most: None, ahead: true };

    /// Better than each of the peers, and close enough to no filter.
    pub const fn ratio(ratio: f64) -> Self {
        Self { ratio: Some(ratio), ..Self::AHEAD }
    }

    /// Better than each of the peers, and quick.
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
        let Goal { ratio, at_most, ahead } = self.goal;
        let near = ratio.and_then(|limit| {
            let ratio = self.ratio(Contender::Filter, 0.5)?;
            Some(if self.unit.is_yield() { ratio >= limit } else { ratio <= limit })
        });
        let quick = at_most.and_then(|limit| Some(self.median(Contender::Filter)? <= limit));
        let known = |reached| if reached { Verdict::Reached } else { Verdict::Missed };
        let peers = self.samples.iter().map(|(who, _)| *who).filter(|who| ahead && who.is_peer());
        let ahead = peers.filter_map(|peer| self.ahead_of(peer)).max();
        [near.map(known), quick.map(known), ahead].into_iter().flatten().max()
    }

    /// Ahead or behind is where the middle half of the rounds is all on one side.
    fn ahead_of(&self, peer: Contender) -> Option<Verdict> {
        let quartile = |share| self.ratio_between(Contender::Filter, peer, share);
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
    /// No difference to the best of the peers shows.
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

/// What a row is about: its name, its unit, and what the product shall reach.
pub type What = (String, Unit, Goal);

/// Takes the samples of a row: a round that does not count, then `rounds` that do, each beginning with another
/// contender.
pub fn compare<G: Ground>(
    grounds: &[&G],
    rounds: usize,
    what: What,
    progress: &Progress,
    work: impl Fn(&G) -> Result<f64>,
) -> Result<Row> {
    let [row] = compare_all(grounds, rounds, [what], progress, |ground| Ok([work(ground)?]))?;
    Ok(row)
}

/// Takes the samples of several rows, which the same runs give.
pub fn compare_all<G: Ground, const N: usize>(
    grounds: &[&G],
    rounds: usize,
    whats: [What; N],
    progress: &Progress,
    work: impl Fn(&G) -> Result<[f64; N]>,
) -> Result<[Row; N]> {
    let name = whats.first().map(|(name, ..)| name.clone()).unwrap_or_default();
    let mut runs: Vec<_> = grounds.iter().map(|ground| (ground.contender(), Vec::new())).collect();
    for round in 0..=rounds {
        for turn in 0..grounds.len() {
            let place = (turn + round) % grounds.len();
            let (Some(ground), Some((who, runs))) = (grounds.get(place), runs.get_mut(place)) else {
                continue;
            };
            progress.show(&format!("{name}: round {round} of {rounds}, {who}"));
            let run = work(ground).with_context(|| format!("{name}, {who}"))?;
            if round > 0 {
                runs.push(run);
            }
        }
    }
    let mut columns = 0..;
    Ok(whats.map(|(name, unit, goal)| {
        let column = columns.next().unwrap_or_default();
        let of = |runs: &Vec<[f64; N]>| runs.iter().filter_map(|run| run.get(column).copied()).collect();
        Row::new(name, unit, goal, runs.iter().map(|(who, runs)| (*who, of(runs))).collect())
    }))
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
    fn the_best_of_the_peers_is_the_one_to_beat() {
        let samples = vec![
            (Contender::Filter, vec![5.0, 5.0, 5.0]),
            (Contender::Nginx, vec![4.0, 4.0, 4.0]),
            (Contender::Haproxy, vec![6.0, 6.0, 6.0]),
        ];
        let row = Row::new("", Unit::PerSecond, Goal::AHEAD, samples);
        assert_eq!(row.verdict(), Some(Verdict::Missed));
    }

    #[test]
    fn runs_that_give_several_values_fill_several_rows() {
        struct One;
        impl Ground for One {
            fn contender(&self) -> Contender {
                Contender::Filter
            }
        }
        let what = |name: &str| (name.to_owned(), Unit::Number, Goal::default());
        let rows = compare_all(&[&One], 2, [what("a"), what("b")], &Progress(false), |_| Ok([1.0, 2.0]));
        let medians = rows.ok().map(|rows| rows.each_ref().map(|row| row.median(Contender::Filter)));
        assert_eq!(medians, Some([Some(1.0), Some(2.0)]));
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
