//! Which sandbox a request is for: one answer, or none.

use http::{HeaderMap, HeaderName, Method, Version, header::HOST, request::Parts};

use crate::{
    authority::{self, Authority, BadHost, Place},
    refusal::Refusal,
};

/// Names the sandbox where the host names none.
pub const ID_HEADER: HeaderName = HeaderName::from_static("e2b-sandbox-id");
/// Names the port there.
pub const PORT_HEADER: HeaderName = HeaderName::from_static("e2b-sandbox-port");

/// What a request is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The sandbox.
    pub id: String,
    /// The port inside.
    pub port: u16,
    /// The host that was named.
    pub authority: Authority,
    /// As it was written.
    pub written: String,
}

impl From<BadHost> for Refusal {
    fn from(BadHost(message): BadHost) -> Self {
        Self::BadRequest(message)
    }
}

/// Reads where a request is to go.
///
/// # Errors
/// If that can be read in no way, or in more than one.
pub fn target(parts: &Parts, domain: &str) -> Result<Target, Refusal> {
    let written = named(parts)?;
    let authority = Authority::parse(&written, domain)?;
    let (id, port) = match &authority.place {
        Place::Sandbox { id, port } => (id.clone(), *port),
        Place::Shared => {
            let id = authority::id(only(&parts.headers, &ID_HEADER)?)?.to_owned();
            (id, authority::port(only(&parts.headers, &PORT_HEADER)?)?)
        }
    };
    shape(parts)?;
    Ok(Target { id, port, authority, written })
}

/// The one host that the request names, in whichever places it does.
fn named(parts: &Parts) -> Result<String, Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next().map(|value| value.to_str());
    if hosts.next().is_some() {
        return Err(Refusal::BadRequest("The request has more than one host"));
    }
    let host = host.transpose().map_err(|_| Refusal::BadRequest("Invalid host"))?;
    // RFC 9112 section 3.2.2: an absolute URI overrules `Host`. Whoever sends two different ones means harm.
    match (parts.uri.authority(), host) {
        (Some(target), Some(host)) if !same(target.as_str(), host) => {
            Err(Refusal::BadRequest("The request names two different hosts"))
        }
        (Some(target), _) => Ok(target.as_str().to_owned()),
        (None, Some(host)) => Ok(host.to_owned()),
        (None, None) => Err(Refusal::BadRequest("The request names no host")),
    }
}

fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Refusal> {
    const ADVICE: &str = "Name the sandbox in the host (<port>-<id>.<domain>) or in E2b-Sandbox-Id and E2b-Sandbox-Port, each once";
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().map_err(|_| Refusal::BadRequest(ADVICE)),
        (None, _) | (_, Some(_)) => Err(Refusal::BadRequest(ADVICE)),
    }
}

/// Requests that an origin server does not get.
fn shape(parts: &Parts) -> Result<(), Refusal> {
    let h2 = parts.version == Version::HTTP_2;
    if parts.method == Method::CONNECT && !is_extended(parts) {
        return Err(Refusal::BadRequest("CONNECT is for proxies"));
    }
    if parts.uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(Refusal::BadRequest("Invalid scheme"));
    }
    let path = parts.uri.path();
    let asterisk = path == "*" && parts.method == Method::OPTIONS;
    if !path.starts_with('/') && !asterisk {
        return Err(Refusal::BadRequest("Invalid path"));
    }
    if !h2 && parts.version != Version::HTTP_11 && parts.version != Version::HTTP_10 {
        return Err(Refusal::BadRequest("Unsupported version of HTTP"));
    }
    Ok(())
}

