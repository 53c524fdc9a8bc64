use std::time::Duration;

use filter_policy::{DnsMode, Precedence};
use serde_json::json;

use super::{
    defaults::Inbound,
    sections::{Attach, ProviderKind},
    *,
};

const SAMPLE: &str = include_str!("../../../packaging/config.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/x.toml"), text)
}

fn refusal(text: &str) -> String {
    let message = parse(text).unwrap_err().to_string();
    assert!(message.starts_with("/etc/x.toml"), "{message}");
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn the_sample_is_the_defaults() {
    assert_eq!(parse(SAMPLE).unwrap(), Config::default());
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn what_the_sample_shows_commented_out_is_possible() {
    let all: Vec<&str> = SAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(code)
                if code.starts_with("[[")
                    || code.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) =>
            {
                code
            }
            _ => line,
        })
        .collect();
    let config = parse(&all.join("\n")).unwrap();
    assert_eq!(config.defaults.policy["denyOut"], json!(["0.0.0.0/0"]));
    assert_eq!(config.defaults.fields, filter_policy::Defaults::default());
    assert_eq!(config.api_keys.len(), 1);
}

#[test]
fn values_are_read() {
    let config = parse(
        r#"
        guard = { open = ["10.1.2.3/8", "fd00::1"], deny = ["203.0.113.7"] }
        limits = { egress_connections = 7, create_rate = { requests = 3, per = "1m 30s" } }
        timeouts.tcp_established = "1day"
        kernel.attach = "clsact"
        events.jsonl = "/var/log/events"
        metrics.listen = ""
        provider = { kind = "exec", command = "/usr/bin/make-sandbox" }
        [[api_keys]]
        key = "k1"
        tier = "hobby"
        [[api_keys]]
        key_file = "/etc/key"
        tier = "enterprise"
        concurrent_sandboxes = 500
        create_rate = { requests = 50, per = "1s" }
        "#,
    )
    .unwrap();
    let guarded = |addr: &str| config.guard(&[]).contains(addr.parse().unwrap());
    assert!(!guarded("10.9.9.9") && !guarded("fd00::1") && guarded("fd00::2") && guarded("203.0.113.7"));
    assert_eq!(config.limits.create_rate.per, Duration::from_secs(90));
    assert_eq!(config.timeouts.tcp_established, Duration::from_secs(86_400));
    assert_eq!(config.timeouts.udp, Duration::from_secs(30));
    assert_eq!(config.kernel.attach, Attach::Clsact);
    assert_eq!(config.events.jsonl.as_deref(), Some(Path::new("/var/log/events")));
    assert_eq!(config.metrics.listen, None);
    assert_eq!(config.provider.kind, ProviderKind::Exec);
    assert_eq!(config.api_keys[0].concurrent_sandboxes(), Some(20));
    assert_eq!(config.api_keys[1].create_rate().unwrap().requests, 50);
    assert_eq!(config.defaults.fields.egress_connections, 7);
}

#[test]
fn defaults_are_a_policy_and_more() {
    let config = parse(
        r#"
        [limits]
        egress_connections = 7
        [defaults]
        inbound = "any"
        deny_out = ["0.0.0.0/0"]
        precedence = "deny-first"
        limits = { egressConnections = 9 }
        dns = { mode = "strict" }
        "#,
    )
    .unwrap();
    assert_eq!(config.defaults.inbound, Inbound::Any);
    assert_eq!(config.defaults.policy["deny_out"], json!(["0.0.0.0/0"]));
    assert!(config.defaults.policy.get("inbound").is_none());
    assert_eq!(config.defaults.fields.egress_connections, 9);
    assert_eq!(config.defaults.fields.precedence, Precedence::DenyFirst);
    assert_eq!(config.defaults.fields.dns.mode, DnsMode::Strict);
    assert_eq!(config.defaults.fields.dns.servers.len(), 1);
}

