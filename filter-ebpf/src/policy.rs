//! The policy in force: which one, and what it says of an address.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::lpm_trie::Key,
    btf_maps::{Array, ArrayOfMaps, LpmTrie},
    macros::btf_map,
};
use filter_common::layout::{MAX_POLICIES, MAX_SANDBOXES, Policy, PolicyWord, policy_flags};
use filter_common::{Addr, RuleWord};

use crate::atomic;

/// A sandbox's policy word. Userspace maps this array into its memory and flips a word in one store.
#[btf_map]
static POLICY_WORDS: Array<u64, { MAX_SANDBOXES as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static POLICIES: Array<Policy, { MAX_POLICIES as usize }> = Array::new();

#[btf_map]
static TRIES: ArrayOfMaps<LpmTrie<Addr, u32, 1>, { MAX_POLICIES as usize }> = ArrayOfMaps::new();

/// The policy of the sandbox in `slot`. Taken once a packet, so that no packet sees two.
#[inline(always)]
pub fn in_force(slot: u32) -> PolicyWord {
    match POLICY_WORDS.get_ptr(slot) {
        // SAFETY: the array's elements are aligned words that live as long as the map.
        Some(word) => PolicyWord::from_bits(unsafe { atomic::load(word) }),
        None => PolicyWord::default(),
    }
}

/// What the policy says of `addr`. No policy guards everything.
#[inline(always)]
pub fn rule(policy: PolicyWord, addr: Addr) -> RuleWord {
    const NONE: RuleWord = RuleWord::new(filter_common::Class::Guarded, RuleWord::MAX_NUMBER);
    if policy.generation() == 0 {
        return NONE;
    }
    let Some(trie) = TRIES.get(policy.slot()) else { return NONE };
    trie.get(&Key::new(128, addr)).map_or(RuleWord::UNMATCHED, |word| RuleWord::from_bits(*word))
}

/// Connections that a sandbox under this policy may have at once.
#[inline(always)]
pub fn egress_connections(policy: PolicyWord) -> u32 {
    POLICIES.get(policy.slot()).map_or(0, |policy| policy.egress_connections)
}

/// Whether the policy sets headers, so that the inspector looks at whom connections ask for.
#[inline(always)]
pub fn is_watched(policy: PolicyWord) -> bool {
    POLICIES.get(policy.slot()).is_some_and(|policy| policy.flags & policy_flags::WATCHED != 0)
}
