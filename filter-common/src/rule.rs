//! What the trie says of an address: one word, so that one lookup decides.

/// What the most specific surviving rule about an address says.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// No rule is about the address.
    Unmatched = 0,
    /// An allowed CIDR.
    Allowed = 1,
    /// A denied CIDR.
    Denied = 2,
    /// The platform's own: never reachable.
    Guarded = 3,
    /// A denied CIDR of a policy that allows names: what it denies may still be reached by one.
    Inspected = 4,
    /// As [`Self::Inspected`], and a resolver that the policy opens.
    Resolver = 5,
    /// No trie says this: a name allowed the connection. The number is the entry's index in `allowOut`.
    Named = 6,
    /// No rule is about the address, and none is to be: it is being learned what the sandbox does. As
    /// [`Self::Unmatched`], but web connections go to the inspector, who sees whom they name.
    Observed = 7,
}

/// The trie's value: the class in the top four bits, the number of the rule within its class below.
///
/// A lookup returns the value and never the key, so the value has to say which rule it was. The
/// number is the entry's index in the list that it comes from (`allowOut`, `denyOut`, the guard).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RuleWord(u32);

impl RuleWord {
    /// What a lookup that finds nothing amounts to.
    pub const UNMATCHED: Self = Self(0);
    /// The largest rule number that fits.
    pub const MAX_NUMBER: u32 = (1 << 28) - 1;

    /// Joins class and number; a number that does not fit is cut to [`Self::MAX_NUMBER`].
    #[inline(always)]
    pub const fn new(class: Class, number: u32) -> Self {
        let number = if number > Self::MAX_NUMBER { Self::MAX_NUMBER } else { number };
        Self((class as u32) << 28 | number)
    }

    /// From the raw word in a map or an event.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The raw word.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The class; bits that stand for none count as guarded, since what cannot be read must not pass.
    #[inline(always)]
    pub const fn class(self) -> Class {
        match self.0 >> 28 {
            0 => Class::Unmatched,
            1 => Class::Allowed,
            2 => Class::Denied,
            4 => Class::Inspected,
            5 => Class::Resolver,
            6 => Class::Named,
            7 => Class::Observed,
            _ => Class::Guarded,
        }
    }

    /// The word as it stands for what names and resolvers cannot change: a plain denial by the same rule.
    #[inline(always)]
    pub const fn without_names(self) -> Self {
        match self.class() {
            Class::Inspected | Class::Resolver => Self::new(Class::Denied, self.number()),
            Class::Unmatched
            | Class::Allowed
            | Class::Denied
            | Class::Guarded
            | Class::Named
            | Class::Observed => self,
        }
    }

    /// The rule's number within its class.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 & Self::MAX_NUMBER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_and_number_round_trip() {
        let classes = [
            Class::Unmatched,
            Class::Allowed,
            Class::Denied,
            Class::Guarded,
            Class::Inspected,
            Class::Resolver,
            Class::Named,
            Class::Observed,
        ];
        for class in classes {
            for number in [0, 1, 1_000_000, RuleWord::MAX_NUMBER] {
                let word = RuleWord::from_bits(RuleWord::new(class, number).bits());
                assert_eq!((word.class(), word.number()), (class, number));
            }
        }
        assert_eq!(RuleWord::new(Class::Allowed, u32::MAX).number(), RuleWord::MAX_NUMBER);
        assert_eq!(RuleWord::from_bits(u32::MAX).class(), Class::Guarded);
    }
}
