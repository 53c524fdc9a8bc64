//! Laws that hold for every policy: the flattened table decides as the prose does, the canonical form
//! is stable, and no input panics.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use filter_common::{Addr, Class, RuleWord};
use filter_policy::{
    ALL_TRAFFIC, AllowEntry, Defaults, Format, Guard, Policy, Precedence, compile, evaluate,
};
use ipnet::IpNet;
use proptest::{collection::vec, option, prelude::*};
use serde_json::{Value, json};

/// Addresses that share most of their bits, at both ends of both families, inside and outside the
/// built-in guard.
fn addr() -> impl Strategy<Value = IpAddr> {
    let v4 = prop_oneof![
        Just(0xcb00_7100_u32),
        Just(0xffff_fff0),
        Just(0x0a00_0000),
        Just(0x0b00_0000),
        Just(0x0000_0100)
    ];
    let v6 = prop_oneof![
        Just(0x2001_0db8_u128 << 96),
        Just(0xfd00_u128 << 112),
        Just(u128::MAX << 4),
        Just(0xfffe_0000_0000),
        Just(0x0001_0000_0000_0000),
    ];
    prop_oneof![
        (v4, 0_u32..16).prop_map(|(base, low)| Ipv4Addr::from(base | low).into()),
        (v6, 0_u128..16).prop_map(|(base, low)| Ipv6Addr::from(base | low).into()),
    ]
}

/// Nets around such addresses, so that nesting and equality are common.
fn net() -> impl Strategy<Value = IpNet> {
    let len = prop_oneof![5 => 0_u8..=5, 2 => 6..=31_u8, 1 => Just(32), 1 => 33..=128_u8];
    (addr(), len).prop_map(|(addr, from_end)| {
        let max = if addr.is_ipv4() { 32 } else { 128 };
        IpNet::new(addr, max - from_end.min(max)).unwrap().trunc()
    })
}

/// As a policy takes them.
fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    vec(prop_oneof![12 => net(), 1 => Just(ALL_TRAFFIC)], 0..10).prop_map(|nets| {
        let mapped: IpNet = "::ffff:0:0/96".parse().unwrap();
        let takes =
            |net: &IpNet| *net == ALL_TRAFFIC || !(net.addr().is_unspecified() || net.contains(&mapped));
        nets.into_iter().filter(takes).collect()
    })
}

fn guard() -> impl Strategy<Value = Guard> {
    (vec(net(), 0..3), vec(net(), 0..4), vec(addr(), 0..3))
        .prop_map(|(open, deny, host)| Guard::new(&open, &deny, &host))
}

fn document() -> impl Strategy<Value = (Policy, Vec<IpNet>)> {
    (nets(), nets(), any::<bool>(), any::<bool>()).prop_map(|(allow, deny, open, deny_first)| {
        let probes = allow.iter().chain(&deny).copied().collect();
        let document = json!({
            "allowOut": allow, "denyOut": deny, "allowInternetAccess": open,
            "precedence": if deny_first { "deny-first" } else { "allow-first" },
        });
        (Policy::from_value(document, &Defaults::default()).unwrap(), probes)
    })
}

/// What the prose says, list by list; within the list that decides, the closest entry is named, and of
/// equal ones the first.
fn in_prose(policy: &Policy, guard: &Guard, addr: IpAddr) -> RuleWord {
    let covers = |net: &IpNet| *net == ALL_TRAFFIC || net.contains(&addr);
    // In the 16-byte space: everything is the shortest, and IPv4 begins at 96.
    let depth = |net: &IpNet| match net {
        net if *net == ALL_TRAFFIC => 0,
        IpNet::V4(net) => 96 + net.prefix_len(),
        IpNet::V6(net) => net.prefix_len(),
    };
    let closest = |list: &[(usize, IpNet)], class| {
        let mut best: Option<(u8, usize)> = None;
        for (index, net) in list.iter().filter(|(_, net)| covers(net)) {
            if best.is_none_or(|(longest, _)| depth(net) > longest) {
                best = Some((depth(net), *index));
            }
        }
        best.map(|(_, index)| RuleWord::new(class, u32::try_from(index).unwrap()))
    };

    if let Some((index, _)) = guard.prefixes().iter().enumerate().find(|(_, net)| net.contains(&addr)) {
        return RuleWord::new(Class::Guarded, u32::try_from(index).unwrap());
    }
    let allow = policy.allow_out.iter().enumerate().filter_map(|(index, entry)| match entry {
        AllowEntry::Net(net) => Some((index, *net)),
        AllowEntry::Domain(_) => None,
    });
    let allow: Vec<_> = allow.collect();
    let mut deny: Vec<_> = policy.deny_out.iter().copied().enumerate().collect();
    if !policy.allow_internet_access {
        deny.push((deny.len(), ALL_TRAFFIC));
    }
    let allowed = closest(&allow, Class::Allowed);
    let denied = closest(&deny, Class::Denied);
    let decided = match policy.precedence {
        Precedence::AllowFirst => allowed.or(denied),
        Precedence::DenyFirst => denied.or(allowed),
    };
    decided.unwrap_or(RuleWord::UNMATCHED)
}

