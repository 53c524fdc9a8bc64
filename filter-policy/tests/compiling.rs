//! The precedence rules by example, and what else the kernel is given.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

use std::net::IpAddr;

use filter_common::{Addr, Class, RuleWord};
use filter_policy::{Compiled, Defaults, Guard, Name, Policy, Precedence, compile, evaluate};
use serde_json::{Value, json};

fn compiled(document: Value) -> Compiled {
    compile(&Policy::from_value(document, &Defaults::default()).unwrap(), &Guard::default())
}

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

#[track_caller]
fn decides(compiled: &Compiled, text: &str, class: Class, number: u32) {
    assert_eq!(evaluate(compiled, addr(text)), RuleWord::new(class, number), "{text}");
}

#[test]
fn prefix_length_never_matters_between_allow_and_deny() {
    let lists = |precedence| {
        compiled(json!({
            "allowOut": ["8.8.8.0/24", "9.9.9.9"], "denyOut": ["8.8.8.8", "9.9.0.0/16"], "precedence": precedence,
        }))
    };
    let allow_first = lists("allow-first");
    decides(&allow_first, "8.8.8.8", Class::Allowed, 0);
    decides(&allow_first, "9.9.9.9", Class::Allowed, 1);
    decides(&allow_first, "9.9.9.8", Class::Denied, 1);
    let deny_first = lists("deny-first");
    decides(&deny_first, "8.8.8.8", Class::Denied, 0);
    decides(&deny_first, "8.8.8.9", Class::Allowed, 0);
    decides(&deny_first, "9.9.9.9", Class::Denied, 1);
    assert_eq!(evaluate(&deny_first, addr("1.1.1.1")), RuleWord::UNMATCHED);
}

#[test]
fn all_traffic_covers_ipv6_in_either_list() {
    let denied = compiled(json!({ "denyOut": ["1.1.1.1", "0.0.0.0/0"], "allowOut": ["2001:db8::/32"] }));
    decides(&denied, "2001:db9::1", Class::Denied, 1);
    decides(&denied, "255.255.254.0", Class::Guarded, guard_number("255.255.254.0"));
    decides(&denied, "2001:db8::1", Class::Allowed, 0);
    decides(&denied, "1.1.1.1", Class::Denied, 0);
    let allowed = compiled(json!({ "denyOut": ["1.1.1.1", "0.0.0.0/0"], "allowOut": ["0.0.0.0/0"] }));
    decides(&allowed, "2001:db9::1", Class::Allowed, 0);
    decides(&allowed, "1.1.1.1", Class::Allowed, 0);
}

#[test]
fn no_internet_access_is_one_more_denied_entry() {
    let closed =
        compiled(json!({ "allowInternetAccess": false, "allowOut": ["1.1.1.1"], "denyOut": ["2.2.2.2"] }));
    decides(&closed, "1.1.1.1", Class::Allowed, 0);
    decides(&closed, "2.2.2.2", Class::Denied, 0);
    decides(&closed, "3.3.3.3", Class::Denied, 1);
    decides(&closed, "2001:db8::1", Class::Denied, 1);
}

#[test]
fn nothing_opens_the_guard() {
    let wide = compiled(json!({ "allowOut": ["0.0.0.0/0", "169.254.169.254", "fe80::1", "10.0.0.0/7"] }));
    for text in ["169.254.169.254", "fe80::1", "10.0.0.1", "64:ff9b::a9fe:a9fe"] {
        decides(&wide, text, Class::Guarded, guard_number(text));
    }
    decides(&wide, "11.0.0.1", Class::Allowed, 3);
}

#[test]
fn equal_entries_are_named_by_the_first() {
    let twice =
        compiled(json!({ "allowOut": ["2.2.2.2", "1.1.1.1/24", "1.1.1.0/24"], "denyOut": ["1.1.1.0/24"] }));
    decides(&twice, "1.1.1.1", Class::Allowed, 1);
}

#[test]
fn resolvers_are_opened_by_a_domain_rule_only() {
    let plain = compiled(json!({ "allowOut": ["1.1.1.1"], "dns": { "servers": ["9.9.9.9"] } }));
    assert!(!plain.inspect && plain.resolvers.is_empty());
    let named = compiled(json!({
        "allowOut": ["a.test"], "denyOut": ["0.0.0.0/0"], "dns": { "servers": ["9.9.9.9", "2001:db8::53"] },
        "limits": { "egressConnections": 5 },
    }));
    assert!(named.inspect);
    assert_eq!(named.resolvers, [addr("9.9.9.9"), addr("2001:db8::53")]);
    assert_eq!((named.egress_connections, named.precedence), (5, Precedence::AllowFirst));
}

fn guard_number(text: &str) -> u32 {
    let addr: IpAddr = text.parse().unwrap();
    Guard::default().prefixes().iter().position(|net| net.contains(&addr)).unwrap().try_into().unwrap()
}

#[test]
fn while_it_is_observed_nothing_is_denied_but_what_is_guarded() {
    let strict = json!({
        "allowInternetAccess": false, "allowOut": ["a.test", "1.1.1.1"], "denyOut": ["0.0.0.0/0"],
        "limits": { "egressConnections": 7 }, "precedence": "deny-first",
    });
    let policy = Policy::from_value(strict, &Defaults::default()).unwrap().observing();
    let compiled = compile(&policy, &Guard::default());
    assert!(compiled.inspect && compiled.watch && compiled.egress_connections == 7);
    assert!(compiled.entries.is_sorted_by(|(a, _), (b, _)| a < b), "sorted, no prefix twice");
    for free in ["1.1.1.1", "203.0.113.7", "2001:db8::1", "8.8.8.8"] {
        assert_eq!(evaluate(&compiled, addr(free)), RuleWord::UNMATCHED, "{free}");
    }
    assert_eq!(evaluate(&compiled, addr("10.0.0.1")).class(), Class::Guarded);
    assert!(policy.match_name(&Name::parse("any.test").unwrap()).is_some());
}
