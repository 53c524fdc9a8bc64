//! The command line as scripts use it: exit codes, documents, errors.

mod support_b;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use filter_tests::{Daemon, Output, Sandbox, Service, Topology};
use serde_json::{Value, json};

use support_b::{A, B, PATIENCE, only, reaches, tool};

struct Stand {
    daemon: Daemon,
    sandbox: Sandbox,
    topology: Topology,
}

/// A daemon, and a sandbox that is not attached yet.
fn stand() -> Result<Stand> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let daemon = Daemon::start_on(&topology)?;
    Ok(Stand { daemon, sandbox, topology })
}

/// The names in an object, in their order.
fn fields(document: &Value) -> Vec<&str> {
    document.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect()
}

/// The error of a command that failed, from its JSON.
fn error(output: &Output) -> Result<Value> {
    assert_eq!(output.stderr, "", "with --json everything is JSON");
    let document: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    assert_eq!(fields(&document), ["error"]);
    let mut error = document["error"].clone();
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty() && !message.contains('\n')));
    if let Some(object) = error.as_object_mut() {
        // Only with several problems.
        object.remove("problems");
    }
    assert_eq!(fields(&error), ["code", "message", "pointer"]);
    Ok(error)
}

const CONNECTIONS: [&str; 4] = ["active", "limit", "peak", "refused"];

#[test]
fn documents_have_the_fields_that_tools_rely_on() -> Result<()> {
    let Stand { daemon, sandbox, .. } = &stand()?;
    let attached = daemon.attach("one", sandbox, &only(&[A]))?;
    let show = daemon.show("one")?;
    const SHOW: [&str; 13] = [
        "id",
        "iface",
        "ifindex",
        "addrs",
        "mac",
        "identity",
        "policy",
        "generation",
        "policyHash",
        "enforced",
        "connections",
        "counters",
        "createdAt",
    ];
    // Whoever attaches is told the secrets; anybody else asks for them.
    const TOKENS: [&str; 2] = ["trafficAccessToken", "envdAccessToken"];
    assert_eq!(fields(&attached), [&SHOW[..], &TOKENS].concat());
    assert_eq!(fields(&show), SHOW);
    let with_tokens = daemon.cli_json(&["show", "one", "--tokens"])?;
    for token in TOKENS {
        assert!(attached[token].as_str().is_some_and(|token| token.len() == 64));
        assert_eq!(with_tokens[token], attached[token]);
    }
    assert!(!daemon.cli(&["show", "one"])?.stdout.contains("token"));
    for document in [&attached, &show] {
        assert_eq!(fields(&document["connections"]), CONNECTIONS);
        assert_eq!((&document["id"], &document["iface"]), (&json!("one"), &json!("sbx1")));
        assert_eq!(document["addrs"], json!([sandbox.v4(), sandbox.v6()]));
        assert_eq!(
            (&document["mac"], &document["identity"]),
            (&json!(sandbox.mac_text()), &json!("checked"))
        );
        assert_eq!((&document["enforced"], &document["generation"]), (&json!(true), &json!(1)));
        assert!(document["policyHash"].as_str().is_some_and(|hash| hash.len() == 64));
        assert!(document["ifindex"].as_u64().is_some_and(|index| index > 1));
        assert!(document["createdAt"].as_str().is_some_and(|time| time.ends_with('Z')));
        let policy = &document["policy"];
        assert_eq!((&policy["allowOut"], &policy["denyOut"]), (&json!([A]), &json!(["0.0.0.0/0"])));
        for reason in ["allowed_cidr", "default", "reply", "neighbour", "malformed", "spoofed", "guarded"] {
            assert_eq!(fields(&document["counters"][reason]), ["packets", "bytes"], "{reason}");
        }
        for reason in ["denied_cidr", "connection_limit", "capacity", "inbound", "revoked", "fragment"] {
            assert_eq!(fields(&document["counters"][reason]), ["packets", "bytes"], "{reason}");
        }
    }
    assert_eq!(attached["createdAt"], show["createdAt"]);

    let list = daemon.cli_json(&["list"])?;
    let [only] = list.as_array().map(Vec::as_slice).unwrap_or_default() else {
        anyhow::bail!("not a list of one: {list}");
    };
    for field in ["id", "iface", "ifindex", "addrs", "generation", "policyHash", "enforced", "createdAt"] {
        assert_eq!(only[field], show[field], "{field}");
    }
    assert_eq!(fields(&only["connections"]), CONNECTIONS);

    for stats in [daemon.cli_json(&["stats"])?, daemon.cli_json(&["stats", "one"])?] {
        assert_eq!(fields(&stats), ["sandboxes", "totals", "eventsLost"]);
        assert_eq!(fields(&stats["sandboxes"][0]), ["id", "connections", "counters"]);
        assert_eq!(fields(&stats["sandboxes"][0]["connections"]), CONNECTIONS);
        assert_eq!(fields(&stats["totals"]), ["connections", "counters"]);
    }

    let doctor = daemon.cli_json(&["doctor"])?;
    let findings = doctor["findings"].as_array().context("no findings")?;
    for finding in findings {
        assert_eq!(fields(finding), ["check", "status", "detail"]);
        assert!(["ok", "warning", "failed"].iter().any(|status| finding["status"] == *status), "{finding}");
    }
    for check in ["privilege", "kernel", "BTF", "bpffs", "maps", "forwarding", "attachment", "sandbox one"] {
        let found = findings.iter().find(|finding| finding["check"] == check);
        assert_eq!(found.with_context(|| format!("no {check}"))?["status"], json!("ok"), "{check}");
    }

    let detached = daemon.cli_json(&["detach", "one"])?;
    assert_eq!(detached, json!({ "id": "one", "detached": true }));
    assert_eq!(daemon.cli_json(&["list"])?, json!([]));
    Ok(())
}

