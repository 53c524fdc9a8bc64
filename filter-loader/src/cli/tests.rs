use clap::CommandFactory;
use serde_json::{Value, json};

use super::*;
use crate::{error::ErrorCode, protocol::Addrs};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(format!("sandbox-filter {line}").split(' '))
}

fn attach(line: &str) -> Result<AttachRequest, ControlError> {
    let Command::Attach(args) = parse(line).unwrap().command else { panic!("another command") };
    attach_request(args)
}

fn update(line: &str) -> Result<Value, ControlError> {
    let Command::Update(args) = parse(line).unwrap().command else { panic!("another command") };
    new_policy(args)
}

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_understood() {
    for line in [
        "run",
        "run --config /x.toml",
        "--config /x.toml run",
        "attach a --iface veth0",
        "attach a --iface veth0 --addr any --mac 02:00:00:00:00:01 --json",
        "update a --clear",
        "detach a --socket /x",
        "list -o json",
        "show a",
        "show a --tokens",
        "stats",
        "stats a --output table",
        "check policy.json",
        "check --policy -",
        "check --allow-out 1.1.1.1 8.8.8.8 --deny-out 0.0.0.0/0",
        "check --diff old.json new.toml",
        "explain a https://a.test/x",
        "explain --policy p.json 203.0.113.7:53/udp",
        "observe",
        "observe --sandbox a --decision deny -f --since 5m -o json",
        "learn a --for 10m --format yaml",
        "top",
        "doctor",
        "cleanup --force",
        "completions bash",
        "man",
        "man attach",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn what_is_not_possible_is_a_usage_error_of_one_line() {
    for (line, part) in [
        ("attach -bad --iface veth0", "-b"),
        ("attach Bad --iface veth0", "a-z and 0-9"),
        ("attach a", "--iface"),
        ("attach a --iface b --mac zz", "02:00:00:00:00:01"),
        ("attach a --iface b --addr x", "IP address"),
        ("attach a --iface b --policy p --deny-out 1.1.1.1", "cannot be used with"),
        ("update a --clear --policy p", "cannot be used with"),
        ("update a --clear --no-internet", "cannot be used with"),
        ("check p --no-internet", "cannot be used with"),
        ("list --output xml", "table"),
        ("check p --diff a b", "cannot be used with"),
        ("observe --since soon", "--since"),
        ("observe --decision maybe", "allow"),
        ("explain", "TARGET"),
        ("explain a b c", "c"),
        ("learn", "<ID>"),
        ("show", "<ID>"),
        ("fly", "fly"),
        ("update a --precedence maybe", "allow-first"),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        let message = one_line(&error);
        assert!(message.contains(part) && !message.contains('\n'), "{line}: {message}");
    }
}

#[test]
fn json_is_asked_for_in_any_spelling() {
    for line in ["list --json", "--json list", "list -o json", "list --output json", "list --output=json"] {
        assert!(parse(line).unwrap().output.is_json(), "{line}");
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        assert!(args::asks_for_json(&args), "{line}");
    }
    assert!(!parse("list").unwrap().output.is_json());
}

#[test]
fn flags_mirror_the_fields() {
    let request = attach(
        "attach a --iface veth0 --allow-out a.test *.b.test,1.1.1.1 --deny-out 0.0.0.0/0 --no-internet \
         --egress-connections 9 --precedence deny-first --dns-mode strict --dns-server 9.9.9.9 \
         --no-public-traffic --mask-request-host localhost:${PORT}",
    )
    .unwrap();
    assert_eq!(
        request.policy.unwrap(),
        json!({
            "allowInternetAccess": false,
            "allowOut": ["a.test", "*.b.test", "1.1.1.1"],
            "denyOut": ["0.0.0.0/0"],
            "limits": { "egressConnections": 9 },
            "dns": { "mode": "strict", "servers": ["9.9.9.9"] },
            "precedence": "deny-first",
            "allowPublicTraffic": false,
            "maskRequestHost": "localhost:${PORT}",
        })
    );
    assert_eq!(attach("attach a --iface veth0").unwrap().policy, None);
}

#[test]
fn addresses_are_learned_listed_or_not_checked() {
    assert_eq!(attach("attach a --iface b").unwrap().addrs, Addrs::Learn);
    assert_eq!(attach("attach a --iface b --addr any").unwrap().addrs, Addrs::Any);
    let both = attach("attach a --iface b --addr 10.0.0.2 --addr fd00::2").unwrap().addrs;
    assert_eq!(both, Addrs::list(["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]).unwrap());
    for bad in ["attach a --iface b --addr any --addr 10.0.0.2", "attach a --iface b --addr 127.0.0.1"] {
        assert_eq!(attach(bad).unwrap_err().code, ErrorCode::Usage);
    }
}

#[test]
fn a_policy_in_flags_is_validated() {
    let error = attach("attach a --iface b --allow-out https://x --deny-out y").unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidPolicy);
    assert_eq!(error.problems.len(), 2);
    let error = attach("attach a --iface b --egress-connections 0").unwrap_err();
    assert_eq!(error.pointer.as_deref(), Some("/limits/egressConnections"));
}

#[test]
fn an_update_needs_a_policy_and_changes_no_fixed_field() {
    assert_eq!(update("update a --clear").unwrap(), json!({}));
    assert_eq!(update("update a").unwrap_err().code, ErrorCode::Usage);
    for (line, pointer) in [
        ("update a --no-public-traffic", "/allowPublicTraffic"),
        ("update a --mask-request-host localhost", "/maskRequestHost"),
    ] {
        let error = update(line).unwrap_err();
        assert_eq!((error.code.exit_code(), error.pointer.as_deref()), (2, Some(pointer)));
        assert!(error.message.contains("fixed"));
    }
    for document in [json!({ "allow_public_traffic": true }), json!({ "maskRequestHost": "a" })] {
        assert!(policy::refuse_fixed(&document).is_err(), "{document}");
    }
}

#[test]
fn a_file_is_sent_as_it_is_and_refused_with_all_problems() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let expected = json!({ "denyOut": ["1.1.1.1"] });
    for (name, text) in [
        ("a.json", r#"{"denyOut":["1.1.1.1"]}"#),
        ("a.yaml", "denyOut:\n- 1.1.1.1\n"),
        ("a.toml", "denyOut = ['1.1.1.1']"),
        ("bare", "denyOut: [1.1.1.1]"),
    ] {
        assert_eq!(policy::read(&write(name, text)).unwrap(), expected, "{name}");
    }
    let twice = policy::read(&write("b.json", r#"{"denyOut":[],"denyOut":[]}"#)).unwrap_err();
    assert_eq!(twice.code, ErrorCode::InvalidPolicy);
    let bad = policy::read(&write("c.json", r#"{"denyOut":["x"],"y":1}"#)).unwrap_err();
    assert_eq!(bad.problems.len(), 2);
    let missing = policy::read(&directory.path().join("none")).unwrap_err();
    assert_eq!(missing.code, ErrorCode::Usage);
}

#[test]
fn every_command_has_a_manual_page() {
    assert!(String::from_utf8(manual(None).unwrap()).unwrap().contains("sandbox"));
    for command in Cli::command().get_subcommands() {
        assert!(!manual(Some(command.get_name())).unwrap().is_empty());
    }
    assert_eq!(manual(Some("fly")).unwrap_err().code, ErrorCode::Usage);
}
