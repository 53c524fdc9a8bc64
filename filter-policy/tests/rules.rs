//! What rules about hosts amount to.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

use filter_policy::{Defaults, Guard, Name, Policy, compile};
use serde_json::{Value, json};

fn policy(document: Value) -> Policy {
    Policy::from_value(document, &Defaults::default()).unwrap()
}

fn rule(headers: Value) -> Value {
    json!({ "rules": { "api.test": [{ "transform": { "headers": headers } }] } })
}

#[test]
fn a_rule_is_for_tls_unless_it_says_otherwise() {
    let with = |scheme: Value| json!({ "rules": { "a.test": [{ "transform": { "headers": { "x": "1" } }, "scheme": scheme }] } });
    for (document, in_clear) in
        [(rule(json!({ "x": "1" })), false), (with(json!("https")), false), (with(json!("http")), true)]
    {
        let policy = policy(document);
        assert!(policy.has_transforms());
        assert_eq!(policy.has_transforms_in_clear(), in_clear);
        assert_eq!(policy.canonical().to_string().contains("scheme"), in_clear);
        assert_eq!(Policy::from_value(policy.canonical(), &Defaults::default()).unwrap(), policy);
    }
    for scheme in [json!("HTTP"), json!("ftp"), json!(1)] {
        assert!(Policy::from_value(with(scheme), &Defaults::default()).is_err());
    }
}

#[test]
fn the_closest_rule_alone_is_a_hosts() {
    let header = |value: &str| json!([{ "transform": { "headers": { "x": value } } }]);
    let policy = policy(json!({ "rules": {
        "*": header("any"), "*.test": header("test"), "*.api.test": header("below"), "a.api.test": header("exact"),
        "b.api.test": [], "c.api.test": [{ "transform": { "headers": { "y": "other" } } }],
    } }));
    let of = |name: &str| {
        let transform = policy.transform(&Name::parse(name).unwrap());
        transform.map(|transform| transform.headers.values().map(|value| value.as_str()).collect::<Vec<_>>())
    };
    for (name, headers) in [
        ("a.api.test", Some(vec!["exact"])),
        ("A.API.test.", Some(vec!["exact"])),
        ("x.a.api.test", Some(vec!["below"])),
        ("b.api.test", None),
        ("c.api.test", Some(vec!["other"])),
        ("api.test", Some(vec!["test"])),
        ("other.example", Some(vec!["any"])),
    ] {
        assert_eq!(of(name), headers, "{name}");
    }
}

#[test]
fn rules_have_addresses_watched_and_open_none() {
    let guard = Guard::default();
    let watched = |document: Value| compile(&policy(document), &guard).watch;
    assert!(watched(rule(json!({ "x": "1" }))));
    for document in [json!({}), json!({ "rules": {} }), json!({ "rules": { "a.test": [] } }), rule(json!({}))]
    {
        assert!(!watched(document.clone()), "{document}");
    }
    let denied = json!({ "denyOut": ["0.0.0.0/0"] });
    let mut with_rule = rule(json!({ "x": "1" }));
    with_rule["denyOut"] = denied["denyOut"].clone();
    assert_eq!(compile(&policy(denied), &guard).entries, compile(&policy(with_rule), &guard).entries);
}
