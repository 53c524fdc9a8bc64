use std::sync::Arc;

use filter_policy::{Matcher, Policy, compile};
use serde_json::{Value, json};

use super::*;
use crate::config::Config;

fn explained(policy: Value, target: &str, resolved: &Resolved) -> Explained {
    let config = Config::default();
    let policy = Arc::new(Policy::from_value(policy, &config.defaults.fields).unwrap());
    let guard = Arc::new(config.guard(&[]));
    let compiled = Arc::new(compile(&policy, &guard));
    let names = Arc::new(Matcher::new(&policy));
    let rules = Rules { generation: 7, policy, names, compiled: compiled.clone(), guard };
    let ports = &config.inspector.ports;
    let mut dry = Dry::new(&compiled, ports);
    explain(&rules, ports, &target.parse().unwrap(), resolved, &mut dry).unwrap()
}

fn leads_to(addresses: &[&str]) -> Resolved {
    Resolved::To(Ok(addresses.iter().map(|text| text.parse().unwrap()).collect()))
}

fn names() -> Value {
    json!({ "allowOut": ["a.test", "*.b.test", "203.0.113.0/24"], "denyOut": ["0.0.0.0/0"] })
}

#[test]
fn every_kind_of_target_is_judged_by_the_step_that_decides() {
    let elsewhere = leads_to(&["198.51.100.7"]);
    for (target, resolved, reason, rule) in [
        ("203.0.113.7:22", &Resolved::Unknown, "allowed_cidr", Some("/allowOut/2")),
        ("198.51.100.7:22", &Resolved::Unknown, "denied_cidr", Some("/denyOut/0")),
        ("10.0.0.1:22", &Resolved::Unknown, "guarded", None),
        ("[2001:db8::1]:22", &Resolved::Unknown, "denied_cidr", Some("/denyOut/0")),
        ("8.8.8.8:53/udp", &Resolved::Unknown, "dns", None),
        ("8.8.8.8:53", &Resolved::Unknown, "dns", None),
        ("8.8.8.8:54/udp", &Resolved::Unknown, "denied_cidr", Some("/denyOut/0")),
        ("198.51.100.7", &Resolved::Unknown, "no_name", Some("/denyOut/0")),
        ("http://198.51.100.7", &Resolved::Unknown, "bad_name", Some("/denyOut/0")),
        ("https://a.test/x", &elsewhere, "allowed_name", Some("/allowOut/0")),
        ("http://c.b.test", &elsewhere, "allowed_name", Some("/allowOut/1")),
        ("https://b.test", &elsewhere, "name_not_allowed", Some("/denyOut/0")),
        ("a.test:22", &elsewhere, "denied_cidr", Some("/denyOut/0")),
        ("a.test:443/udp", &elsewhere, "denied_cidr", Some("/denyOut/0")),
        ("c.test:22", &leads_to(&["203.0.113.9"]), "allowed_cidr", Some("/allowOut/2")),
        ("https://c.test", &leads_to(&["203.0.113.9"]), "allowed_cidr", Some("/allowOut/2")),
        ("https://a.test", &leads_to(&["169.254.169.254"]), "guarded", None),
        ("https://a.test", &Resolved::To(Err("no".to_owned())), "unresolved", Some("/allowOut/0")),
    ] {
        let explained = explained(names(), target, resolved);
        assert_eq!(
            (&*explained.reason, explained.rule.as_deref()),
            (reason, rule),
            "{target}: {explained:?}"
        );
        let allows = ["allowed_cidr", "allowed_name", "dns"].contains(&reason);
        assert_eq!(explained.is_allowed(), allows, "{target}");
        assert!(explained.generation == Some(7) && !explained.steps.is_empty());
    }
}

#[test]
fn a_client_tries_all_addresses_and_the_filter_those_that_are_nobody_elses() {
    let mixed = leads_to(&["198.51.100.7", "203.0.113.9"]);
    let ssh = explained(names(), "a.test:22", &mixed);
    assert_eq!((&*ssh.reason, ssh.address), ("allowed_cidr", Some([203, 0, 113, 9].into())));
    let web = explained(names(), "https://a.test", &leads_to(&["10.0.0.1", "198.51.100.7"]));
    assert_eq!((&*web.reason, web.address), ("allowed_name", Some([198, 51, 100, 7].into())));
}

#[test]
fn without_addresses_the_name_is_judged_and_that_is_said() {
    for (policy, target, reason) in [
        (names(), "https://a.test", "allowed_name"),
        (names(), "https://x.test", "name_not_allowed"),
        (names(), "a.test:22", "denied_cidr"),
        (json!({}), "a.test:22", "default"),
        (json!({ "allowOut": ["0.0.0.0/0"] }), "a.test", "allowed_cidr"),
        (json!({ "denyOut": ["0.0.0.0/0"] }), "a.test", "denied_cidr"),
    ] {
        let explained = explained(policy, target, &Resolved::Unknown);
        assert_eq!((&*explained.reason, explained.address), (reason, None), "{target}");
        assert!(explained.steps[0].contains("not known"), "{:?}", explained.steps);
    }
}

#[test]
fn a_strict_resolver_is_said_to_refuse() {
    let strict = json!({ "allowOut": ["a.test"], "denyOut": ["0.0.0.0/0"], "dns": { "mode": "strict" } });
    let steps = |target| explained(strict.clone(), target, &leads_to(&["198.51.100.7"])).steps.join("\n");
    assert!(
        steps("https://x.test").contains("dns_refused") && !steps("https://a.test").contains("dns_refused")
    );
}