#[test]
fn people_get_tables() -> Result<()> {
    let Stand { daemon, sandbox, .. } = &stand()?;
    daemon.attach("one", sandbox, &only(&[A]))?;
    for (args, words) in [
        (&["list"][..], &["ID", "IFACE", "one", "sbx1", "0/2500"][..]),
        (&["show", "one"], &["enforced     yes", "generation   1", "connections  0 of 2500", "\"allowOut\""]),
        (&["stats"], &["ACTIVE", "LIMIT", "PEAK", "REFUSED"]),
        (&["doctor"], &["CHECK", "STATUS", "sandbox one"]),
        (&["check", "--deny-out", "198.51.100.0/24"], &["PREFIX", "198.51.100.0/24", "/denyOut/0"]),
        (&["detach", "one"], &["one is detached", "unfiltered"]),
    ] {
        let output = daemon.cli(args)?.success()?;
        for word in words {
            assert!(output.stdout.contains(word), "{args:?}: {word} is not in\n{}", output.stdout);
        }
        assert!(!output.stdout.contains('\u{1b}'), "no colours in a pipe");
    }
    Ok(())
}

#[test]
fn failures_have_their_codes() -> Result<()> {
    let Stand { daemon, sandbox, topology } = &stand()?;
    let other = topology.sandbox(2)?;
    daemon.attach("one", sandbox, &json!({}))?;
    let (iface, taken) = (other.host_interface(), sandbox.host_interface());
    let addr = other.v4().to_string();
    for (code, word, args) in [
        // Usage.
        (2, "usage", &["attach", "No", "--iface", iface][..]),
        (2, "usage", &["attach", "a.b", "--iface", iface]),
        (2, "usage", &["attach", &"a".repeat(64), "--iface", iface]),
        (2, "usage", &["show", "../etc"]),
        (2, "usage", &["attach", "two"]),
        (2, "usage", &["attach", "two", "--iface", iface, "--addr", "nowhere"]),
        (2, "usage", &["attach", "two", "--iface", iface, "--addr", "127.0.0.1"]),
        (2, "usage", &["attach", "two", "--iface", iface, "--addr", "any", "--addr", &addr]),
        (2, "usage", &["attach", "two", "--iface", iface, "--mac", "ff:ff:ff:ff:ff:ff"]),
        (2, "usage", &["update", "one"]),
        (2, "usage", &["update", "one", "--clear", "--deny-out", "0.0.0.0/0"]),
        (2, "usage", &["update", "one", "--policy", "/nowhere"]),
        (2, "usage", &["check"]),
        (2, "usage", &["nonsense"]),
        (2, "invalid_policy", &["update", "one", "--deny-out", "named.test"]),
        (2, "invalid_policy", &["check", "--allow-out", "https://x"]),
        // The interface is not there; the host's loopback is no sandbox's interface.
        (1, "failed", &["attach", "two", "--iface", "nothere", "--addr", &addr]),
        // Nobody of that name.
        (3, "not_found", &["show", "two"]),
        (3, "not_found", &["stats", "two"]),
        (3, "not_found", &["detach", "two"]),
        (3, "not_found", &["update", "two", "--clear"]),
        // Somebody else has it.
        (4, "conflict", &["attach", "one", "--iface", iface, "--addr", &addr]),
        (4, "conflict", &["attach", "two", "--iface", taken, "--addr", &addr]),
        (4, "conflict", &["run"]),
        (4, "conflict", &["cleanup"]),
        // Nobody answers.
        (5, "unreachable", &["list", "--socket", "/nowhere/control.sock"]),
    ] {
        let output = daemon.cli(&[args, &["--json"]].concat())?;
        assert_eq!(output.code, code, "{args:?}: {output:?}");
        // A daemon logs besides.
        let output = Output { stderr: String::new(), ..output };
        assert_eq!(error(&output)?["code"], json!(word), "{args:?}");

        let plain = daemon.cli(args)?;
        assert_eq!((plain.code, plain.stdout.as_str()), (code, ""), "{args:?}");
        let said = plain.stderr.lines().last().unwrap_or_default();
        assert!(said.starts_with("error: "), "{args:?}: {}", plain.stderr);
        assert!(
            !plain.stderr.contains("panicked") && !plain.stderr.contains("backtrace"),
            "{}",
            plain.stderr
        );
    }
    // None of these changed anything.
    assert_eq!(daemon.cli_json(&["list"])?.as_array().map(Vec::len), Some(1));
    for args in [&["--help"][..], &["--version"], &["attach", "--help"], &["completions", "bash"], &["man"]] {
        let output = daemon.cli(args)?;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{args:?}");
        assert!(!output.stdout.is_empty());
    }
    Ok(())
}

