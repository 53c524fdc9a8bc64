//! The heads of requests and answers, as they are passed on.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
};

use crate::{
    access::TOKEN_HEADER,
    client::{Client, FORWARDED_FOR, FORWARDED_PROTO},
    cookies,
    refusal::Refusal,
    route::{self, Target},
};

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What a client could say about itself; the gateway says it instead.
const TOLD_BY_THE_GATEWAY: [HeaderName; 7] = [
    http::header::FORWARDED,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    FORWARDED_HOST,
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-real-ip"),
];

/// How a request goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// As a request over HTTP/1.1.
    Plain,
    /// As a call over HTTP/2, whose end is in trailers (gRPC).
    Call,
    /// As the beginning of a WebSocket.
    WebSocket,
}

/// How a request is to go on. Only the type of its content tells that a service speaks HTTP/2: browsers take trailers of
/// everybody.
pub(crate) fn way(parts: &Parts) -> Way {
    if is_websocket(parts) {
        Way::WebSocket
    } else if parts.version == Version::HTTP_2 && is_grpc(&parts.headers) {
        Way::Call
    } else {
        Way::Plain
    }
}

fn is_websocket(parts: &Parts) -> bool {
    if parts.version == Version::HTTP_2 {
        return route::is_extended(parts);
    }
    let upgrade = parts.headers.get(UPGRADE).map(HeaderValue::as_bytes);
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && upgrade.is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
        && connection_options(&parts.headers).any(|option| option.eq_ignore_ascii_case("upgrade"))
        && !parts.headers.contains_key(CONTENT_LENGTH)
        && !parts.headers.contains_key(TRANSFER_ENCODING)
}

/// `application/grpc`, `application/grpc+proto`; gRPC-Web is a format of its own that HTTP/1.1 carries.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Makes a client's head one for the sandbox.
///
/// # Errors
/// If the client waits for something that nobody does.
pub(crate) fn request(
    headers: &mut HeaderMap,
    way: Way,
    target: &Target,
    mask: Option<&str>,
    client: &Client,
) -> Result<(), Refusal> {
    // `Expect` is for the next server only, which this is: hyper tells the client to go on when the body is wanted.
    if let Some(expected) = headers.remove(EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return Err(Refusal::Expectation);
    }
    let wants_trailers = headers.get(TE).is_some_and(|te| te.as_bytes().trim_ascii() == b"trailers");
    // A length is kept: hyper has read the body by it, or removed it where the body comes in chunks.
    remove_hop_by_hop(headers);
    for name in
        [&TOKEN_HEADER, &route::ID_HEADER, &route::PORT_HEADER].into_iter().chain(&TOLD_BY_THE_GATEWAY)
    {
        headers.remove(name);
    }
    cookies::forward(headers);
    let host = match mask {
        Some(mask) => mask.replace("${PORT}", &target.port.to_string()),
        None => target.written.clone(),
    };
    for (name, text) in
        [(HOST, host), (FORWARDED_HOST, target.written.clone()), (FORWARDED_FOR, client.chain.clone())]
    {
        // Each was read as host or address before.
        let value = HeaderValue::try_from(text).map_err(|_| Refusal::BadRequest("Invalid host"))?;
        headers.insert(name, value);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if client.secure { "https" } else { "http" }));
    match way {
        Way::Plain => {}
        Way::Call => {
            headers.remove(HOST);
            if wants_trailers {
                headers.insert(TE, HeaderValue::from_static("trailers"));
            }
        }
        Way::WebSocket => upgrade(headers),
    }
    Ok(())
}

/// Makes a sandbox's head one for the client that named `host`.
pub(crate) fn response(headers: &mut HeaderMap, host: &str) {
    if headers.contains_key(TRANSFER_ENCODING) {
        // RFC 9112 section 6.3: it overrules any length.
        headers.remove(CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
    cookies::keep_own(headers, host);
}

/// Says that the connection becomes a WebSocket.
pub(crate) fn upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Removes what is for the next hop only (RFC 9110 section 7.6.1), and what `Connection` names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> =
            connection_options(headers).filter_map(|option| option.parse().ok()).collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|option| !option.is_empty())
}

