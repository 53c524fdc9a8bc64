//! The policy words: mapped into our memory, so that replacing a sandbox's policy is one store.

use std::sync::atomic::Ordering;

use aya::maps::MapData;
use filter_common::layout::{MAX_SANDBOXES, PolicyWord};

use super::KernelError;
use super::memory::Memory;

/// One word a sandbox slot.
pub struct Words(Memory);

impl Words {
    pub(super) fn open(map: &MapData) -> Result<Self, KernelError> {
        Memory::map(map, MAX_SANDBOXES as usize, "mapping the policy words into memory").map(Self)
    }

    /// The word of the sandbox in `slot`.
    pub fn load(&self, slot: u32) -> PolicyWord {
        PolicyWord::from_bits(self.0.word(slot as usize).map_or(0, |word| word.load(Ordering::Acquire)))
    }

    /// Puts `word` in force for the sandbox in `slot`. From here on the next packet is judged by it;
    /// packets that are being judged right now may still be by the old one, until a grace period is over.
    pub fn store(&self, slot: u32, word: PolicyWord) {
        if let Some(place) = self.0.word(slot as usize) {
            place.store(word.bits(), Ordering::Release);
        }
    }
}
