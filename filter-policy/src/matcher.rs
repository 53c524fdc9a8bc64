//! Which entry of `allowOut` a name matches, in a time that does not depend on how many there are.

use std::collections::HashMap;

use crate::{
    host::HostPattern,
    name::Name,
    policy::{AllowEntry, Policy},
};

/// The names that a policy allows. It answers what [`Policy::match_name`] answers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Matcher {
    exact: HashMap<Name, usize>,
    below: HashMap<Name, usize>,
    any: Option<usize>,
}

impl Matcher {
    /// The names of a policy.
    pub fn new(policy: &Policy) -> Self {
        // Growing step by step would move everything again and again.
        let exact = policy
            .allow_out
            .iter()
            .filter(|entry| matches!(entry, AllowEntry::Domain(HostPattern::Exact(_))));
        let mut matcher = Self { exact: HashMap::with_capacity(exact.count()), ..Self::default() };
        for (index, entry) in policy.allow_out.iter().enumerate() {
            let AllowEntry::Domain(pattern) = entry else { continue };
            match pattern {
                HostPattern::Exact(name) => {
                    matcher.exact.entry(name.clone()).or_insert(index);
                }
                HostPattern::Suffix(name) => {
                    matcher.below.entry(name.clone()).or_insert(index);
                }
                HostPattern::Any => {
                    matcher.any.get_or_insert(index);
                }
            }
        }
        matcher
    }

    /// The index in `allowOut` of the entry that allows this name: an exact one before a wildcard, a longer
    /// wildcard before a shorter one, `*` last, and the first of equals.
    pub fn find(&self, name: &Name) -> Option<usize> {
        let wildcard = || name.parents().find_map(|parent| self.below.get(parent)).copied();
        self.exact.get(name.as_str()).copied().or_else(wildcard).or(self.any)
    }
}
