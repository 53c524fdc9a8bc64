//! Public URLs, asked byte by byte: who is let through where, what the service behind gets to see, and what comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod gateway_support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use filter_tests::{Daemon, Server, Service, Topology, WebServer};
use gateway_support::{
    Answer, DOMAIN, GATEWAY, ID, PORT, Stand, answer, deny_all, eventually, headers, host, host_of, secured,
};
use serde_json::json;

const TOKEN: &str = "e2b-traffic-access-token";

#[test]
fn a_sandbox_that_reaches_nothing_is_reached_and_charged_nothing() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    for _ in 0..3 {
        let found = stand.get(&host(), "/x?y=1", &[])?;
        ensure!(found.status == 200 && found.body.starts_with("hello from"), "{found:?}");
    }
    ensure!(stand.web.requests().iter().all(|request| request.line == "GET /x?y=1 HTTP/1.1"));
    let charged = stand.charged()?;
    ensure!(charged["active"] == 0 && charged["peak"] == 0 && charged["refused"] == 0, "{charged}");
    ensure!(stand.daemon.packets(ID, "reply")? > 0);
    ensure!(stand.daemon.packets(ID, "denied_cidr")? == 0);
    // And it still reaches nothing.
    ensure!(
        !stand
            .sandbox
            .tcp_connect(("203.0.113.10".parse::<std::net::IpAddr>()?, 80), Duration::from_secs(2))
            .is_ok()
    );
    Ok(())
}

#[test]
fn who_has_the_address_already_keeps_it_and_enforcement_goes_on() -> Result<()> {
    let topology = Topology::new()?;
    let _other = topology.host().run(|| Ok(TcpListener::bind(GATEWAY)?))?;
    let daemon = Daemon::start_on(&topology)?;
    let sandbox = topology.sandbox(1)?;
    daemon.attach(ID, &sandbox, &deny_all())?;
    ensure!(daemon.log().contains("public URLs ([ingress].listen) are not served"), "{}", daemon.log());
    Ok(())
}

#[test]
fn hosts_are_read_in_one_way_or_refused() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    for good in [
        format!("{PORT}-{ID}.{DOMAIN}"),
        format!("{PORT}-{ID}.{DOMAIN}:8080"),
        format!("{PORT}-{}.Sandbox.LOCALHOST", ID.to_uppercase()),
        format!("{PORT}-{ID}.{DOMAIN}."),
        format!("{PORT}-{ID}.{DOMAIN}.:1"),
    ] {
        let found = stand.get(&good, "/", &[])?;
        ensure!(found.status == 200, "{good}: {found:?}");
    }
    let came = stand.web.requests().len();
    for bad in [
        format!("0-{ID}.{DOMAIN}"),
        format!("65536-{ID}.{DOMAIN}"),
        format!("03000-{ID}.{DOMAIN}"),
        format!("+3000-{ID}.{DOMAIN}"),
        format!("http-{ID}.{DOMAIN}"),
        format!("-{ID}.{DOMAIN}"),
        format!("{ID}.{DOMAIN}"),
        format!("{PORT}-{ID}-extra.{DOMAIN}"),
        format!("{PORT}-{ID}.extra.{DOMAIN}"),
        format!("extra.{PORT}-{ID}.{DOMAIN}"),
        format!("{PORT}-.{DOMAIN}"),
        format!("{PORT}-a_b.{DOMAIN}"),
        format!("{PORT}-{ID}.example.com"),
        format!("{PORT}-{ID}.evil{DOMAIN}"),
        format!("{PORT}-{ID}.{DOMAIN}:0"),
        format!("{PORT}-{ID}.{DOMAIN}:99999"),
        format!("{PORT}-{ID}.{DOMAIN}:"),
        format!("user@{PORT}-{ID}.{DOMAIN}"),
        DOMAIN.to_owned(),
        "example.com".to_owned(),
        String::new(),
    ] {
        let found = stand.get(&bad, "/", &[])?;
        ensure!(found.status == 400, "{bad}: {found:?}");
        // hyper refuses by itself what is no host at all.
        if !found.body.is_empty() {
            ensure!(found.json()?["code"] == 400 && found.json()?["message"].is_string(), "{found:?}");
        }
    }
    ensure!(stand.web.requests().len() == came);
    Ok(())
}

