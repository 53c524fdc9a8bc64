//! A policy's trie, before and while it is in a slot.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use aya::maps::MapData;
use aya::maps::lpm_trie::Key;
use filter_common::RuleWord;
use filter_policy::Prefix;

use super::{KernelError, batch, map};

/// How many entries a trie may get. The kernel allocates each entry when it is made, so this costs nothing.
const MAX_ENTRIES: u32 = 1 << 24;

/// A trie that is ours to fill.
pub(super) struct Trie {
    fd: OwnedFd,
}

impl Trie {
    /// An empty trie.
    pub(super) fn create() -> Result<Self, KernelError> {
        /// `BPF_F_NO_PREALLOC`, which a trie must have.
        const NO_PREALLOC: u32 = 1;
        let object = aya_obj::Map::new_from_params(
            aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_LPM_TRIE as u32,
            size_of::<Key<[u8; 16]>>() as u32,
            size_of::<u32>() as u32,
            MAX_ENTRIES,
            NO_PREALLOC,
        );
        let data = MapData::create(object, "policy", None).map_err(map("policy"))?;
        let fd = data.fd().as_fd().try_clone_to_owned();
        Ok(Self { fd: fd.map_err(|source| KernelError::System { what: "a policy's trie", source })? })
    }

    /// Writes its entries.
    pub(super) fn fill(&self, entries: &[(Prefix, RuleWord)]) -> Result<(), KernelError> {
        let keys: Vec<Key<[u8; 16]>> =
            entries.iter().map(|(prefix, _)| Key::new(u32::from(prefix.len), prefix.addr.octets())).collect();
        let values: Vec<u32> = entries.iter().map(|(_, rule)| rule.bits()).collect();
        batch::update(self.fd.as_fd(), &keys, &values)
            .map_err(|source| KernelError::System { what: "filling a policy's trie", source })
    }
}

/// Puts tries into slots of the map of tries, all in one call: the kernel waits for a grace period at the
/// end of each.
pub(super) fn publish(outer: BorrowedFd<'_>, slots: &[(u32, &Trie)]) -> Result<(), KernelError> {
    let keys: Vec<u32> = slots.iter().map(|(slot, _)| *slot).collect();
    let values: Vec<u32> =
        slots.iter().map(|(_, trie)| u32::try_from(trie.fd.as_raw_fd()).unwrap_or(u32::MAX)).collect();
    batch::update(outer, &keys, &values).map_err(|source| KernelError::System { what: "TRIES", source })
}
