//! Headers that the filter sets: what the server gets, what the sandbox can make of it, and what it never learns.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

mod names_support;
mod transforms_support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Talk, pattern};
use serde_json::{Value, json};

use names_support::{EVIL, GOOD, PATIENCE, WILD, at, counted};
use transforms_support::{KEY, Stage, allowing, rule, rules};

fn usual() -> Value {
    allowing(
        &["allowed.test", "*.wild.test", "other.test"],
        &[("allowed.test", rule(json!({"X-Api-Key": KEY})))],
    )
}

#[test]
fn a_server_gets_the_header_over_either_http_and_the_sandbox_does_not() -> Result<()> {
    let stage = Stage::with(&usual())?;
    for (version, name) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
        let before = stage.show()?;
        let out = stage.curl(&[version, "https://allowed.test/path?query"])?;
        ensure!(out == format!("hello from {} as allowed.test\n", at(GOOD[0], 443)), "{out}");
        let seen = stage.secure.last().context("nothing arrived")?;
        ensure!(seen.version == name && seen.method == "GET" && seen.path == "/path?query", "{seen:?}");
        ensure!(seen.values("x-api-key") == [KEY] && seen.host == "allowed.test", "{seen:?}");
        ensure!(counted(&stage.show()?, "allowed_name") > counted(&before, "allowed_name"));
    }
    let told = stage.event(|event| event["event"] == "close" && event["serverName"] == "allowed.test")?;
    ensure!(told["reason"] == "allowed_name" && told["resolvedIp"] == GOOD[0], "{told}");
    ensure!(told["bytesOut"].as_u64() > Some(0) && told["bytesIn"].as_u64() > Some(0), "{told}");
    stage.keeps_the_secret()
}

#[test]
fn a_host_without_a_rule_is_end_to_end_as_ever() -> Result<()> {
    let stage = Stage::with(&usual())?;
    // By the authority of the servers; that of the filter has no part in it.
    let out = stage.curl_trusting(&stage.ca.pem(), &["https://b.wild.test/headers"])?;
    ensure!(!out.to_lowercase().contains("x-api-key"), "{out}");
    let own = stage.authority()?;
    let refused = stage.try_curl(&own, &["https://b.wild.test/"])?;
    ensure!(refused.0 == 60, "{refused:?}");
    let trusted = stage.try_curl(&stage.ca.pem(), &["https://allowed.test/"])?;
    ensure!(trusted.0 == 60, "a rule's host is passed for by the filter alone: {trusted:?}");
    Ok(())
}

#[test]
fn whatever_the_sandbox_says_under_that_name_is_replaced() -> Result<()> {
    let stage = Stage::with(&usual())?;
    for version in ["--http1.1", "--http2"] {
        for headers in [
            &["x-api-key: theirs"][..],
            &["X-API-KEY: theirs", "x-Api-kEy: again"],
            &["X_Api_Key: theirs"],
            &["X-Api-Key;"],
        ] {
            let args: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
            stage.curl(&[&args[..], &[version, "https://allowed.test/"]].concat())?;
            let seen = stage.secure.last().context("nothing arrived")?;
            ensure!(seen.values("x-api-key") == [KEY], "{headers:?}: {seen:?}");
            ensure!(seen.values("x_api_key").is_empty(), "{headers:?}: {seen:?}");
        }
    }
    for (request, what) in [
        ("Connection: close, X-Api-Key\r\nX-Api-Key: theirs\r\n", "nominated"),
        ("Connection: x-api-key\r\nConnection: close\r\n", "nominated without being there"),
    ] {
        let answer =
            stage.tell("allowed.test", &format!("GET / HTTP/1.1\r\nHost: allowed.test\r\n{request}\r\n"))?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{what}: {answer}");
        ensure!(stage.secure.last().unwrap().values("x-api-key") == [KEY], "{what}");
    }
    let answer = stage.tell(
        "allowed.test",
        "POST / HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Trailer: X-Api-Key, X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Api-Key: theirs\r\nX-Sum: 1\r\n\r\n",
    )?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = stage.secure.last().unwrap();
    ensure!(seen.body == b"hello" && seen.values("x-api-key") == [KEY], "{seen:?}");
    ensure!(seen.trailers == [("x-sum".to_owned(), "1".to_owned())], "{seen:?}");
    ensure!(seen.values("trailer") == ["x-sum"], "{seen:?}");
    stage.keeps_the_secret()
}

