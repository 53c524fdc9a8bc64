//! Tests of request heads: real ones cut in every way, evil ones, and hyper as a second opinion.

use std::{fs, path::Path};

use filter_policy::{BadName, Name};
use proptest::prelude::*;

use super::*;

#[path = "hyper_tests.rs"]
mod hyper;

const GOOD: &str = "GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n";

fn whole(head: impl AsRef<[u8]>) -> Result<Option<Request>, BadRequest> {
    parse(head.as_ref(), 80)
}

fn read(head: impl AsRef<[u8]>) -> Request {
    let head = head.as_ref();
    whole(head)
        .unwrap_or_else(|why| panic!("{why}: {}", head.escape_ascii()))
        .unwrap_or_else(|| panic!("waits: {}", head.escape_ascii()))
}

fn byte_by_byte(head: &[u8]) -> Result<Option<Request>, BadRequest> {
    let mut reader = RequestReader::new(80);
    (0..=head.len()).find_map(|len| reader.advance(&head[..len]).transpose()).transpose()
}

/// A head with these further lines.
fn with(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: allowed.test\r\n{lines}\r\n\r\n")
}

fn name(text: &str) -> Named {
    Ok(Some(Name::parse(text).unwrap()))
}

fn seeds() -> impl Iterator<Item = (String, Vec<u8>)> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/request");
    fs::read_dir(seeds).unwrap().map(|file| {
        let file = file.unwrap();
        (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())
    })
}

#[test]
fn real_requests_are_read() {
    let mut count = 0;
    for (file, stream) in seeds() {
        count += 1;
        let answer = whole(&stream);
        let refusal = match file.as_str() {
            "curl_prior_knowledge" => Some(BadRequest::Version),
            file if file.ends_with("_h2c") => Some(BadRequest::Upgrade),
            _ => None,
        };
        if let Some(refusal) = refusal {
            assert_eq!(answer, Err(refusal), "{file}");
            continue;
        }
        let request = answer.unwrap().unwrap();
        assert_eq!(request.name, name("allowed.test"), "{file}");
        let body = match file.as_str() {
            "curl_post" => Body::Length(3),
            "node" => Body::Length(5),
            "curl_chunked" => Body::Chunked,
            _ => Body::None,
        };
        assert_eq!(request.body, body, "{file}");
        assert_eq!(request.upgrade, file == "curl_websocket");
        assert_eq!(request.expects_continue, file == "curl_chunked");
        assert_eq!(request.keep_alive, !["curl_http10", "python_urllib"].contains(&file.as_str()), "{file}");
        assert_eq!(request.method == Method::Head, file == "curl_head");
        assert_eq!(request.version_minor, u8::from(file != "curl_http10"));
    }
    assert!(count >= 16);
}

#[test]
fn no_cut_of_a_real_request_makes_a_difference_and_every_prefix_waits() {
    for (file, stream) in seeds() {
        let answer = whole(&stream);
        assert_eq!(byte_by_byte(&stream), answer, "{file} byte by byte");
        for cut in 0..=stream.len() {
            let mut reader = RequestReader::new(80);
            let first = reader.advance(&stream[..cut]);
            assert_eq!(first, whole(&stream[..cut]), "{file}, {cut} bytes");
            match first {
                Ok(None) => assert_eq!(reader.advance(&stream), answer, "{file} cut at {cut}"),
                other => assert_eq!(other, answer, "{file}, {cut} bytes"),
            }
            if let Ok(Some(request)) = &answer {
                assert_eq!(
                    whole(&stream[..cut]).unwrap().is_some(),
                    cut >= request.head_len,
                    "{file}, {cut}"
                );
            }
        }
    }
}