#[test]
fn every_problem_of_a_policy_is_named() -> Result<()> {
    let Stand { daemon, sandbox, .. } = &stand()?;
    let policy =
        json!({ "allowOut": ["203.0.113.0/24", "10.0.0.0/99"], "denyOut": ["nonsense", "0.0.0.0/0"] });
    let attach = ["attach", "one", "--iface", sandbox.host_interface(), "--addr", "any", "--policy", "-"];
    for args in [&attach[..], &["check", "--policy", "-"]] {
        let output = daemon.cli_with_input(&[args, &["--json"]].concat(), &policy.to_string())?;
        assert_eq!(output.code, 2);
        let said = error(&output)?;
        assert_eq!(
            (&said["code"], &said["pointer"], &said["message"]),
            (&json!("invalid_policy"), &json!("/allowOut/1"), &json!("invalid allowed address 10.0.0.0/99"))
        );
        let document: Value = serde_json::from_str(&output.stdout)?;
        assert_eq!(document["error"]["problems"][1]["pointer"], json!("/denyOut/0"));
        assert_eq!(document["error"]["problems"][1]["message"], json!("invalid denied CIDR nonsense"));
        let plain = daemon.cli_with_input(args, &policy.to_string())?;
        assert!(plain.stderr.starts_with("error: /allowOut/1: invalid allowed address"), "{}", plain.stderr);
    }
    // Fixed at attach, whatever the value and the spelling.
    daemon.attach("one", sandbox, &json!({ "allowPublicTraffic": false }))?;
    for policy in [json!({ "allowPublicTraffic": false }), json!({ "mask_request_host": "a.test" })] {
        let output = daemon.cli_with_input(&["update", "one", "--policy", "-"], &policy.to_string())?;
        assert_eq!(output.code, 2, "{output:?}");
        assert!(output.stderr.contains("fixed when the sandbox is attached"), "{}", output.stderr);
    }
    assert_eq!(daemon.cli(&["update", "one", "--no-public-traffic"])?.code, 2);
    daemon.update("one", &json!({}))?;
    assert_eq!(daemon.show("one")?["policy"]["allowPublicTraffic"], json!(false), "and it stays what it was");
    Ok(())
}

