//! Connections to port 80: every request is judged by the host that it names, and by nothing else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

mod names_support;

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filter_tests::hickory_proto::op::ResponseCode;
use filter_tests::{Behaviour, Ending, HttpAnswer, Server, Service, Talk, pattern};
use names_support::hello::hello;
use names_support::timed::eventually;
use names_support::{Answer, CIDR, EVIL, GOOD, Ground, ID, PATIENCE, Row, SHORT, WILD, at, curl, ip, names};
use serde_json::{Value, json};

/// A request for `/`.
fn get(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

fn greeting(address: &str, host: &str) -> Vec<u8> {
    format!("hello from {} as {host}\n", at(address, 80)).into_bytes()
}

/// A request that is answered by a greeting from `address`.
fn is_greeted(ground: &Ground, to: &str, request: &[u8], host: &str, address: &str) -> Result<()> {
    let before = ground.before()?;
    let wanted = greeting(address, host);
    let heard = ground.sandbox.talk(at(to, 80), &Talk::new().say(request).until(&wanted).end())?;
    ensure!(heard.bytes.ends_with(&wanted) && heard.ending == Ending::End, "{}", heard.summary());
    ensure!(ground.web.connections() == before.web + 1);
    // Byte for byte.
    ensure!(ground.web.raw().last().unwrap() == request, "another request arrived");
    ground.ensure_moved(&before, &[])?;
    for event in ["open", "close"] {
        let told = ground
            .wait_event(&before, |told| told["event"] == event && told["sport"] == heard.from.port())?;
        ensure!(
            told["reason"] == "allowed_name"
                && told["resolvedIp"] == address
                && told["dst"] == to
                && told["dport"] == 80,
            "{told}"
        );
    }
    Ok(())
}

#[test]
fn the_filter_chooses_the_address() -> Result<()> {
    let ground = Ground::usual()?;
    for family in [0, 1] {
        let (to, good, wild) = (EVIL[family], GOOD[family], WILD[family]);
        is_greeted(&ground, to, &get("allowed.test"), "allowed.test", good)?;
        for host in ["ALLOWED.test", "allowed.test.", "allowed.test:80", "Allowed.Test.:80"] {
            is_greeted(&ground, to, &get(host), host, good)?;
        }
        is_greeted(&ground, to, &get("b.wild.test"), "b.wild.test", wild)?;
        is_greeted(&ground, to, &get("a.b.wild.test"), "a.b.wild.test", wild)?;
        let absolute =
            b"GET http://Allowed.test/x?y HTTP/1.1\r\nHost: allowed.test:80\r\nConnection: close\r\n\r\n";
        is_greeted(&ground, to, absolute, "allowed.test:80", good)?;
        is_greeted(&ground, to, b"GET / HTTP/1.0\r\nhost: allowed.test\r\n\r\n", "allowed.test", good)?;
        is_greeted(&ground, to, b"OPTIONS * HTTP/1.1\r\nHost:allowed.test\r\n\r\n", "allowed.test", good)?;
        let bytewise = Talk::new().say_in(1, get("allowed.test")).until(greeting(good, "allowed.test")).end();
        let heard = ground.sandbox.talk(at(to, 80), &bytewise)?;
        ensure!(heard.ending == Ending::End && heard.said_all, "{}", heard.summary());
        ensure!(ground.arrived.frames_to(ip(to))? == 0, "something reached {to}");
    }
    let (code, out, complaint) = curl(
        &ground.sandbox,
        &["--resolve", "allowed.test:80:198.51.100.66", "http://allowed.test/", "http://allowed.test/hints"],
    )?;
    let expected = [greeting(GOOD[0], "allowed.test"), greeting(GOOD[0], "allowed.test")].concat();
    ensure!(code == 0 && out.as_bytes() == expected, "{code} {out} {complaint}");
    // Addresses that a rule allows are none of the inspector's business.
    let before = ground.before()?;
    let heard = ground
        .sandbox
        .talk(at(CIDR[0], 80), &Talk::new().say(get("denied.test")).until("as denied.test\n").end())?;
    ensure!(heard.bytes.ends_with(&greeting(CIDR[0], "denied.test")), "{}", heard.summary());
    ground.ensure_moved(&before, &[])?;
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn a_refusal_says_what_it_is() -> Result<()> {
    let ground = Ground::usual()?;
    let before = ground.before()?;
    let (code, out, _) =
        curl(&ground.sandbox, &["-i", "--resolve", "denied.test:80:198.51.100.66", "http://denied.test/"])?;
    ensure!(code == 0, "curl ended with {code}");
    let (head, body) = out.split_once("\r\n\r\n").context("no head")?;
    ensure!(
        head == format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nConnection: close",
            body.len()
        ),
        "{head}"
    );
    let body: Value = serde_json::from_str(body)?;
    let expected = json!({
        "error": "policy_denied",
        "reason": "name_not_allowed",
        "rule": "/denyOut/0",
        "host": "denied.test",
        "hint": "Add \"denied.test\" to allowOut in the sandbox's network policy.",
    });
    ensure!(body == expected, "{body}");
    // Without a body where there must be none.
    let talk = Talk::new().say("HEAD / HTTP/1.1\r\nHost: denied.test\r\n\r\n");
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &talk)?;
    ensure!(
        heard.bytes.ends_with(b"\r\n\r\n") && heard.bytes.starts_with(b"HTTP/1.1 403"),
        "{}",
        heard.summary()
    );
    ground.ensure_moved(&before, &[("name_not_allowed", 2)])?;
    ground.ensure_nothing_arrived(&before)
}

