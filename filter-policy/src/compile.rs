//! Flattening: the address rules of a policy as prefixes of which the longest match alone decides.
//!
//! A policy's verdict does not depend on prefix length: whatever is guarded is denied, then whatever
//! is allowed passes, then whatever is denied does not (or the last two the other way round). A trie
//! answers with the longest match and nothing else. The two agree once every prefix that lies within
//! one of a stronger class is left out: then of all prefixes around an address, the longest that is
//! left is always one of the strongest class.

use filter_common::{Addr, Class, RuleWord};
use ipnet::IpNet;

use crate::{
    guard::Guard,
    net::ALL_TRAFFIC,
    policy::{AllowEntry, Policy, Precedence},
    prefix::{self, Prefix},
};

/// What the kernel needs of a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Compiled {
    /// The content of the trie, sorted, no prefix twice.
    pub entries: Vec<(Prefix, RuleWord)>,
    /// How many egress connections the sandbox may have at once.
    pub egress_connections: u32,
    /// Whether a denied CIDR decides before the resolvers and the inspector are reached.
    pub precedence: Precedence,
    /// Whether connections to the inspected ports are judged by name.
    pub inspect: bool,
    /// Whether connections to the inspected ports are looked at even where their address is allowed: because headers
    /// are set in requests to some hosts, or to learn whom they name.
    pub watch: bool,
    /// The resolvers that are opened; none without a domain rule.
    pub resolvers: Vec<Addr>,
}

/// Compiles a policy for a host, in time n log n.
pub fn compile(policy: &Policy, guard: &Guard) -> Compiled {
    // With `deny-first` whatever is denied is denied before names come into it, and a policy that has names
    // denies everything.
    let inspect = policy.has_domains() && policy.precedence == Precedence::AllowFirst;
    let servers = if inspect { policy.dns.servers.as_slice() } else { &[] };
    let mut compiled = Compiled {
        entries: flatten(rules(policy, guard), policy.precedence),
        egress_connections: policy.limits.egress_connections,
        precedence: policy.precedence,
        inspect,
        watch: policy.is_observing() || policy.has_transforms(),
        resolvers: servers.iter().copied().map(Addr::from).collect(),
    };
    if inspect {
        open_to_names(&mut compiled);
    }
    compiled
}

/// Says of everything that is denied that a name may allow it, and of the resolvers what they are. A resolver
/// that is guarded stays so; one in an allowed CIDR is reached directly.
fn open_to_names(compiled: &mut Compiled) {
    for (_, word) in &mut compiled.entries {
        if word.class() == Class::Denied {
            *word = RuleWord::new(Class::Inspected, word.number());
        }
    }
    for resolver in compiled.resolvers.clone() {
        let word = evaluate(compiled, resolver);
        if word.class() != Class::Inspected {
            continue;
        }
        let entry = (Prefix { addr: resolver, len: 128 }, RuleWord::new(Class::Resolver, word.number()));
        match compiled.entries.binary_search_by_key(&entry.0, |(prefix, _)| *prefix) {
            Ok(place) => {
                if let Some(there) = compiled.entries.get_mut(place) {
                    *there = entry;
                }
            }
            Err(place) => compiled.entries.insert(place, entry),
        }
    }
}

/// What the trie says of an address: the rule of the longest prefix around it, in the time of a few
/// binary searches.
///
/// IPv4-mapped IPv6 addresses count as the IPv4 address inside; who has an address that did not come
/// from the kernel's parser asks [`Guard::contains`] first.
pub fn evaluate(compiled: &Compiled, addr: Addr) -> RuleWord {
    let key = prefix::key(addr);
    let mut len = 128;
    loop {
        // Prefixes around the address no longer than `len` all stand at or before this one.
        let bound = Prefix::from_key(key, len);
        let end = compiled.entries.partition_point(|(prefix, _)| *prefix <= bound);
        let Some((found, word)) = end.checked_sub(1).and_then(|last| compiled.entries.get(last)) else {
            return RuleWord::UNMATCHED;
        };
        if found.contains(addr) {
            return *word;
        }
        // Whatever lies around the address and before `found` lies around `found` too, so that it is
        // no longer than what the two have in common.
        len = prefix::common_bits(key, found.key());
    }
}

/// The rules of all classes, each numbered by its place in the list that it comes from.
fn rules(policy: &Policy, guard: &Guard) -> Vec<(Prefix, RuleWord)> {
    let guarded = guard.prefixes().iter().map(|net| Prefix::from(*net)).enumerate();
    let allowed = policy.allow_out.iter().enumerate().filter_map(|(index, entry)| match entry {
        AllowEntry::Net(net) => Some((index, of_policy(net))),
        AllowEntry::Domain(_) => None,
    });
    let no_internet = (!policy.allow_internet_access).then_some(Prefix::EVERYTHING);
    let denied = policy.deny_out.iter().map(of_policy).chain(no_internet).enumerate();

    let mut rules =
        Vec::with_capacity(guard.prefixes().len() + policy.allow_out.len() + policy.deny_out.len() + 1);
    rules.extend(guarded.map(|(number, prefix)| (prefix, word(Class::Guarded, number))));
    rules.extend(allowed.map(|(number, prefix)| (prefix, word(Class::Allowed, number))));
    rules.extend(denied.map(|(number, prefix)| (prefix, word(Class::Denied, number))));
    rules
}

/// In a policy `0.0.0.0/0` covers IPv6 too.
fn of_policy(net: &IpNet) -> Prefix {
    if *net == ALL_TRAFFIC { Prefix::EVERYTHING } else { (*net).into() }
}

fn word(class: Class, number: usize) -> RuleWord {
    RuleWord::new(class, u32::try_from(number).unwrap_or(RuleWord::MAX_NUMBER))
}

/// Leaves out every prefix within one of a stronger class, and of equal prefixes of one class all but
/// the lowest number.
fn flatten(mut rules: Vec<(Prefix, RuleWord)>, precedence: Precedence) -> Vec<(Prefix, RuleWord)> {
    let rank = |word: &RuleWord| rank(word.class(), precedence);
    rules.sort_unstable_by_key(|(prefix, word)| (*prefix, rank(word), word.number()));
    // The kept prefixes around the current one, innermost last. A prefix that is kept is of no weaker
    // class than those around it, so the innermost is also of the strongest.
    let mut around: Vec<(Prefix, u8)> = Vec::new();
    rules.retain(|(prefix, word)| {
        while around.pop_if(|(outer, _)| !outer.contains(prefix.addr)).is_some() {}
        let rank = rank(word);
        let keep = around.last().is_none_or(|(outer, strongest)| outer != prefix && rank <= *strongest);
        if keep {
            around.push((*prefix, rank));
        }
        keep
    });
    rules
}

/// The order of the classes, strongest first.
fn rank(class: Class, precedence: Precedence) -> u8 {
    match (class, precedence) {
        (Class::Guarded, _) => 0,
        (Class::Allowed, Precedence::AllowFirst) | (Class::Denied, Precedence::DenyFirst) => 1,
        (Class::Denied, Precedence::AllowFirst) | (Class::Allowed, Precedence::DenyFirst) => 2,
        (Class::Unmatched | Class::Inspected | Class::Resolver | Class::Named | Class::Watched, _) => 3,
    }
}
