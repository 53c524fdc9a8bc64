//! What would become of a connection, and which rule decides: asked of the very code that decides.
//!
//! A [`Target`] is what is asked about. Its packet ([`probe`]) goes to a [`Judge`]: in the daemon that is the kernel
//! program itself, run on a copy with maps of its own ([`crate::kernel::trial`]); without a daemon the same functions,
//! compiled for this process ([`Dry`]). What the program would hand to the inspector is judged by the inspector's
//! [`Rules`]. Nothing here changes anything, sends anything, or knows sandboxes.

mod dry;
pub mod probe;
mod target;

use std::net::{IpAddr, SocketAddr};

use filter_common::{Class, Decision, Reason, RuleWord};
use filter_inspector::{
    dialled,
    host::Transport,
    rules::{Named, Rules, Target as Destination, Verdict},
};
use filter_policy::{DnsMode, Name, Prefix};

pub use self::{
    dry::Dry,
    target::{Host, Target},
};
use crate::{config::sections::InspectedPorts, error::ControlError, protocol::explain::Explained};

/// What the program says of the first packet of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ruling {
    /// Why it passes or does not. `None`: it goes to the inspector, who will say.
    pub reason: Option<Reason>,
    /// By which rule.
    pub rule: RuleWord,
}

/// Who decides about packets.
pub trait Judge {
    /// What becomes of the first packet of a connection.
    ///
    /// # Errors
    /// If it cannot be asked.
    fn judge(&mut self, to: SocketAddr, transport: Transport) -> Result<Ruling, ControlError>;
}

/// What is known of the addresses of a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resolved {
    /// There are these, or it is said why there are none.
    To(Result<Vec<IpAddr>, String>),
    /// There is nobody to ask.
    Unknown,
}

/// An answer, on its way.
struct Answer<'a> {
    rules: &'a Rules,
    ports: &'a InspectedPorts,
    target: &'a Target,
    steps: Vec<String>,
}

/// What became of a connection to one address.
#[derive(Clone, Copy)]
struct Fate {
    reason: Reason,
    rule: RuleWord,
    address: Option<IpAddr>,
}

/// What would become of a connection to `target` under `rules`. `resolved`: where its name leads.
///
/// # Errors
/// If the judge cannot be asked.
pub fn explain(
    rules: &Rules,
    ports: &InspectedPorts,
    target: &Target,
    resolved: &Resolved,
    judge: &mut impl Judge,
) -> Result<Explained, ControlError> {
    let mut answer = Answer { rules, ports, target, steps: Vec::new() };
    let fate = answer.fate(resolved, judge)?;
    Ok(answer.explained(fate))
}