#[test]
fn other_names_are_refused() -> Result<()> {
    let ground = Ground::usual()?;
    let (to, v6) = (at(EVIL[0], 80), at(EVIL[1], 80));
    let mut rows = Vec::new();
    for (host, name) in [
        ("denied.test", "denied.test"),
        ("Denied.Test.:80", "denied.test"),
        ("evilwild.test", "evilwild.test"),
        ("wild.test", "wild.test"),
        ("allowed.test.evil.test", "allowed.test.evil.test"),
        ("localhost", "localhost"),
    ] {
        rows.push(Row::http(host, to, get(host), "name_not_allowed", 403).named(name));
    }
    rows.push(Row::http("IPv6", v6, get("denied.test"), "name_not_allowed", 403).named("denied.test"));
    for host in [
        "allowed.test:443",
        "allowed.test:080",
        "allowed.test:",
        "allowed.test:80:80",
        "user@allowed.test",
        "user:pass@allowed.test",
        "allowed.test@denied.test",
        "allowed.test,denied.test",
        "allowed.test/",
        "allowed.test#x",
        "allowed.test?",
        "allowed.test..",
        "a..wild.test",
        ".wild.test",
        "*.wild.test",
        "-a.wild.test",
        "allowed%2etest",
        "allowed\u{3002}test",
        "\u{ff41}llowed.test",
        "198.51.100.10",
        "198.51.100.10:80",
        "203.0.113.10",
        "[2001:db8:198::10]",
        "[::ffff:198.51.100.10]:80",
        "3325256714",
        "0xc633640a",
        "0306.063.0144.012",
        "",
    ] {
        rows.push(Row::http(&format!("{host:?}"), to, get(host), "bad_name", 403));
    }
    for request in
        ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET http://allowed.test/ HTTP/1.1\r\n\r\n"]
    {
        rows.push(Row::http(request, to, request, "no_name", 403));
    }
    let both = "GET http://allowed.test:81/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n";
    rows.push(Row::http("another port in the target", to, both, "bad_name", 403));
    let asked = ground.zone.asked().len();
    ground.denied(&rows)?;
    ensure!(ground.zone.asked().len() == asked, "the filter asked for {:?}", ground.zone.asked());
    Ok(())
}

