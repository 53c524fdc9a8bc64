//! Requests that two servers in a row might read differently. Whatever the gateway makes of one, what the service
//! behind gets is whole, unambiguous, and nothing that was not let through by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod gateway_support;

use anyhow::{Result, ensure};
use gateway_support::{Stand, headers, host, secured};

/// A request that must never arrive: nobody has shown a token for it.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";

/// What may become of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// The first request is refused.
    Refused,
    /// It is passed on as one, or refused; in no case is anything behind it taken for another.
    One,
}

/// Heads behind the request line, and what comes after them.
fn corpus() -> Vec<(&'static str, String, Fate)> {
    let length = HIDDEN.len();
    let chunk = format!("{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n");
    let case = |name, text: String, fate| (name, text, fate);
    vec![
        case(
            "length, then chunks",
            format!("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "chunks, then a length",
            format!("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "a length that hides in chunks",
            format!("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
            Fate::One,
        ),
        case(
            "two lengths",
            format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case("a list of lengths", format!("Content-Length: 0, {length}\r\n\r\n{HIDDEN}"), Fate::Refused),
        case("a length with a sign", format!("Content-Length: +0\r\n\r\n{HIDDEN}"), Fate::Refused),
        case("a negative length", format!("Content-Length: -1\r\n\r\n{HIDDEN}"), Fate::Refused),
        case("a length in hexadecimal", format!("Content-Length: 0x0\r\n\r\n{HIDDEN}"), Fate::Refused),
        case(
            "a length that overflows",
            format!("Content-Length: 18446744073709551616\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case("no length", format!("Content-Length:\r\n\r\n{HIDDEN}"), Fate::Refused),
        case("a space before the colon", format!("Content-Length : {length}\r\n\r\n{HIDDEN}"), Fate::Refused),
        case(
            "a space before the colon of chunks",
            format!("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case(
            "a folded line",
            format!("Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case(
            "a line that begins with a space",
            format!(" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case(
            "another coding",
            format!("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case(
            "chunks and then another coding",
            format!("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case("identity", format!("Transfer-Encoding: identity\r\n\r\n{HIDDEN}"), Fate::Refused),
        case(
            "chunks in two lines",
            format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case(
            "a vertical tab",
            format!("Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case(
            "a quoted coding",
            format!("Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case("a nul in a value", format!("X: a\0b\r\n\r\n{HIDDEN}"), Fate::Refused),
        case(
            "a bare return in a value",
            format!("X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            Fate::Refused,
        ),
        case("no colon", format!("nonsense\r\n\r\n{HIDDEN}"), Fate::Refused),
        case("an empty name", format!(": x\r\n\r\n{HIDDEN}"), Fate::Refused),
        case("chunks of no size", format!("Transfer-Encoding: chunked\r\n\r\nx\r\n{HIDDEN}"), Fate::One),
        case(
            "chunks with a sign",
            format!("Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "chunks with a prefix",
            format!("Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "chunks of endless size",
            format!("Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "a chunk that goes on",
            format!("Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "chunks that end with a line feed",
            format!("Transfer-Encoding: chunked\r\n\r\n0\n\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "an extension with a line feed",
            format!("Transfer-Encoding: chunked\r\n\r\n0;a\nb\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "the request in a trailer",
            format!("Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "Connection names the length",
            format!("Connection: Content-Length\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "Connection names the coding",
            format!("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
            Fate::One,
        ),
        case("Connection names the host", format!("Connection: Host\r\n\r\n{HIDDEN}"), Fate::One),
        case(
            "an upgrade to HTTP/2 in clear",
            format!(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n{HIDDEN}"
            ),
            Fate::One,
        ),
        case(
            "an upgrade with a body",
            format!("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "a WebSocket that is none",
            format!(
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n{HIDDEN}"
            ),
            Fate::One,
        ),
        case(
            "an expectation",
            format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
        case(
            "an underscore",
            format!("Content_Length: 5\r\nTransfer_Encoding: chunked\r\n\r\n{HIDDEN}"),
            Fate::One,
        ),
    ]
}

#[test]
fn nothing_gets_through_inside_of_something_else() -> Result<()> {
    let stand = Stand::new(&secured())?;
    for (name, rest, fate) in corpus() {
        for method in ["GET", "POST"] {
            let before = stand.web.requests().len();
            let text = format!(
                "{method} /first HTTP/1.1\r\nHost: {}\r\ne2b-traffic-access-token: {}\r\n{rest}",
                host(),
                stand.token
            );
            let said = String::from_utf8_lossy(&half_closed(&stand, text.as_bytes())?).into_owned();
            let came = stand.web.requests().get(before..).unwrap_or_default().to_vec();
            ensure!(came.len() <= 1, "{name}, {method}: {came:?}");
            if fate == Fate::Refused {
                ensure!(
                    said.starts_with("HTTP/1.1 400") && came.is_empty(),
                    "{name}, {method}: {said} {came:?}"
                );
            }
            for request in came {
                ensure!(request.line == format!("{method} /first HTTP/1.1"), "{name}, {method}: {request:?}");
                let lengths = headers(&request.head, "content-length").len();
                let codings = headers(&request.head, "transfer-encoding");
                ensure!(lengths + codings.len() <= 1, "{name}, {method}: {}", request.head);
                ensure!(
                    codings.iter().all(|coding| *coding == "chunked"),
                    "{name}, {method}: {}",
                    request.head
                );
                ensure!(headers(&request.head, "host") == [host()], "{name}, {method}: {}", request.head);
                ensure!(
                    headers(&request.head, "upgrade").iter().all(|to| *to == "websocket"),
                    "{}",
                    request.head
                );
            }
        }
    }
    ensure!(stand.web.requests().len() > 10, "what is harmless is passed on");
    // Everything that arrived, byte by byte: a hidden request is nowhere but in a body.
    ensure!(stand.web.requests().iter().all(|request| !request.line.contains("hidden")));
    Ok(())
}

#[test]
fn lines_are_read_in_one_way() -> Result<()> {
    let stand = Stand::new(&secured())?;
    let (host, token) = (host(), format!("e2b-traffic-access-token: {}", stand.token));
    for (line, fields) in [
        ("GET  /x HTTP/1.1", ""),
        ("GET /x  HTTP/1.1", ""),
        ("GET /x y HTTP/1.1", ""),
        ("GET\t/x HTTP/1.1", ""),
        ("GET /x HTTP/1.1 ", ""),
        ("GET /x HTTP/2.0", ""),
        ("GET /x HTTP/1.2", ""),
        ("GET /x HTTP/0.9", ""),
        ("GET /x", ""),
        ("GET x HTTP/1.1", ""),
        ("GE(T /x HTTP/1.1", ""),
        (" GET /x HTTP/1.1", ""),
        ("GET /x\0 HTTP/1.1", ""),
        ("GET /x HTTP/1.1", "X Y: z\r\n"),
        ("GET /x HTTP/1.1", "X\0Y: z\r\n"),
        ("GET /x HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
    ] {
        let text = format!("{line}\r\nHost: {host}\r\n{token}\r\n{fields}Connection: close\r\n\r\n");
        let said = String::from_utf8_lossy(&half_closed(&stand, text.as_bytes())?).into_owned();
        ensure!(
            !said.starts_with("HTTP/1.1 200") && !said.starts_with("HTTP/1.0 200"),
            "{line:?} {fields:?}: {said}"
        );
    }
    ensure!(stand.web.requests().is_empty(), "{:?}", stand.web.requests());
    Ok(())
}

/// Says something and that it is all, and hears what comes of it.
fn half_closed(stand: &Stand, bytes: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write as _;
    let to: std::net::SocketAddr = gateway_support::GATEWAY.parse()?;
    stand.host().run(|| {
        let mut stream = std::net::TcpStream::connect(to)?;
        stream.set_read_timeout(Some(gateway_support::PATIENCE))?;
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        gateway_support::read_all(&mut stream)
    })
}