#[test]
fn errors_name_file_and_key_and_what_is_possible() {
    for (text, parts) in [
        ("nonsense", &["line 1", "TOML"][..]),
        ("[paths]\nsocket = 1", &["line 2", "`paths.socket`"]),
        ("[paths]\nsocked = \"/x\"", &["`paths.socked`", "unknown field", "state_dir"]),
        ("[pahts]", &["pahts", "expected one of", "paths"]),
        ("paths.socket = \"x\"", &["`paths.socket`", "absolute"]),
        ("[limits]\negress_connections = 0", &["`limits.egress_connections`", "1 to 1000000", "found 0"]),
        ("[limits]\negress_connections = 1000001", &["`limits.egress_connections`"]),
        ("[limits]\negress_connections = -1", &["`limits.egress_connections`"]),
        ("[limits]\negress_ceiling = 0", &["`limits.egress_ceiling`", "1 to 262144", "found 0"]),
        ("[limits]\negress_ceiling = 262145", &["`limits.egress_ceiling`"]),
        ("limits.create_rate = { requests = 1, per = \"0s\" }", &["`limits.create_rate.per`", "1day"]),
        ("limits.create_rate = { requests = 1 }", &["`limits.create_rate", "per"]),
        ("timeouts.udp = \"1ms\"", &["`timeouts.udp`", "1s to"]),
        ("timeouts.udp = \"soon\"", &["`timeouts.udp`"]),
        ("timeouts.udp = 30", &["`timeouts.udp`"]),
        ("guard.open = [\"10.0.0.0/33\"]", &["`guard.open`", "10.0.0.0/33", "CIDR"]),
        ("kernel.attach = \"xdp\"", &["`kernel.attach`", "tcx"]),
        ("defaults.inbound = \"all\"", &["inbound", "host"]),
        ("defaults.allowout = []", &["`defaults.allowout`", "unknown field"]),
        ("defaults.denyOut = [\"1.1.1.1\", \"x\"]", &["`defaults.denyOut.1`", "invalid denied CIDR x"]),
        ("inspector.ports = { http = [80], tls = [80] }", &["`inspector.ports`", "80"]),
        ("inspector.ports = { http = [0] }", &["`inspector.ports`"]),
        ("inspector.peek_timeout = \"0s\"", &["`inspector.peek_timeout`"]),
        ("ingress.listen = [\"localhost\"]", &["`ingress.listen[0]`"]),
        ("ingress.domain = \"a b\"", &["`ingress.domain`"]),
        ("ingress.tls = { cert = \"/c\" }", &["`ingress.tls`", "both"]),
        ("ingress.controller_port = 0", &["`ingress.controller_port`"]),
        ("api.listen = \"3000\"", &["`api.listen`", "3000"]),
        ("events.jsonl = \"x\"", &["`events.jsonl`", "absolute"]),
        ("events.keep = 1001", &["`events.keep`", "0 to 1000"]),
        ("events.max_bytes = -1", &["events.max_bytes"]),
        ("provider.kind = \"exec\"", &["`provider.command`"]),
        ("provider.subnet = \"10.0.0.0/31\"", &["`provider.subnet`"]),
        ("[[api_keys]]\ntier = \"pro\"", &["`api_keys[0]`", "key_file"]),
        ("[[api_keys]]\nkey = \"k\"\nkey_file = \"/k\"", &["`api_keys[0]`"]),
        ("[[api_keys]]\nkey = \"\"\ntier = \"pro\"", &["`api_keys[0].key`"]),
        ("[[api_keys]]\nkey = \"k\"", &["`api_keys[0]`", "tier"]),
        ("[[api_keys]]\nkey = \"k\"\ntier = \"enterprise\"", &["`api_keys[0]`", "create_rate"]),
    ] {
        let message = refusal(text);
        for part in parts {
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}

#[test]
fn keys_are_in_no_message_and_no_debug_output() {
    let twice = "[[api_keys]]\nkey = 'hunter2'\ntier = 'pro'\n".repeat(2);
    assert!(!refusal(&twice).contains("hunter2"));
    assert!(!refusal("[[api_keys]]\nkey = 'hunter2'\ntier = 'prof'").contains("hunter2"));
    assert!(!refusal("[[api_keys]]\nkey = 'hunter2' x").contains("hunter2"));
    let config = parse("[[api_keys]]\nkey = 'hunter2'\ntier = 'pro'").unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn only_the_file_that_nobody_named_may_be_missing() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.toml");
    let message = Config::load(Some(&missing)).unwrap_err().to_string();
    assert!(message.contains("none.toml"), "{message}");
    let there = directory.path().join("some.toml");
    fs::write(&there, "limits.egress_connections = 3").unwrap();
    assert_eq!(Config::load(Some(&there)).unwrap().limits.egress_connections, 3);
}
