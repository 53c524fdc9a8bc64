//! The last events, in memory, for whoever asks for them, and news of the next ones.
//!
//! One ring serves past and present: a reader has a place in it and takes what is behind that at its own pace.
//! Nobody waits for a reader; one that is slower than the events are is told how many were overwritten before
//! it came to them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use filter_common::Decision;
use tokio::sync::watch;

use crate::protocol::SandboxId;
use crate::protocol::event::{Dropped, Told};

/// How many are kept: some 10 MB.
pub const KEPT: usize = 32_768;
/// How many a reader takes at once.
const BATCH: usize = 512;

/// The last events. Clones are the same.
#[derive(Clone)]
pub struct Feed(Arc<Shared>);

struct Shared {
    past: Mutex<Past>,
    /// Whether there will be more; changes with every batch.
    goes_on: watch::Sender<bool>,
}

#[derive(Default)]
struct Past {
    lines: VecDeque<Arc<Told>>,
    /// The number of the first of them, counted from the daemon's start.
    first: u64,
}

/// What a reader wants to see.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// This sandbox's alone.
    pub sandbox: Option<SandboxId>,
    /// Only what was decided so.
    pub decision: Option<Decision>,
    /// Only what happened since.
    pub since: Option<SystemTime>,
}

impl Filter {
    /// Losses are told to everybody whom they may concern.
    fn wants(&self, told: &Told) -> bool {
        let is_of = |sandbox: &SandboxId| self.sandbox.as_ref().is_none_or(|wanted| wanted == sandbox);
        self.since.is_none_or(|since| told.ts() >= since)
            && match told {
                Told::Event(event) => {
                    is_of(&event.sandbox)
                        && self.decision.is_none_or(|decision| decision.name() == event.decision)
                }
                Told::Dropped(dropped) => dropped.sandbox.as_ref().is_none_or(is_of),
            }
    }
}

impl Default for Feed {
    fn default() -> Self {
        Self(Arc::new(Shared { past: Mutex::default(), goes_on: watch::Sender::new(true) }))
    }
}

impl Feed {
    /// Adds what was told. Never waits for a reader.
    pub fn append(&self, lines: Vec<Told>) {
        if lines.is_empty() {
            return;
        }
        let mut past = self.past();
        for line in lines {
            if past.lines.len() == KEPT {
                past.lines.pop_front();
                past.first += 1;
            }
            past.lines.push_back(Arc::new(line));
        }
        drop(past);
        self.0.goes_on.send_modify(|_| {});
    }

    /// There will be no more: readers come to an end.
    pub fn close(&self) {
        self.0.goes_on.send_replace(false);
    }

    /// A reader who begins with the oldest that is there.
    pub fn reader(&self, filter: Filter) -> Reader {
        Reader { next: self.past().first, news: self.0.goes_on.subscribe(), feed: self.clone(), filter }
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.0.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody's place in the events.
pub struct Reader {
    feed: Feed,
    filter: Filter,
    /// The number of the next one.
    next: u64,
    news: watch::Receiver<bool>,
}

impl Reader {
    /// Some of what is there; none once the reader has seen all of it.
    pub fn take(&mut self) -> Option<Vec<Arc<Told>>> {
        self.news.borrow_and_update();
        let past = self.feed.past();
        let missed = past.first.saturating_sub(self.next);
        let from = self.next.saturating_sub(past.first);
        let batch: Vec<_> = usize::try_from(from)
            .map(|from| past.lines.iter().skip(from).take(BATCH).cloned().collect())
            .unwrap_or_default();
        drop(past);
        self.next += missed + batch.len() as u64;
        if missed == 0 && batch.is_empty() {
            return None;
        }
        let lost = (missed > 0).then(|| Arc::new(Told::Dropped(Dropped::now(None, missed))));
        Some(lost.into_iter().chain(batch.into_iter().filter(|told| self.filter.wants(told))).collect())
    }

    /// Waits for news. `false`: there will be none.
    pub async fn wait(&mut self) -> bool {
        *self.news.borrow() && self.news.changed().await.is_ok() && *self.news.borrow()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lost(sandbox: Option<&str>, dropped: u64) -> Told {
        Told::Dropped(Dropped::now(sandbox.map(|id| id.parse().unwrap()), dropped))
    }

    fn numbers(reader: &mut Reader) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some(batch) = reader.take() {
            numbers.extend(batch.iter().map(|told| match &**told {
                Told::Dropped(dropped) => dropped.dropped,
                Told::Event(_) => panic!("{told:?}"),
            }));
        }
        numbers
    }

    #[test]
    fn past_and_present_are_one_stream() {
        let feed = Feed::default();
        feed.append((0..1000).map(|number| lost(None, number)).collect());
        let mut reader = feed.reader(Filter::default());
        assert_eq!(numbers(&mut reader), (0..1000).collect::<Vec<_>>());
        feed.append(vec![lost(None, 1000)]);
        assert_eq!(numbers(&mut reader), [1000]);
        assert_eq!(reader.take(), None);
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_slow_reader_is_told_what_it_missed() {
        let feed = Feed::default();
        let mut slow = feed.reader(Filter::default());
        let all = KEPT as u64 + 7;
        feed.append((0..all).map(|number| lost(None, number)).collect());
        assert_eq!(feed.past().lines.len(), KEPT);
        let seen = numbers(&mut slow);
        assert_eq!((seen[0], seen[1], seen.len()), (7, 7, KEPT + 1), "seven missed, then from the eighth on");
        assert_eq!(numbers(&mut feed.reader(Filter::default())).len(), KEPT, "who begins now missed nothing");
    }

    #[test]
    fn a_filter_keeps_what_it_names_and_losses_that_may_concern_it() {
        let feed = Feed::default();
        feed.append(vec![lost(Some("a"), 1), lost(Some("b"), 2), lost(None, 3)]);
        let of = |filter| numbers(&mut feed.reader(filter));
        assert_eq!(of(Filter { sandbox: Some("a".parse().unwrap()), ..Filter::default() }), [1, 3]);
        assert_eq!(of(Filter { decision: Some(Decision::Deny), ..Filter::default() }), [1, 2, 3]);
        let since = Some(SystemTime::now() + Duration::from_secs(1));
        assert_eq!(of(Filter { since, ..Filter::default() }), [0; 0]);
    }

    #[tokio::test]
    async fn readers_wake_for_news_and_end_with_the_feed() {
        let feed = Feed::default();
        let mut reader = feed.reader(Filter::default());
        assert_eq!(reader.take(), None);
        let other = feed.clone();
        let news = tokio::spawn(async move { (reader.wait().await, reader) });
        other.append(vec![lost(None, 1)]);
        let (more, mut reader) = news.await.unwrap();
        assert!(more && reader.take().is_some());
        feed.close();
        assert!(!reader.wait().await);
    }
}