#[test]
fn names_come_from_the_host_and_the_target_must_agree() {
    let named = |target: &str, host: &str| whole(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    for (target, host) in [
        ("/", "allowed.test"),
        ("/", "Allowed.TEST."),
        ("/", "allowed.test:80"),
        ("/", "allowed.test.:80"),
        ("//evil.test/", "allowed.test"),
        ("/http://evil.test/", "allowed.test"),
        ("/@evil.test", "allowed.test"),
        ("/?", "allowed.test"),
        ("http://allowed.test", "allowed.test"),
        ("http://allowed.test/", "allowed.test"),
        ("http://allowed.test?x=//evil.test/", "allowed.test"),
        ("HTTP://ALLOWED.test.:80/x", "allowed.test"),
        ("http://allowed.test/", "Allowed.Test.:80"),
    ] {
        assert_eq!(named(target, host).unwrap().unwrap().name, name("allowed.test"), "{target} {host}");
    }
    for (target, host) in [
        ("http://evil.test/", "allowed.test"),
        ("http://allowed.test/", "evil.test"),
        ("http://allowed.test.evil.test/", "allowed.test"),
    ] {
        assert_eq!(named(target, host), Err(BadRequest::HostMismatch), "{target} {host}");
    }
    for (target, host, why) in [
        ("/", "", BadName::Empty),
        ("/", ".", BadName::Empty),
        ("/", ":80", BadName::Empty),
        ("/", "allowed.test:443", BadName::Byte),
        ("/", "allowed.test:", BadName::Byte),
        ("/", "allowed.test:080", BadName::Byte),
        ("/", "allowed.test:+80", BadName::Byte),
        ("/", "allowed.test:80:80", BadName::Byte),
        ("/", "allowed.test:65616", BadName::Byte),
        ("/", "allowed.test@evil.test", BadName::Byte),
        ("/", "evil.test#allowed.test", BadName::Byte),
        ("/", "evil.test/allowed.test", BadName::Byte),
        ("/", "http://allowed.test", BadName::Byte),
        ("/", "allowed.test,evil.test", BadName::Byte),
        ("/", "allowed.test..", BadName::LabelLength),
        ("/", "[::1]", BadName::Byte),
        ("/", "[::ffff:127.0.0.1]:80", BadName::Byte),
        ("/", "127.0.0.1", BadName::Address),
        ("/", "127.1:80", BadName::Address),
        ("/", "0x7f000001", BadName::Address),
        ("/", "2130706433", BadName::Address),
        ("/", "b\u{fc}cher.example", BadName::Byte),
        ("/", "allowed\u{3002}test", BadName::Byte),
        ("http://", "allowed.test", BadName::Empty),
        ("http:///", "allowed.test", BadName::Empty),
        ("http://allowed.test:443/", "allowed.test", BadName::Byte),
        ("http://user@allowed.test/", "allowed.test", BadName::Byte),
        ("http://allowed.test@evil.test/", "allowed.test", BadName::Byte),
        ("http://allowed.test\\@evil.test/", "allowed.test", BadName::Byte),
        ("http://allowed.test;evil.test/", "allowed.test", BadName::Byte),
        ("http://allowed%2etest/", "allowed.test", BadName::Byte),
        ("http://127.0.0.1/", "allowed.test", BadName::Address),
    ] {
        assert_eq!(named(target, host).unwrap().unwrap().name, Err(why), "{target} {host}");
    }
}

#[test]
fn only_the_port_of_the_connection_is_stripped() {
    let head = |port: u16| format!("GET / HTTP/1.1\r\nHost: allowed.test:{port}\r\n\r\n");
    for port in [80, 8080, 443, 1] {
        assert_eq!(parse(head(port).as_bytes(), port).unwrap().unwrap().name, name("allowed.test"));
        assert_eq!(parse(head(port + 1).as_bytes(), port).unwrap().unwrap().name, Err(BadName::Byte));
    }
}

#[test]
fn without_host_nobody_is_named() {
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET http://allowed.test/ HTTP/1.0\r\n\r\n",
        "GET http://allowed.test/ HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nX-Host: allowed.test\r\n\r\n",
    ] {
        assert_eq!(read(head).name, Ok(None), "{head:?}");
    }
}

