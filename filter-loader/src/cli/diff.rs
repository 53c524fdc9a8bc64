//! `check --diff`: what a change from one policy to another opens and closes.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use filter_common::{Addr, Class, RuleWord};
use filter_policy::{AllowEntry, Compiled, HostPattern, Policy, compile, evaluate};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use serde::Serialize;
use serde_json::Value;

use super::{
    output::{Human, Style},
    policy,
    table::printable,
};
use crate::{config::Config, error::ControlError};

/// Where IPv4 lies among all addresses.
const V4_FIRST: u128 = 0xffff << 32;
const V4_LAST: u128 = V4_FIRST | 0xffff_ffff;

/// What changes.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Diff {
    /// What was denied and no longer is.
    pub opens: Reach,
    /// What was allowed and no longer is.
    pub closes: Reach,
    /// Fields that are not about destinations.
    pub changes: Vec<Change>,
}

/// Destinations.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Reach {
    /// By address, on every port.
    pub addresses: Vec<Place>,
    /// By name, for the web.
    pub names: Vec<Place>,
    /// Resolvers, for queries.
    pub resolvers: Vec<IpAddr>,
}

/// A destination, and the rule of the new policy that says so; none where no rule is about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Place {
    /// A CIDR, or a name or pattern.
    pub destination: String,
    /// As a JSON pointer.
    pub rule: Option<String>,
}

/// A field with another value.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Change {
    /// Which, as a JSON pointer.
    pub pointer: String,
    /// What it was.
    pub old: Value,
    /// What it is.
    pub new: Value,
}

/// Compares two policy files.
///
/// # Errors
/// When one cannot be read or is refused.
pub fn diff(old: &Path, new: &Path, config: &Config) -> Result<Diff, ControlError> {
    let read = |path| -> Result<Policy, ControlError> {
        Ok(Policy::from_value(policy::read(path)?, &config.defaults.fields)?)
    };
    Ok(compare(&read(old)?, &read(new)?, config))
}

fn compare(old: &Policy, new: &Policy, config: &Config) -> Diff {
    let guard = config.guard(&[]);
    let (before, after) = (compile(old, &guard), compile(new, &guard));
    let mut diff = Diff { changes: changes(old, new), ..Diff::default() };
    for (first, last, rule) in changed(&before, &after) {
        let reach = if is_open(rule) { &mut diff.opens } else { &mut diff.closes };
        let rule = new.rule_pointer(rule.without_names());
        let places =
            subnets(first, last).map(|net| Place { destination: net.to_string(), rule: rule.clone() });
        reach.addresses.extend(places);
    }
    diff.opens.names = names(new, &after, &patterns(old, &before));
    // Nothing of the new policy is a rule about what it no longer allows.
    let closed = names(old, &before, &patterns(new, &after));
    diff.closes.names = closed.into_iter().map(|place| Place { rule: None, ..place }).collect();
    let only = |of: &Compiled, other: &Compiled| -> Vec<IpAddr> {
        of.resolvers
            .iter()
            .filter(|one| !other.resolvers.contains(one))
            .map(|one| IpAddr::from(*one))
            .collect()
    };
    diff.opens.resolvers = only(&after, &before);
    diff.closes.resolvers = only(&before, &after);
    diff
}

/// Ranges of addresses whose verdict is another one now, with the rule that decides now.
fn changed(before: &Compiled, after: &Compiled) -> Vec<(u128, u128, RuleWord)> {
    let mut starts = vec![0, V4_FIRST, V4_LAST + 1];
    for (prefix, _) in before.entries.iter().chain(&after.entries) {
        let first = u128::from_be_bytes(prefix.addr.octets());
        let inside = u128::MAX.checked_shr(prefix.len.into()).unwrap_or(0);
        starts.push(first);
        starts.extend((first | inside).checked_add(1));
    }
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u128::MAX]);
    let mut changed: Vec<(u128, u128, RuleWord)> = Vec::new();
    for (first, last) in starts.iter().copied().zip(ends) {
        let address = Addr::from(IpAddr::V6(Ipv6Addr::from(first)));
        let (was, is) = (evaluate(before, address), evaluate(after, address));
        if is_open(was) == is_open(is) {
            continue;
        }
        match changed.last_mut() {
            Some((_, end, rule))
                if *rule == is
                    && end.checked_add(1) == Some(first)
                    && first != V4_FIRST
                    && first != V4_LAST + 1 =>
            {
                *end = last;
            }
            _ => changed.push((first, last, is)),
        }
    }
    changed
}

