//! `check`: what a policy amounts to, without a daemon.
//!
//! The guard is that of the configuration; the addresses of the host itself, which the daemon adds,
//! are not in it.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
};

use filter_common::{Class, RuleWord};
use filter_policy::{ALL_TRAFFIC, AllowEntry, Compiled, Policy, Prefix, compile};
use serde::Serialize;
use serde_json::Value;

use super::{args::CheckArgs, policy};
use crate::{config::Config, error::ControlError};

/// More warnings than anybody reads.
const MAX_WARNINGS: usize = 100;

/// What a policy amounts to.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// The canonical form, header values masked.
    pub policy: Value,
    /// Its hash.
    pub policy_hash: String,
    /// Which prefix gets which verdict; the longest one around an address decides.
    pub entries: Vec<Entry>,
    /// Whether connections to the inspected ports are judged by name.
    pub inspect: bool,
    /// The resolvers that are opened.
    pub resolvers: Vec<IpAddr>,
    /// What is possible but hardly meant.
    pub warnings: Vec<Warning>,
}

/// One prefix.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Entry {
    /// The CIDR.
    pub prefix: String,
    /// `allow`, `deny` or `guarded`.
    pub verdict: &'static str,
    /// The entry of the policy, as a JSON pointer; none for the guard's.
    pub rule: Option<String>,
}

/// What is possible but hardly meant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Warning {
    /// The entry of the policy, as a JSON pointer.
    pub pointer: String,
    /// A sentence.
    pub message: String,
}

/// Validates the policy that the command line names, and compiles it.
///
/// # Errors
/// When none is named, and with all problems when it is refused.
pub fn check(args: &CheckArgs, config: &Config) -> Result<Checked, ControlError> {
    let document = match &args.file {
        Some(path) => Some(policy::read(path)?),
        None => args.policy.document()?,
    };
    let Some(document) = document else {
        let message = "no policy to check: name a file, or rules with flags such as --deny-out";
        return Err(ControlError::usage(message));
    };
    let policy = Policy::from_value(document, &config.defaults.fields)?;
    Ok(examine(&policy, config))
}

fn examine(policy: &Policy, config: &Config) -> Checked {
    let compiled = compile(policy, &config.guard(&[]));
    Checked {
        policy: policy.redacted(),
        policy_hash: policy.hash().to_string(),
        entries: entries(policy, &compiled),
        inspect: compiled.inspect,
        resolvers: compiled.resolvers.iter().copied().map(IpAddr::from).collect(),
        warnings: warnings(policy, &compiled),
    }
}

fn entries(policy: &Policy, compiled: &Compiled) -> Vec<Entry> {
    // The prefix of all addresses is two CIDRs, and all of IPv4 may have an entry of its own.
    let all_v4 = Prefix::from(ALL_TRAFFIC);
    let has_own = find(compiled, all_v4).is_some();
    let mut entries = Vec::with_capacity(compiled.entries.len() + 1);
    for (prefix, word) in &compiled.entries {
        let entry = |prefix: &Prefix| Entry {
            prefix: prefix.to_string(),
            verdict: verdict(word.class()),
            rule: policy.rule_pointer(*word),
        };
        if *prefix == Prefix::EVERYTHING && !has_own {
            entries.push(entry(&all_v4));
        }
        entries.push(entry(prefix));
    }
    entries
}

const fn verdict(class: Class) -> &'static str {
    match class {
        Class::Allowed | Class::Unmatched | Class::Observed => "allow",
        // What names may open after all stands in `inspect`.
        Class::Denied | Class::Inspected => "deny",
        Class::Resolver => "dns",
        Class::Guarded | Class::Named => "guarded",
    }
}

fn warnings(policy: &Policy, compiled: &Compiled) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if !policy.allow_out.is_empty() && policy.deny_out.is_empty() && policy.allow_internet_access {
        let message = "nothing is denied, so that allowing restricts nothing; add 0.0.0.0/0 to denyOut to \
            deny everything else";
        warnings.push(Warning { pointer: "/allowOut".to_owned(), message: message.to_owned() });
    }
    if policy.has_domains() && !compiled.inspect {
        let message =
            "with `deny-first` the names are never asked for: 0.0.0.0/0 in denyOut comes before them";
        warnings.push(Warning { pointer: "/precedence".to_owned(), message: message.to_owned() });
    }
    let used: HashSet<RuleWord> = compiled.entries.iter().map(|(_, word)| word.without_names()).collect();
    let mut unused = rules(policy).filter(|(_, word)| !used.contains(word));
    warnings.extend(unused.by_ref().take(MAX_WARNINGS).map(|(prefix, word)| Warning {
        pointer: policy.rule_pointer(word).unwrap_or_default(),
        message: shadowed(prefix, word, policy, compiled),
    }));
    let more = unused.count();
    if more > 0 {
        let message = format!("{more} more rules have no effect");
        warnings.push(Warning { pointer: String::new(), message });
    }
    warnings
}

/// The address rules of the policy, as the compiler numbers them.
fn rules(policy: &Policy) -> impl Iterator<Item = (Prefix, RuleWord)> {
    let word = |class, index| RuleWord::new(class, u32::try_from(index).unwrap_or(RuleWord::MAX_NUMBER));
    let prefix = |net| if net == ALL_TRAFFIC { Prefix::EVERYTHING } else { Prefix::from(net) };
    let allowed = policy.allow_out.iter().enumerate().filter_map(move |(index, entry)| match entry {
        AllowEntry::Net(net) => Some((prefix(*net), word(Class::Allowed, index))),
        AllowEntry::Domain(_) => None,
    });
    let denied = policy.deny_out.iter().enumerate();
    allowed.chain(denied.map(move |(index, net)| (prefix(*net), word(Class::Denied, index))))
}

