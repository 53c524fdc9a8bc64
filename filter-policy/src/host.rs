//! Which names a domain rule is about.

use std::fmt;

use crate::name::{BadName, Name};

/// What an entry with a name in it matches; the order is by how specific they are, least first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HostPattern {
    /// `*`: any valid name.
    Any,
    /// `*.x`: any name below `x` at any depth, but not `x` itself.
    Suffix(Name),
    /// The name itself.
    Exact(Name),
}

impl HostPattern {
    /// Reads `name`, `*.name` or `*`.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_prefix("*.") {
            None => Name::parse(text).map(Self::Exact),
            // `*` stands for at least one byte: a pattern too long for a name would never match.
            Some(rest) => {
                let below = Name::parse(rest)?;
                Name::parse(format!("a.{below}"))?;
                Ok(Self::Suffix(below))
            }
        }
    }

    /// Whether the pattern is about this name.
    pub fn matches(&self, name: &Name) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == name,
            Self::Suffix(below) => name
                .as_str()
                .strip_suffix(below.as_str())
                // A name has no empty label, so something stands before this dot.
                .is_some_and(|rest| rest.ends_with('.')),
        }
    }

    /// Exact beats a wildcard, a longer wildcard beats a shorter one, and `*` comes last.
    pub(crate) fn specificity(&self) -> usize {
        match self {
            Self::Any => 0,
            Self::Suffix(below) => below.as_str().len(),
            Self::Exact(_) => usize::MAX,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Suffix(below) => write!(f, "*.{below}"),
            Self::Exact(name) => write!(f, "{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        HostPattern::parse(pattern).unwrap().matches(&Name::parse(name).unwrap())
    }

    #[test]
    fn a_wildcard_is_any_depth_below_but_not_the_name_itself() {
        assert!(matches("*.wild.test", "a.wild.test") && matches("*.WILD.test.", "a.b.wild.test"));
        for no in ["wild.test", "evilwild.test", "a.wild.test.evil.test", "test"] {
            assert!(!matches("*.wild.test", no), "{no}");
        }
    }

    #[test]
    fn an_exact_name_is_only_itself_and_a_star_is_every_name() {
        assert!(matches("Allowed.test", "allowed.TEST."));
        for no in ["a.allowed.test", "allowed.test.evil.test", "test", "xallowed.test"] {
            assert!(!matches("allowed.test", no), "{no}");
            assert!(matches("*", no));
        }
    }

    #[test]
    fn stars_stand_only_in_front() {
        for bad in ["**", "a.*.b", "*.", "*.*", "*.*.a", "*a.b", "a.*", "*.1.2.3.4", ".*", "* .a", "*.a:1"] {
            assert!(HostPattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_that_no_name_is_short_enough_for_is_refused() {
        let label = "a".repeat(63);
        let below = format!("{label}.{label}.{label}.{}", "b".repeat(59));
        assert!(HostPattern::parse(&format!("*.{below}")).is_ok());
        assert_eq!(HostPattern::parse(&format!("*.{below}b")), Err(BadName::TooLong));
    }
}
