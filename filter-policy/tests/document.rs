//! What a valid document means: defaults, spellings, canonical form, hash, and the questions it answers.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

use filter_common::{Class, RuleWord};
use filter_policy::{Defaults, Format, Name, Policy, Precedence};
use serde_json::{Value, json};

fn policy(document: Value) -> Policy {
    Policy::from_value(document, &Defaults::default()).unwrap()
}

#[test]
fn the_empty_document_is_the_table_of_defaults() {
    let canonical = json!({
        "allowInternetAccess": true, "allowOut": [], "denyOut": [], "rules": {}, "allowPublicTraffic": true,
        "limits": { "egressConnections": 2500 }, "dns": { "mode": "open", "servers": ["8.8.8.8"] },
        "precedence": "allow-first", "quic": "deny",
    });
    // As text: the order of the fields is part of the form.
    assert_eq!(policy(json!({})).canonical().to_string(), canonical.to_string());
}

#[test]
fn the_operator_has_a_say_in_defaults() {
    let mut defaults = Defaults { egress_connections: 7, ..Defaults::default() };
    defaults.precedence = Precedence::DenyFirst;
    let policy = |document| Policy::from_value(document, &defaults).unwrap();
    assert_eq!(policy(json!({})).limits.egress_connections, 7);
    assert_eq!(policy(json!({ "limits": {} })).limits.egress_connections, 7);
    assert_eq!(policy(json!({ "limits": { "egressConnections": 8 } })).limits.egress_connections, 8);
    assert_eq!(policy(json!({})).precedence, Precedence::DenyFirst);
    assert_eq!(policy(json!({ "precedence": "allow-first" })).precedence, Precedence::AllowFirst);
}

const CAMEL: &str = r#"{
    "allowInternetAccess": false,
    "allowOut": ["8.8.8.8/32", "10.1.2.3/8", "API.Test.", "*.Wild.test", "*", "2001:DB8::1", "1.1.1.1", "1.1.1.1"],
    "denyOut": ["9.9.9.9", "0.0.0.0/0"],
    "rules": {"B.test": [{"transform": {"headers": {"X-B": "2", "Authorization": "Bearer t"}}}], "a.test": []},
    "allowPublicTraffic": false, "maskRequestHost": "${PORT}.test",
    "limits": {"egressConnections": 9}, "dns": {"mode": "strict", "servers": ["2001:DB8::53"]},
    "precedence": "deny-first", "quic": "deny"
}"#;

const SNAKE_YAML: &str = r"
quic: deny
precedence: deny-first
dns: {servers: ['2001:db8:0::53'], mode: strict}
limits:
  egress_connections: 9
mask_request_host: ${PORT}.test
allow_public_traffic: false
rules:
  a.test: [{transform: {headers: {}}}]
  b.test: [{transform: {headers: {authorization: Bearer t, x-b: '2'}}}]
deny_out: [9.9.9.9/32, 0.0.0.0/0]
allow_out:
  - 8.8.8.8
  - 10.0.0.0/8
  - api.test
  - '*.wild.test.'
  - '*'
  - 2001:db8::1/128
  - 1.1.1.1
  - 1.1.1.1
allow_internet_access: false
";

const TOML: &str = r#"
allow_internet_access = false
allowOut = ["8.8.8.8", "10.255.0.0/8", "api.test", "*.wild.test", "*", "2001:db8::1", "1.1.1.1", "1.1.1.1"]
denyOut = ["9.9.9.9", "0.0.0.0/0"]
allowPublicTraffic = false
maskRequestHost = "${PORT}.test"
precedence = "deny-first"
[limits]
egressConnections = 9
[dns]
mode = "strict"
servers = ["2001:db8::53"]
[rules]
"a.test" = [{}]
"b.test" = [{ transform = { headers = { X-B = "2", AUTHORIZATION = "Bearer t" } } }]
"#;

#[test]
fn the_same_meaning_has_one_form_and_one_hash_in_every_notation() {
    let canonical = json!({
        "allowInternetAccess": false,
        "allowOut": ["8.8.8.8", "10.0.0.0/8", "api.test", "*.wild.test", "*", "2001:db8::1", "1.1.1.1", "1.1.1.1"],
        "denyOut": ["9.9.9.9", "0.0.0.0/0"],
        "rules": {
            "a.test": [{ "transform": { "headers": {} } }],
            "b.test": [{ "transform": { "headers": { "authorization": "Bearer t", "x-b": "2" } } }],
        },
        "allowPublicTraffic": false, "maskRequestHost": "${PORT}.test", "limits": { "egressConnections": 9 },
        "dns": { "mode": "strict", "servers": ["2001:db8::53"] }, "precedence": "deny-first", "quic": "deny",
    });
    for (format, text) in [(Format::Json, CAMEL), (Format::Yaml, SNAKE_YAML), (Format::Toml, TOML)] {
        assert_eq!(Format::guess(None, text), format);
        let policy = Policy::parse(text, format, &Defaults::default()).unwrap();
        assert_eq!(policy.canonical().to_string(), canonical.to_string());
        assert_eq!(
            policy.hash(),
            Policy::from_value(canonical.clone(), &Defaults::default()).unwrap().hash()
        );
    }
}

