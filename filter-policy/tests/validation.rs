//! Every way in which a document is refused: pointer, code and sentence.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

use filter_policy::{Defaults, Policy, Problem, code};
use serde_json::{Value, json};

const DOMAINS: &str = "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic.";

fn problems(document: Value) -> Vec<Problem> {
    Policy::from_value(document, &Defaults::default()).unwrap_err().errors
}

fn policy(document: Value) -> Policy {
    Policy::from_value(document, &Defaults::default()).unwrap()
}

/// Exactly these problems, as (pointer, code, message).
#[track_caller]
fn refused(document: Value, expected: &[(&str, &str, &str)]) {
    let found = problems(document);
    let found: Vec<_> = found.iter().map(|p| (p.pointer.as_str(), p.code, p.message.as_str())).collect();
    assert_eq!(found, expected);
}

/// One problem with this pointer and code.
#[track_caller]
fn refused_as(document: Value, pointer: &str, code: &str) {
    let found = problems(document);
    let found: Vec<_> = found.iter().map(|p| (p.pointer.as_str(), p.code)).collect();
    assert_eq!(found, [(pointer, code)]);
}

#[test]
fn denied_entries_that_are_no_address_have_e2bs_sentence() {
    for entry in [
        "",
        "example.com",
        "*.example.com",
        "*",
        "10.0.0.0/99",
        "01.2.3.4",
        "1.2.3.4:80",
        "[::1]",
        "fe80::1%eth0",
        "0.0.0.0",
        "0.0.0.0/8",
        "0.0.0.0/32",
        "::",
        "::/64",
        "::/128",
        "::ffff:1.2.3.4",
        "::ffff:0:0/96",
        "ALL_TRAFFIC",
        "1.2.3.4 ",
        "https://x",
    ] {
        let message = format!("invalid denied CIDR {entry}");
        refused(
            json!({ "denyOut": ["1.1.1.1", entry] }),
            &[("/denyOut/1", code::INVALID_DENIED_CIDR, &message)],
        );
    }
    refused(json!({ "denyOut": [5] }), &[("/denyOut/0", code::INVALID_DENIED_CIDR, "invalid denied CIDR 5")]);
}

#[test]
fn denying_all_of_ipv6_says_what_does() {
    for entry in ["::/0", "2001:db8::/0"] {
        let message = format!("invalid denied CIDR {entry}: 0.0.0.0/0 covers IPv6 too");
        refused(json!({ "denyOut": [entry] }), &[("/denyOut/0", code::INVALID_DENIED_CIDR, &message)]);
    }
}