/// Whether it is a WebSocket's beginning over HTTP/2 (RFC 8441).
pub(crate) fn is_extended(parts: &Parts) -> bool {
    let protocol = parts.extensions.get::<hyper::ext::Protocol>();
    parts.method == Method::CONNECT && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// Whether a request may come over a connection that was opened for `connection`, the host in the TLS handshake. One
/// certificate covers all sandboxes, so that browsers may want to send one's requests over another's connection
/// (RFC 9110 section 7.4).
pub fn belongs(connection: &str, request: &Authority, domain: &str) -> bool {
    if connection.eq_ignore_ascii_case(&request.host) {
        return true;
    }
    let named = Authority::parse(connection, domain).ok();
    let both = named.as_ref().and_then(Authority::sandbox).zip(request.sandbox());
    both.is_some_and(|(one, other)| one == other)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const DOMAIN: &str = "sandbox.localhost";

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn to(uri: &str, headers: &[(&str, &str)]) -> Result<(String, u16), Refusal> {
        target(&parts(uri, headers), DOMAIN).map(|target| (target.id, target.port))
    }

    #[test]
    fn by_host_or_by_absolute_uri_or_by_both_if_they_agree() {
        let expected = Ok(("abc".to_owned(), 80));
        assert_eq!(to("/", &[("host", "80-abc.sandbox.localhost")]), expected);
        assert_eq!(to("http://80-abc.sandbox.localhost/x", &[]), expected);
        let both = [("host", "80-ABC.sandbox.localhost")];
        assert_eq!(to("http://80-abc.sandbox.localhost/x", &both), expected);
        for (uri, host) in [
            ("http://80-abc.sandbox.localhost/", "81-abc.sandbox.localhost"),
            ("http://80-abc.sandbox.localhost/", "80-abc.sandbox.localhost:80"),
            ("http://localhost/", "80-abc.sandbox.localhost"),
            ("http://u@80-abc.sandbox.localhost/", "80-abc.sandbox.localhost"),
        ] {
            assert!(matches!(to(uri, &[("host", host)]), Err(Refusal::BadRequest(_))), "{uri} {host}");
        }
        assert!(to("http://u:p@80-abc.sandbox.localhost/", &[]).is_err());
        assert!(to("ftp://80-abc.sandbox.localhost/", &[]).is_err());
    }

    #[test]
    fn no_host_or_two_are_refused() {
        assert!(to("/", &[]).is_err());
        let host = ("host", "80-abc.sandbox.localhost");
        assert!(to("/", &[host, host]).is_err());
    }

    #[test]
    fn headers_count_with_a_shared_host_only() {
        let headers = |host| [("host", host), ("e2b-sandbox-id", "abc"), ("e2b-sandbox-port", "80")];
        for host in ["localhost:1", "127.0.0.1", "[::1]:1", "sandbox.sandbox.localhost"] {
            assert_eq!(to("/", &headers(host)), Ok(("abc".to_owned(), 80)), "{host}");
        }
        assert_eq!(to("/", &headers("81-other.sandbox.localhost")), Ok(("other".to_owned(), 81)));
        assert!(to("/", &headers("sandbox.localhost")).is_err());
        assert!(to("/", &headers("example.com")).is_err());
    }

    #[test]
    fn routing_headers_must_be_there_once_and_sound() {
        let host = ("host", "localhost");
        let (id, port) = (("e2b-sandbox-id", "abc"), ("e2b-sandbox-port", "80"));
        for headers in [
            &[host, id][..],
            &[host, port],
            &[host],
            &[host, id, port, port],
            &[host, id, id, port],
            &[host, ("e2b-sandbox-id", "ABC"), port],
            &[host, ("e2b-sandbox-id", "a-b"), port],
            &[host, ("e2b-sandbox-id", ""), port],
            &[host, id, ("e2b-sandbox-port", "0")],
            &[host, id, ("e2b-sandbox-port", "65536")],
            &[host, id, ("e2b-sandbox-port", "080")],
            &[host, id, ("e2b-sandbox-port", "80, 81")],
        ] {
            assert!(to("/", headers).is_err(), "{headers:?}");
        }
    }

    #[test]
    fn connect_and_odd_paths_are_refused() {
        let host = ("host", "80-abc.sandbox.localhost");
        let mut connect = parts("80-abc.sandbox.localhost:443", &[]);
        connect.method = Method::CONNECT;
        assert!(target(&connect, DOMAIN).is_err());
        let mut options = parts("*", &[host]);
        assert!(target(&options, DOMAIN).is_err());
        options.method = Method::OPTIONS;
        assert!(target(&options, DOMAIN).is_ok());
    }

    #[test]
    fn a_connection_is_for_one_sandbox() {
        let request = |host| Authority::parse(host, DOMAIN).unwrap();
        for (sni, host, expected) in [
            ("80-abc.sandbox.localhost", "80-abc.sandbox.localhost", true),
            ("80-ABC.sandbox.localhost", "80-abc.sandbox.localhost:443", true),
            ("80-abc.sandbox.localhost", "81-abc.sandbox.localhost", true),
            ("80-abc.sandbox.localhost", "80-abd.sandbox.localhost", false),
            ("80-abc.sandbox.localhost", "sandbox.sandbox.localhost", false),
            ("80-abc.sandbox.localhost", "127.0.0.1", false),
            ("sandbox.sandbox.localhost", "80-abc.sandbox.localhost", false),
            ("sandbox.sandbox.localhost", "sandbox.sandbox.localhost", true),
            ("sandbox.sandbox.localhost", "localhost", false),
            ("localhost", "localhost", true),
            ("example.com", "80-abc.sandbox.localhost", false),
        ] {
            assert_eq!(belongs(sni, &request(host), DOMAIN), expected, "{sni} {host}");
        }
    }
}