#[test]
fn bodies_stream_and_trailers_arrive() -> Result<()> {
    let stage = Stage::with(&usual())?;
    let big = transforms_support::file(&pattern(0, 3 << 20))?;
    let data = format!("@{}", big.path().display());
    for version in ["--http1.1", "--http2"] {
        let out = stage.curl_bytes(&[version, "--data-binary", &data, "https://allowed.test/echo"])?;
        ensure!(out == pattern(0, 3 << 20), "{version}: {} bytes came back", out.len());
        let out = stage.curl_bytes(&[version, "https://allowed.test/down/5000000"])?;
        ensure!(out == pattern(0, 5_000_000), "{version}: {} bytes came", out.len());
    }
    // Piece by piece: the second is said once the first came back.
    let mut client = stage.connect("allowed.test")?;
    client.write_all(
        b"POST /echo HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n",
    )?;
    transforms_support::until(&mut client, b"one")?;
    client.write_all(b"3\r\ntwo\r\n0\r\n\r\n")?;
    transforms_support::until(&mut client, b"two")?;
    drop(client);
    let answer = stage.tell(
        "allowed.test",
        "GET /trailers HTTP/1.1\r\nHost: allowed.test\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n",
    )?;
    ensure!(answer.contains("message") && answer.to_lowercase().contains("grpc-status: 0"), "{answer}");
    // As gRPC has it.
    let out = stage.curl(&["--http2", "-H", "te: trailers", "-D", "-", "https://allowed.test/trailers"])?;
    ensure!(out.contains("message") && out.contains("grpc-status: 0"), "{out}");
    ensure!(stage.secure.last().unwrap().values("te") == ["trailers"]);
    Ok(())
}

#[test]
fn an_upgrade_goes_through_with_the_header_set() -> Result<()> {
    let stage = Stage::with(&usual())?;
    let mut client = stage.connect("allowed.test")?;
    client.write_all(
        b"GET /ws HTTP/1.1\r\nHost: allowed.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
    )?;
    let head = transforms_support::until(&mut client, b"\r\n\r\n")?;
    ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
    for word in ["ping", "a longer word", "end"] {
        client.write_all(word.as_bytes())?;
        transforms_support::until(&mut client, word.as_bytes())?;
    }
    ensure!(stage.secure.last().unwrap().values("x-api-key") == [KEY]);
    drop(client);
    stage.control.settles(names_support::ID, 0, PATIENCE)
}

#[test]
fn another_host_on_the_same_connection_is_refused() -> Result<()> {
    let stage = Stage::with(&usual())?;
    for (request, status, reason) in [
        ("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", 421, "bad_request"),
        ("GET https://other.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n", 421, "bad_request"),
        ("GET https://other.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nHost: other.test\r\n\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1\r\nHost: allowed.test:8443\r\n\r\n", 403, "bad_name"),
        ("GET / HTTP/1.1\r\nX: 1\r\n\r\n", 403, "no_name"),
        ("CONNECT allowed.test:443 HTTP/1.1\r\nHost: allowed.test:443\r\n\r\n", 403, "bad_request"),
        ("TRACE / HTTP/1.1\r\nHost: allowed.test\r\n\r\n", 405, "bad_request"),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: host\r\n\r\n", 400, "bad_request"),
        (
            "GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            403,
            "bad_request",
        ),
    ] {
        // The second request of the connection: the first one is as it should be.
        let (before, arrived) = (stage.show()?, stage.secure.requests().len());
        let mut client = stage.connect("allowed.test")?;
        client.write_all(b"GET / HTTP/1.1\r\nHost: ALLOWED.test:443\r\n\r\n")?;
        transforms_support::until(&mut client, b"as ALLOWED.test:443\n")?;
        client.write_all(request.as_bytes())?;
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer);
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        ensure!(answer.contains(&format!("\"reason\":\"{reason}\"")), "{request}: {answer}");
        ensure!(stage.secure.requests().len() == arrived + 1, "{request} arrived");
        let moved = names_support::moved(&before, &stage.show()?)?;
        ensure!(moved == [(reason.to_owned(), 1)], "{request}: counted were {moved:?}");
        stage.event(|event| event["event"] == "deny" && event["reason"] == reason)?;
    }
    // Over HTTP/2 the authority stands elsewhere, and says the same.
    let out =
        stage.curl(&["--http2", "-H", "Host: other.test", "-w", "%{http_code}", "https://allowed.test/"])?;
    ensure!(out.ends_with("421") && out.contains("\"reason\":\"bad_request\""), "{out}");
    stage.keeps_the_secret()
}