#[test]
fn routing_headers_count_where_the_host_names_nobody() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let (id, port) = (format!("E2b-Sandbox-Id: {ID}"), format!("E2b-Sandbox-Port: {PORT}"));
    for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "sandbox.sandbox.localhost"] {
        let before = stand.web.requests().len();
        let found = stand.get(host, "/", &[&id, &port])?;
        ensure!(found.status == 200, "{host}: {found:?}");
        let seen = stand.reached(before)?;
        ensure!(
            headers(&seen.head, "e2b-sandbox-id").is_empty()
                && headers(&seen.head, "e2b-sandbox-port").is_empty()
        );
        for lines in [
            &[][..],
            &[id.as_str()],
            &[port.as_str()],
            &[&id, &id, &port],
            &[&id, &port, &port],
            &[&id, "E2b-Sandbox-Port: 0"],
            &[&id, "E2b-Sandbox-Port: 65536"],
            &["E2b-Sandbox-Id: a-b", &port],
        ] {
            let found = stand.get(host, "/", lines)?;
            ensure!(found.status == 400, "{host} {lines:?}: {found:?}");
        }
    }
    // Where the host names a sandbox they do not, and outside the domain nothing does.
    let found = stand.get(&host(), "/", &["E2b-Sandbox-Id: other", "E2b-Sandbox-Port: 1"])?;
    ensure!(found.status == 200, "{found:?}");
    let found = stand.get("example.com", "/", &[&id, &port])?;
    ensure!(found.status == 400, "{found:?}");
    Ok(())
}

#[test]
fn an_absolute_target_and_its_host_must_agree() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let send = |target: &str, hosts: &[&str]| -> Result<Answer> {
        let hosts: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
        answer(&stand.say(format!("GET {target} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n").as_bytes())?)
    };
    let own = host();
    let found = send(&format!("http://{own}/deep?x=1"), &[&own])?;
    ensure!(found.status == 200, "{found:?}");
    ensure!(stand.reached(0)?.line == "GET /deep?x=1 HTTP/1.1", "it is passed on in origin form");
    for (target, hosts) in [
        (format!("http://{own}/"), vec!["1-other.sandbox.localhost"]),
        (format!("http://1-other.{DOMAIN}/"), vec![&own]),
        (format!("http://user@{own}/"), vec![&own]),
        ("/".to_owned(), vec![&own, &own]),
        ("/".to_owned(), vec![&own, "1-other.sandbox.localhost"]),
        ("/".to_owned(), vec![]),
        (format!("ftp://{own}/"), vec![&own]),
    ] {
        let found = send(&target, &hosts)?;
        ensure!(found.status == 400, "{target} {hosts:?}: {found:?}");
    }
    let connect = format!("CONNECT {own} HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n\r\n");
    ensure!(answer(&stand.say(connect.as_bytes())?)?.status == 400);
    ensure!(stand.web.requests().len() == 1);
    Ok(())
}

