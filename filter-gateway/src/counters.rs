//! What the gateway has done, for metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::StatusCode;

use crate::refusal::{REASONS, Refusal};

/// The lowest status there is, and how many there are room for.
const FIRST: u16 = 100;
const CODES: usize = 500;

/// Counts since the start.
#[derive(Debug)]
pub struct Counters {
    by_code: [AtomicU64; CODES],
    by_reason: [AtomicU64; REASONS.len()],
    /// Connections of clients that are open.
    pub(crate) connections: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            by_code: [const { AtomicU64::new(0) }; CODES],
            by_reason: [const { AtomicU64::new(0) }; REASONS.len()],
            connections: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// Answers, by status; those that there were none of are left out.
    pub fn by_code(&self) -> impl Iterator<Item = (u16, u64)> {
        let codes = (FIRST..).zip(&self.by_code).map(|(code, count)| (code, count.load(Relaxed)));
        codes.filter(|(_, count)| *count > 0)
    }

    /// Refusals, by the word for them; those that there were none of are left out.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let words = REASONS.into_iter().zip(&self.by_reason).map(|(word, count)| (word, count.load(Relaxed)));
        words.filter(|(_, count)| *count > 0)
    }

    /// Connections of clients that are open.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    pub(crate) fn answered(&self, status: StatusCode) {
        if let Some(count) = self.by_code.get(usize::from(status.as_u16() - FIRST)) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        if let Some(count) = self.by_reason.get(refusal.index()) {
            count.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_by_code_and_by_reason() {
        let counters = Counters::default();
        for status in [100, 200, 200, 599, 999] {
            counters.answered(StatusCode::from_u16(status).unwrap());
        }
        assert_eq!(counters.by_code().collect::<Vec<_>>(), [(100, 1), (200, 2), (599, 1)]);
        counters.refused(&Refusal::Misdirected);
        counters.refused(&Refusal::Misdirected);
        assert_eq!(counters.by_reason().collect::<Vec<_>>(), [("misdirected", 2)]);
    }
}
