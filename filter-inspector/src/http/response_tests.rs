//! Tests of response heads.

use proptest::prelude::*;

use super::super::request;
use super::*;

fn asked(line: &str) -> Request {
    request::parse(format!("{line}\r\nHost: allowed.test\r\n\r\n").as_bytes(), 80).unwrap().unwrap()
}

fn get() -> Request {
    asked("GET / HTTP/1.1")
}

fn websocket() -> Request {
    asked("GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket")
}

fn whole(head: &str) -> Result<Option<Response>, BadResponse> {
    parse(&bytes(head), &get())
}

/// Characters up to U+00FF stand for bytes.
fn bytes(head: &str) -> Vec<u8> {
    head.chars().map(|char| u8::try_from(char).unwrap()).collect()
}

fn byte_by_byte(head: &[u8], request: &Request) -> Result<Option<Response>, BadResponse> {
    let mut reader = ResponseReader::new(request);
    (0..=head.len()).find_map(|len| reader.advance(&head[..len]).transpose()).transpose()
}

fn ok(lines: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n")
}

#[test]
fn framing_follows_the_request_the_status_and_the_fields_in_this_order() {
    use Body::{AnotherHead, Chunked, Length, None, UntilClose, Upgraded};
    let length = "Content-Length: 7\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (request, head, body, keep_alive) in [
        (get(), format!("HTTP/1.1 200 OK\r\n{length}\r\n"), Length(7), true),
        (get(), format!("HTTP/1.1 200 OK\r\n{chunked}\r\n"), Chunked, true),
        (get(), "HTTP/1.1 200 OK\r\n\r\n".into(), UntilClose, false),
        (get(), "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n".into(), UntilClose, false),
        (get(), "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n".into(), Length(0), true),
        (get(), "HTTP/1.1 200 \r\nContent-Length: 007\r\n\r\n".into(), Length(7), true),
        (get(), "HTTP/1.1 999 \u{e9}\t!\r\nContent-Length:\t7 \r\n\r\n".into(), Length(7), true),
        (get(), format!("HTTP/1.1 200 OK\r\n{length}Connection: close\r\n\r\n"), Length(7), false),
        (get(), format!("HTTP/1.0 200 OK\r\n{length}\r\n"), Length(7), false),
        (get(), format!("HTTP/1.0 200 OK\r\n{length}Connection: Keep-Alive\r\n\r\n"), Length(7), true),
        (get(), format!("HTTP/1.1 200 OK\r\n{length}{length}\r\n"), Length(7), true),
        (get(), "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n".into(), Chunked, true),
        (
            get(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            Chunked,
            true,
        ),
        (get(), "HTTP/1.1 100 Continue\r\n\r\n".into(), AnotherHead, true),
        (get(), format!("HTTP/1.1 103 Early Hints\r\n{length}\r\n"), AnotherHead, true),
        (get(), "HTTP/1.1 204 No Content\r\n\r\n".into(), None, true),
        (get(), format!("HTTP/1.1 204 No Content\r\n{length}\r\n"), None, true),
        (get(), format!("HTTP/1.1 304 Not Modified\r\n{length}\r\n"), None, true),
        (get(), format!("HTTP/1.1 304 Not Modified\r\n{chunked}\r\n"), None, true),
        (get(), format!("HTTP/1.1 205 Reset Content\r\n{length}\r\n"), Length(7), true),
        (asked("HEAD / HTTP/1.1"), format!("HTTP/1.1 200 OK\r\n{length}\r\n"), None, true),
        (asked("HEAD / HTTP/1.1"), format!("HTTP/1.1 200 OK\r\n{chunked}\r\n"), None, true),
        (asked("HEAD / HTTP/1.1"), "HTTP/1.1 200 OK\r\n\r\n".into(), None, true),
        (asked("HEAD / HTTP/1.1"), "HTTP/1.1 100 Continue\r\n\r\n".into(), AnotherHead, true),
        (
            websocket(),
            "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".into(),
            Upgraded,
            true,
        ),
        (websocket(), format!("HTTP/1.1 400 no\r\n{length}\r\n"), Length(7), true),
    ] {
        let head = bytes(&head);
        let response = parse(&head, &request).unwrap().unwrap();
        let shown = head.escape_ascii();
        assert_eq!((response.body, response.keep_alive), (body, keep_alive), "{shown}");
        assert_eq!(response.head_len, head.len(), "{shown}");
        assert_eq!(byte_by_byte(&head, &request), Ok(Some(response)), "{shown}");
        for len in 0..head.len() {
            assert_eq!(parse(&head[..len], &request), Ok(Option::None), "{shown}, {len} bytes");
        }
    }
}

#[test]
fn odd_fields_pass_where_they_have_no_part_in_the_framing() {
    for lines in [
        "X-Folded: one\r\n two\r\n\tthree",
        "X: \u{e9}\u{a0}",
        "X:",
        "Set-Cookie: a=b\r\nSet-Cookie: c=d",
        "Host: odd.test\r\nHost: odder.test",
        "Expect: what",
        "Upgrade: h2,h2c",
        "HTTP2-Settings: AAA",
        "Upgrade: h2c\r\nConnection: Upgrade",
    ] {
        let head = ok(&format!("{lines}\r\nContent-Length: 7"));
        assert_eq!(whole(&head).unwrap().unwrap().body, Body::Length(7), "{lines:?}");
    }
    assert!(whole(&ok(&vec!["A: b"; 256].join("\r\n"))).is_ok());
}