impl Answer<'_> {
    fn fate(&mut self, resolved: &Resolved, judge: &mut impl Judge) -> Result<Fate, ControlError> {
        let name = match &self.target.host {
            Host::Address(address) => return self.fate_at(*address, &[*address], judge),
            Host::Name(name) => name.clone(),
        };
        match resolved {
            Resolved::Unknown => Ok(self.without_addresses(&name)),
            Resolved::To(Err(why)) => {
                self.say(format!("{name} leads nowhere: {why}"));
                self.ask_for(&name);
                let rule = self.rules.names.find(&name).map_or(RuleWord::UNMATCHED, named);
                Ok(Fate { reason: Reason::Unresolved, rule, address: None })
            }
            Resolved::To(Ok(addresses)) => {
                let shown: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
                self.say(format!("{name} leads to {}", shown.join(", ")));
                self.ask_for(&name);
                let mut first = None;
                // A client tries them in turn.
                for address in addresses {
                    let fate = self.fate_at(*address, addresses, judge)?;
                    if fate.reason.decision() == Decision::Allow {
                        return Ok(fate);
                    }
                    first.get_or_insert(fate);
                }
                let nowhere = Fate { reason: Reason::Unresolved, rule: RuleWord::UNMATCHED, address: None };
                Ok(first.unwrap_or(nowhere))
            }
        }
    }

    /// `known`: where the name leads, among which the filter chooses.
    fn fate_at(
        &mut self,
        address: IpAddr,
        known: &[IpAddr],
        judge: &mut impl Judge,
    ) -> Result<Fate, ControlError> {
        let to = SocketAddr::new(address, self.target.port);
        let ruling = judge.judge(to, self.target.transport)?;
        if let Some(reason) = ruling.reason {
            self.say_reason(&format!("the program judges {to}"), reason, ruling.rule);
            return Ok(Fate { reason, rule: ruling.rule, address: Some(address) });
        }
        self.say(format!("the program hands {to} to the inspector, which judges by name"));
        let named = self.named();
        match self.rules.judge(&named, address) {
            Verdict::Deny { reason, rule } => {
                self.say_reason("the inspector judges", reason, rule);
                Ok(Fate { reason, rule, address: Some(address) })
            }
            Verdict::Allow { target: Destination::Address(address), reason, rule } => {
                self.say_reason("the inspector judges", reason, rule);
                self.say(format!("the filter dials {address}, which the sandbox chose"));
                Ok(Fate { reason, rule, address: Some(address) })
            }
            Verdict::Allow { target: Destination::Name(name), reason, rule } => {
                self.say_reason("the inspector judges", reason, rule);
                let rules = self.rules;
                let dialled = dialled(known, |address| rules.permits(Some(&name), address), address);
                Ok(match dialled.first() {
                    Some(dialled) => {
                        self.say(format!("the filter dials {dialled}, whatever address the sandbox chose"));
                        Fate { reason, rule, address: Some(*dialled) }
                    }
                    None => {
                        self.say(
                            "no address of the name may be dialled: all are the platform's own".to_owned(),
                        );
                        Fate { reason: Reason::Guarded, rule: RuleWord::UNMATCHED, address: Some(address) }
                    }
                })
            }
        }
    }

    /// Where the name leads is not known: what its name alone decides, and otherwise what becomes of an address
    /// that no narrower rule is about.
    fn without_addresses(&mut self, name: &Name) -> Fate {
        self.say(format!(
            "where {name} leads is not known: no daemon was asked, so no address was looked at"
        ));
        let everything = self.rules.compiled.entries.iter().find(|(prefix, _)| *prefix == Prefix::EVERYTHING);
        let rule = everything.map_or(RuleWord::UNMATCHED, |(_, word)| *word);
        if rule.class() == Class::Inspected && self.is_inspected() {
            let (reason, rule) = match self.rules.names.find(name) {
                Some(index) => (Reason::AllowedName, named(index)),
                None => (Reason::NameNotAllowed, rule),
            };
            self.say_reason("the inspector judges", reason, rule);
            return Fate { reason, rule, address: None };
        }
        let reason = filter_common::decide::reason_of(rule.without_names());
        self.say_reason("an address that no narrower rule is about is judged", reason, rule);
        Fate { reason, rule, address: None }
    }

    /// What becomes of the query that comes first.
    fn ask_for(&mut self, name: &Name) {
        let rules = self.rules;
        if rules.compiled.inspect
            && rules.policy.dns.mode == DnsMode::Strict
            && rules.names.find(name).is_none()
        {
            let servers: Vec<_> = rules.policy.dns.servers.iter().map(IpAddr::to_string).collect();
            let servers = servers.join(", ");
            self.say(format!(
                "{servers} would refuse to look it up for the sandbox (dns_refused): the mode is strict"
            ));
        }
    }

    fn is_inspected(&self) -> bool {
        let InspectedPorts { http, tls } = self.ports;
        self.target.transport == Transport::Tcp
            && (http.contains(&self.target.port) || tls.contains(&self.target.port))
    }

    fn named(&self) -> Named {
        if self.ports.tls.contains(&self.target.port) { self.target.in_tls() } else { self.target.in_http() }
    }

    fn say(&mut self, step: String) {
        self.steps.push(step);
    }

    fn say_reason(&mut self, who: &str, reason: Reason, rule: RuleWord) {
        let by = self.pointer(reason, rule).map(|rule| format!(" by {rule}")).unwrap_or_default();
        let sentence = reason.describe().trim().trim_end_matches('.');
        let decision = reason.decision().name();
        self.say(format!("{who}: {decision}, {} ({sentence}){by}", reason.name()));
    }

    /// As events have it.
    #[expect(clippy::wildcard_enum_match_arm, reason = "these are reached whatever the policy says")]
    fn pointer(&self, reason: Reason, rule: RuleWord) -> Option<String> {
        match reason {
            Reason::Guarded | Reason::Protocol | Reason::Dns => None,
            _ => self.rules.policy.rule_pointer(rule),
        }
    }

    fn explained(self, fate: Fate) -> Explained {
        let name = match &self.target.host {
            Host::Name(name) => Some(name.to_string()),
            Host::Address(_) => None,
        };
        Explained {
            decision: fate.reason.decision().name().into(),
            reason: fate.reason.name().into(),
            rule: self.pointer(fate.reason, fate.rule),
            name,
            address: fate.address,
            port: self.target.port,
            proto: if self.target.transport == Transport::Tcp { "tcp" } else { "udp" }.into(),
            generation: (self.rules.generation != 0).then_some(self.rules.generation.into()),
            steps: self.steps,
        }
    }
}

fn named(index: usize) -> RuleWord {
    RuleWord::new(Class::Named, u32::try_from(index).unwrap_or(RuleWord::MAX_NUMBER))
}

#[cfg(test)]
mod tests;