/// Whether every port of an address under this rule is reached.
const fn is_open(rule: RuleWord) -> bool {
    matches!(rule.class(), Class::Allowed | Class::Unmatched)
}

/// The fewest CIDRs that are this range.
fn subnets(first: u128, last: u128) -> Box<dyn Iterator<Item = IpNet>> {
    if (V4_FIRST..=V4_LAST).contains(&first) {
        let v4 = |key: u128| Ipv4Addr::from(u32::try_from(key & 0xffff_ffff).unwrap_or(0));
        return Box::new(Ipv4Subnets::new(v4(first), v4(last), 0).map(IpNet::from));
    }
    Box::new(Ipv6Subnets::new(first.into(), last.into(), 0).map(IpNet::from))
}

/// The names that a policy asks for, with their places; none if it does not come to that.
fn patterns<'a>(policy: &'a Policy, compiled: &Compiled) -> Vec<(usize, &'a HostPattern)> {
    let entries = policy.allow_out.iter().enumerate().filter(|_| compiled.inspect);
    let domains = entries.filter_map(|(index, entry)| match entry {
        AllowEntry::Domain(pattern) => Some((index, pattern)),
        AllowEntry::Net(_) => None,
    });
    domains.collect()
}

/// The names of a policy that those others do not cover.
fn names(policy: &Policy, compiled: &Compiled, others: &[(usize, &HostPattern)]) -> Vec<Place> {
    let own = patterns(policy, compiled);
    let uncovered =
        own.into_iter().filter(|(_, pattern)| !others.iter().any(|(_, other)| covers(other, pattern)));
    let places = uncovered.map(|(index, pattern)| Place {
        destination: pattern.to_string(),
        rule: Some(format!("/allowOut/{index}")),
    });
    places.collect()
}

/// Whether all names of `inner` are names of `outer`.
fn covers(outer: &HostPattern, inner: &HostPattern) -> bool {
    match inner {
        HostPattern::Any => *outer == HostPattern::Any,
        HostPattern::Suffix(below) => {
            outer == inner || (outer.matches(below) && !matches!(outer, HostPattern::Exact(_)))
        }
        HostPattern::Exact(name) => outer.matches(name),
    }
}

fn changes(old: &Policy, new: &Policy) -> Vec<Change> {
    const DESTINATIONS: [&str; 3] = ["allowInternetAccess", "allowOut", "denyOut"];
    let (old, new) = (old.redacted(), new.redacted());
    let mut fields: Vec<&String> =
        [&old, &new].into_iter().filter_map(Value::as_object).flat_map(|map| map.keys()).collect();
    fields.sort();
    fields.dedup();
    let value = |of: &Value, field: &str| of.get(field).cloned().unwrap_or(Value::Null);
    let others = fields.into_iter().filter(|field| !DESTINATIONS.contains(&field.as_str()));
    let changed = others.filter(|field| value(&old, field) != value(&new, field));
    let changes = changed.map(|field| Change {
        pointer: format!("/{field}"),
        old: value(&old, field),
        new: value(&new, field),
    });
    changes.collect()
}