#[test]
fn a_spoofed_address_gets_neither_the_request_nor_the_header() -> Result<()> {
    let stage = Stage::with(&usual())?;
    let out =
        stage.curl(&["--resolve", &format!("allowed.test:443:{}", EVIL[0]), "https://allowed.test/"])?;
    ensure!(out.contains(GOOD[0]), "{out}");
    // Where nothing but the rule knows the name, too.
    stage.update(&rules(&[("allowed.test", rule(json!({"X-Api-Key": KEY})))]))?;
    let out =
        stage.curl(&["--resolve", &format!("allowed.test:443:{}", EVIL[0]), "https://allowed.test/"])?;
    ensure!(out.contains(GOOD[0]), "{out}");
    ensure!(stage.arrived.frames_to(names_support::ip(EVIL[0]))? == 0, "something reached {}", EVIL[0]);
    Ok(())
}

#[test]
fn a_redirect_and_an_echo_elsewhere_learn_nothing() -> Result<()> {
    let stage = Stage::with(&usual())?;
    let both = stage.both_authorities()?;
    let out = stage.try_curl(&both, &["-i", "https://allowed.test/redirect"])?.1;
    ensure!(out.contains("302") && out.contains("https://other.test/headers"), "{out}");
    ensure!(!out.to_lowercase().contains("alt-svc"), "{out}");
    // The client follows, to a host that echoes what it gets.
    let out = stage.try_curl(&both, &["-L", "https://allowed.test/redirect"])?.1;
    ensure!(out.contains("host: other.test") || out.contains("user-agent"), "{out}");
    ensure!(!out.contains(KEY), "{out}");
    ensure!(stage.secure.last().unwrap().values("x-api-key").is_empty());
    Ok(())
}

#[test]
fn a_rule_opens_nothing_and_the_closest_one_is_a_hosts() -> Result<()> {
    let header = |value: &str| rule(json!({ "X-Api-Key": value }));
    let policy = |allowed: &[&str]| {
        allowing(
            allowed,
            &[
                ("*", header("any")),
                ("*.wild.test", header("wild")),
                ("b.wild.test", header("exact")),
                ("denied.test", header("denied")),
            ],
        )
    };
    let stage = Stage::with(&policy(&["*.wild.test", "allowed.test"]))?;
    for (host, value) in [("b.wild.test", "exact"), ("a.b.wild.test", "wild"), ("allowed.test", "any")] {
        stage.curl(&[&format!("https://{host}/")])?;
        ensure!(stage.secure.last().unwrap().values("x-api-key") == [value], "{host}");
    }
    let before = stage.show()?;
    let (code, _, complaint) = stage.try_curl(&stage.authority()?, &["https://denied.test/"])?;
    ensure!(code == 35, "{complaint}");
    ensure!(names_support::moved(&before, &stage.show()?)? == [("name_not_allowed".to_owned(), 1)]);
    Ok(())
}

