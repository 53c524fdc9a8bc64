//! What is in force for a sandbox, and the verdict on a name.

use std::net::IpAddr;
use std::sync::Arc;

use filter_common::{Addr, Class, Reason, RuleWord};
use filter_policy::{BadName, Compiled, Guard, Matcher, Name, Policy, evaluate};

/// A policy in force: one generation of it, whole.
#[derive(Debug)]
pub struct Rules {
    /// Its number.
    pub generation: u32,
    /// The document.
    pub policy: Arc<Policy>,
    /// The names that it allows.
    pub names: Arc<Matcher>,
    /// What the kernel decides by.
    pub compiled: Arc<Compiled>,
    /// The platform's own addresses.
    pub guard: Arc<Guard>,
}

/// Where an allowed connection goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// To an address that the filter resolves.
    Name(Name),
    /// To the address that the sandbox chose, which the policy allows by itself. That happens only when the
    /// policy was replaced between the kernel's verdict and this one, or while it is being learned.
    Address(IpAddr),
}

/// What becomes of a connection or a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It goes on.
    Allow {
        /// Whereto.
        target: Target,
        /// Why.
        reason: Reason,
        /// By which entry.
        rule: RuleWord,
    },
    /// It does not.
    Deny {
        /// Why.
        reason: Reason,
        /// By which entry, if one decided.
        rule: RuleWord,
    },
}

/// What was found where a name belongs.
pub type Named = Result<Option<Name>, BadName>;

impl Rules {
    /// The verdict on a connection or request for `named`, that the sandbox addressed to `destination`.
    pub fn judge(&self, named: &Named, destination: IpAddr) -> Verdict {
        if let Ok(Some(name)) = named
            && let Some(index) = self.names.find(name)
        {
            let rule = RuleWord::new(Class::Named, u32::try_from(index).unwrap_or(RuleWord::MAX_NUMBER));
            return Verdict::Allow { target: Target::Name(name.clone()), reason: Reason::AllowedName, rule };
        }
        let rule = self.address(destination);
        match rule.class() {
            Class::Allowed => self.to_address(destination, Reason::AllowedCidr, rule),
            Class::Unmatched | Class::Observed => self.to_address(destination, Reason::Default, rule),
            Class::Guarded => Verdict::Deny { reason: Reason::Guarded, rule },
            Class::Denied | Class::Inspected | Class::Resolver | Class::Named => {
                let reason = match named {
                    Ok(Some(_)) => Reason::NameNotAllowed,
                    Ok(None) => Reason::NoName,
                    Err(_) => Reason::BadName,
                };
                Verdict::Deny { reason, rule }
            }
        }
    }

    /// Whether a connection that goes to `resolved` for `name` may go on.
    pub fn permits(&self, name: Option<&Name>, resolved: IpAddr) -> bool {
        let named =
            name.is_some_and(|name| self.names.find(name).is_some()) && !self.guard.contains(resolved);
        named || matches!(self.address(resolved).class(), Class::Allowed | Class::Unmatched | Class::Observed)
    }

    fn to_address(&self, destination: IpAddr, reason: Reason, rule: RuleWord) -> Verdict {
        Verdict::Allow { target: Target::Address(destination), reason, rule }
    }

    fn address(&self, addr: IpAddr) -> RuleWord {
        if self.guard.contains(addr) {
            return RuleWord::new(Class::Guarded, RuleWord::MAX_NUMBER);
        }
        evaluate(&self.compiled, Addr::from(addr))
    }
}
