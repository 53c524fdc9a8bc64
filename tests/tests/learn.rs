//! A sandbox is allowed everything for a while, and gets the policy that covers what it did.

mod names_support;

use std::io::Read as _;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use filter_tests::hickory_proto::rr::RecordType;
use filter_tests::{Process, Service, Talk};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use names_support::hello::hello;
use names_support::timed::{self, eventually};
use names_support::{GOOD, Ground, ID, PATIENCE, SHORT, at, dns, names, usual_policy};

/// `learn`, under way: everything is allowed when this returns.
fn learning(ground: &Ground, args: &[&str]) -> Result<Process> {
    let before = timed::generation(&ground.show()?)?;
    let mut command = ground.daemon.command(&[&["learn", ID], args].concat())?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let process = Process::start(command)?;
    eventually("it is learned", PATIENCE, || Ok(timed::generation(&ground.show()?)? > before))?;
    Ok(process)
}

/// Ends it with Ctrl-C; what it prints.
fn interrupt(mut process: Process) -> Result<String> {
    process.signal(Signal::SIGINT)?;
    let mut text = String::new();
    process.child().stdout.take().context("no standard output")?.read_to_string(&mut text)?;
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "{status}: {text}");
    Ok(text)
}

/// Some things that programs do, none of which may have failed.
fn do_something(ground: &Ground) -> Result<()> {
    let sandbox = &ground.sandbox;
    let question = dns::query("allowed.test", RecordType::A);
    dns::ask(sandbox, at("8.8.8.8", 53), &question)?;
    assert_eq!(sandbox.http_get(at(GOOD[0], 80), "allowed.test", PATIENCE).result?.status, 200);
    let greeting = hello("b.wild.test");
    let talk = Talk::new().say(&greeting).until(&greeting).end();
    let heard = sandbox.talk(at("198.51.100.11", 443), &talk)?;
    ensure!(heard.bytes == greeting, "{}", heard.summary());
    sandbox.tcp_exchange(at("203.0.113.20", 7), b"hello", PATIENCE).result?;
    sandbox.tcp_exchange(at("203.0.113.21", 7), b"hello", PATIENCE).result?;
    sandbox.udp_exchange(at("203.0.113.20", 7), b"hello", PATIENCE).result?;
    Ok(())
}

#[test]
fn what_it_did_is_what_it_may_do_afterwards() -> Result<()> {
    let closed = json!({ "denyOut": ["0.0.0.0/0"] });
    let ground = Ground::with(SHORT, &closed)?;
    let _echoes = [ground.topology.serve(Service::TcpEcho, 7)?, ground.topology.serve(Service::UdpEcho, 7)?];
    let process = learning(&ground, &[])?;
    do_something(&ground)?;
    // What names nobody gets through too, to where the sandbox wants.
    let heard =
        ground.sandbox.talk(at("198.51.100.66", 443), &Talk::new().say(b"no TLS").until(b"no TLS").end())?;
    ensure!(heard.bytes == b"no TLS", "{}", heard.summary());
    // The platform stays out of reach.
    assert!(!ground.sandbox.tcp_connect(at("10.1.2.3", 7), PATIENCE).is_ok());
    let toml = interrupt(process)?;

    let policy = &ground.show()?["policy"];
    assert_eq!(policy["denyOut"], closed["denyOut"], "its own policy is in force again");
    assert!(!ground.sandbox.tcp_connect(at("203.0.113.20", 7), PATIENCE).is_ok());
    for part in
        ["allowed.test\", # 1 connection", "203.0.113.20/31\", # 3 connections: tcp 7, udp 7", "guarded"]
    {
        assert!(toml.contains(part), "{part}: {toml}");
    }
    let file = ground.daemon.config().with_file_name("learned.toml");
    std::fs::write(&file, &toml)?;
    let file = file.to_str().context("a path")?;
    let checked = ground.daemon.cli_json(&["check", file])?;
    let learned = json!(["allowed.test", "b.wild.test", "198.51.100.66", "203.0.113.20/31"]);
    assert_eq!(checked["policy"]["allowOut"], learned, "{toml}");
    assert_eq!(checked["policy"]["dns"]["servers"], json!(["8.8.8.8"]));

    ground.daemon.cli(&["update", ID, "--policy", file])?.success()?;
    do_something(&ground)?;
    assert!(!ground.sandbox.tcp_connect(at("203.0.113.22", 7), PATIENCE).is_ok());
    assert_eq!(ground.sandbox.http_get(at("198.51.100.67", 80), "denied.test", PATIENCE).result?.status, 403);
    Ok(())
}