#[test]
fn a_name_does_not_lead_to_the_platform_or_nowhere() -> Result<()> {
    let ground = Ground::usual()?;
    let decoy = Server::start(ground.topology.host(), Service::TcpEcho, 80)?;
    let host = ground.topology.host_addresses().map(|address| address.to_string());
    let mut rows = Vec::new();
    for (n, addresses) in [
        &["169.254.169.254"][..],
        &["127.0.0.1", "::1"],
        &["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1"],
        &[&host[0], &host[1]],
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("n{n}.wild.test");
        ground.zone.set(&name, addresses)?;
        for to in EVIL {
            let row = Row::http(&format!("{addresses:?}"), at(to, 80), get(&name), "guarded", 403);
            rows.push(row.named(&name));
        }
    }
    ground.zone.set("failing.wild.test", &GOOD)?;
    ground.zone.behave("failing.wild.test", Behaviour::Fails(ResponseCode::ServFail));
    for name in ["failing.wild.test", "nowhere.wild.test"] {
        let row = Row::http(name, at(EVIL[0], 80), get(name), "unresolved", 502);
        rows.push(row.named(name).by(Some("/allowOut/1")));
    }
    ground.denied(&rows)?;
    ensure!(decoy.connections() == 0);
    Ok(())
}

/// Requests that can be read in more than one way, or that could become something else.
fn ambiguous() -> Vec<(&'static str, Vec<u8>, u16)> {
    let field =
        |fields: &str| format!("POST / HTTP/1.1\r\nHost: allowed.test\r\n{fields}\r\n\r\n").into_bytes();
    let start = |line: &str| format!("{line}\r\nHost: allowed.test\r\n\r\n").into_bytes();
    let many: String = (0..130).map(|n| format!("X-{n}: 1\r\n")).collect();
    let long = format!("X: {}", "a".repeat(65 * 1024));
    vec![
        ("two Hosts", field("Host: denied.test"), 400),
        ("Host twice", field("Host: allowed.test"), 400),
        ("Host in another case", field("hOsT: denied.test"), 400),
        ("space in Host", field("X: y\r\nHost:  denied.test"), 400),
        ("a folded Host", b"GET / HTTP/1.1\r\nHost: allowed.test\r\n .denied.test\r\n\r\n".to_vec(), 400),
        ("a folded field", field("X: a\r\n\tb"), 400),
        ("a fold first", b"GET / HTTP/1.1\r\n Host: denied.test\r\nHost: allowed.test\r\n\r\n".to_vec(), 400),
        ("space before a colon", b"GET / HTTP/1.1\r\nHost : allowed.test\r\n\r\n".to_vec(), 400),
        ("a field without a colon", field("nonsense"), 400),
        ("a bare LF", b"GET / HTTP/1.1\nHost: allowed.test\n\n".to_vec(), 400),
        (
            "a bare LF within",
            b"GET / HTTP/1.1\r\nHost: allowed.test\nHost: denied.test\r\n\r\n".to_vec(),
            400,
        ),
        ("a bare CR", b"GET / HTTP/1.1\r\nHost: allowed.test\rX: y\r\n\r\n".to_vec(), 400),
        ("NUL in Host", b"GET / HTTP/1.1\r\nHost: allowed.test\0.denied.test\r\n\r\n".to_vec(), 400),
        ("a control byte", field("X: \x0b"), 400),
        ("both lengths", field("Content-Length: 5\r\nTransfer-Encoding: chunked"), 400),
        ("both lengths, the other way", field("Transfer-Encoding: chunked\r\nContent-Length: 5"), 400),
        ("two lengths", field("Content-Length: 5\r\nContent-Length: 6"), 400),
        ("one length twice", field("Content-Length: 5\r\nContent-Length: 5"), 400),
        ("a list of lengths", field("Content-Length: 5, 5"), 400),
        ("a signed length", field("Content-Length: +5"), 400),
        ("a negative length", field("Content-Length: -5"), 400),
        ("an octal length", field("Content-Length: 05"), 400),
        ("a hexadecimal length", field("Content-Length: 0x5"), 400),
        ("an endless length", field("Content-Length: 99999999999999999999"), 400),
        ("an empty length", field("Content-Length:"), 400),
        ("a lookalike of a length", field("Content_Length: 5"), 400),
        ("a lookalike of an encoding", field("Transfer_Encoding: chunked"), 400),
        ("another encoding", field("Transfer-Encoding: gzip"), 501),
        ("encodings", field("Transfer-Encoding: gzip, chunked"), 501),
        ("chunked twice", field("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 501),
        ("identity", field("Transfer-Encoding: identity"), 501),
        ("an odd case", field("Transfer-Encoding: Chunked"), 501),
        ("a tab before chunked", field("Transfer-Encoding:\tchunked"), 501),
        ("xchunked", field("Transfer-Encoding: xchunked"), 501),
        (
            "chunked in HTTP/1.0",
            b"POST / HTTP/1.0\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
            501,
        ),
        ("Connection: Host", field("Connection: host"), 400),
        ("Connection: Content-Length", field("Content-Length: 0\r\nConnection: close, content-length"), 400),
        (
            "Connection: Transfer-Encoding",
            field("Transfer-Encoding: chunked\r\nConnection: transfer-encoding"),
            400,
        ),
        ("another expectation", field("Expect: 200-ok"), 417),
        ("CONNECT", b"CONNECT allowed.test:80 HTTP/1.1\r\nHost: allowed.test:80\r\n\r\n".to_vec(), 403),
        (
            "CONNECT elsewhere",
            b"CONNECT denied.test:443 HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_vec(),
            403,
        ),
        (
            "h2c",
            field("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"),
            403,
        ),
        ("h2c among others", field("Connection: Upgrade\r\nUpgrade: websocket, h2c"), 403),
        ("HTTP/2.0 as an upgrade", field("Connection: Upgrade\r\nUpgrade: HTTP/2.0"), 403),
        ("settings alone", field("HTTP2-Settings: AAMAAABkAAQAAP__"), 403),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 505),
        ("HTTP/1.2", start("GET / HTTP/1.2"), 505),
        ("http/1.1", start("GET / http/1.1"), 505),
        ("HTTP/0.9", b"GET /\r\n".to_vec(), 400),
        ("two spaces", start("GET  / HTTP/1.1"), 400),
        ("a tab", start("GET\t/ HTTP/1.1"), 400),
        ("a space in the target", start("GET /a b HTTP/1.1"), 400),
        ("a space at the end", start("GET / HTTP/1.1 "), 400),
        ("https as a target", start("GET https://allowed.test/ HTTP/1.1"), 400),
        ("an authority as a target", start("GET allowed.test:80 HTTP/1.1"), 400),
        ("a fragment", start("GET /#x HTTP/1.1"), 400),
        ("no ASCII", start("GET /\u{a0} HTTP/1.1"), 400),
        ("two hosts", b"GET http://denied.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_vec(), 400),
        (
            "two hosts, the other way",
            b"GET http://allowed.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n".to_vec(),
            400,
        ),
        ("an empty line first", [b"\r\n".as_slice(), &get("allowed.test")].concat(), 400),
        ("space first", [b" ".as_slice(), &get("allowed.test")].concat(), 400),
        ("many fields", field(many.trim_end()), 431),
        ("a long head", field(&long), 431),
    ]
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() -> Result<()> {
    let ground = Ground::usual()?;
    let (to, v6) = (at(EVIL[0], 80), at(EVIL[1], 80));
    let mut rows: Vec<_> = ambiguous()
        .into_iter()
        .map(|(what, request, status)| Row::http(what, to, request, "bad_request", status))
        .collect();
    for (what, bytes) in [
        ("TLS", hello("allowed.test")),
        ("zeroes", vec![0; 64]),
        ("a letter beyond ASCII", "\u{e4}GET / HTTP/1.1\r\n".into()),
    ] {
        rows.push(Row::http(what, to, bytes, "no_name", 400).by(None));
    }
    rows.push(Row::http("SSH", v6, "SSH-2.0-OpenSSH_9.9\r\n", "bad_request", 400));
    rows.push(Row::http("IPv6", v6, ambiguous().remove(0).1, "bad_request", 400));
    ground.denied(&rows)
}

#[test]
fn a_body_that_can_be_read_in_two_ways_is_not_followed() -> Result<()> {
    let ground = Ground::usual()?;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: denied.test\r\n\r\n";
    let chunked = |body: &str| {
        format!(
            "POST /echo HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}{smuggled}"
        )
    };
    let rows: Vec<_> = [
        ("a size with a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("no size", "\r\nhello\r\n0\r\n\r\n"),
        ("a size with space", "5 \r\nhello\r\n0\r\n\r\n"),
        ("an endless size", "fffffffffffffffff\r\n"),
        ("a bare LF behind a size", "5\nhello\r\n0\r\n\r\n"),
        ("a bare LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("more data than the size", "5\r\nhelloworld\r\n0\r\n\r\n"),
        ("no end of data", "5\r\nhello0\r\n\r\n"),
        ("a trailer that is a length", "0\r\nContent-Length: 5\r\n\r\n"),
        ("a trailer that is a host", "0\r\nHost: denied.test\r\n\r\n"),
        ("a folded trailer", "0\r\nX: a\r\n b\r\n\r\n"),
    ]
    .into_iter()
    .map(|(what, body)| {
        Row::http(what, at(EVIL[0], 80), chunked(body), "bad_request", 400).named("allowed.test")
    })
    .collect();
    ground.denied_later(&rows)?;
    ensure!(ground.web.requests().is_empty(), "a request arrived: {:?}", ground.web.requests());
    ensure!(!ground.web.raw().concat().windows(9).any(|window| window == b"/smuggled"));

    // Where the framing is sound, what looks like a request is a body.
    let before = ground.before()?;
    let length = smuggled.len();
    let request =
        format!("POST /echo HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: {length}\r\n\r\n{smuggled}");
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &Talk::new().say(request).until(smuggled).end())?;
    ensure!(heard.bytes.ends_with(smuggled.as_bytes()), "{}", heard.summary());
    let arrived = ground.web.requests();
    ensure!(arrived.len() == 1 && arrived[0].body == smuggled.as_bytes(), "{arrived:?}");
    ground.ensure_moved(&before, &[])
}

#[test]
fn each_request_of_a_connection_is_judged() -> Result<()> {
    let ground = Ground::usual()?;
    for family in [0, 1] {
        let (to, good, wild) = (at(EVIL[family], 80), GOOD[family], WILD[family]);
        let (first, second) = (greeting(good, "allowed.test"), greeting(wild, "b.wild.test"));
        // Another host that is allowed is dialled for itself, and so is the first one again.
        let before = ground.before()?;
        let talk = Talk::new().say(get("allowed.test")).until(&first).say(get("allowed.test")).until(&first);
        let talk = talk.say(get("b.wild.test")).until(&second).say(get("allowed.test")).until(&first).end();
        let heard = ground.sandbox.talk(to, &talk)?;
        ensure!(heard.said_all && heard.ending == Ending::End, "{}", heard.summary());
        let requests = ground.web.requests();
        let of_it: Vec<_> = requests.iter().rev().take(4).rev().collect();
        let connections: Vec<_> =
            of_it.iter().map(|request| request.connection - of_it[0].connection).collect();
        ensure!(connections == [0, 0, 1, 2], "{connections:?}");
        let locals: Vec<_> = of_it.iter().map(|request| request.local).collect();
        ensure!(locals == [good, good, wild, good].map(|address| at(address, 80)), "{locals:?}");
        let told = ground.wait_event(&before, |event| {
            event["event"] == "open"
                && event["serverName"] == "b.wild.test"
                && event["sport"] == heard.from.port()
        })?;
        ensure!(told["resolvedIp"] == wild, "{told}");

        // One that is not is refused, however early it was sent.
        let later = |what, talk: Talk| Row {
            after: Some(first.clone()),
            ..Row::http(what, to, "", "name_not_allowed", 403).named("denied.test").saying(talk)
        };
        let seen = ground.web.requests().len();
        let both = [get("allowed.test"), get("denied.test")].concat();
        ground.denied_later(&[
            later(
                "one after the other",
                Talk::new().say(get("allowed.test")).until(&first).say(get("denied.test")),
            ),
            later("pipelined", Talk::new().say(&both)),
            later("pipelined byte by byte", Talk::new().say_in(1, &both)),
        ])?;
        let mut new = ground.web.requests().split_off(seen);
        new.dedup_by_key(|request| request.connection);
        ensure!(new.len() == 3 && new.iter().all(|request| request.host == "allowed.test"), "{new:?}");
        let ambiguous = [get("allowed.test"), b"GET / HTTP/1.1\nHost: x\n\n".to_vec()].concat();
        let row = Row::http("an ambiguous one behind", to, ambiguous, "bad_request", 400);
        ground.denied_later(&[Row { after: Some(first.clone()), ..row }])?;
        ensure!(!ground.web.raw().concat().windows(11).any(|window| window == b"denied.test"));
        ensure!(ground.arrived.frames_to(to.ip())? == 0);

        // Many that are allowed come back in their order.
        let many: Vec<u8> =
            (0..20).flat_map(|n| get(if n % 2 == 0 { "allowed.test" } else { "b.wild.test" })).collect();
        let heard = ground.sandbox.talk(to, &Talk::new().say(&many).end())?;
        let text = String::from_utf8_lossy(&heard.bytes).into_owned();
        let bodies: Vec<_> = text.lines().filter(|line| line.starts_with("hello from")).collect();
        ensure!(bodies.len() == 20, "{} answers: {}", bodies.len(), heard.summary());
        let (even, odd) = (String::from_utf8_lossy(&first), String::from_utf8_lossy(&second));
        for (n, body) in bodies.iter().enumerate() {
            let expected = if n % 2 == 0 { even.trim_end() } else { odd.trim_end() };
            ensure!(*body == expected, "{n}: {body}");
        }
    }
    ground.control.settles(ID, 0, PATIENCE)
}

/// The answer to a request that is alone on its connection.
fn answer(ground: &Ground, talk: Talk) -> Result<HttpAnswer> {
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &talk.end().patience(Duration::from_secs(15)))?;
    ensure!(heard.ending == Ending::End && heard.said_all, "{}", heard.summary());
    heard.http().with_context(|| heard.summary())
}

#[test]
fn what_is_legitimate_passes_byte_for_byte() -> Result<()> {
    let ground = Ground::usual()?;
    let before = ground.before()?;
    let request = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\nHost: allowed.test\r\n{fields}\r\n");
    // Bodies of requests.
    let body = pattern(0, 5000);
    let plain = [request("POST /echo", "Content-Length: 5000\r\n").into_bytes(), body.clone()].concat();
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &Talk::new().say(&plain).end())?;
    ensure!(heard.bytes.ends_with(&body), "{}", heard.summary());
    let chunks = "5;name=\"value\"\r\nhello\r\n1\r\n \r\n00005\r\nworld\r\n0\r\nX-Trailer: yes\r\n\r\n";
    let chunked = request("POST /echo", "Transfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n") + chunks;
    for talk in [Talk::new().say(&chunked), Talk::new().say_in(1, &chunked), Talk::new().say_in(7, &chunked)]
    {
        ensure!(answer(&ground, talk)?.body == "hello world");
        ensure!(ground.web.raw().last().unwrap() == chunked.as_bytes());
    }
    // Bodies of responses.
    let chunked = answer(&ground, Talk::new().say(request("GET /chunked", "")))?;
    ensure!(chunked.body.ends_with("0\r\nX-Trailer: yes\r\n\r\n"), "{chunked:?}");
    let head = answer(&ground, Talk::new().say(request("HEAD /down/100", "")))?;
    ensure!(
        head.status == 200 && head.body.is_empty() && head.head.contains("Content-Length: 100"),
        "{head:?}"
    );
    // A response to HEAD does not hide the next one.
    let talk =
        Talk::new().say(request("HEAD /down/100", "")).until("\r\n\r\n").say(request("GET /", "")).end();
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &talk)?;
    ensure!(heard.bytes.ends_with(&greeting(GOOD[0], "allowed.test")), "{}", heard.summary());
    let hints = answer(&ground, Talk::new().say(request("GET /hints", "")))?;
    ensure!(hints.status == 103 && hints.body.contains("200 OK"), "{hints:?}");
    let closing = answer(&ground, Talk::new().say(request("GET /close", "")))?;
    ensure!(closing.body.as_bytes() == greeting(GOOD[0], "allowed.test"), "{closing:?}");
    // A server that waits for nothing.
    let early = answer(
        &ground,
        Talk::new().say(request("POST /early", "Content-Length: 1000000\r\n")).until("early\n"),
    )?;
    ensure!(early.status == 413 && early.body == "early\n", "{early:?}");
    // A client that waits for the server.
    let expects = request("POST /echo", "Content-Length: 5\r\nExpect: 100-continue\r\n");
    let talk = Talk::new().say(expects).until("100 Continue\r\n\r\n").say("hello").until("hello");
    let expected = answer(&ground, talk)?;
    ensure!(expected.status == 100 && expected.body.ends_with("hello"), "{expected:?}");
    // Another protocol.
    let upgrade = request(
        "GET /ws",
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    );
    let frames = [get("denied.test"), pattern(0, 100_000)].concat();
    let talk = Talk::new().say(&upgrade).until("\r\n\r\n").say(&frames).until(&frames).end();
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &talk)?;
    ensure!(heard.bytes.ends_with(&frames) && heard.ending == Ending::End, "{}", heard.summary());
    // One that the server does not want is HTTP, and the next request is judged.
    let refused = request("GET /", "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    let talk = Talk::new().say(refused).until("as allowed.test\n").say(get("denied.test"));
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &talk)?;
    ensure!(String::from_utf8_lossy(&heard.bytes).contains("HTTP/1.1 403"), "{}", heard.summary());
    ground.ensure_moved(&before, &[("name_not_allowed", 1)])?;
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn much_goes_through() -> Result<()> {
    const LENGTH: usize = 6 << 20;
    let ground = Ground::usual()?;
    let patience = Duration::from_secs(20);
    let expected = pattern(0, LENGTH);
    for path in ["down", "down-close"] {
        let request =
            format!("GET /{path}/{LENGTH} HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n");
        let heard = ground.sandbox.talk(at(EVIL[0], 80), &Talk::new().say(request).patience(patience))?;
        ensure!(heard.bytes.ends_with(&expected) && heard.ending == Ending::End, "{}", heard.summary());
    }
    let request =
        format!("GET /down-chunked/{LENGTH} HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n");
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &Talk::new().say(request).patience(patience))?;
    ensure!(heard.bytes.ends_with(b"\r\n0\r\n\r\n") && heard.bytes.len() > LENGTH, "{}", heard.summary());
    // There and back, at the same time, and framed in both ways.
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: b.wild.test\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n"
    );
    let talk = Talk::new().say(head).say(&expected).patience(patience);
    let heard = ground.sandbox.talk(at(EVIL[1], 80), &talk)?;
    ensure!(heard.bytes.ends_with(&expected), "{}", heard.summary());
    let mut chunks = b"POST /echo HTTP/1.1\r\nHost: b.wild.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".to_vec();
    for piece in expected.chunks(300_000) {
        chunks.extend([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    }
    chunks.extend(b"0\r\n\r\n");
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &Talk::new().say(&chunks).patience(patience))?;
    ensure!(heard.bytes.ends_with(&expected), "{}", heard.summary());
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn a_response_that_can_be_read_in_two_ways_does_not_arrive() -> Result<()> {
    let ground = Ground::usual()?;
    let hidden = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhidden";
    let mut rows = Vec::new();
    for (n, (what, response)) in [
        (
            "both lengths",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        ("no number", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhello"),
        ("a bare LF", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"),
        (
            "an upgrade that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        ),
        ("no HTTP", "SSH-2.0-x\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/odd{n}");
        ground.web.set(&path, format!("{response}{hidden}").as_bytes());
        let request = format!("GET {path} HTTP/1.1\r\nHost: allowed.test\r\n\r\n");
        rows.push(Row::http(what, at(EVIL[0], 80), request, "bad_request", 502).named("allowed.test"));
    }
    ground.denied_later(&rows)?;
    // A second response that nobody asked for is not the answer to the next request.
    ground.web.set("/two", format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst{hidden}").as_bytes());
    let talk = Talk::new().say("GET /two HTTP/1.1\r\nHost: allowed.test\r\n\r\n").until("first");
    let talk = talk.pause(Duration::from_millis(50)).say(get("b.wild.test"));
    let heard = ground.sandbox.talk(at(EVIL[0], 80), &talk)?;
    ensure!(!String::from_utf8_lossy(&heard.bytes).contains("hidden"), "{}", heard.summary());
    Ok(())
}

#[test]
fn whoever_does_not_ask_is_refused_in_time() -> Result<()> {
    let ground = Ground::usual()?;
    let mut rows = Vec::new();
    for to in EVIL {
        rows.push(Row::http("silence", at(to, 80), "", "peek_timeout", 408).saying(Talk::new()));
        let end = Row::http("the end at once", at(to, 80), "", "no_name", 403).saying(Talk::new().end());
        rows.push(end.by(None));
        let half = Row::http("half a head and the end", at(to, 80), "", "no_name", 403);
        rows.push(half.saying(Talk::new().say("GET / HTTP/1.1\r\nHost: allowed.test\r\n").end()).by(None));
    }
    let start = Instant::now();
    ground.denied_together(&rows)?;
    let took = start.elapsed();
    ensure!(took > Duration::from_millis(650) && took < Duration::from_secs(4), "{took:?}");
    Ok(())
}

#[test]
fn a_head_that_never_ends_is_refused() -> Result<()> {
    let ground = Ground::usual()?;
    // A byte now and then does not prolong it.
    let head = "GET / HTTP/1.1\r\nHost: allowed.test\r\nX: ";
    let drip = (0..60).fold(Talk::new().say(head), |talk, _| talk.pause(Duration::from_millis(200)).say("a"));
    let rows = EVIL.map(|to| {
        let row = Row::http("drop by drop", at(to, 80), "", "peek_timeout", 408);
        row.saying(drip.clone().patience(Duration::from_secs(14)))
    });
    let start = Instant::now();
    ground.denied_together(&rows)?;
    // The client may go on for a while after the refusal.
    let took = start.elapsed();
    ensure!(took > Duration::from_secs(9) && took < Duration::from_secs(16), "{took:?}");
    Ok(())
}

#[test]
fn a_connection_may_rest_and_go_on() -> Result<()> {
    let ground = Ground::with(SHORT, &names(&["allowed.test", "b.wild.test"]))?;
    let mut stream = ground.sandbox.tcp_connect(at(EVIL[0], 80), PATIENCE).result?;
    let mut ask = |host: &str, address: &str| -> Result<()> {
        stream.write_all(&get(host))?;
        let wanted = greeting(address, host);
        let mut heard = Vec::new();
        while !heard.ends_with(&wanted) {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "the end after {:?}", String::from_utf8_lossy(&heard));
            heard.extend_from_slice(&buffer[..count]);
        }
        Ok(())
    };
    ask("allowed.test", GOOD[0])?;
    // Longer than a client may take to begin.
    thread::sleep(Duration::from_millis(1200));
    ask("allowed.test", GOOD[0])?;
    ensure!(ground.web.connections() == 1);
    // What was reached was for that host; when the name leads elsewhere the connection stays where it is.
    ground.zone.set("allowed.test", &[WILD[0]])?;
    ask("allowed.test", GOOD[0])?;
    ask("b.wild.test", WILD[0])?;
    ensure!(ground.web.connections() == 2);
    // What was left is closed at its server.
    eventually("the first is closed", PATIENCE, || Ok(ground.control.active(ID)? == 1))?;
    drop(stream);
    ground.control.settles(ID, 0, PATIENCE)
}

#[test]
fn refusals_do_not_depend_on_the_port() -> Result<()> {
    let config = format!("{SHORT}[inspector.ports]\nhttp = [80, 8080]\ntls = [443]\n");
    let ground = Ground::with(&config, &names(&["allowed.test"]))?;
    let web = filter_tests::WebServer::start(ground.topology.internet(), 8080)?;
    let request = "GET / HTTP/1.1\r\nHost: allowed.test:8080\r\nConnection: close\r\n\r\n";
    let heard = ground.sandbox.talk(at(EVIL[0], 8080), &Talk::new().say(request))?;
    ensure!(heard.bytes.ends_with(b" as allowed.test:8080\n"), "{}", heard.summary());
    ensure!(web.requests()[0].local == at(GOOD[0], 8080));
    let to = at(EVIL[0], 8080);
    ground.denied(&[
        Row::http("denied", to, get("denied.test:8080"), "name_not_allowed", 403).named("denied.test"),
        Row::http("another port", to, get("allowed.test:80"), "bad_name", 403),
        Row::http("not inspected", at(EVIL[0], 8081), "", "denied_cidr", 0)
            .by(Some("/denyOut/0"))
            .answered(Answer::Refused),
    ])?;
    ensure!(web.connections() == 1);
    Ok(())
}