#[test]
fn allowed_entries_that_are_nothing_have_e2bs_sentence() {
    let long = format!("{}.test", "a.".repeat(125));
    for entry in [
        "",
        "https://x",
        "a.com:443",
        "10.0.0.0/99",
        "a..b",
        &long,
        "a.*.b",
        "**",
        "*.",
        "user@a.com",
        "a.com/",
        "0.0.0.0",
        "0.0.0.0/8",
        "::",
        "::/0",
        "::/64",
        "::ffff:1.2.3.4",
        "::ffff:0:0/96",
        "::8000:0:0/81",
        "1.2.3",
        "0x7f000001",
        "2130706433",
        "010.0.0.1",
        "1.2.3.4:80",
        "[2001:db8::1]",
        "fe80::1%eth0",
        "bücher.example",
        "-a.com",
        "a-.com",
        "a\u{0}.com",
        "a\r\n.com",
    ] {
        let message = format!("invalid allowed address {entry}");
        refused(
            json!({ "allowOut": ["1.1.1.1", entry], "denyOut": ["0.0.0.0/0"] }),
            &[("/allowOut/1", code::INVALID_ALLOWED_ADDRESS, &message)],
        );
    }
    for (entry, shown) in [(json!(5), "5"), (json!(null), "null"), (json!(["a"]), r#"["a"]"#)] {
        let message = format!("invalid allowed address {shown}");
        refused(json!({ "allowOut": [entry] }), &[("/allowOut/0", code::INVALID_ALLOWED_ADDRESS, &message)]);
    }
}

#[test]
fn domains_need_everything_else_denied() {
    for document in [
        json!({ "allowOut": ["1.1.1.1", "a.test", "b.test"] }),
        json!({ "allowOut": ["1.1.1.1", "*.a.test"], "denyOut": ["1.0.0.0/8", "128.0.0.0/1"] }),
        json!({ "allowOut": ["0.0.0.0/0", "*"], "allowInternetAccess": false }),
        json!({ "allow_out": ["1.1.1.1", "a.test"] }),
    ] {
        refused(document, &[("/allowOut/1", code::DOMAIN_WITHOUT_DENY_ALL, DOMAINS)]);
    }
    // Entries that are wrong themselves do not shift the pointer.
    refused(
        json!({ "allowOut": ["a:1", "a.test"] }),
        &[
            ("/allowOut/0", code::INVALID_ALLOWED_ADDRESS, "invalid allowed address a:1"),
            ("/allowOut/1", code::DOMAIN_WITHOUT_DENY_ALL, DOMAINS),
        ],
    );
    assert!(policy(json!({ "allowOut": ["a.test"], "denyOut": ["8.8.8.8", "0.0.0.0/0"] })).has_domains());
    assert!(!policy(json!({ "allowOut": ["0.0.0.0/0"], "denyOut": ["0.0.0.0/0"] })).has_domains());
}

#[test]
fn every_bad_entry_is_named() {
    let found = problems(json!({
        "nope": 1, "allowOut": ["x y", "a.test", ""], "denyOut": ["a.test", "1.1.1.1", "::/0"],
        "limits": { "egressConnections": 0, "more": 1 }, "dns": { "mode": "shut", "servers": ["::"] },
        "precedence": "none", "quic": "inspect", "allowPublicTraffic": "yes", "maskRequestHost": "a b",
    }));
    let pointers: Vec<_> = found.iter().map(|problem| problem.pointer.as_str()).collect();
    assert_eq!(
        pointers,
        [
            "/nope",
            "/allowOut/0",
            "/allowOut/2",
            "/denyOut/0",
            "/denyOut/2",
            "/allowOut/1",
            "/allowPublicTraffic",
            "/maskRequestHost",
            "/limits/more",
            "/limits/egressConnections",
            "/dns/mode",
            "/dns/servers/0",
            "/precedence",
            "/quic",
        ]
    );
}

#[test]
fn unknown_fields_are_named_at_every_level() {
    for (document, pointer, field) in [
        (json!({ "allowout": [] }), "/allowout", "allowout"),
        (json!({ "AllowOut": [] }), "/AllowOut", "AllowOut"),
        (json!({ "a/b~c": 1 }), "/a~1b~0c", "a/b~c"),
        (json!({ "limits": { "x": 1 } }), "/limits/x", "x"),
        (json!({ "dns": { "server": 1 } }), "/dns/server", "server"),
        (json!({ "rules": { "a.b": [{ "port": 80 }] } }), "/rules/a.b/0/port", "port"),
        (
            json!({ "rules": { "a.b": [{ "transform": { "body": 1 } }] } }),
            "/rules/a.b/0/transform/body",
            "body",
        ),
    ] {
        refused(document, &[(pointer, code::UNKNOWN_FIELD, &format!("unknown field `{field}`"))]);
    }
}

#[test]
fn a_field_in_both_spellings_is_refused() {
    refused(
        json!({ "allow_out": [], "allowOut": [] }),
        &[("/allowOut", code::DUPLICATE_FIELD, "`allowOut` and `allow_out` are the same field")],
    );
    refused_as(
        json!({ "limits": { "egressConnections": 1, "egress_connections": 1 } }),
        "/limits/egressConnections",
        code::DUPLICATE_FIELD,
    );
}

#[test]
fn values_of_another_type_are_refused() {
    for (document, pointer, message) in [
        (json!([]), "", "expected an object, found a list"),
        (json!(null), "", "expected an object, found null"),
        (json!("x"), "", "expected an object, found a string"),
        (
            json!({ "allow_internet_access": 1 }),
            "/allowInternetAccess",
            "expected true or false, found a number",
        ),
        (
            json!({ "allowPublicTraffic": "true" }),
            "/allowPublicTraffic",
            "expected true or false, found a string",
        ),
        (json!({ "allowOut": "1.1.1.1" }), "/allowOut", "expected a list, found a string"),
        (json!({ "denyOut": null }), "/denyOut", "expected a list, found null"),
        (json!({ "rules": [] }), "/rules", "expected an object, found a list"),
        (json!({ "rules": { "a.b": {} } }), "/rules/a.b", "expected a list, found an object"),
        (json!({ "rules": { "a.b": [1] } }), "/rules/a.b/0", "expected an object, found a number"),
        (json!({ "maskRequestHost": 1 }), "/maskRequestHost", "expected a string, found a number"),
        (json!({ "limits": 1 }), "/limits", "expected an object, found a number"),
        (json!({ "dns": true }), "/dns", "expected an object, found a boolean"),
        (json!({ "dns": { "servers": "8.8.8.8" } }), "/dns/servers", "expected a list, found a string"),
        (json!({ "dns": { "mode": 1 } }), "/dns/mode", "expected a string, found a number"),
        (json!({ "precedence": false }), "/precedence", "expected a string, found a boolean"),
    ] {
        refused(document, &[(pointer, code::WRONG_TYPE, message)]);
    }
}

#[test]
fn connections_are_a_positive_integer() {
    for (value, shown) in [
        (json!(0), "0"),
        (json!(-1), "-1"),
        (json!(1.5), "1.5"),
        (json!(2500.0), "2500.0"),
        (json!(1_000_001), "1000001"),
        (json!(u64::MAX), "18446744073709551615"),
        (json!("5"), r#""5""#),
        (json!(null), "null"),
    ] {
        let message = format!("expected an integer from 1 to 1000000, found {shown}");
        let document = json!({ "limits": { "egress_connections": value } });
        refused(document, &[("/limits/egressConnections", code::OUT_OF_RANGE, &message)]);
    }
    for value in [1, 1_000_000] {
        let policy = policy(json!({ "limits": { "egressConnections": value } }));
        assert_eq!(policy.limits.egress_connections, value);
    }
}

#[test]
fn dns_takes_few_unicast_servers_and_two_modes() {
    for server in [
        "",
        "dns.test",
        "8.8.8.8/32",
        "8.8.8.8:53",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "255.255.255.255",
        "ff02::fb",
        "::ffff:8.8.8.8",
    ] {
        let message = format!("invalid DNS server {server}");
        let document = json!({ "dns": { "servers": ["8.8.8.8", server] } });
        refused(document, &[("/dns/servers/1", code::INVALID_DNS_SERVER, &message)]);
    }
    let servers = |count| json!({ "dns": { "servers": vec!["2001:db8::1"; count] } });
    assert_eq!(policy(servers(8)).dns.servers.len(), 8);
    refused(servers(9), &[("/dns/servers", code::OUT_OF_RANGE, "at most 8 DNS servers")]);
    refused(
        json!({ "dns": { "mode": "Open" } }),
        &[("/dns/mode", code::INVALID_CHOICE, "expected `open` or `strict`, found `Open`")],
    );
}

#[test]
fn words_outside_the_choices_are_refused() {
    refused(
        json!({ "precedence": "allow_first" }),
        &[(
            "/precedence",
            code::INVALID_CHOICE,
            "expected `allow-first` or `deny-first`, found `allow_first`",
        )],
    );
    refused(json!({ "quic": "allow" }), &[("/quic", code::INVALID_CHOICE, "expected `deny`, found `allow`")]);
    refused(
        json!({ "quic": "inspect" }),
        &[("/quic", code::NOT_SUPPORTED, "`quic: inspect` is not supported yet")],
    );
}

#[test]
fn a_mask_is_a_host_with_an_optional_port() {
    let message = "expected `host` or `host:port`, where `${PORT}` may stand for the port";
    for mask in ["", "a.b\r\nX: y", "a.b/c", "u@a.b", "a.b:99999", "${HOST}"] {
        refused(json!({ "maskRequestHost": mask }), &[("/maskRequestHost", code::INVALID_MASK, message)]);
    }
    let mask = "${PORT}-App.test:${PORT}";
    assert_eq!(policy(json!({ "mask_request_host": mask })).mask_request_host.as_deref(), Some(mask));
}

fn rule(headers: Value) -> Value {
    json!({ "rules": { "api.test": [{ "transform": { "headers": headers } }] } })
}

#[test]
fn rules_are_few_and_their_hosts_are_patterns() {
    let hosts =
        |count: usize| -> Value { (0..count).map(|host| (format!("h{host}.test"), json!([]))).collect() };
    assert_eq!(policy(json!({ "rules": hosts(10) })).rules.len(), 10);
    refused(
        json!({ "rules": hosts(11) }),
        &[("/rules", code::OUT_OF_RANGE, "at most 10 hosts may have rules")],
    );

    for host in ["", "1.2.3.4", "::1", "a.b:80", "https://a.b", "a.*.b", "a..b", "a/b"] {
        let pointer = format!("/rules/{}", host.replace('/', "~1"));
        refused_as(json!({ "rules": { host: [] } }), &pointer, code::INVALID_RULE_HOST);
    }
    let host = |first: usize| format!("{}.{}.a", "a".repeat(first), "b".repeat(63));
    assert_eq!(host(62).len(), 128);
    assert_eq!(policy(json!({ "rules": { host(62): [] } })).rules.len(), 1);
    refused_as(json!({ "rules": { host(63): [] } }), &format!("/rules/{}", host(63)), code::OUT_OF_RANGE);

    refused_as(json!({ "rules": { "a.test": [], "A.test.": [] } }), "/rules/A.test.", code::DUPLICATE_FIELD);
    let two = json!({ "rules": { "a.test": [{ "transform": {} }, {}] } });
    refused(two, &[("/rules/a.test", code::OUT_OF_RANGE, "a host has at most 1 transform")]);
}

#[test]
fn headers_frame_nothing_and_hold_no_control_characters() {
    let at = |name: &str| {
        format!("/rules/api.test/0/transform/headers/{}", name.replace('~', "~0").replace('/', "~1"))
    };
    for name in [
        "Connection",
        "transfer-encoding",
        "CONTENT-LENGTH",
        "TE",
        "Trailer",
        "Upgrade",
        "Keep-Alive",
        "Host",
        "Proxy-Authorization",
        "proxy-connection",
        "",
        "a b",
        "a:",
        ":authority",
        "a\r\nb",
        "ä",
        "a/b",
        "a\0",
    ] {
        refused_as(rule(json!({ name: "v" })), &at(name), code::INVALID_HEADER);
    }
    let name = |len| "x".repeat(len);
    assert!(policy(rule(json!({ name(64): "v" }))).rules.len() == 1);
    refused_as(rule(json!({ name(65): "v" })), &at(&name(65)), code::OUT_OF_RANGE);

    for value in ["a\r\nb", "a\n", "\0", "a\tb", "\u{7f}", "\u{85}"] {
        refused_as(rule(json!({ "x-a": value })), &at("x-a"), code::INVALID_HEADER);
    }
    refused_as(rule(json!({ "x-a": "v".repeat(2049) })), &at("x-a"), code::OUT_OF_RANGE);
    refused_as(rule(json!({ "x-a": 1 })), &at("x-a"), code::WRONG_TYPE);
    refused_as(rule(json!({ "X-A": "v", "x-a": "v" })), &at("x-a"), code::DUPLICATE_FIELD);

    let headers =
        |count: usize| -> Value { (0..count).map(|n| (format!("x-{n}"), json!("v".repeat(2048)))).collect() };
    assert_eq!(policy(rule(headers(20))).rules.values().next().unwrap().headers.len(), 20);
    refused_as(rule(headers(21)), "/rules/api.test/0/transform/headers", code::OUT_OF_RANGE);
}

#[test]
fn header_values_are_never_in_a_problem_or_in_debug_output() {
    let secret = "s3cret";
    for document in
        [rule(json!({ "x-a": format!("{secret}\n") })), rule(json!({ "x-a": secret.repeat(500) }))]
    {
        let invalid = Policy::from_value(document, &Defaults::default()).unwrap_err();
        assert!(!format!("{invalid:?} {invalid}").contains(secret));
    }
    let policy = policy(rule(json!({ "Authorization": secret })));
    assert!(!format!("{policy:?}{}", policy.redacted()).contains(secret));
    assert!(policy.canonical().to_string().contains(secret));
}

#[test]
fn a_problem_serialises_as_clients_read_it() {
    let invalid = Policy::from_value(json!({ "denyOut": ["x"] }), &Defaults::default()).unwrap_err();
    assert_eq!(
        serde_json::to_value(&invalid.errors).unwrap(),
        json!([{ "code": "invalid_denied_cidr", "message": "invalid denied CIDR x", "pointer": "/denyOut/0" }])
    );
    assert_eq!(invalid.to_string(), "/denyOut/0: invalid denied CIDR x");
}

#[test]
fn secrets_are_few_and_their_names_are_files() {
    let many = |count: usize| {
        let value =
            |header: usize| (0..4).map(|n| format!("${{secrets.s{}}}", header * 4 + n)).collect::<String>();
        let headers: Value = (0..count / 4).map(|n| (format!("x-{n}"), json!(value(n)))).collect();
        rule(headers)
    };
    assert_eq!(policy(many(32)).rules.len(), 1);
    refused(
        many(36),
        &[("/rules/api.test", code::OUT_OF_RANGE, "the headers of a host name at most 32 secrets")],
    );
    let often: Value =
        (0..20).map(|n| (format!("x-{n}"), json!("${secrets.same} ${e2b.secrets.same}"))).collect();
    assert_eq!(policy(rule(often)).rules.len(), 1);
    for value in ["${secrets.}", "${secrets.../x}", "${secrets..hidden}", "${e2b.secrets.a", "${secrets.a b}"]
    {
        let at = "/rules/api.test/0/transform/headers/x-a";
        refused_as(rule(json!({ "x-a": value })), at, code::INVALID_HEADER);
    }
}