/// Whether a person looks at the answer: a browser that goes to a page.
pub(crate) fn is_navigation(headers: &HeaderMap) -> bool {
    match headers.get("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        None => {
            let accept = headers.get(http::header::ACCEPT).and_then(|value| value.to_str().ok());
            accept.is_some_and(|accept| accept.contains("text/html"))
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::authority::Authority;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        headers
    }

    fn target() -> Target {
        let written = "3000-abc.sandbox.localhost:8080".to_owned();
        let authority = Authority::parse(&written, "sandbox.localhost").unwrap();
        Target { id: "abc".into(), port: 3000, authority, written }
    }

    fn client() -> Client {
        Client { addr: "192.0.2.1".parse().unwrap(), chain: "192.0.2.1".into(), secure: false }
    }

    fn forwarded(fields: &[(&str, &str)], way: Way, mask: Option<&str>) -> HeaderMap {
        let mut headers = map(fields);
        request(&mut headers, way, &target(), mask, &client()).unwrap();
        headers
    }

    #[test]
    fn what_is_for_the_gateway_stays_here() {
        let headers = forwarded(
            &[
                ("connection", "close, X-Private, X-Forwarded-For, host"),
                ("x-private", "1"),
                ("keep-alive", "5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authorization", "Basic x"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
                ("content-length", "5"),
                ("expect", "100-Continue"),
                ("e2b-traffic-access-token", "t"),
                ("e2b-sandbox-id", "abc"),
                ("e2b-sandbox-port", "3000"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "evil.test"),
                ("forwarded", "for=1.2.3.4"),
                ("x-real-ip", "1.2.3.4"),
                ("cookie", "a=1; e2b-traffic-access-token=t"),
                ("authorization", "Bearer x"),
                ("accept", "*/*"),
            ],
            Way::Plain,
            None,
        );
        let expected = map(&[
            ("http2-settings", "x"),
            ("content-length", "5"),
            ("cookie", "a=1"),
            ("authorization", "Bearer x"),
            ("accept", "*/*"),
            ("host", "3000-abc.sandbox.localhost:8080"),
            ("x-forwarded-host", "3000-abc.sandbox.localhost:8080"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "http"),
        ]);
        assert_eq!(headers, expected);
        let mut odd = map(&[("expect", "200-ok")]);
        assert_eq!(request(&mut odd, Way::Plain, &target(), None, &client()), Err(Refusal::Expectation));
    }

    #[test]
    fn a_mask_is_the_host_with_every_port_in_it() {
        let headers = forwarded(&[], Way::Plain, Some("${PORT}.app.test:${PORT}"));
        assert_eq!(headers[HOST], "3000.app.test:3000");
        assert_eq!(headers[FORWARDED_HOST], "3000-abc.sandbox.localhost:8080");
    }

    #[test]
    fn calls_and_websockets_keep_what_they_need() {
        let call = forwarded(&[("te", "trailers"), ("host", "x")], Way::Call, None);
        assert_eq!((call.get(TE).unwrap(), call.get(HOST)), (&HeaderValue::from_static("trailers"), None));
        let fields =
            [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket"), ("sec-websocket-key", "k")];
        let socket = forwarded(&fields, Way::WebSocket, None);
        assert_eq!(
            (&socket[CONNECTION], &socket[UPGRADE]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        assert_eq!(socket["sec-websocket-key"], "k");
    }

    #[test]
    fn ways_are_told_apart() {
        let told = |version: Version, method: &str, fields: &[(&str, &str)]| {
            let mut request = Request::builder().version(version).method(method).uri("/").body(()).unwrap();
            *request.headers_mut() = map(fields);
            way(&request.into_parts().0)
        };
        let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")];
        assert_eq!(told(Version::HTTP_11, "GET", &upgrade), Way::WebSocket);
        assert_eq!(told(Version::HTTP_10, "GET", &upgrade), Way::Plain);
        assert_eq!(told(Version::HTTP_2, "GET", &upgrade), Way::Plain);
        assert_eq!(told(Version::HTTP_11, "POST", &upgrade), Way::Plain);
        assert_eq!(
            told(Version::HTTP_11, "GET", &[upgrade[0], upgrade[1], ("content-length", "3")]),
            Way::Plain
        );
        assert_eq!(told(Version::HTTP_11, "GET", &[upgrade[1]]), Way::Plain);
        assert_eq!(told(Version::HTTP_11, "GET", &[upgrade[0], ("upgrade", "h2c")]), Way::Plain);
        for (kind, expected) in [
            ("application/grpc", Way::Call),
            ("application/grpc+proto", Way::Call),
            ("application/grpc; x", Way::Call),
            ("application/grpc-web", Way::Plain),
            ("application/grpc-web+proto", Way::Plain),
            ("text/plain", Way::Plain),
        ] {
            let fields = [("content-type", kind), ("te", "trailers")];
            assert_eq!(told(Version::HTTP_2, "POST", &fields), expected, "{kind}");
            assert_eq!(told(Version::HTTP_11, "POST", &fields), Way::Plain, "{kind}");
        }
    }

    #[test]
    fn answers_lose_what_was_for_the_gateway() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("upgrade", "h2c"),
            ("set-cookie", "a=1; Domain=localhost"),
            ("set-cookie", "b=1"),
            ("x-app", "1"),
        ]);
        response(&mut headers, "3000-abc.sandbox.localhost");
        assert_eq!(headers, map(&[("x-app", "1"), ("set-cookie", "b=1")]));
        let mut sized = map(&[("content-length", "5")]);
        response(&mut sized, "h");
        assert_eq!(sized, map(&[("content-length", "5")]));
    }

    #[test]
    fn people_are_told_from_programs() {
        for (fields, expected) in [
            (&[("sec-fetch-mode", "navigate"), ("accept", "*/*")][..], true),
            (&[("sec-fetch-mode", "cors"), ("accept", "text/html")], false),
            (&[("accept", "text/html,application/xhtml+xml")], true),
            (&[("accept", "*/*")], false),
            (&[], false),
        ] {
            assert_eq!(is_navigation(&map(fields)), expected, "{fields:?}");
        }
    }
}
