//! The counters of reasons: what userspace refuses is counted where the kernel counts.

use std::sync::atomic::Ordering;

use aya::maps::MapData;
use filter_common::Reason;
use filter_common::layout::{Count, Counters, MAX_SANDBOXES};

use super::KernelError;
use super::memory::Memory;

const WORDS_A_COUNT: usize = size_of::<Count>() / size_of::<u64>();
const WORDS_A_SANDBOX: usize = size_of::<Counters>() / size_of::<u64>();

/// The counters of all sandboxes.
pub struct Tally(Memory);

impl Tally {
    pub(super) fn open(map: &MapData) -> Result<Self, KernelError> {
        let words = MAX_SANDBOXES as usize * WORDS_A_SANDBOX;
        Memory::map(map, words, "mapping the counters into memory").map(Self)
    }

    /// Counts one more packet, of so many bytes.
    pub fn count(&self, slot: u32, reason: Reason, bytes: u64) {
        let packets = slot as usize * WORDS_A_SANDBOX + reason as usize * WORDS_A_COUNT;
        for (word, more) in [(packets, 1), (packets + 1, bytes)] {
            if let Some(word) = self.0.word(word) {
                word.fetch_add(more, Ordering::Relaxed);
            }
        }
    }
}