#[test]
fn what_is_not_there_is_said_as_clients_know_it() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let closed = stand.get(&host_of(3001, ID), "/", &[])?;
    ensure!(closed.status == 502 && closed.header("content-type") == Some("application/json"), "{closed:?}");
    ensure!(
        closed.body
            == format!(
                r#"{{"sandboxId":"{ID}","message":"The sandbox is running but port is not open","port":3001,"code":502}}"#
            ),
        "{closed:?}"
    );
    let unknown = stand.get(&host_of(PORT, "nobody"), "/", &[])?;
    ensure!(
        unknown.status == 502
            && unknown.body == r#"{"sandboxId":"nobody","message":"The sandbox was not found","code":502}"#,
        "{unknown:?}"
    );
    // People get a page.
    for lines in [
        &["Sec-Fetch-Mode: navigate", "Accept: */*"][..],
        &["Accept: text/html,application/xhtml+xml,*/*;q=0.8"],
    ] {
        let page = stand.get(&host_of(3001, ID), "/", lines)?;
        ensure!(
            page.status == 502 && page.header("content-type") == Some("text/html; charset=utf-8"),
            "{page:?}"
        );
        ensure!(page.body.contains("<h1>The sandbox is running but port is not open</h1>"), "{page:?}");
    }
    let script = stand.get(&host_of(3001, ID), "/", &["Sec-Fetch-Mode: cors", "Accept: text/html"])?;
    ensure!(script.header("content-type") == Some("application/json"));
    // A sandbox that has left is not there either.
    stand.daemon.cli(&["detach", ID])?.success()?;
    let gone = stand.get(&host(), "/", &[])?;
    ensure!(gone.status == 502 && gone.json()?["message"] == "The sandbox was not found", "{gone:?}");
    Ok(())
}