#[test]
fn its_own_policy_comes_back_whatever_ends_the_learning() -> Result<()> {
    let mut ground = Ground::with(SHORT, &names(&["allowed.test"]))?;
    let _echo = ground.topology.serve(Service::TcpEcho, 7)?;
    let own = ground.show()?["policy"].clone();
    let opens = |ground: &Ground| ground.sandbox.tcp_connect(at("203.0.113.20", 7), PATIENCE).is_ok();
    let back = |ground: &Ground| {
        eventually("its own policy is in force", PATIENCE, || Ok(ground.show()?["policy"] == own))
    };

    // Its time is over.
    let mut process = learning(&ground, &["--for", "1s", "--format", "yaml"])?;
    assert!(opens(&ground));
    ensure!(process.wait(PATIENCE)?.success());
    assert!(ground.show()?["policy"] == own && !opens(&ground), "when it ends it is over");

    // The command is killed.
    let mut process = learning(&ground, &[])?;
    assert!(opens(&ground));
    let again = ground.daemon.cli(&["learn", ID, "--for", "1s"])?;
    assert_eq!(again.code, 4, "{again:?}");
    process.kill()?;
    back(&ground)?;
    assert!(!opens(&ground));

    // The daemon is stopped, or killed.
    let _process = learning(&ground, &[])?;
    ground.daemon.restart()?;
    assert!(ground.show()?["policy"] == own && !opens(&ground));
    let _process = learning(&ground, &[])?;
    ground.daemon.kill9()?;
    ground.daemon.start()?;
    assert!(ground.show()?["policy"] == own && !opens(&ground));

    // An update is the end of it, and stays.
    let process = learning(&ground, &[])?;
    ground.update(&usual_policy())?;
    let updated = ground.show()?;
    interrupt(process)?;
    sleep(Duration::from_millis(300));
    assert_eq!(ground.show()?["generation"], updated["generation"]);
    assert_eq!(ground.show()?["policy"], updated["policy"]);
    Ok(())
}

#[test]
fn a_change_is_said_in_what_it_opens_and_closes() -> Result<()> {
    let ground = Ground::usual()?;
    let directory = ground.daemon.config().with_file_name("");
    let file = |name: &str, policy: &Value| -> Result<String> {
        let path = directory.join(name);
        std::fs::write(&path, policy.to_string())?;
        Ok(path.to_str().context("a path")?.to_owned())
    };
    let old = file("old.json", &usual_policy())?;
    let new = file(
        "new.json",
        &json!({ "allowOut": ["allowed.test", "203.0.113.0/25"], "denyOut": ["0.0.0.0/0"] }),
    )?;
    let said = ground.daemon.cli_json(&["check", "--diff", &old, &new])?;
    let destinations = |of: &Value| -> Vec<String> {
        let places = of.as_array().into_iter().flatten();
        places.filter_map(|place| place["destination"].as_str()).map(ToOwned::to_owned).collect()
    };
    assert_eq!(destinations(&said["closes"]["addresses"]), ["203.0.113.128/25", "2001:db8:113::/48"]);
    assert_eq!(destinations(&said["closes"]["names"]), ["*.wild.test"]);
    assert_eq!(said["opens"], json!({ "addresses": [], "names": [], "resolvers": [] }));
    let text = ground.daemon.cli(&["check", "--diff", &old, &new])?.success()?.stdout;
    assert!(
        text.contains("- 203.0.113.128/25  /denyOut/0\n") && text.contains("- *.wild.test (web)"),
        "{text}"
    );
    assert_eq!(ground.daemon.cli(&["check", "--diff", &old])?.code, 2);
    Ok(())
}