#[test]
fn what_may_differ_may_differ() {
    type Case = (&'static str, fn(&Request) -> bool);
    let cases: &[Case] = &[
        ("OPTIONS * HTTP/1.1\r\nHost: allowed.test\r\n\r\n", |r| r.body == Body::None),
        ("M-SEARCH / HTTP/1.1\r\nHost: allowed.test\r\n\r\n", |r| r.method == Method::Other),
        ("patch / HTTP/1.1\r\nHost: allowed.test\r\n\r\n", |r| r.method == Method::Other),
        ("HEAD / HTTP/1.1\r\nHost: allowed.test\r\n\r\n", |r| r.method == Method::Head),
        ("GET /a|b{c}\"<^`\\ HTTP/1.1\r\nHost: allowed.test\r\n\r\n", |r| r.keep_alive),
        ("GET / HTTP/1.1\r\nhOsT:allowed.test\r\n\r\n", |r| r.name == name("allowed.test")),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nEmpty:\r\n\r\n", |r| r.keep_alive),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nX: \t\u{e9} \t\r\n\r\n", |r| r.keep_alive),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nA_B.C!#$%&'*+^`|~: x\r\n\r\n", |r| r.keep_alive),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n", |r| !r.keep_alive),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: , Close ,\r\n\r\n", |r| !r.keep_alive),
        (
            "GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: TE\r\nConnection: close\r\nTE: trailers\r\n\r\n",
            |r| !r.keep_alive,
        ),
        ("GET / HTTP/1.0\r\nHost: allowed.test\r\n\r\n", |r| !r.keep_alive),
        ("GET / HTTP/1.0\r\nHost: allowed.test\r\nConnection: Keep-Alive\r\n\r\n", |r| r.keep_alive),
        ("GET / HTTP/1.0\r\nHost: allowed.test\r\nConnection: keep-alive, close\r\n\r\n", |r| !r.keep_alive),
        ("POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 0\r\n\r\n", |r| r.body == Body::Length(0)),
        ("POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 9223372036854775807\r\n\r\n", |r| {
            r.body == Body::Length(i64::MAX as u64)
        }),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 3\r\n\r\nabc", |r| r.head_len == 57),
        (
            "GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
            |r| r.upgrade && r.keep_alive,
        ),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nUpgrade: websocket\r\n\r\n", |r| !r.upgrade),
        ("GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: upgrade\r\n\r\n", |r| !r.upgrade),
        ("GET / HTTP/1.0\r\nHost: allowed.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", |r| {
            !r.upgrade
        }),
        ("PUT / HTTP/1.1\r\nHost: allowed.test\r\nExpect: 100-Continue\r\n\r\n", |r| r.expects_continue),
        ("PUT / HTTP/1.0\r\nHost: allowed.test\r\nExpect: 100-continue\r\n\r\n", |r| !r.expects_continue),
    ];
    for (head, check) in cases {
        let head: Vec<u8> = head.chars().map(|char| u8::try_from(char).unwrap()).collect();
        assert!(check(&read(&head)), "{}", head.escape_ascii());
    }
}