/// Each row with the answer, and the answer byte by byte must be the same.
#[test]
fn what_has_no_certain_end_is_refused() {
    use BadResponse::*;
    let many = ok(&vec!["A: b"; 257].join("\r\n"));
    let long = ok(&format!("X: {}", "a".repeat(66_000)));
    let table: Vec<(&str, String, BadResponse)> = vec![
        ("HTTP/0.9", "<html>\r\n".into(), StatusLine),
        ("TLS", "\u{15}\u{3}\u{3}".into(), Byte),
        ("SSH", "SSH-2.0-x\r\n".into(), StatusLine),
        ("a request", "GET / HTTP/1.1\r\n\r\n".into(), StatusLine),
        ("HTTP/2", "HTTP/2 200 OK\r\n\r\n".into(), StatusLine),
        ("HTTP/1.2", "HTTP/1.2 200 OK\r\n\r\n".into(), StatusLine),
        ("two spaces", "HTTP/1.1  200 OK\r\n\r\n".into(), StatusLine),
        ("two digits", "HTTP/1.1 20 OK\r\n\r\n".into(), StatusLine),
        ("four digits", "HTTP/1.1 2000 OK\r\n\r\n".into(), StatusLine),
        ("no digits", "HTTP/1.1 OK\r\n\r\n".into(), StatusLine),
        ("status below 100", "HTTP/1.1 099 OK\r\n\r\n".into(), StatusLine),
        ("signed status", "HTTP/1.1 +20 OK\r\n\r\n".into(), StatusLine),
        ("tab behind the status", "HTTP/1.1 200\tOK\r\n\r\n".into(), StatusLine),
        ("no status", "HTTP/1.1\r\n\r\n".into(), StatusLine),
        ("ICY", "ICY 200 OK\r\n\r\n".into(), StatusLine),
        ("empty line first", "\r\nHTTP/1.1 200 OK\r\n\r\n".into(), Byte),
        ("bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n".into(), Byte),
        ("bare LF at the end", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n".into(), Byte),
        ("bare CR", ok("X: a\rContent-Length: 5"), Byte),
        ("NUL", ok("X: \0"), Byte),
        ("too long", long, TooLarge),
        ("too many", many, TooManyFields),
        ("no colon", ok("X"), Field),
        ("space before the colon", ok("Content-Length : 5"), Field),
        ("space in a name", ok("X Y: a"), Field),
        ("lookalike", ok("Content_Length: 5"), Field),
        ("fold first", ok(" X: a"), Field),
        ("fold of a length", ok("Content-Length: 1\r\n 5"), Field),
        ("fold of an encoding", ok("Transfer-Encoding: chunked\r\n , x"), Field),
        ("fold of a connection", ok("Connection: x\r\n , close"), Field),
        ("two lengths", ok("Content-Length: 5\r\nContent-Length: 6"), ContentLength),
        ("list of lengths", ok("Content-Length: 5, 5"), ContentLength),
        ("plus", ok("Content-Length: +5"), ContentLength),
        ("empty", ok("Content-Length:"), ContentLength),
        ("beyond 64 bits", ok("Content-Length: 18446744073709551621"), ContentLength),
        ("both", ok("Content-Length: 5\r\nTransfer-Encoding: chunked"), TwoLengths),
        ("both, not chunked", ok("Content-Length: 5\r\nTransfer-Encoding: gzip"), TwoLengths),
        ("twice", ok("Transfer-Encoding: chunked, chunked"), TransferEncoding),
        ("not last", ok("Transfer-Encoding: chunked, gzip"), TransferEncoding),
        (
            "in two fields, not last",
            ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
            TransferEncoding,
        ),
        ("identity", ok("Transfer-Encoding: identity"), TransferEncoding),
        ("unknown", ok("Transfer-Encoding: xchunked"), TransferEncoding),
        ("parameter", ok("Transfer-Encoding: chunked;x=y"), TransferEncoding),
        ("nothing", ok("Transfer-Encoding:"), TransferEncoding),
        ("comma", ok("Transfer-Encoding: chunked,"), TransferEncoding),
        ("HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(), TransferEncoding),
        ("Connection: Content-Length", ok("Connection: Content-Length"), Connection),
        ("Connection: no list", ok("Connection: a b"), Connection),
        ("upgrade unasked", "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n".into(), Upgrade),
    ];
    for (what, head, refusal) in table {
        assert_eq!(whole(&head), Err(refusal), "{what}: {head:?}");
        assert_eq!(byte_by_byte(&bytes(&head), &get()), Err(refusal), "{what}, byte by byte");
        assert_eq!(refusal.reason(), Reason::BadRequest);
    }
}

#[test]
fn an_upgrade_says_that_it_is_one() {
    assert_eq!(parse(b"HTTP/1.1 101 x\r\n\r\n", &websocket()), Err(BadResponse::Upgrade));
}

proptest! {
    #[test]
    fn any_bytes_are_answered_alike_however_they_are_cut(
        head in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100),
            "HTTP/1.[01] [0-9]{3} [A-Z]{0,2}(\r\n(Content-Length|Transfer-Encoding|Connection|X)(: |:)[a-z0-9, ]{0,8}){0,4}(\r\n\r\n|\r\n|\n)"
                .prop_map(String::into_bytes),
        ]
    ) {
        for request in [get(), asked("HEAD / HTTP/1.1"), websocket()] {
            prop_assert_eq!(byte_by_byte(&head, &request), parse(&head, &request));
        }
    }
}
