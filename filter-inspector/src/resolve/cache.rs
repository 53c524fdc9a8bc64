//! Answers that are still good, and the queries that are on their way.
//!
//! The bound is one of memory, since an answer may be of any size, and the policy of eviction (TinyLFU)
//! prefers what is asked for often: a sandbox that asks for a million random names does not push out what
//! its neighbours use.

use std::{
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{op::Message, rr::Record, serialize::binary::BinEncodable};
use moka::{Expiry, future};

use super::{
    Answer,
    reading::{Dated, Question, read},
};

/// What the answers together may occupy, in bytes.
const CAPACITY: u64 = 64 << 20;
/// What an answer occupies without its records: the entry itself, its key and its name.
const OVERHEAD: usize = 512;
/// What a byte on the wire may occupy in memory: a record may be made of thousands of tiny strings.
const PER_BYTE: usize = 16;

/// Answers by their questions.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    entries: future::Cache<Question, Arc<Entry>>,
    ttl: RangeInclusive<u32>,
}

#[derive(Debug)]
struct Entry {
    dated: Dated,
    born: Instant,
}

struct Life;

impl Cache {
    pub(super) fn new(ttl: RangeInclusive<u32>) -> Self {
        let entries = future::Cache::builder()
            .max_capacity(CAPACITY)
            .weigher(|_, entry: &Arc<Entry>| u32::try_from(entry.size()).unwrap_or(u32::MAX))
            .expire_after(Life)
            .build();
        Self { entries, ttl }
    }

    /// The answer that is there, or the one that `ask` gets. Of several that ask at the same time one does;
    /// if it gives up, another takes its place.
    pub(super) async fn answer(
        &self,
        question: &Question,
        ask: impl Future<Output = Option<Message>>,
    ) -> Answer {
        let fresh = async {
            let dated = match ask.await {
                Some(message) => read(question, message, &self.ttl),
                None => Dated::failure(),
            };
            Arc::new(Entry { dated, born: Instant::now() })
        };
        self.entries.get_with_by_ref(question, fresh).await.now()
    }
}

impl Entry {
    /// The answer, with what is left of its time.
    fn now(&self) -> Answer {
        let age = u32::try_from(self.born.elapsed().as_secs()).unwrap_or(u32::MAX);
        let mut answer = self.dated.answer.clone();
        for record in answer.answers.iter_mut().chain(&mut answer.authorities) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        answer
    }

    fn size(&self) -> usize {
        let Answer { answers, authorities, .. } = &self.dated.answer;
        let records = answers.iter().chain(authorities).map(|record| {
            let length = record.to_bytes().map_or(usize::from(u16::MAX), |bytes| bytes.len());
            size_of::<Record>() + length * PER_BYTE
        });
        OVERHEAD + records.sum::<usize>()
    }
}

impl Expiry<Question, Arc<Entry>> for Life {
    fn expire_after_create(&self, _: &Question, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        Some(Duration::from_secs(entry.dated.life.into()))
    }
}