/// Each row with the answer, and the answer byte by byte must be the same.
#[test]
fn evil_requests_are_refused() {
    use BadRequest::*;
    let long_line = format!("GET /{} HTTP/1.1\r\nHost: allowed.test\r\n\r\n", "a".repeat(70_000));
    let many = with(&vec!["A: b"; 128].join("\r\n"));
    let get = |line: &str| format!("{line}\r\nHost: allowed.test\r\n\r\n");
    let table: Vec<(&str, String, BadRequest)> = vec![
        // What is no request
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}".into(), NotHttp),
        ("SSLv2, from its first byte", "\u{80}.\u{1}".into(), NotHttp),
        ("NUL first", "\0GET / HTTP/1.1\r\n\r\n".into(), NotHttp),
        ("JSON", "{\"a\":1}\r\n".into(), NotHttp),
        ("SSH", "SSH-2.0-x\r\n".into(), RequestLine),
        ("HTTP/0.9", "GET /\r\n".into(), RequestLine),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Version),
        ("a response", "HTTP/1.1 200 OK\r\n\r\n".into(), RequestLine),
        // Lines
        ("empty line first", format!("\r\n{GOOD}"), Start),
        ("space first", format!(" {GOOD}"), Start),
        ("tab first", format!("\t{GOOD}"), Start),
        ("bare LF first", format!("\n{GOOD}"), LineEnd),
        ("bare LF at the first line", GOOD.replacen("\r\n", "\n", 1), LineEnd),
        ("bare LF at a field", "GET / HTTP/1.1\r\nHost: allowed.test\n\r\n".into(), LineEnd),
        ("bare LF at the end", "GET / HTTP/1.1\r\nHost: allowed.test\r\n\n".into(), LineEnd),
        ("bare LFs throughout", GOOD.replace("\r\n", "\n"), LineEnd),
        ("CR CR LF", GOOD.replacen("\r\n", "\r\r\n", 1), LineEnd),
        ("CR in a value", with("X: a\rb"), LineEnd),
        ("CR that hides a field", with("X: a\rContent-Length: 5"), LineEnd),
        ("LF that hides a field", with("X: a\nContent-Length: 5"), LineEnd),
        ("NUL in a value", with("X: a\0b"), Control),
        ("NUL in a name", with("X\0: a"), Control),
        ("NUL in the target", get("GET /\0 HTTP/1.1"), Control),
        ("vertical tab", with("X:\u{b}a"), Control),
        ("form feed", with("Transfer-Encoding:\u{c}chunked"), Control),
        ("escape", with("X: \u{1b}[0m"), Control),
        ("DEL", with("X: \u{7f}"), Control),
        // The first line
        ("two spaces", get("GET  / HTTP/1.1"), RequestLine),
        ("space behind the version", get("GET / HTTP/1.1 "), RequestLine),
        ("tab between", get("GET\t/\tHTTP/1.1"), RequestLine),
        ("tab in the target", get("GET /\t HTTP/1.1"), Target),
        ("tab behind the version", get("GET / HTTP/1.1\t"), Version),
        ("four words", get("GET / x HTTP/1.1"), RequestLine),
        ("no target", get("GET HTTP/1.1"), RequestLine),
        ("method that is no token", get("G(T / HTTP/1.1"), RequestLine),
        ("HTTP/1.2", get("GET / HTTP/1.2"), Version),
        ("HTTP/1.10", get("GET / HTTP/1.10"), Version),
        ("HTTP/01.1", get("GET / HTTP/01.1"), Version),
        ("HTTP/2.0", get("GET / HTTP/2.0"), Version),
        ("HTTP/3", get("GET / HTTP/3"), Version),
        ("lower case", get("GET / http/1.1"), Version),
        ("CONNECT", "CONNECT allowed.test:80 HTTP/1.1\r\nHost: allowed.test\r\n\r\n".into(), Connect),
        ("CONNECT with a path", get("CONNECT / HTTP/1.1"), Connect),
        ("connect", get("connect allowed.test:80 HTTP/1.1"), Connect),
        ("head", get("head / HTTP/1.1"), RequestLine),
        ("Head", get("Head / HTTP/1.1"), RequestLine),
        ("authority", get("GET allowed.test:80 HTTP/1.1"), Target),
        ("name", get("GET allowed.test HTTP/1.1"), Target),
        ("asterisk", get("GET * HTTP/1.1"), Target),
        ("asterisk in lower case", get("options * HTTP/1.1"), Target),
        ("more than an asterisk", get("OPTIONS *x HTTP/1.1"), Target),
        ("https", get("GET https://allowed.test/ HTTP/1.1"), Target),
        ("ftp", get("GET ftp://allowed.test/ HTTP/1.1"), Target),
        ("ws", get("GET ws://allowed.test/ HTTP/1.1"), Target),
        ("no scheme", get("GET ://allowed.test/ HTTP/1.1"), Target),
        ("one slash", get("GET http:/allowed.test/ HTTP/1.1"), Target),
        ("backslashes", get("GET http:\\\\allowed.test/ HTTP/1.1"), Target),
        ("fragment", get("GET /#x HTTP/1.1"), Target),
        ("fragment behind an authority", get("GET http://allowed.test#@evil.test/ HTTP/1.1"), Target),
        ("query alone", get("GET ?x HTTP/1.1"), Target),
        ("no-break space in the target", get("GET /\u{a0}HTTP/1.1 HTTP/1.1"), Target),
        // Fields
        ("too long", with(&format!("X: {}", "a".repeat(66_000))), TooLarge),
        ("first line too long", long_line, TooLarge),
        ("too many", many, TooManyFields),
        ("obs-fold", with("X: a\r\n b"), Folded),
        ("obs-fold with a tab", with("X: a\r\n\tb"), Folded),
        ("obs-fold of a length", with("Content-Length:\r\n 5"), ContentLength),
        ("obs-fold that hides a field", with("X: a\r\n Content-Length: 5"), Folded),
        ("obs-fold first", "GET / HTTP/1.1\r\n Host: allowed.test\r\n\r\n".into(), Folded),
        ("line of space", with("X: a\r\n "), Folded),
        ("space before the colon", with("X : a"), Field),
        ("space before the colon of a length", with("Content-Length : 5"), Field),
        ("tab before the colon", with("Transfer-Encoding\t: chunked"), Field),
        ("space in a name", with("X Y: a"), Field),
        ("no colon", with("X"), Field),
        ("no name", with(": a"), Field),
        ("name beyond ASCII", with("X\u{fc}: a"), Field),
        ("quotes in a name", with("\"X\": a"), Field),
        ("lookalike of a length", with("Content_Length: 5"), Field),
        ("lookalike of an encoding", with("Transfer_Encoding: chunked"), Field),
        ("another", with("transfer.encoding: chunked"), Field),
        ("another still", with("Content+Length: 1"), Field),
        // Whom it is for
        ("Host twice", with("Host: allowed.test"), Host),
        ("another Host", with("Host: evil.test"), Host),
        ("Host in another case", with("HOST: evil.test"), Host),
        ("empty second Host", with("Host:"), Host),
        ("two spaces before", "GET / HTTP/1.1\r\nHost:  allowed.test\r\n\r\n".into(), Host),
        ("space behind", "GET / HTTP/1.1\r\nHost: allowed.test \r\n\r\n".into(), Host),
        ("tab before", "GET / HTTP/1.1\r\nHost:\tallowed.test\r\n\r\n".into(), Host),
        ("two names", "GET / HTTP/1.1\r\nHost: allowed.test evil.test\r\n\r\n".into(), Host),
        // Where it ends
        ("two lengths", with("Content-Length: 5\r\nContent-Length: 6"), ContentLength),
        ("twice the same length", with("Content-Length: 5\r\nContent-Length: 5"), ContentLength),
        ("list of lengths", with("Content-Length: 5, 5"), ContentLength),
        ("list without space", with("Content-Length: 5,5"), ContentLength),
        ("empty length", with("Content-Length:"), ContentLength),
        ("plus", with("Content-Length: +5"), ContentLength),
        ("minus", with("Content-Length: -5"), ContentLength),
        ("minus nought", with("Content-Length: -0"), ContentLength),
        ("hexadecimal", with("Content-Length: 0x5"), ContentLength),
        ("letters", with("Content-Length: 5a"), ContentLength),
        ("fraction", with("Content-Length: 5.0"), ContentLength),
        ("exponent", with("Content-Length: 1e3"), ContentLength),
        ("underscore", with("Content-Length: 1_0"), ContentLength),
        ("leading zero", with("Content-Length: 05"), ContentLength),
        ("space within", with("Content-Length: 5 5"), ContentLength),
        ("space behind", with("Content-Length: 5 "), ContentLength),
        ("two spaces before", with("Content-Length:  5"), ContentLength),
        ("tab before", with("Content-Length:\t5"), ContentLength),
        ("beyond 63 bits", with("Content-Length: 9223372036854775808"), ContentLength),
        ("beyond 64 bits", with("Content-Length: 18446744073709551621"), ContentLength),
        ("quoted", with("Content-Length: \"5\""), ContentLength),
        ("other digits", with("Content-Length: \u{b2}"), ContentLength),
        ("encoding and length", with("Transfer-Encoding: chunked\r\nContent-Length: 5"), TwoLengths),
        ("length and encoding", with("Content-Length: 5\r\nTransfer-Encoding: chunked"), TwoLengths),
        (
            "length of nought and encoding",
            with("Content-Length: 0\r\nTransfer-Encoding: chunked"),
            TwoLengths,
        ),
        ("chunked twice", with("Transfer-Encoding: chunked, chunked"), TransferEncoding),
        ("in two fields", with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), TransferEncoding),
        ("chunked not last", with("Transfer-Encoding: chunked, identity"), TransferEncoding),
        ("gzip before", with("Transfer-Encoding: gzip, chunked"), TransferEncoding),
        ("identity", with("Transfer-Encoding: identity"), TransferEncoding),
        ("unknown", with("Transfer-Encoding: xchunked"), TransferEncoding),
        ("in capitals", with("Transfer-Encoding: Chunked"), TransferEncoding),
        ("with a parameter", with("Transfer-Encoding: chunked;q=1"), TransferEncoding),
        ("quoted", with("Transfer-Encoding: \"chunked\""), TransferEncoding),
        ("comma behind", with("Transfer-Encoding: chunked,"), TransferEncoding),
        ("tab before", with("Transfer-Encoding:\tchunked"), TransferEncoding),
        ("space behind", with("Transfer-Encoding: chunked "), TransferEncoding),
        ("empty", with("Transfer-Encoding:"), TransferEncoding),
        ("no-break space", with("Transfer-Encoding:\u{a0}chunked"), TransferEncoding),
        (
            "HTTP/1.0",
            "POST / HTTP/1.0\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            TransferEncoding,
        ),
        // What is to be forgotten on the way
        ("Connection: Host", with("Connection: close, Host"), Connection),
        ("Connection: Content-Length", with("Connection: content-length"), Connection),
        ("Connection: Transfer-Encoding", with("Connection: Transfer-Encoding"), Connection),
        ("Connection: Connection", with("Connection: connection"), Connection),
        ("Connection: Expect", with("Connection: expect"), Connection),
        ("Connection: lookalike", with("Connection: content_length"), Connection),
        ("no token", with("Connection: a b"), Connection),
        ("quoted", with("Connection: \"close\""), Connection),
        ("beyond ASCII", with("Connection: close\u{a0}"), Connection),
        // Other protocols
        ("h2c", with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA"), Upgrade),
        ("h2c without more", with("Upgrade: h2c"), Upgrade),
        ("h2c in capitals", with("Connection: Upgrade\r\nUpgrade: H2C"), Upgrade),
        ("h2c behind another", with("Connection: Upgrade\r\nUpgrade: websocket, h2c"), Upgrade),
        ("h2c in a second field", with("Upgrade: websocket\r\nUpgrade: h2c"), Upgrade),
        ("HTTP/2.0", with("Connection: Upgrade\r\nUpgrade: HTTP/2.0"), Upgrade),
        ("h3", with("Upgrade: h3"), Upgrade),
        ("nothing", with("Connection: Upgrade\r\nUpgrade:"), Upgrade),
        ("settings alone", with("HTTP2-Settings: AAA"), Upgrade),
        ("lookalike of an upgrade's settings", with("HTTP2_Settings: AAA"), Field),
        // Expectations
        ("unknown", with("Expect: 200-ok"), Expect),
        ("list", with("Expect: 100-continue, x"), Expect),
        ("twice", with("Expect: 100-continue\r\nExpect: 100-continue"), Expect),
        ("empty", with("Expect:"), Expect),
    ];
    for (what, head, refusal) in table {
        // Characters up to U+00FF stand for bytes.
        let head: Vec<u8> = head.chars().map(|char| u8::try_from(char).unwrap()).collect();
        assert_eq!(whole(&head), Err(refusal), "{what}: {}", head.escape_ascii());
        assert_eq!(byte_by_byte(&head), Err(refusal), "{what}, byte by byte");
    }
}