#[test]
fn a_certificate_that_is_not_the_hosts_is_a_502_that_says_why() -> Result<()> {
    let hosts = ["expired.test", "wrong.test", "stranger.test"];
    let stage = Stage::with(&allowing(&hosts, &[("*", rule(json!({"X-Api-Key": KEY})))]))?;
    for (host, why) in [
        ("expired.test", "has expired"),
        ("wrong.test", "is for another name"),
        ("stranger.test", "[transform].upstream_ca"),
    ] {
        for version in ["--http1.1", "--http2"] {
            let before = stage.show()?;
            let out = stage.curl(&[version, "-w", "%{http_code}", &format!("https://{host}/")])?;
            ensure!(out.ends_with("502") && out.contains("\"reason\":\"upstream_tls\""), "{out}");
            ensure!(out.contains(why), "{out}");
            let moved = names_support::moved(&before, &stage.show()?)?;
            ensure!(moved == [("upstream_tls".to_owned(), 1)], "{host}: counted were {moved:?}");
            stage.event(|event| event["reason"] == "upstream_tls" && event["serverName"] == host)?;
        }
    }
    ensure!(stage.secure.requests().is_empty(), "{:?}", stage.secure.requests());
    stage.keeps_the_secret()
}

#[test]
fn secrets_are_files_that_may_change_and_without_them_nothing_is_sent() -> Result<()> {
    let value = json!({"Authorization": "Bearer ${secrets.api-key}", "X-Other": "${e2b.secrets.other}"});
    let stage = Stage::with(&allowing(&["allowed.test"], &[("allowed.test", rule(value))]))?;
    let directory = stage.secrets();
    let missing = || -> Result<()> {
        let (before, arrived) = (stage.show()?, stage.secure.requests().len());
        let out = stage.curl(&["-w", "%{http_code}", "https://allowed.test/"])?;
        ensure!(out.ends_with("502") && out.contains("\"reason\":\"no_secret\""), "{out}");
        ensure!(!out.contains("secrets.api-key"), "{out}");
        ensure!(names_support::moved(&before, &stage.show()?)? == [("no_secret".to_owned(), 1)]);
        ensure!(stage.secure.requests().len() == arrived, "it was sent");
        stage.event(|event| event["reason"] == "no_secret").map(drop)
    };
    missing()?;
    fs::write(directory.join("api-key"), KEY)?;
    missing()?;
    fs::write(directory.join("other"), "plain\n")?;
    for version in ["--http1.1", "--http2"] {
        stage.curl(&[version, "https://allowed.test/"])?;
        let seen = stage.secure.last().unwrap();
        ensure!(
            seen.values("authorization") == [format!("Bearer {KEY}")] && seen.values("x-other") == ["plain"]
        );
    }
    // On an open connection, too.
    let mut client = stage.connect("allowed.test")?;
    for secret in ["first", "second one"] {
        fs::write(directory.join("other"), secret)?;
        client.write_all(b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n")?;
        transforms_support::until(&mut client, b"as allowed.test\n")?;
        ensure!(stage.secure.last().unwrap().values("x-other") == [secret]);
    }
    drop(client);
    fs::remove_file(directory.join("other"))?;
    fs::write(directory.join("../outside"), KEY)?;
    symlink("../outside", directory.join("other"))?;
    missing()?;
    fs::remove_file(directory.join("other"))?;
    fs::write(directory.join("other"), "two\nlines")?;
    missing()?;
    stage.keeps_the_secret()
}

#[test]
fn an_update_is_felt_by_the_next_request_of_an_open_connection() -> Result<()> {
    let with =
        |value: &str| allowing(&["allowed.test"], &[("allowed.test", rule(json!({ "X-Api-Key": value })))]);
    let stage = Stage::with(&with("one"))?;
    let mut client = stage.connect("allowed.test")?;
    let mut ask = |expected: &[&str]| -> Result<()> {
        client.write_all(b"GET / HTTP/1.1\r\nHost: allowed.test\r\nX-Api-Key: theirs\r\n\r\n")?;
        transforms_support::until(&mut client, b"as allowed.test\n")?;
        let seen = stage.secure.last().unwrap();
        ensure!(seen.values("x-api-key") == expected && seen.connection == 0, "{seen:?}");
        Ok(())
    };
    ask(&["one"])?;
    stage.update(&with("two"))?;
    ask(&["two"])?;
    stage.update(&allowing(&["allowed.test"], &[("allowed.test", rule(json!({"X-Other": "3"})))]))?;
    ask(&["theirs"])?;
    stage.update(&with("four"))?;
    ask(&["four"])?;
    // No longer allowed: it is cut.
    stage.update(&allowing(&["other.test"], &[("allowed.test", rule(json!({"X-Api-Key": "five"})))]))?;
    let mut rest = Vec::new();
    let began = Instant::now();
    let ended = client.read_to_end(&mut rest);
    ensure!(ended.is_err() && began.elapsed() < Duration::from_secs(1), "{ended:?} {rest:?}");
    stage.event(|event| event["event"] == "deny" && event["reason"] == "revoked").map(drop)
}

#[test]
fn where_all_is_open_rules_apply_and_all_else_is_as_if_nobody_looked() -> Result<()> {
    let stage = Stage::with(&rules(&[("allowed.test", rule(json!({"X-Api-Key": KEY})))]))?;
    let before = stage.show()?;
    stage.curl(&["--resolve", &format!("allowed.test:443:{}", GOOD[0]), "https://allowed.test/"])?;
    ensure!(stage.secure.last().unwrap().values("x-api-key") == [KEY]);
    let to = format!("b.wild.test:443:{}", WILD[0]);
    let out = stage.curl_trusting(&stage.ca.pem(), &["--resolve", &to, "https://b.wild.test/headers"])?;
    ensure!(!out.contains("x-api-key"), "{out}");
    // A name that does not resolve, none at all, and what is no HTTP.
    let to = format!("nowhere.test:443:{}", EVIL[0]);
    stage.curl_trusting(&stage.ca.pem(), &["--resolve", &to, "https://nowhere.test/"])?;
    let heard = stage
        .sandbox
        .talk(at(EVIL[0], 80), &Talk::new().say(b"GET / HTTP/1.0\r\n\r\n").until(b" as \n").end())?;
    ensure!(heard.bytes.starts_with(b"HTTP/1.1 200"), "{}", heard.summary());
    let mut moved = names_support::moved(&before, &stage.show()?)?;
    // A server's farewell to a client that is gone already: its end comes behind the reset that answers it.
    moved.retain(|(reason, _)| reason != "inbound");
    ensure!(moved.is_empty(), "counted were {moved:?}");
    ensure!(counted(&stage.show()?, "default") > counted(&before, "default"));
    stage.control.settles(names_support::ID, 0, PATIENCE)
}

#[test]
fn in_the_clear_headers_are_set_only_where_the_rule_says_so() -> Result<()> {
    let mut cleartext = rule(json!({"X-Api-Key": KEY}));
    let policy = |rule: &Value| allowing(&["allowed.test", "b.wild.test"], &[("allowed.test", rule.clone())]);
    let stage = Stage::with(&policy(&cleartext))?;
    stage.curl(&["-H", "x-api-key: theirs", "http://allowed.test/"])?;
    ensure!(stage.web.requests().last().unwrap().head.contains("x-api-key: theirs"));
    cleartext[0]["scheme"] = "http".into();
    stage.update(&policy(&cleartext))?;
    stage.curl(&["-H", "x-api-key: theirs", "http://allowed.test/"])?;
    let head = stage.web.requests().last().unwrap().head.to_lowercase();
    ensure!(head.contains(&format!("x-api-key: {KEY}").to_lowercase()) && !head.contains("theirs"), "{head}");
    // Another host on the same connection gets nothing of it, and the next request for the first does again.
    let heard = stage.sandbox.talk(
        at(GOOD[0], 80),
        &Talk::new()
            .say(b"GET /1 HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
            .until(b"as allowed.test\n")
            .say(b"GET /2 HTTP/1.1\r\nHost: b.wild.test\r\n\r\n")
            .until(b"as b.wild.test\n")
            .say(b"GET /3 HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
            .until(b"as allowed.test\n")
            .say(b"GET /4 HTTP/1.1\r\nHost: denied.test\r\n\r\n")
            .until(b"name_not_allowed")
            .end(),
    )?;
    ensure!(String::from_utf8_lossy(&heard.bytes).contains("403 Forbidden"), "{}", heard.summary());
    let requests = stage.web.requests();
    let of = |path: &str| {
        requests.iter().find(|request| request.line.contains(path)).map(|request| request.head.contains(KEY))
    };
    ensure!((of("/1 "), of("/2 "), of("/3 "), of("/4 ")) == (Some(true), Some(false), Some(true), None));
    // To whom the filter takes for the host, not the sandbox.
    stage.curl(&["--resolve", &format!("allowed.test:80:{}", EVIL[0]), "http://allowed.test/evil"])?;
    ensure!(stage.web.requests().last().unwrap().local == at(GOOD[0], 80));
    stage.keeps_the_secret()
}

#[test]
fn a_thousand_names_at_once_are_too_many_and_others_do_not_suffer() -> Result<()> {
    let names: Vec<String> = (0..1000).map(|n| format!("n{n}.wild.test")).collect();
    let stage = Stage::with(&usual())?;
    for name in &names {
        stage.zone.set(name, &[WILD[0]])?;
    }
    stage.update(&allowing(&["*.wild.test"], &[("*.wild.test", rule(json!({"X-Api-Key": KEY})))]))?;
    let other = stage.topology.sandbox(2)?;
    stage.daemon.attach("s2", &other, &usual())?;
    let before = stage.show()?;
    let made = thread::scope(|scope| {
        let asking: Vec<_> = names
            .chunks(50)
            .map(|names| scope.spawn(|| names.iter().filter(|name| stage.connect(name).is_ok()).count()))
            .collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).sum::<usize>()
    });
    ensure!((64..900).contains(&made), "{made} leaves were made");
    let moved = names_support::moved(&before, &stage.show()?)?;
    ensure!(moved == [("capacity".to_owned(), 1000 - made as u64)], "counted were {moved:?}");
    stage.event(|event| event["event"] == "deny" && event["reason"] == "capacity")?;
    let authority = stage.authority()?;
    ensure!(filter_tests::connect(&other, at(GOOD[0], 443), "allowed.test", &authority, PATIENCE).is_ok());
    Ok(())
}

#[test]
fn an_authority_outlives_the_daemon_and_is_rotated_by_command() -> Result<()> {
    let mut stage = Stage::with(&usual())?;
    let old = stage.authority()?;
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(stage.daemon.state_dir().join("ca.pem"))?.permissions(),
    );
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    stage.daemon.restart()?;
    ensure!(stage.authority()? == old);
    stage.curl(&["https://allowed.test/"])?;
    let new = stage.daemon.cli(&["ca", "rotate"])?.success()?.stdout;
    ensure!(new != old && new == stage.authority()? && !new.contains("KEY"), "{new}");
    stage.curl_trusting(&new, &["https://allowed.test/"])?;
    ensure!(stage.try_curl(&old, &["https://allowed.test/"])?.0 == 60);
    Ok(())
}

#[test]
fn no_core_is_left_with_what_the_daemon_knew() -> Result<()> {
    let stage = Stage::with(&usual())?;
    stage.curl(&["https://allowed.test/"])?;
    transforms_support::dies_without_a_core(stage)
}

#[test]
fn an_upstream_that_closes_is_reached_again() -> Result<()> {
    let stage = Stage::with(&usual())?;
    let mut client = stage.connect("allowed.test")?;
    for connection in 0..3 {
        client.write_all(b"GET /close HTTP/1.1\r\nHost: allowed.test\r\n\r\n")?;
        transforms_support::until(&mut client, b"as allowed.test\n")?;
        ensure!(stage.secure.last().unwrap().connection == connection);
        thread::sleep(Duration::from_millis(100));
    }
    drop(client);
    stage.control.settles(names_support::ID, 0, PATIENCE)
}