#[test]
fn policies_come_as_json_yaml_toml_and_flags() -> Result<()> {
    let Stand { daemon, sandbox, topology } = &stand()?;
    let _echo = topology.serve(Service::TcpEcho, 7)?;
    daemon.attach("one", sandbox, &json!({}))?;
    let files = daemon.config().with_file_name("policies");
    fs::create_dir(&files)?;
    let hash = |args: &[&str], input: &str| -> Result<Value> {
        let mut show = daemon.cli_with_input(&[args, &["--json"]].concat(), input)?.json()?;
        assert!(reaches(sandbox, (A, 7))? && !reaches(sandbox, (B, 7))?, "{args:?}");
        let hash = show["policyHash"].take();
        daemon.update("one", &json!({}))?;
        Ok(hash)
    };
    let texts = [
        (
            "json",
            r#"{"allowOut": ["203.0.113.10"], "denyOut": ["0.0.0.0/0"], "limits": {"egressConnections": 9}}"#,
        ),
        (
            "yaml",
            "allow_out:\n  - 203.0.113.10\ndeny_out: [\"0.0.0.0/0\"]\nlimits:\n  egress_connections: 9\n",
        ),
        (
            "toml",
            "allowOut = [\"203.0.113.10\"]\ndenyOut = [\"0.0.0.0/0\"]\n[limits]\negressConnections = 9\n",
        ),
    ];
    let flags = [
        "update",
        "one",
        "--allow-out",
        "203.0.113.10",
        "--deny-out",
        "0.0.0.0/0",
        "--egress-connections",
        "9",
    ];
    let expected = hash(&flags, "")?;
    for (extension, text) in texts {
        let file = files.join("policy").with_extension(extension);
        fs::write(&file, text)?;
        assert_eq!(
            hash(&["update", "one", "--policy", &file.to_string_lossy()], "")?,
            expected,
            "{extension}"
        );
        assert_eq!(
            hash(&["update", "one", "--policy", "-"], text)?,
            expected,
            "{extension} on standard input"
        );
    }
    // A member that stands twice is refused in each of them.
    for twice in [
        r#"{"denyOut": [], "denyOut": ["0.0.0.0/0"]}"#,
        "denyOut: []\ndenyOut: []\n",
        "denyOut = []\ndenyOut = []\n",
    ] {
        let output = daemon.cli_with_input(&["update", "one", "--policy", "-"], twice)?;
        assert_eq!(output.code, 2, "{twice}: {output:?}");
    }
    let no_internet = daemon.cli_json(&["update", "one", "--no-internet"])?;
    assert_eq!(no_internet["policy"]["allowInternetAccess"], json!(false));
    assert!(!reaches(sandbox, (A, 7))?);
    Ok(())
}

