use std::time::Duration;

use filter_common::Reason;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    harness::{OTHER, UPSTREAM, World, accept, allow, noise, read_all, read_some, soon, until, write},
    host::Happening::{Close, Deny, Open},
};

/// Reads this and nothing else.
async fn expect(stream: &mut TcpStream, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    let got = read_some(stream, text.len()).await;
    assert!(got == text, "{:?} is not {:?}", String::from_utf8_lossy(&got), String::from_utf8_lossy(text));
}

/// The refusal that ends a connection.
async fn refusal(client: &mut TcpStream) -> (u16, Value) {
    let text = String::from_utf8(read_all(client).await.unwrap()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    assert!(head.contains("Connection: close") && head.contains("Content-Type: application/json"), "{head}");
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn get(host: &str) -> String {
    format!("GET /path HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A client's request and its arrival at an upstream.
async fn arrive(client: &mut TcpStream, listener: &TcpListener, request: &str) -> TcpStream {
    write(client, request).await;
    let mut server = accept(listener).await;
    expect(&mut server, request).await;
    server
}

#[tokio::test]
async fn requests_behind_each_other_are_judged_each() {
    let world = World::http().await;
    let (upstream, other) = (world.upstream(UPSTREAM).await, world.upstream(OTHER).await);
    let mut client = world.client().await;
    let mut server = arrive(&mut client, &upstream, &get("Allowed.test")).await;
    write(&mut server, ok("one")).await;
    expect(&mut client, ok("one")).await;
    // The same name again: on the same connection.
    write(&mut client, get("allowed.test.")).await;
    expect(&mut server, get("allowed.test.")).await;
    write(&mut server, ok("two")).await;
    expect(&mut client, ok("two")).await;
    // Another name that is allowed: dialled anew, and the old connection is over.
    let mut second = arrive(&mut client, &other, &get("other.test")).await;
    assert_eq!(read_all(&mut server).await.unwrap(), b"");
    write(&mut second, ok("three")).await;
    expect(&mut client, ok("three")).await;
    // One that is not.
    write(&mut client, get("denied.test")).await;
    let (status, body) = refusal(&mut client).await;
    assert_eq!(status, 403);
    assert_eq!(
        body,
        json!({
            "error": "policy_denied",
            "reason": "name_not_allowed",
            "rule": "/denyOut/0",
            "host": "denied.test",
            "hint": "Add \"denied.test\" to allowOut in the sandbox's network policy.",
        })
    );
    assert_eq!(read_all(&mut second).await.unwrap(), b"");
    drop(client);
    world.quiet().await;
    let (allowed, other) = (Some("allowed.test".to_owned()), Some("other.test".to_owned()));
    assert_eq!(
        world.host.told(1),
        [
            (Open, Reason::AllowedName, allowed.clone()),
            (Close, Reason::AllowedName, allowed),
            (Open, Reason::AllowedName, other.clone()),
            (Close, Reason::AllowedName, other),
            (Deny, Reason::NameNotAllowed, Some("denied.test".to_owned())),
        ]
    );
    let events = world.host.events(1);
    assert_eq!(events[1].bytes_out, (get("allowed.test").len() + get("allowed.test.").len()) as u64);
    assert_eq!(events[1].bytes_in, (ok("one").len() + ok("two").len()) as u64);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let world = World::http().await;
    let (upstream, other) = (world.upstream(UPSTREAM).await, world.upstream(OTHER).await);
    let mut client = world.client().await;
    let hosts = ["allowed.test", "allowed.test", "other.test", "denied.test", "allowed.test"];
    write(&mut client, hosts.map(get).concat()).await;
    let mut server = accept(&upstream).await;
    expect(&mut server, get("allowed.test")).await;
    // The second is not sent before the first is answered.
    let mut byte = [0];
    assert!(tokio::time::timeout(Duration::from_millis(50), server.read(&mut byte)).await.is_err());
    write(&mut server, ok("1")).await;
    expect(&mut server, get("allowed.test")).await;
    write(&mut server, ok("2")).await;
    let mut server = accept(&other).await;
    expect(&mut server, get("other.test")).await;
    write(&mut server, ok("3")).await;
    expect(&mut client, [ok("1"), ok("2"), ok("3")].concat()).await;
    assert_eq!(refusal(&mut client).await.0, 403);
    drop(client);
    world.quiet().await;
}

#[tokio::test]
async fn one_byte_at_a_time() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    client.set_nodelay(true).unwrap();
    let request = "POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\nX-After: 1\r\n\r\n";
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let server = tokio::spawn(async move {
        let mut server = accept(&upstream).await;
        server.set_nodelay(true).unwrap();
        expect(&mut server, request).await;
        for byte in response.bytes() {
            write(&mut server, [byte]).await;
            tokio::task::yield_now().await;
        }
        expect(&mut server, get("allowed.test")).await;
        write(&mut server, ok("next")).await;
    });
    for byte in request.bytes() {
        write(&mut client, [byte]).await;
        tokio::task::yield_now().await;
    }
    expect(&mut client, response).await;
    write(&mut client, get("allowed.test")).await;
    expect(&mut client, ok("next")).await;
    server.await.unwrap();
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let request =
        "GET /ws HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    write(&mut client, format!("{request}early")).await;
    let mut server = accept(&upstream).await;
    expect(&mut server, request).await;
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    write(&mut server, format!("{switch}first")).await;
    expect(&mut client, format!("{switch}first")).await;
    expect(&mut server, "early").await;
    // Nothing is HTTP any more.
    write(&mut client, get("denied.test")).await;
    expect(&mut server, get("denied.test")).await;
    soon(client.shutdown()).await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"");
    write(&mut server, "last").await;
    drop(server);
    assert_eq!(read_all(&mut client).await.unwrap(), b"last");
    world.quiet().await;
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_refused() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    write(&mut server, "HTTP/1.1 101 Switching Protocols\r\n\r\n").await;
    let (status, body) = refusal(&mut client).await;
    assert_eq!((status, &body["error"]), (502, &json!("bad_gateway")));
}

#[tokio::test]
async fn a_body_may_wait_for_the_server() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let head = "PUT / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    let mut server = arrive(&mut client, &upstream, head).await;
    write(&mut server, "HTTP/1.1 100 Continue\r\n\r\n").await;
    expect(&mut client, "HTTP/1.1 100 Continue\r\n\r\n").await;
    write(&mut client, "body").await;
    expect(&mut server, "body").await;
    write(&mut server, ok("done")).await;
    expect(&mut client, ok("done")).await;
    // Without the server's word it is not certain what comes next, the body or another request.
    write(&mut client, head).await;
    expect(&mut server, head).await;
    let no = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
    write(&mut server, no).await;
    assert_eq!(read_all(&mut client).await.unwrap(), no.as_bytes());
    assert_eq!(read_all(&mut server).await.unwrap(), b"");
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let head = "HEAD / HTTP/1.1\r\nHost: allowed.test\r\n\r\n";
    let mut server = arrive(&mut client, &upstream, head).await;
    for response in ["HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "HTTP/1.1 304 Not Modified\r\n\r\n"] {
        write(&mut server, response).await;
        expect(&mut client, response).await;
        write(&mut client, head).await;
        expect(&mut server, head).await;
    }
    write(&mut server, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    expect(&mut client, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    // A refusal has none either.
    write(&mut client, "HEAD / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
    let refusal = read_all(&mut client).await.unwrap();
    assert!(refusal.starts_with(b"HTTP/1.1 403 ") && refusal.ends_with(b"\r\n\r\n"));
}

#[tokio::test]
async fn a_server_may_answer_before_it_has_the_request() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let head = "POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 30000000\r\n\r\n";
    let mut server = arrive(&mut client, &upstream, head).await;
    let early = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!";
    write(&mut server, early).await;
    drop(server);
    expect(&mut client, early).await;
    // It says so even while the client is still talking, and waits politely for the client's end.
    let _ = client.write_all(&[0; 100_000]).await;
    assert_eq!(read_all(&mut client).await.unwrap(), b"");
    drop(client);
    world.quiet().await;

    // A server that reads on gets the whole body, and the connection goes on.
    let mut client = world.client().await;
    let head = "POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 300000\r\n\r\n";
    let mut server = arrive(&mut client, &upstream, head).await;
    write(&mut server, ok("early")).await;
    expect(&mut client, ok("early")).await;
    let body = noise(300_000, 5);
    let sending = {
        let body = body.clone();
        tokio::spawn(async move {
            write(&mut client, body).await;
            write(&mut client, get("allowed.test")).await;
            client
        })
    };
    assert!(read_some(&mut server, body.len()).await == body);
    expect(&mut server, get("allowed.test")).await;
    let mut client = sending.await.unwrap();
    write(&mut server, ok("after")).await;
    expect(&mut client, ok("after")).await;
}

#[tokio::test]
async fn a_response_may_end_with_the_connection() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    let body = noise(700_000, 3);
    write(&mut server, "HTTP/1.1 200 OK\r\n\r\n").await;
    let sending = {
        let body = body.clone();
        tokio::spawn(async move { write(&mut server, body).await })
    };
    expect(&mut client, "HTTP/1.1 200 OK\r\n\r\n").await;
    assert!(read_all(&mut client).await.unwrap() == body);
    sending.await.unwrap();
    world.quiet().await;
}

#[tokio::test]
async fn large_bodies_arrive_whole_in_every_framing() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let mut kept: Option<TcpStream> = None;
    for chunk in [None, Some(1_000), Some(100_000), Some(3_000_000)] {
        let body = noise(3_000_000, chunk.unwrap_or(1) as u64);
        let (field, body) = match chunk {
            None => (format!("Content-Length: {}", body.len()), body),
            Some(size) => {
                let mut chunked = Vec::new();
                for chunk in body.chunks(size) {
                    chunked.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    chunked.extend(chunk);
                    chunked.extend(b"\r\n");
                }
                chunked.extend(b"0\r\n\r\n");
                ("Transfer-Encoding: chunked".to_owned(), chunked)
            }
        };
        let mut request = format!("POST / HTTP/1.1\r\nHost: allowed.test\r\n{field}\r\n\r\n").into_bytes();
        request.extend(&body);
        let mut response = format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n").into_bytes();
        response.extend(&body);
        let (mut from_client, mut to_client) = client.into_split();
        let sent = request.clone();
        let sending = tokio::spawn(async move {
            soon(to_client.write_all(&sent)).await.unwrap();
            to_client
        });
        let mut server = match kept.take() {
            Some(server) => server,
            None => accept(&upstream).await,
        };
        assert!(read_some(&mut server, request.len()).await == request, "{chunk:?}");
        let to_client = sending.await.unwrap();
        let answer = response.clone();
        let answering = tokio::spawn(async move {
            write(&mut server, answer).await;
            server
        });
        let mut got = vec![0; response.len()];
        soon(from_client.read_exact(&mut got)).await.unwrap();
        assert!(got == response, "{chunk:?}");
        kept = Some(answering.await.unwrap());
        client = from_client.reunite(to_client).unwrap();
    }
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused_and_reaches_nobody() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    for (request, status) in [
        (
            "POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
        ("POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nHost: denied.test\r\n\r\n", 400),
        ("GET http://denied.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\n X: folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: allowed.test\n\n", 400),
        ("CONNECT allowed.test:443 HTTP/1.1\r\nHost: allowed.test:443\r\n\r\n", 403),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcdGET", 400),
    ] {
        let mut client = world.client().await;
        write(&mut client, request).await;
        let (got, body) = refusal(&mut client).await;
        assert_eq!((got, &body["error"]), (status, &json!("bad_request")), "{request:?}: {body}");
        drop(client);
        world.quiet().await;
        let events = world.host.told(1);
        let last = events.last().unwrap();
        assert_eq!((last.0, last.1), (Deny, Reason::BadRequest), "{request:?}");
    }
    // Those with a malformed body were allowed to begin, and their upstream got no more than the head.
    for _ in 0..2 {
        let mut server = accept(&upstream).await;
        assert_eq!(read_all(&mut server).await.unwrap_or_default(), b"");
    }
}

#[tokio::test]
async fn a_malformed_chunk_in_the_middle_ends_both() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let head = "POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n";
    let mut server = arrive(&mut client, &upstream, head).await;
    write(&mut client, "5\r\nabcdeGET / HTTP/1.1\r\n").await;
    assert_eq!(refusal(&mut client).await.0, 400);
    assert_eq!(read_all(&mut server).await.unwrap_or_default(), b"");
}

#[tokio::test]
async fn refusals_have_their_reasons() {
    let world = World::http().await;
    for (host, status, reason) in [
        ("denied.test", 403, Reason::NameNotAllowed),
        ("evilwild.test", 403, Reason::NameNotAllowed),
        ("wild.test", 403, Reason::NameNotAllowed),
        ("allowed.test.evil.test", 403, Reason::NameNotAllowed),
        ("127.9.0.2", 403, Reason::BadName),
        ("allowed.test:1", 403, Reason::BadName),
        ("user@allowed.test", 403, Reason::BadName),
        ("", 403, Reason::BadName),
        ("guarded.test", 403, Reason::Guarded),
        ("nowhere.test", 502, Reason::Unresolved),
        ("nobody.test", 502, Reason::Unresolved),
    ] {
        let mut client = world.client().await;
        write(&mut client, get(host)).await;
        let (got, body) = refusal(&mut client).await;
        assert_eq!((got, &body["reason"]), (status, &json!(reason.name())), "{host}");
        drop(client);
        world.quiet().await;
        assert_eq!(world.host.told(1).last().unwrap().1, reason, "{host}");
    }
    let mut client = world.client().await;
    write(&mut client, "GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(refusal(&mut client).await.1["reason"], json!("no_name"));
}

#[tokio::test]
async fn tls_is_no_http() {
    let world = World::http().await;
    let mut client = world.client().await;
    write(&mut client, crate::harness::hello(Some("allowed.test"))).await;
    assert_eq!(refusal(&mut client).await.0, 400);
    until(|| world.host.told(1) == [(Deny, Reason::NoName, None)]).await;
}

#[tokio::test]
async fn an_upstream_that_closes_between_requests_is_dialled_anew() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    for _ in 0..3 {
        let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
        write(&mut server, ok("x")).await;
        expect(&mut client, ok("x")).await;
        let closed = world.host.events(1).len() + 1;
        drop(server);
        until(|| world.host.events(1).len() == closed).await;
    }
    // One that speaks without being asked is not listened to.
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    write(&mut server, ok("x")).await;
    expect(&mut client, ok("x")).await;
    write(&mut server, ok("nobody asked")).await;
    assert_eq!(read_all(&mut server).await.unwrap_or_default(), b"");
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    write(&mut server, ok("y")).await;
    expect(&mut client, ok("y")).await;
}

#[tokio::test]
async fn a_request_is_not_sent_twice() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    drop(server);
    assert_eq!(read_all(&mut client).await.unwrap(), b"");
    world.quiet().await;
    // A response that is cut off is no whole one.
    let mut client = world.client().await;
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    write(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    drop(server);
    assert!(read_all(&mut client).await.is_err());
}

#[tokio::test]
async fn a_client_may_end_after_its_request() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    soon(client.shutdown()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    write(&mut server, ok("for you")).await;
    assert_eq!(read_all(&mut client).await.unwrap(), ok("for you").as_bytes());
    world.quiet().await;
}

#[tokio::test]
async fn a_client_that_breaks_off_ends_its_request() {
    let world = World::http().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(read_all(&mut server).await.is_err());
    world.quiet().await;
}

#[tokio::test]
async fn a_policy_that_is_replaced_holds_for_the_next_request_and_cuts_what_is_open() {
    let world = World::http().await;
    let (upstream, other) = (world.upstream(UPSTREAM).await, world.upstream(OTHER).await);
    let mut client = world.client().await;
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    write(&mut server, ok("1")).await;
    expect(&mut client, ok("1")).await;
    world.host.enforce(1, 2, allow(&["allowed.test"]));
    assert_eq!(world.inspector.rejudge(1), 0);
    write(&mut client, get("allowed.test")).await;
    expect(&mut server, get("allowed.test")).await;
    write(&mut server, ok("2")).await;
    expect(&mut client, ok("2")).await;
    write(&mut client, get("other.test")).await;
    assert_eq!(refusal(&mut client).await.0, 403);
    drop(client);
    world.quiet().await;

    let mut client = world.client().await;
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    world.host.enforce(1, 3, allow(&["other.test"]));
    assert_eq!(world.inspector.rejudge(1), 1);
    assert!(read_all(&mut client).await.is_err() && read_all(&mut server).await.is_err());
    world.quiet().await;
    let told: Vec<_> = world.host.told(1).into_iter().rev().take(2).map(|told| (told.0, told.1)).collect();
    assert_eq!(told, [(Close, Reason::AllowedName), (Deny, Reason::Revoked)]);
    let mut client = world.client().await;
    let mut server = arrive(&mut client, &other, &get("other.test")).await;
    write(&mut server, ok("3")).await;
    expect(&mut client, ok("3")).await;
}

#[tokio::test]
async fn who_says_nothing_or_half_is_told_so() {
    let world = World::with(|settings, port| {
        settings.http_ports = vec![port];
        settings.peek_timeout = Duration::from_millis(100);
        settings.head_timeout = Duration::from_millis(200);
        settings.idle_timeout = Duration::from_millis(100);
    })
    .await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    assert_eq!(refusal(&mut client).await.0, 408);
    let mut client = world.client().await;
    write(&mut client, "GET / HTTP/1.1\r\nHost: allow").await;
    assert_eq!(refusal(&mut client).await.0, 408);
    // Who is done with a request and lets the connection lie is only left.
    let mut client = world.client().await;
    let mut server = arrive(&mut client, &upstream, &get("allowed.test")).await;
    write(&mut server, ok("x")).await;
    assert_eq!(read_all(&mut client).await.unwrap(), ok("x").as_bytes());
    world.quiet().await;
    let reasons: Vec<_> = world.host.told(1).into_iter().map(|told| told.1).collect();
    assert_eq!(reasons, [Reason::PeekTimeout, Reason::PeekTimeout, Reason::AllowedName, Reason::AllowedName]);
}