#[test]
fn yaml_has_two_booleans() {
    assert!(Policy::parse("allowInternetAccess: no", Format::Yaml, &Defaults::default()).is_err());
    let policy = Policy::parse("allowInternetAccess: false", Format::Yaml, &Defaults::default()).unwrap();
    assert!(!policy.allow_internet_access);
}

/// The hash is stored and shown: an accidental change of the form must not go unnoticed. The value is
/// what `sha256sum` says of the text.
#[test]
fn the_hash_is_the_digest_of_the_canonical_text() {
    let policy = policy(json!({ "denyOut": ["1.2.3.4/24"] }));
    let text = r#"{"allowInternetAccess":true,"allowOut":[],"denyOut":["1.2.3.0/24"],"rules":{},"allowPublicTraffic":true,"limits":{"egressConnections":2500},"dns":{"mode":"open","servers":["8.8.8.8"]},"precedence":"allow-first","quic":"deny"}"#;
    assert_eq!(policy.canonical().to_string(), text);
    assert_eq!(policy.hash().to_string(), "b793c4a1dce204beb196acca69df5932ece8f726d52a8a655d3b5d1bf247696a");
    assert_eq!(policy.hash().as_bytes()[0], 0xb7);
}

#[test]
fn a_different_meaning_has_a_different_hash() {
    let documents = [
        json!({}),
        json!({ "allowInternetAccess": false }),
        json!({ "allowOut": ["1.1.1.1"] }),
        json!({ "allowOut": ["1.1.1.1", "2.2.2.2"] }),
        json!({ "allowOut": ["2.2.2.2", "1.1.1.1"] }),
        json!({ "denyOut": ["1.1.1.1"] }),
        json!({ "allowPublicTraffic": false }),
        json!({ "maskRequestHost": "a" }),
        json!({ "limits": { "egressConnections": 1 } }),
        json!({ "dns": { "mode": "strict" } }),
        json!({ "dns": { "servers": [] } }),
        json!({ "precedence": "deny-first" }),
        json!({ "rules": { "a": [] } }),
        json!({ "rules": { "a": [{ "transform": { "headers": { "x": "1" } } }] } }),
        json!({ "rules": { "a": [{ "transform": { "headers": { "x": "2" } } }] } }),
    ];
    let hashes: std::collections::BTreeSet<_> =
        documents.iter().cloned().map(|document| policy(document).hash()).collect();
    assert_eq!(hashes.len(), documents.len());
}

#[test]
fn the_most_specific_name_rule_answers() {
    let policy = policy(json!({
        "allowOut": ["*", "1.1.1.1", "*.test", "*.b.test", "a.b.test", "*.b.test", "a.b.test"], "denyOut": ["0.0.0.0/0"],
    }));
    for (name, index) in
        [("a.b.test", 4), ("c.b.test", 3), ("x.a.b.test", 3), ("b.test", 2), ("test", 0), ("other", 0)]
    {
        assert_eq!(policy.match_name(&Name::parse(name).unwrap()), Some(index), "{name}");
    }
    let narrow =
        Policy::from_value(json!({ "allowOut": ["a.test"], "denyOut": ["0.0.0.0/0"] }), &Defaults::default());
    assert_eq!(narrow.unwrap().match_name(&Name::parse("b.test").unwrap()), None);
}

#[test]
fn a_verdict_points_to_its_entry() {
    let pointer = |policy: &Policy, class, number| policy.rule_pointer(RuleWord::new(class, number));
    let closed = policy(
        json!({ "allowOut": ["1.1.1.1"], "denyOut": ["2.2.2.2", "3.3.3.3"], "allowInternetAccess": false }),
    );
    assert_eq!(pointer(&closed, Class::Allowed, 0).as_deref(), Some("/allowOut/0"));
    assert_eq!(pointer(&closed, Class::Denied, 1).as_deref(), Some("/denyOut/1"));
    assert_eq!(pointer(&closed, Class::Denied, 2).as_deref(), Some("/allowInternetAccess"));
    let open = policy(json!({ "denyOut": ["2.2.2.2", "3.3.3.3"] }));
    for (class, number) in
        [(Class::Allowed, 0), (Class::Denied, 2), (Class::Guarded, 0), (Class::Unmatched, 0)]
    {
        assert_eq!(pointer(&open, class, number), None);
    }
    assert_eq!(pointer(&closed, Class::Denied, 3), None);
}