#[test]
fn what_is_no_request_is_refused_before_its_head_ends() {
    for (beginning, refusal) in [
        ("\u{16}", BadRequest::NotHttp),
        ("SSH-2.0-x\r\n", BadRequest::RequestLine),
        ("GET /\r\n", BadRequest::RequestLine),
        ("PRI * HTTP/2.0\r\n", BadRequest::Version),
        ("CONNECT allowed.test:443 HTTP/1.1\r\n", BadRequest::Connect),
        ("GET / HTTP/1.1\r\nHost: a\n", BadRequest::LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\0", BadRequest::Control),
    ] {
        assert_eq!(whole(beginning), Err(refusal), "{beginning:?}");
    }
}

#[test]
fn a_head_may_be_as_long_as_the_limit() {
    let of = |len: usize| with(&format!("X: {}", "a".repeat(len - with("X: ").len())));
    assert_eq!(read(of(head::MAX_HEAD)).head_len, head::MAX_HEAD);
    assert_eq!(whole(of(head::MAX_HEAD + 1)), Err(BadRequest::TooLarge));
    assert_eq!(whole(&of(head::MAX_HEAD + 1)[..head::MAX_HEAD]), Ok(None));
    assert!(read(with(&vec!["A: b"; 127].join("\r\n"))).keep_alive);
}

#[test]
fn every_refusal_says_what_it_is() {
    use BadRequest::*;
    let all = [
        NotHttp,
        Control,
        LineEnd,
        Start,
        TooLarge,
        TooManyFields,
        RequestLine,
        Version,
        Connect,
        Target,
        Field,
        Folded,
        Host,
        HostMismatch,
        ContentLength,
        TransferEncoding,
        TwoLengths,
        Connection,
        Upgrade,
        Expect,
    ];
    for refusal in all {
        assert!((400..=505).contains(&refusal.status()));
        assert!(refusal.to_string().ends_with('.'));
        let reason = if refusal == NotHttp { Reason::NoName } else { Reason::BadRequest };
        assert_eq!(refusal.reason(), reason);
    }
}

/// Requests out of parts that parsers are known to differ about.
fn tricky() -> impl Strategy<Value = Vec<u8>> {
    let line = proptest::sample::select(vec![
        "GET / HTTP/1.1",
        "HEAD /x?y HTTP/1.1",
        "POST / HTTP/1.0",
        "OPTIONS * HTTP/1.1",
        "X-Y /a|b{\" HTTP/1.1",
        "GET http://allowed.test/ HTTP/1.1",
        "GET http://evil.test HTTP/1.1",
        "GET /%zz//..\\ HTTP/1.1",
        "G T",
    ]);
    let name = proptest::sample::select(vec![
        "Host",
        "host",
        "Content-Length",
        "content-length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "Expect",
        "X",
        "Content_Length",
        "Accept",
        "Trailer",
        "TE",
        "Keep-Alive",
        "HTTP2-Settings",
    ]);
    let value = prop_oneof![
        8 => proptest::sample::select(vec![
            "allowed.test", "Allowed.test.:80", "evil.test", "0", "5", "17", "05", "+5", "chunked", "Chunked",
            "gzip, chunked", "close", "keep-alive", "upgrade", "keep-alive, Upgrade", "websocket", "h2c", "",
            "100-continue", "127.0.0.1", "5, 5", "a\u{fc}",
        ]).prop_map(str::to_owned),
        1 => "[ -~\t]{0,12}",
    ];
    let colon =
        prop_oneof![8 => Just(": "), 1 => Just(":"), 1 => Just(":\t"), 1 => Just(" :"), 1 => Just(":  ")];
    let end = prop_oneof![20 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just(" \r\n"), 1 => Just("\r\n ")];
    let field = (name, colon, value, end.clone())
        .prop_map(|(name, colon, value, end)| format!("{name}{colon}{value}{end}"));
    let host = prop_oneof![3 => Just("Host: allowed.test\r\n"), 1 => Just("")];
    (line, end, host, proptest::collection::vec(field, 0..5), prop_oneof![4 => Just("\r\n"), 1 => Just("\n")])
        .prop_map(|(line, end, host, fields, last)| {
            let head = format!("{line}{end}{host}{}{last}", fields.concat());
            head.chars().map(|char| u8::try_from(char).unwrap_or(b'?')).collect()
        })
}

proptest! {
    #[test]
    fn any_bytes_are_answered_alike_however_they_are_cut(
        head in prop_oneof![tricky(), proptest::collection::vec(any::<u8>(), 0..200), "[ -~\r\n]{0,80}".prop_map(String::into_bytes)]
    ) {
        prop_assert_eq!(byte_by_byte(&head), whole(&head));
    }
}