/// The longest match as the kernel's trie defines it, without the shortcuts of `evaluate`.
fn longest_match(entries: &[(filter_policy::Prefix, RuleWord)], addr: Addr) -> RuleWord {
    let around = entries.iter().filter(|(prefix, _)| prefix.contains(addr));
    around.max_by_key(|(prefix, _)| prefix.len).map_or(RuleWord::UNMATCHED, |(_, word)| *word)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_longest_match_decides_as_the_prose_does(
        (policy, probes) in document(), guard in guard(), others in vec(addr(), 0..8)
    ) {
        let compiled = compile(&policy, &guard);
        prop_assert!(compiled.entries.is_sorted_by(|(a, _), (b, _)| a < b), "sorted, no prefix twice");
        let edges = probes.iter().chain(guard.prefixes()).flat_map(|net| [net.network(), net.broadcast()]);
        for addr in edges.chain(others) {
            let expected = in_prose(&policy, &guard, addr);
            prop_assert_eq!(longest_match(&compiled.entries, addr.into()), expected, "trie: {}", addr);
            prop_assert_eq!(evaluate(&compiled, addr.into()), expected, "evaluate: {}", addr);
        }
    }

    #[test]
    fn the_canonical_form_of_the_canonical_form_is_itself((policy, _) in document(), names in vec("[a-cA-C*.]{1,5}", 0..4)) {
        let mut document = policy.canonical();
        let entries = names.iter().filter(|name| filter_policy::HostPattern::parse(name).is_ok()).map(|name| json!(name));
        document["allowOut"].as_array_mut().unwrap().extend(entries);
        document["denyOut"].as_array_mut().unwrap().push(json!("0.0.0.0/0"));
        let policy = Policy::from_value(document, &Defaults::default()).unwrap();
        let canonical = policy.canonical();
        // Nothing of the canonical form is left to defaults.
        let other = Defaults { egress_connections: 1, precedence: Precedence::DenyFirst, ..Defaults::default() };
        let again = Policy::from_value(canonical.clone(), &other).unwrap();
        prop_assert_eq!(again.canonical().to_string(), canonical.to_string());
        prop_assert_eq!(again.hash(), policy.hash());
        prop_assert_eq!(again, policy);
    }

    #[test]
    fn any_value_is_answered(value in near_document()) {
        match Policy::from_value(value, &Defaults::default()) {
            Ok(policy) => {
                let canonical = policy.canonical();
                prop_assert_eq!(Policy::from_value(canonical, &Defaults::default()).unwrap(), policy);
            }
            Err(invalid) => prop_assert!(!invalid.errors.is_empty()),
        }
    }

    #[test]
    fn any_text_is_answered(text in prop_oneof![any::<String>(), "[-a-z0-9:{}\\[\\]\"'=&*!|>%@`,#?\n ]{0,60}"]) {
        for format in [Format::Json, Format::Toml, Format::Yaml, Format::guess(None, &text)] {
            let _answer = Policy::parse(&text, format, &Defaults::default());
        }
    }
}