#[test]
fn who_is_behind_an_interface_is_learned_or_said() -> Result<()> {
    let Stand { daemon, sandbox, topology } = &stand()?;
    let host = topology.host();
    let attach = ["attach", "one", "--iface", sandbox.host_interface(), "--json"];
    // What the topology's own traffic made the host learn would be an answer as well.
    tool(host, "ip", &["neigh", "flush", "dev", sandbox.host_interface()])?;
    let refused = daemon.cli(&attach)?;
    assert_eq!(refused.code, 1, "{refused:?}");
    let said = error(&refused)?;
    assert!(said["message"].as_str().is_some_and(|text| text.contains("--addr")), "{said}");

    // A route to one host says who it is.
    let address = sandbox.v4().to_string();
    tool(host, "ip", &["route", "add", &format!("{address}/32"), "dev", sandbox.host_interface()])?;
    let learned = daemon.cli(&attach)?.json()?;
    assert_eq!((&learned["addrs"], &learned["identity"]), (&json!([address]), &json!("checked")));
    daemon.cli(&["detach", "one"])?.success()?;
    tool(host, "ip", &["route", "del", &format!("{address}/32"), "dev", sandbox.host_interface()])?;

    // A neighbour as well, and its hardware address with it.
    assert!(sandbox.ping(sandbox.gateway_v4(), PATIENCE).is_ok());
    let learned = daemon.cli(&attach)?.json()?;
    assert!(learned["addrs"].as_array().is_some_and(|addrs| addrs.contains(&json!(address))), "{learned}");
    assert_eq!(learned["mac"], json!(sandbox.mac_text()));
    daemon.cli(&["detach", "one"])?.success()?;

    let any = daemon.cli(&[&attach[..], &["--addr", "any"]].concat())?.json()?;
    assert_eq!((&any["addrs"], &any["identity"]), (&json!([]), &json!("any")));
    let doctor = daemon.cli_json(&["doctor"])?;
    let finding =
        doctor["findings"].as_array().into_iter().flatten().find(|one| one["check"] == "sandbox one");
    let finding = finding.context("no finding about it")?;
    assert_eq!(finding["status"], json!("warning"));
    assert!(finding["detail"].as_str().is_some_and(|detail| detail.contains("--addr any")), "{finding}");
    let table = daemon.cli(&["show", "one"])?.success()?;
    assert!(table.stdout.contains("any (unchecked)"), "{}", table.stdout);
    Ok(())
}

#[test]
fn a_policy_is_checked_without_daemon_and_privileges() -> Result<()> {
    let Stand { daemon, .. } = &stand()?;
    // Where anybody may run it.
    let directory = std::env::temp_dir().join(format!("sandbox-filter-check-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let result = check_as_nobody(daemon, &directory);
    fs::remove_dir_all(&directory)?;
    let (good, bad, doctor) = result?;
    assert_eq!(good.code, 0, "{good:?}");
    let checked: Value = serde_json::from_str(&good.stdout)?;
    assert_eq!(fields(&checked), ["policy", "policyHash", "entries", "inspect", "resolvers", "warnings"]);
    let entry =
        checked["entries"].as_array().into_iter().flatten().find(|one| one["prefix"] == "203.0.113.10/32");
    assert_eq!(
        entry,
        Some(&json!({ "prefix": "203.0.113.10/32", "verdict": "allow", "rule": "/allowOut/0" }))
    );
    assert_eq!(bad.code, 2, "{bad:?}");
    assert_eq!(error(&bad)?["pointer"], json!("/denyOut/0"));
    // Nor does examining the host; it says what is missing.
    assert_eq!(doctor.code, 1, "{doctor:?}");
    assert!(doctor.stdout.contains("not root"), "{doctor:?}");
    Ok(())
}

fn check_as_nobody(daemon: &Daemon, directory: &std::path::Path) -> Result<(Output, Output, Output)> {
    const NOBODY: u32 = 65_534;
    let program = daemon.command(&[])?.get_program().to_owned();
    let binary = directory.join("sandbox-filter");
    fs::copy(program, &binary)?;
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let run = |args: &[&str]| -> Result<Output> {
        let output = Command::new(&binary)
            .args(args)
            .args(["--json"])
            .env("SANDBOX_FILTER_SOCKET", "/nowhere/control.sock")
            .stdin(Stdio::null())
            .uid(NOBODY)
            .gid(NOBODY)
            .output()?;
        let text = |bytes| String::from_utf8(bytes);
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout)?,
            stderr: text(output.stderr)?,
        })
    };
    Ok((
        run(&["check", "--allow-out", "203.0.113.10", "--deny-out", "0.0.0.0/0"])?,
        run(&["check", "--deny-out", "named.test"])?,
        run(&["doctor"])?,
    ))
}