impl Human for Diff {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        if *self == Self::default() {
            return writeln!(out, "Nothing changes.");
        }
        for (sign, reach) in [("+", &self.opens), ("-", &self.closes)] {
            let line = |out: &mut dyn Write, what: &str, rule: Option<&str>| {
                let text = printable(&format!("{sign} {what}"));
                let text = if sign == "+" { style.good(&text) } else { style.bad(&text) };
                match rule {
                    Some(rule) => writeln!(out, "{text}  {}", style.dim(&printable(rule))),
                    None => writeln!(out, "{text}"),
                }
            };
            for place in &reach.addresses {
                line(out, &place.destination, place.rule.as_deref())?;
            }
            for place in &reach.names {
                line(out, &format!("{} (web)", place.destination), place.rule.as_deref())?;
            }
            for resolver in &reach.resolvers {
                line(out, &format!("{resolver} (DNS)"), None)?;
            }
        }
        for Change { pointer, old, new } in &self.changes {
            writeln!(
                out,
                "{} {} -> {}",
                style.bold(pointer),
                printable(&old.to_string()),
                printable(&new.to_string())
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compared(old: Value, new: Value) -> Diff {
        let config = Config::default();
        let read = |document| Policy::from_value(document, &config.defaults.fields).unwrap();
        compare(&read(old), &read(new), &config)
    }

    fn shown(places: &[Place]) -> Vec<(&str, &str)> {
        places
            .iter()
            .map(|place| (place.destination.as_str(), place.rule.as_deref().unwrap_or("-")))
            .collect()
    }

    #[test]
    fn addresses_that_change_sides_are_the_fewest_prefixes() {
        let diff = compared(
            json!({ "allowOut": ["203.0.113.0/25"], "denyOut": ["0.0.0.0/0"] }),
            json!({ "allowOut": ["203.0.113.0/24", "2001:db8::/32"], "denyOut": ["0.0.0.0/0"] }),
        );
        assert_eq!(
            shown(&diff.opens.addresses),
            [("203.0.113.128/25", "/allowOut/0"), ("2001:db8::/32", "/allowOut/1")]
        );
        assert_eq!((diff.closes, diff.changes), (Reach::default(), Vec::new()));
        let back = compared(
            json!({ "allowOut": ["203.0.113.0/24"], "denyOut": ["0.0.0.0/0"] }),
            json!({ "denyOut": ["203.0.113.128/25", "0.0.0.0/0"] }),
        );
        assert_eq!(
            shown(&back.closes.addresses),
            [("203.0.113.0/25", "/denyOut/1"), ("203.0.113.128/25", "/denyOut/0")]
        );
    }

    #[test]
    fn everything_is_closed_but_what_is_guarded_anyway() {
        let diff = compared(json!({}), json!({ "denyOut": ["0.0.0.0/0"] }));
        let closed = shown(&diff.closes.addresses);
        assert!(
            closed.contains(&("1.0.0.0/8", "/denyOut/0")) && closed.contains(&("8.0.0.0/7", "/denyOut/0")),
            "{closed:?}"
        );
        assert!(!closed.iter().any(|(net, _)| net.starts_with("10.")), "{closed:?}");
        assert_eq!(diff.opens, Reach::default());
    }

    #[test]
    fn names_open_unless_others_cover_them() {
        let names = |names: &[&str]| json!({ "allowOut": names, "denyOut": ["0.0.0.0/0"] });
        let diff = compared(names(&["a.test", "*.b.test"]), names(&["*.x.b.test", "c.b.test", "*.test"]));
        assert_eq!(shown(&diff.opens.names), [("*.test", "/allowOut/2")]);
        assert_eq!(diff.closes.names, []);
        let diff = compared(names(&["*"]), names(&["a.test"]));
        assert_eq!((shown(&diff.closes.names), diff.opens.names.len()), (vec![("*", "-")], 0));
        let diff = compared(json!({ "denyOut": ["0.0.0.0/0"] }), names(&["a.test"]));
        assert_eq!((diff.opens.names.len(), diff.opens.resolvers), (1, vec![IpAddr::from([8, 8, 8, 8])]));
        assert_eq!(diff.opens.addresses, [], "a name opens no address");
    }

    #[test]
    fn other_fields_are_named_with_both_values() {
        let diff = compared(json!({}), json!({ "limits": { "egressConnections": 5 } }));
        let [change] = diff.changes.as_slice() else { panic!("{diff:?}") };
        assert_eq!((change.pointer.as_str(), &change.new["egressConnections"]), ("/limits", &json!(5)));
        let mut out = Vec::new();
        compared(json!({}), json!({})).human(&mut out, Style::Plain).unwrap();
        assert_eq!(out, b"Nothing changes.\n");
    }
}
