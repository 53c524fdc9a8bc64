//! From two looks at the numbers to what happens in a second. Pure.

use std::{collections::HashMap, time::Instant};

use filter_common::{Decision, Reason};

use crate::protocol::{Counters, SandboxId, SandboxStats, Stats};

/// The numbers at a moment.
pub(super) struct Sample {
    at: Instant,
    stats: Stats,
}

/// The last two looks.
pub(super) struct Rates {
    before: Option<Sample>,
    now: Sample,
}

/// What sandboxes do together.
pub(super) struct Totals {
    pub(super) sandboxes: usize,
    pub(super) active: u64,
    pub(super) allowed: f64,
    pub(super) denied: f64,
    pub(super) events_lost: u64,
}

/// What one does: packets and bytes in a second.
pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) active: u32,
    pub(super) limit: u32,
    pub(super) refused: u64,
    pub(super) allowed: f64,
    pub(super) denied: f64,
    pub(super) bytes: f64,
}

/// What comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sort {
    Denied,
    Connections,
    Allowed,
    Id,
}

impl Sort {
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Denied => Self::Connections,
            Self::Connections => Self::Allowed,
            Self::Allowed => Self::Id,
            Self::Id => Self::Denied,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Connections => "connections",
            Self::Allowed => "allowed",
            Self::Id => "id",
        }
    }
}

impl Sample {
    pub(super) fn now(stats: Stats) -> Self {
        Self { at: Instant::now(), stats }
    }
}

impl Rates {
    pub(super) fn new(now: Sample) -> Self {
        Self { before: None, now }
    }

    pub(super) fn add(&mut self, now: Sample) {
        self.before = Some(std::mem::replace(&mut self.now, now));
    }

    pub(super) fn totals(&self) -> Totals {
        let sandboxes = self.sandboxes(Sort::Id);
        Totals {
            sandboxes: sandboxes.len(),
            active: self.now.stats.totals.connections.active,
            allowed: sandboxes.iter().map(|one| one.allowed).sum(),
            denied: sandboxes.iter().map(|one| one.denied).sum(),
            events_lost: self.now.stats.events_lost,
        }
    }

    /// What is denied for which reasons, the most frequent first.
    pub(super) fn reasons(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let rate = |reason: &Reason| {
            let of = |stats: &Stats| packets(&stats.totals.counters, *reason);
            let before = self.before.as_ref().map_or_else(|| of(&self.now.stats), |sample| of(&sample.stats));
            self.a_second(of(&self.now.stats), before)
        };
        let denials = Reason::ALL.iter().filter(|reason| reason.decision() == Decision::Deny);
        let mut reasons: Vec<_> = denials.map(|reason| (reason.name(), rate(reason))).collect();
        reasons.retain(|(_, rate)| *rate > 0.0);
        reasons.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        reasons.into_iter()
    }

    pub(super) fn sandboxes(&self, sort: Sort) -> Vec<Sandbox> {
        let before: HashMap<&SandboxId, &SandboxStats> = self
            .before
            .iter()
            .flat_map(|sample| &sample.stats.sandboxes)
            .map(|sandbox| (&sandbox.id, sandbox))
            .collect();
        let mut sandboxes: Vec<_> = self
            .now
            .stats
            .sandboxes
            .iter()
            .map(|now| {
                // Of a new one there is nothing to compare with.
                let then = before.get(&now.id).map_or(now, |then| then);
                let rate = |of: fn(&Counters) -> u64| self.a_second(of(&now.counters), of(&then.counters));
                Sandbox {
                    id: now.id.to_string(),
                    active: now.connections.active,
                    limit: now.connections.limit,
                    refused: now.connections.refused,
                    allowed: rate(|counters| decided(counters, Decision::Allow)),
                    denied: rate(|counters| decided(counters, Decision::Deny)),
                    bytes: rate(|counters| counters.values().map(|counter| counter.bytes).sum()),
                }
            })
            .collect();
        // They come by id, and equal ones stay so.
        match sort {
            Sort::Denied => sandboxes.sort_by(|a, b| b.denied.total_cmp(&a.denied)),
            Sort::Connections => sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.active)),
            Sort::Allowed => sandboxes.sort_by(|a, b| b.allowed.total_cmp(&a.allowed)),
            Sort::Id => {}
        }
        sandboxes
    }

    fn a_second(&self, now: u64, before: u64) -> f64 {
        let Some(sample) = &self.before else { return 0.0 };
        let time = self.now.at.duration_since(sample.at).as_secs_f64();
        if time > 0.0 { now.saturating_sub(before) as f64 / time } else { 0.0 }
    }
}

fn packets(counters: &Counters, reason: Reason) -> u64 {
    counters.get(reason.name()).map_or(0, |counter| counter.packets)
}

fn decided(counters: &Counters, decision: Decision) -> u64 {
    Reason::ALL
        .iter()
        .filter(|reason| reason.decision() == decision)
        .map(|reason| packets(counters, *reason))
        .sum()
}