/// Why a rule did not become an entry.
fn shadowed(prefix: Prefix, word: RuleWord, policy: &Policy, compiled: &Compiled) -> String {
    let around = (0..=prefix.len).rev().find_map(|len| {
        let outer = shortened(prefix, len);
        find(compiled, outer).map(|word| (outer, word.without_names()))
    });
    let Some((outer, stronger)) = around else {
        return "has no effect".to_owned();
    };
    if stronger.class() == Class::Guarded {
        return format!("has no effect: {outer} belongs to the platform, which no policy opens");
    }
    let rule = policy.rule_pointer(stronger).unwrap_or_default();
    if stronger.class() == word.class() {
        return format!("has no effect: it is the same as {rule}");
    }
    format!("has no effect: {rule} is about all of it and comes first")
}

fn shortened(prefix: Prefix, len: u8) -> Prefix {
    let rest = 128 - u32::from(len.min(128));
    let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
    let key = u128::from_be_bytes(prefix.addr.octets()) & mask;
    Prefix { addr: Ipv6Addr::from(key).into(), len }
}

fn find(compiled: &Compiled, prefix: Prefix) -> Option<RuleWord> {
    let place = compiled.entries.binary_search_by_key(&prefix, |(prefix, _)| *prefix).ok()?;
    compiled.entries.get(place).map(|(_, word)| *word)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(document: Value) -> Checked {
        let config = Config::default();
        examine(&Policy::from_value(document, &config.defaults.fields).unwrap(), &config)
    }

    fn pointers(checked: &Checked) -> Vec<(&str, &str)> {
        checked.warnings.iter().map(|warning| (warning.pointer.as_str(), warning.message.as_str())).collect()
    }

    #[test]
    fn entries_name_prefix_verdict_and_rule() {
        let checked = checked(json!({ "allowOut": ["a.test", "8.8.8.8/24"], "denyOut": ["0.0.0.0/0"] }));
        let find = |prefix: &str| checked.entries.iter().find(|entry| entry.prefix == prefix).unwrap();
        assert_eq!(
            (find("8.8.8.0/24").verdict, find("8.8.8.0/24").rule.as_deref()),
            ("allow", Some("/allowOut/1"))
        );
        for everything in ["0.0.0.0/0", "::/0"] {
            assert_eq!(
                (find(everything).verdict, find(everything).rule.as_deref()),
                ("deny", Some("/denyOut/0"))
            );
        }
        assert_eq!((find("10.0.0.0/8").verdict, find("10.0.0.0/8").rule.as_deref()), ("guarded", None));
        assert_eq!(checked.policy["allowOut"], json!(["a.test", "8.8.8.0/24"]));
        assert_eq!(checked.policy_hash.len(), 64);
        assert!(checked.inspect && checked.warnings.is_empty());
        assert_eq!(checked.resolvers, ["8.8.8.8".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn resolvers_stand_out_and_names_that_are_never_asked_for_are_warned_about() {
        let document = json!({ "allowOut": ["a.test"], "denyOut": ["0.0.0.0/0"] });
        let found = checked(document.clone());
        let resolver = found.entries.iter().find(|entry| entry.prefix == "8.8.8.8/32").unwrap();
        assert_eq!((resolver.verdict, resolver.rule.as_deref()), ("dns", Some("/denyOut/0")));
        assert!(found.inspect && found.warnings.is_empty());
        let mut document = document;
        document["precedence"] = json!("deny-first");
        let found = checked(document);
        assert!(!found.inspect && found.resolvers.is_empty());
        assert_eq!(pointers(&found)[0].0, "/precedence");
    }

    #[test]
    fn rules_without_effect_are_named_with_the_reason() {
        let checked = checked(json!({
            "allowOut": ["8.8.8.0/24", "10.1.0.0/16", "8.8.8.0/24"],
            "denyOut": ["8.8.8.8", "1.1.1.1", "169.254.169.254"],
        }));
        assert_eq!(
            pointers(&checked),
            [
                ("/allowOut/1", "has no effect: 10.0.0.0/8 belongs to the platform, which no policy opens"),
                ("/allowOut/2", "has no effect: it is the same as /allowOut/0"),
                ("/denyOut/0", "has no effect: /allowOut/0 is about all of it and comes first"),
                (
                    "/denyOut/2",
                    "has no effect: 169.254.0.0/16 belongs to the platform, which no policy opens"
                ),
            ]
        );
    }

    #[test]
    fn allowing_alone_is_warned_about() {
        assert_eq!(pointers(&checked(json!({ "allowOut": ["1.1.1.1"] })))[0].0, "/allowOut");
        assert!(
            pointers(&checked(json!({ "allowOut": ["1.1.1.1"], "allowInternetAccess": false }))).is_empty()
        );
    }

    #[test]
    fn deny_first_shadows_the_other_way_round() {
        let document =
            json!({ "allowOut": ["8.8.8.8"], "denyOut": ["8.8.8.0/24"], "precedence": "deny-first" });
        assert_eq!(pointers(&checked(document))[0].0, "/allowOut/0");
    }

    #[test]
    fn warnings_are_bounded() {
        let nets: Vec<String> = (0..300).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
        let checked = checked(json!({ "denyOut": nets }));
        assert_eq!(checked.warnings.len(), MAX_WARNINGS + 1);
        assert!(checked.warnings[MAX_WARNINGS].message.contains("200"));
    }
}