#[test]
fn the_token_opens_every_request_and_none_else_does() -> Result<()> {
    let stand = Stand::new(&secured())?;
    let right = format!("{TOKEN}: {}", stand.token);
    let missing = format!(
        r#"{{"sandboxId":"{ID}","message":"Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing","code":403}}"#
    );
    let invalid = format!(
        r#"{{"sandboxId":"{ID}","message":"Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid","code":403}}"#
    );
    let other = stand.topology.sandbox(2)?;
    let others = stand.daemon.attach("other", &other, &secured())?["trafficAccessToken"].clone();
    let others = format!("{TOKEN}: {}", others.as_str().unwrap());
    let controllers = format!("{TOKEN}: {}", stand.controller_token);
    let shouted = format!("{TOKEN}: {}", stand.token.to_uppercase());
    let twice = format!("{TOKEN}: {0}, {0}", stand.token);
    let longer = format!("{right}0");
    let shorter = right[..right.len() - 1].to_owned();
    for (lines, body) in [
        (&[][..], &missing),
        (&["X-Access-Token: x"], &missing),
        (&["Cookie: a=1"], &missing),
        (&[TOKEN, "x: y"], &missing),
        (&[&others], &invalid),
        (&[&controllers], &invalid),
        (&[&shouted], &invalid),
        (&[&twice], &invalid),
        (&[&longer], &invalid),
        (&[&shorter], &invalid),
        (&[&right, &right], &invalid),
        (&[&right, &others], &invalid),
        (&["e2b-traffic-access-token:"], &invalid),
        (&["Cookie: e2b-traffic-access-token=wrong"], &invalid),
    ] {
        if lines.first() == Some(&TOKEN) {
            // A line without a colon is no header.
            ensure!(stand.get(&host(), "/", lines)?.status == 400);
            continue;
        }
        let found = stand.get(&host(), "/", lines)?;
        ensure!(found.status == 403 && &found.body == body, "{lines:?}: {found:?}");
    }
    ensure!(stand.web.connections() == 0, "nothing reaches the sandbox");
    // Not even whether a port is open is told.
    ensure!(stand.get(&host_of(1, ID), "/", &[])?.body == missing);
    let case = format!("E2B-Traffic-Access-Token: {}", stand.token);
    for line in [&right, &case] {
        let before = stand.web.requests().len();
        let found = stand.get(&host(), "/?a=1", &[line, "Cookie: a=1; e2b-traffic-access-token=x; b=2"])?;
        ensure!(found.status == 200, "{found:?}");
        let seen = stand.reached(before)?;
        ensure!(!seen.head.to_lowercase().contains("traffic-access-token"), "{}", seen.head);
        ensure!(headers(&seen.head, "cookie") == ["a=1; b=2"], "{}", seen.head);
    }
    // The second request of a connection has to show it, too.
    let first = format!("GET /1 HTTP/1.1\r\nHost: {}\r\n{right}\r\n\r\n", host());
    let second = format!("GET /2 HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host());
    let said = String::from_utf8(stand.say([first, second].concat().as_bytes())?)?;
    ensure!(said.starts_with("HTTP/1.1 200") && said.contains("HTTP/1.1 403"), "{said}");
    ensure!(stand.web.requests().iter().all(|request| !request.line.contains("/2")));
    Ok(())
}

#[test]
fn a_browser_is_let_in_once_by_its_address_and_then_by_a_cookie() -> Result<()> {
    let stand = Stand::new(&secured())?;
    let address = format!("/app?x=1&{TOKEN}={}&y=2", stand.token);
    let welcome = stand.get(&host(), &address, &["Sec-Fetch-Mode: navigate"])?;
    ensure!(welcome.status == 303 && welcome.header("location") == Some("/app?x=1&y=2"), "{welcome:?}");
    let cookie = welcome.header("set-cookie").unwrap_or_default();
    ensure!(
        cookie == format!("{TOKEN}={}; Path=/; HttpOnly; SameSite=Lax", stand.token),
        "for this host alone: {cookie}"
    );
    ensure!(stand.web.connections() == 0, "the sandbox does not see it");
    let shown = format!("Cookie: {}", cookie.split(';').next().unwrap());
    let found = stand.get(&host(), "/app?x=1&y=2", &[&shown])?;
    ensure!(found.status == 200, "{found:?}");
    ensure!(headers(&stand.reached(0)?.head, "cookie").is_empty());
    // What somebody else's page has set besides does not lock anybody out.
    let tossed = format!("Cookie: {TOKEN}=evil; {TOKEN}={}", stand.token);
    ensure!(stand.get(&host(), "/", &[&tossed])?.status == 200);
    for (method, path, status) in [
        ("GET", format!("/?{TOKEN}=wrong"), 403),
        ("GET", format!("/?{TOKEN}={0}&{TOKEN}={0}", stand.token), 403),
        ("POST", format!("/?{TOKEN}={}", stand.token), 403),
        ("HEAD", format!("/?{TOKEN}={}", stand.token), 303),
    ] {
        let found = stand.ask(method, &host(), &path, &[], b"")?;
        ensure!(found.status == status, "{method} {path}: {found:?}");
    }
    // No address of it leads elsewhere.
    let away = stand.get(&host(), &format!("//evil.test/?{TOKEN}={}", stand.token), &[])?;
    ensure!(away.status == 303 && away.header("location") == Some("/.//evil.test/"), "{away:?}");
    // With a valid header it is taken out on the way.
    let before = stand.web.requests().len();
    let right = format!("{TOKEN}: {}", stand.token);
    stand.get(&host(), &format!("/p?{TOKEN}={}&z", stand.token), &[&right])?;
    ensure!(stand.reached(before)?.line == "GET /p?z HTTP/1.1");
    Ok(())
}

#[test]
fn rotated_tokens_are_refused_at_once() -> Result<()> {
    let stand = Stand::new(&secured())?;
    let shown = |token: &str| format!("{TOKEN}: {token}");
    ensure!(stand.get(&host(), "/", &[&shown(&stand.token)])?.status == 200);
    stand.daemon.cli(&["rotate-tokens"])?.success()?;
    ensure!(stand.get(&host(), "/", &[&shown(&stand.token)])?.status == 403);
    let show = stand.daemon.cli_json(&["show", ID, "--tokens"])?;
    let fresh = show["trafficAccessToken"].as_str().unwrap().to_owned();
    ensure!(fresh != stand.token && stand.get(&host(), "/", &[&shown(&fresh)])?.status == 200);
    Ok(())
}

#[test]
fn heads_are_what_the_gateway_says() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    stand.web.set(
        "/answer",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
          Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nSet-Cookie: own=1\r\n\
          Set-Cookie: wide=1; Domain=sandbox.localhost\r\nSet-Cookie: wider=1; domain=.localhost\r\n\
          Set-Cookie: same=1; Domain=3000-abc123.sandbox.localhost\r\nX-App: yes\r\n\r\nok",
    );
    let found = stand.get(
        &host(),
        "/answer",
        &[
            "X-Forwarded-For: 1.2.3.4",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: evil.test",
            "Forwarded: for=1.2.3.4",
            "X-Real-IP: 1.2.3.4",
            "Connection: X-Private, X-Forwarded-For",
            "X-Private: 1",
            "TE: trailers",
            "Proxy-Authorization: Basic x",
            "Keep-Alive: 5",
            "X-Own: kept",
        ],
    )?;
    let seen = stand.reached(0)?.head;
    for (name, values) in [
        ("host", &[host().as_str()][..]),
        ("x-forwarded-host", &[host().as_str()]),
        ("x-forwarded-for", &["127.0.0.1"]),
        ("x-forwarded-proto", &["http"]),
        ("forwarded", &[]),
        ("x-real-ip", &[]),
        ("x-private", &[]),
        ("te", &[]),
        ("proxy-authorization", &[]),
        ("keep-alive", &[]),
        ("connection", &[]),
        ("x-own", &["kept"]),
    ] {
        ensure!(headers(&seen, name) == values, "{name} in {seen}");
    }
    ensure!(found.status == 200 && found.body == "ok", "{found:?}");
    for (name, values) in [
        ("x-hop", &[][..]),
        ("keep-alive", &[]),
        ("proxy-authenticate", &[]),
        ("upgrade", &[]),
        ("x-app", &["yes"]),
        ("set-cookie", &["own=1", "same=1; Domain=3000-abc123.sandbox.localhost"]),
    ] {
        ensure!(found.headers(name) == values, "{name} in {found:?}");
    }
    Ok(())
}