/// JSON whose keys and values are often those of a policy.
fn near_document() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        any::<String>(),
        net().prop_map(|net| net.to_string()),
        "[a-z*.:/0-9-]{0,12}",
        Just("0.0.0.0/0".to_owned()),
        Just("*.a.test".to_owned()),
        Just("strict".to_owned()),
        Just("${PORT}.test:${PORT}".to_owned()),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let key = prop_oneof![
        proptest::sample::select(vec![
            "allowOut",
            "allow_out",
            "denyOut",
            "rules",
            "limits",
            "egressConnections",
            "dns",
            "servers",
            "mode",
            "transform",
            "headers",
            "maskRequestHost",
            "precedence",
            "quic",
            "a.test",
            "*.b.test",
            "x-a",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    let any_value = leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((key.clone(), inner), 0..6).prop_map(|members| members.into_iter().collect()),
        ]
    });
    // A skeleton of the right shape whose leaves may be anything: most of the validation is below it.
    let list = || vec(prop_oneof![4 => net().prop_map(|net| json!(net)), 1 => any_value.clone()], 0..4);
    let skeleton = (
        option::of(list()),
        option::of(list()),
        option::of(any_value.clone()),
        option::of(any_value.clone()),
    )
        .prop_map(|(allow, deny, rules, dns)| {
            let mut document = json!({});
            for (name, value) in
                [("allowOut", allow.map(Value::from)), ("deny_out", deny.map(Value::from)), ("dns", dns)]
            {
                if let Some(value) = value {
                    document[name] = value;
                }
            }
            if let Some(value) = rules {
                document["rules"] = json!({ "a.test": [{ "transform": { "headers": { "x-a": value } } }] });
            }
            document
        });
    prop_oneof![any_value.clone(), skeleton]
}

/// Names over few letters, so that patterns often match and often nearly do.
fn few_names() -> impl Strategy<Value = Vec<String>> {
    vec("(\\*\\.)?[ab]{1,2}(\\.[ab]{1,2}){0,3}|\\*", 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_matcher_finds_what_the_list_says(patterns in few_names(), probes in vec("[ab]{1,2}(\\.[ab]{1,2}){0,4}", 1..20)) {
        let document = json!({ "allowOut": patterns, "denyOut": ["0.0.0.0/0"] });
        let policy = Policy::from_value(document, &Defaults::default()).unwrap();
        let matcher = filter_policy::Matcher::new(&policy);
        for probe in probes {
            let name = filter_policy::Name::parse(&probe).unwrap();
            prop_assert_eq!(matcher.find(&name), policy.match_name(&name), "{}", name);
        }
    }

    #[test]
    fn names_open_what_is_denied_and_nothing_that_is_guarded_or_allowed(
        (policy, probes) in document(), guard in guard(), servers in vec(addr(), 0..4)
    ) {
        let mut document = policy.canonical();
        document["denyOut"].as_array_mut().unwrap().push(json!("0.0.0.0/0"));
        let plain = Policy::from_value(document.clone(), &Defaults::default()).unwrap();
        document["allowOut"].as_array_mut().unwrap().push(json!("a.test"));
        let servers: Vec<_> = servers
            .into_iter()
            .filter(|server| Policy::from_value(json!({"dns": {"servers": [server]}}), &Defaults::default()).is_ok())
            .collect();
        document["dns"]["servers"] = json!(servers);
        let named = Policy::from_value(document, &Defaults::default()).unwrap();
        let (plain, compiled) = (compile(&plain, &guard), compile(&named, &guard));
        prop_assert!(compiled.entries.is_sorted_by(|(a, _), (b, _)| a < b), "sorted, no prefix twice");
        let edges = probes.iter().flat_map(|net| [net.network(), net.broadcast()]).chain(servers.iter().copied());
        for addr in edges {
            let (before, now) = (evaluate(&plain, addr.into()), evaluate(&compiled, addr.into()));
            prop_assert_eq!(now.without_names(), before, "{}", addr);
            let expected = match before.class() {
                Class::Denied if named.precedence == Precedence::DenyFirst => Class::Denied,
                Class::Denied if servers.contains(&addr) => Class::Resolver,
                Class::Denied => Class::Inspected,
                Class::Unmatched
                | Class::Allowed
                | Class::Guarded
                | Class::Inspected
                | Class::Resolver
                | Class::Named
                | Class::Observed => before.class(),
            };
            prop_assert_eq!(now.class(), expected, "{}", addr);
        }
    }
}