#[test]
fn only_a_trusted_proxy_says_who_asks() -> Result<()> {
    let stand = Stand::with("[ingress]\ntrusted_proxies = ['127.0.0.0/8']\n", &deny_all())?;
    let lines = [
        "X-Forwarded-For: 198.51.100.9, 192.0.2.7",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: evil.test",
    ];
    ensure!(stand.get(&host(), "/", &lines)?.status == 200);
    let seen = stand.reached(0)?.head;
    // What the client had said to the proxy is dropped.
    ensure!(headers(&seen, "x-forwarded-for") == ["192.0.2.7, 127.0.0.1"], "{seen}");
    ensure!(headers(&seen, "x-forwarded-proto") == ["https"], "{seen}");
    ensure!(headers(&seen, "x-forwarded-host") == [host()], "{seen}");
    Ok(())
}

#[test]
fn a_mask_is_the_host_that_the_sandbox_sees() -> Result<()> {
    let policy = json!({ "maskRequestHost": "${PORT}.app.test:${PORT}" });
    let stand = Stand::new(&policy)?;
    ensure!(stand.get(&host(), "/", &["X-Forwarded-Host: x"])?.status == 200);
    let seen = stand.reached(0)?;
    ensure!(seen.host == "3000.app.test:3000", "{}", seen.head);
    ensure!(headers(&seen.head, "x-forwarded-host") == [host()], "{}", seen.head);
    // Not the controller's.
    let controller = WebServer::start(&stand.sandbox, 49983)?;
    let token = format!("X-Access-Token: {}", stand.controller_token);
    ensure!(stand.get(&host_of(49983, ID), "/", &[&token])?.status == 200);
    ensure!(controller.requests()[0].host == host_of(49983, ID));
    // Whatever else it could carry is refused, and named.
    for mask in ["a.test\r\nX: y", "a.test/x", "u@a.test", "http://a.test", "a.test:0", "${HOST}.test", ""] {
        let document = json!({ "maskRequestHost": mask }).to_string();
        let refused = stand.daemon.cli_with_input(&["check", "--policy", "-", "--json"], &document)?;
        ensure!(
            refused.code == 2 && refused.stdout.contains("/maskRequestHost")
                || refused.stderr.contains("/maskRequestHost"),
            "{mask:?}: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn the_controller_wants_its_own_token_or_a_signature() -> Result<()> {
    let stand = Stand::new(&secured())?;
    let controller = WebServer::start(&stand.sandbox, 49983)?;
    let at = host_of(49983, ID);
    let unauthorized =
        "unauthorized access, please provide a valid access token or method signing if supported";
    let right = format!("X-Access-Token: {}", stand.controller_token);
    let traffic = format!("{TOKEN}: {}", stand.token);
    for (method, path, lines, message) in [
        ("GET", "/", &[][..], unauthorized),
        ("GET", "/", &[traffic.as_str()], unauthorized),
        ("GET", "/", &["X-Access-Token: wrong"], unauthorized),
        ("GET", "/", &[&right, &right], unauthorized),
        ("POST", "/health", &[], unauthorized),
        ("PUT", "/files", &[], unauthorized),
        ("GET", "/files?path=/x", &[], "missing signature query parameter"),
        ("GET", "/files?path=/x&signature=v1_x", &[], "invalid signature"),
        (
            "GET",
            "/files?path=/x&signature=v1_x",
            &["X-Access-Token: wrong"],
            "access token present in header but does not match",
        ),
    ] {
        let found = stand.ask(method, &at, path, lines, b"")?;
        ensure!(
            found.status == 401 && found.json()? == json!({ "code": 401, "message": message }),
            "{method} {path} {lines:?}: {found:?}"
        );
    }
    ensure!(controller.connections() == 0);
    ensure!(stand.get(&at, "/health", &[])?.status == 200);
    ensure!(stand.get(&at, "/", &[&right])?.status == 200);
    Ok(())
}

#[test]
fn no_client_asks_faster_than_it_may() -> Result<()> {
    let config = "[ingress]\ntrusted_proxies = ['127.0.0.1']\n[limits]\nsandbox_traffic = { requests = 5, per = '60s' }\n";
    let stand = Stand::with(config, &deny_all())?;
    let from = |client: &str| stand.get(&host(), "/", &[&format!("X-Forwarded-For: {client}")]);
    for _ in 0..5 {
        ensure!(from("192.0.2.1")?.status == 200);
    }
    let refused = from("192.0.2.1")?;
    ensure!(
        refused.status == 429 && refused.json()? == json!({ "code": 429, "message": "Rate limit exceeded" }),
        "{refused:?}"
    );
    let wait: u64 = refused.header("retry-after").unwrap_or_default().parse()?;
    ensure!((1..=12).contains(&wait), "{refused:?}");
    ensure!(from("evil, 192.0.2.1")?.status == 429, "what the client says to the proxy does not help");
    ensure!(from("192.0.2.2")?.status == 200);
    ensure!(stand.web.requests().len() == 6);
    Ok(())
}

#[test]
fn a_sandbox_that_does_not_answer_takes_its_own_places_only() -> Result<()> {
    let config = "[ingress]\nsandbox_requests = 4\nidle_timeout = '4s'\nhead_timeout = '1s'\n";
    let stand = Stand::with(config, &deny_all())?;
    let other = stand.topology.sandbox(2)?;
    stand.daemon.attach("other", &other, &deny_all())?;
    let _other = WebServer::start(&other, PORT)?;
    let silent = Server::start(&stand.sandbox, Service::TcpSink, 4000)?;
    let gateway: std::net::SocketAddr = GATEWAY.parse()?;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host_of(4000, ID));
    let mut waiting: Vec<TcpStream> = (0..4)
        .map(|_| {
            stand.host().run(|| {
                let mut stream = TcpStream::connect(gateway)?;
                stream.write_all(request.as_bytes())?;
                Ok(stream)
            })
        })
        .collect::<Result<_>>()?;
    eventually("four requests wait", || Ok(silent.connections() == 4))?;
    let busy = stand.get(&host(), "/", &[])?;
    ensure!(
        busy.status == 429 && busy.header("retry-after") == Some("1") && busy.json()?["code"] == 429,
        "{busy:?}"
    );
    let begun = Instant::now();
    ensure!(stand.get(&host_of(PORT, "other"), "/", &[])?.status == 200, "the neighbour");
    ensure!(begun.elapsed() < Duration::from_secs(1));
    // They are told in the end, and the places are free again.
    for stream in &mut waiting {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        ensure!(&head == b"HTTP/1.1 504", "{:?}", String::from_utf8_lossy(&head));
    }
    drop(waiting);
    eventually("places are free", || Ok(stand.get(&host(), "/", &[])?.status == 200))?;
    // Clients that never finish a head, or never begin one, are not waited for.
    for beginning in ["", "G", "GET / HTTP/1.1\r\nHost: x", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let begun = Instant::now();
        stand.say(beginning.as_bytes())?;
        ensure!(begun.elapsed() < Duration::from_secs(4), "{beginning:?}: {:?}", begun.elapsed());
    }
    Ok(())
}

#[test]
fn callers_are_told_when_a_sandbox_leaves() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let gateway: std::net::SocketAddr = GATEWAY.parse()?;
    let _silent = Server::start(&stand.sandbox, Service::TcpSink, 4000)?;
    let upgrade =
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n";
    let open = |path: &str, port, more: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{more}\r\n", host_of(port, ID));
        stand.host().run(|| {
            let mut stream = TcpStream::connect(gateway)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            Ok(stream)
        })
    };
    let mut socket = open("/ws", PORT, upgrade)?;
    let mut head = [0; 12];
    socket.read_exact(&mut head)?;
    ensure!(&head == b"HTTP/1.1 101");
    let mut waiting = open("/", 4000, "")?;
    std::thread::sleep(Duration::from_millis(300));
    stand.daemon.cli(&["detach", ID])?.success()?;
    let begun = Instant::now();
    gateway_support::read_all(&mut socket)?;
    waiting.read_exact(&mut head)?;
    ensure!(&head == b"HTTP/1.1 502", "{:?}", String::from_utf8_lossy(&head));
    ensure!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn heads_are_bounded_both_ways() -> Result<()> {
    let stand = Stand::new(&deny_all())?;
    let big = format!("X-Big: {}", "x".repeat(80 << 10));
    ensure!(stand.get(&host(), "/", &[&big])?.status == 431);
    let many: Vec<String> = (0..200).map(|number| format!("X-{number}: 1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    ensure!(stand.get(&host(), "/", &many)?.status == 431);
    ensure!(stand.web.connections() == 0);
    let endless = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &vec![b'x'; 1 << 20], b"\r\n\r\n"].concat();
    stand.web.set("/endless", &endless);
    for (path, answer) in [
        ("/garbage", b"SSH-2.0-OpenSSH\r\n\r\n".as_slice()),
        ("/nul", b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n"),
        ("/fold", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n"),
        ("/lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        (
            "/upgrade",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        ),
    ] {
        stand.web.set(path, answer);
    }
    for path in ["/endless", "/garbage", "/nul", "/fold", "/lengths", "/upgrade"] {
        let found = stand.get(&host(), path, &[])?;
        ensure!(found.status == 502 && found.json()?["sandboxId"] == ID, "{path}: {found:?}");
    }
    ensure!(stand.get(&host(), "/", &[])?.status == 200, "it goes on");
    Ok(())
}
