//! The fields of a request or response on their way through: what is about one connection only stays behind, what the
//! policy sets replaces whatever the sandbox says under the same name.

use filter_policy::{Part, Transform};
use hyper::{
    HeaderMap,
    header::{
        ALT_SVC, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
};
use zeroize::Zeroizing;

use super::secrets::{Missing, Secrets};
use crate::http::request::BadRequest;

/// About one connection only, whether `Connection` says so or not (RFC 9110 section 7.6.1). `Trailer` and `TE` go on
/// in part.
const HOP_BY_HOP: [&str; 3] = ["keep-alive", "proxy-connection", "http2-settings"];
/// Fields that `Connection` must not name: without them a message would be another one.
const FRAMING: [HeaderName; 3] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING];

/// What is set in a request.
#[derive(Default)]
pub(super) struct Injection(Vec<(HeaderName, HeaderValue)>);

impl Injection {
    /// Puts the headers together.
    pub(super) fn new(transform: &Transform, secrets: &Secrets) -> Result<Self, Missing> {
        let compose = |(name, value): (&String, &filter_policy::HeaderValue)| {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Missing)?;
            let mut bytes = Zeroizing::new(Vec::new());
            for part in value.parts() {
                match part {
                    Part::Text(text) => bytes.extend_from_slice(text.as_bytes()),
                    Part::Secret(name) => bytes.extend_from_slice(secrets.read(name)?.expose()),
                }
            }
            let mut value = HeaderValue::from_bytes(&bytes).map_err(|_| Missing)?;
            // Nobody prints it, and no table of compressed headers keeps it.
            value.set_sensitive(true);
            Ok((name, value))
        };
        transform.headers.iter().map(compose).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a server could take a field of this name for one that is set. Many take `_` for `-` (RFC 3875 section
    /// 4.1.18 makes both the same).
    pub(super) fn replaces(&self, name: &HeaderName) -> bool {
        let is_same = |own: &HeaderName| {
            let (own, name) = (own.as_str().as_bytes(), name.as_str().as_bytes());
            own.len() == name.len()
                && own.iter().zip(name).all(|(a, b)| a == b || matches!((a, b), (b'-' | b'_', b'-' | b'_')))
        };
        self.0.iter().any(|(own, _)| is_same(own))
    }

    /// Removes from trailers what is set.
    pub(super) fn cleanse(&self, trailers: &mut HeaderMap) {
        let replaced: Vec<_> = trailers.keys().filter(|name| self.replaces(name)).cloned().collect();
        for name in replaced {
            trailers.remove(name);
        }
    }

    /// Sets the headers.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        self.cleanse(headers);
        for (name, value) in &self.0 {
            headers.insert(name, value.clone());
        }
        self.cleanse_announcement(headers);
    }

    fn cleanse_announcement(&self, headers: &mut HeaderMap) {
        if !headers.contains_key(TRAILER) {
            return;
        }
        let left: Vec<HeaderName> =
            names(headers, &TRAILER).flatten().filter(|name| !self.replaces(name)).collect();
        headers.remove(TRAILER);
        if !left.is_empty()
            && let Ok(value) =
                HeaderValue::from_str(&left.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", "))
        {
            headers.insert(TRAILER, value);
        }
    }
}

/// Makes a request's fields those of the next connection. Says whether it wants to go on in another protocol.
///
/// # Errors
/// If `Connection` names what it must not, or the other protocol is another version of HTTP.
pub(super) fn go_on(headers: &mut HeaderMap) -> Result<bool, BadRequest> {
    let wants_trailers = list(headers, &TE).any(|item| item.eq_ignore_ascii_case("trailers"));
    let upgrade = names_upgrade(headers).then(|| headers.get(UPGRADE).cloned()).flatten();
    if headers.contains_key(UPGRADE) && is_http(headers) {
        return Err(BadRequest::Upgrade);
    }
    strip(headers)?;
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let Some(upgrade) = upgrade else { return Ok(false) };
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, upgrade);
    Ok(true)
}

/// Makes a response's fields those of the connection to the client.
pub(super) fn come_back(headers: &mut HeaderMap, is_upgrade: bool) {
    let upgrade = headers.get(UPGRADE).cloned();
    if strip(headers).is_err() {
        headers.remove(CONNECTION);
    }
    // It leads around this connection, to where nothing is set.
    headers.remove(ALT_SVC);
    if is_upgrade && let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
}

fn strip(headers: &mut HeaderMap) -> Result<(), BadRequest> {
    if headers.contains_key(CONNECTION) {
        let named: Vec<_> = names(headers, &CONNECTION).collect();
        for name in named {
            let name = name.ok_or(BadRequest::Connection)?;
            if FRAMING.contains(&name) {
                return Err(BadRequest::Connection);
            }
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    for name in [TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    Ok(())
}

fn names_upgrade(headers: &HeaderMap) -> bool {
    list(headers, &CONNECTION).any(|item| item.eq_ignore_ascii_case("upgrade"))
}

fn is_http(headers: &HeaderMap) -> bool {
    list(headers, &UPGRADE).any(|protocol| {
        let protocol = protocol.split('/').next().unwrap_or_default().to_ascii_lowercase();
        matches!(protocol.as_str(), "h2" | "h2c" | "http" | "tls")
    })
}

/// The names in a list; `None` for what is none.
fn names<'a>(
    headers: &'a HeaderMap,
    list_name: &'a HeaderName,
) -> impl Iterator<Item = Option<HeaderName>> + 'a {
    list(headers, list_name).map(|item| HeaderName::from_bytes(item.as_bytes()).ok())
}

/// The items of a list (RFC 9110 section 5.6.1). What is no text is an item that is nothing.
fn list<'a>(headers: &'a HeaderMap, name: &'a HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("\u{fffd}"));
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use filter_policy::{Defaults, Policy};
    use serde_json::{Value, json};

    use super::*;

    fn injection(headers: Value) -> Result<Injection, Missing> {
        let policy = json!({ "rules": { "a.test": [{ "transform": { "headers": headers } }] } });
        let policy = Policy::from_value(policy, &Defaults::default()).unwrap();
        Injection::new(policy.rules.values().next().unwrap(), &Secrets::new(None))
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut shown: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        shown.sort();
        shown
    }

    fn sent(set: Value, fields: &[(&str, &str)]) -> Vec<String> {
        let mut headers = map(fields);
        go_on(&mut headers).unwrap();
        injection(set).unwrap().apply(&mut headers);
        shown(&headers)
    }

    #[test]
    fn what_is_set_replaces_every_form_of_it() {
        let set = || json!({ "X-Api-Key": "ours" });
        for fields in [
            &[][..],
            &[("x-api-key", "theirs")],
            &[("X-API-KEY", "theirs"), ("x-Api-key", "again")],
            &[("x_api_key", "theirs"), ("x-api_key", "again")],
            &[("connection", "close, X-Api-Key"), ("x-api-key", "theirs")],
            &[("connection", "x-api-key"), ("Connection", "keep-alive")],
            &[("trailer", "X-Api-Key")],
        ] {
            assert_eq!(sent(set(), fields), ["x-api-key: ours"], "{fields:?}");
        }
        assert_eq!(
            sent(set(), &[("x-api-keys", "1"), ("api-key", "2"), ("trailer", "X-Sum, x-api-key")]),
            ["api-key: 2", "trailer: x-sum", "x-api-key: ours", "x-api-keys: 1"]
        );
        let mut trailers = map(&[("x-api-key", "theirs"), ("x-sum", "1"), ("X_Api_Key", "again")]);
        injection(set()).unwrap().cleanse(&mut trailers);
        assert_eq!(shown(&trailers), ["x-sum: 1"]);
    }

    #[test]
    fn what_is_about_one_connection_stays_behind() {
        assert_eq!(
            sent(
                json!({ "a": "b" }),
                &[
                    ("connection", "x-hop, , keep-alive"),
                    ("x-hop", "1"),
                    ("keep-alive", "timeout=5"),
                    ("proxy-connection", "keep-alive"),
                    ("te", "gzip, trailers"),
                    ("transfer-encoding", "chunked"),
                    ("host", "a.test"),
                    ("content-length", "3"),
                ]
            ),
            ["a: b", "content-length: 3", "host: a.test", "te: trailers"]
        );
        for (connection, bad) in [
            ("host", BadRequest::Connection),
            ("close, Content-Length", BadRequest::Connection),
            ("transfer-encoding", BadRequest::Connection),
            ("a b", BadRequest::Connection),
        ] {
            assert_eq!(go_on(&mut map(&[("connection", connection)])), Err(bad), "{connection}");
        }
    }

    #[test]
    fn an_upgrade_goes_on_unless_it_is_to_http() {
        let mut headers = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(go_on(&mut headers), Ok(true));
        assert_eq!(shown(&headers), ["connection: upgrade", "upgrade: websocket"]);
        let mut headers = map(&[("upgrade", "websocket")]);
        assert_eq!(go_on(&mut headers), Ok(false));
        assert_eq!(shown(&headers), [""; 0]);
        for other in ["h2c", "websocket, H2C", "HTTP/2.0", "TLS/1.2"] {
            let mut headers = map(&[("connection", "upgrade"), ("upgrade", other)]);
            assert_eq!(go_on(&mut headers), Err(BadRequest::Upgrade), "{other}");
        }
    }

    #[test]
    fn a_response_does_not_lead_around_the_filter() {
        let mut headers = map(&[
            ("alt-svc", "h3=\":443\""),
            ("connection", "close"),
            ("upgrade", "h2"),
            ("location", "https://evil.test/"),
        ]);
        come_back(&mut headers, false);
        assert_eq!(shown(&headers), ["location: https://evil.test/"]);
    }

    #[test]
    fn without_its_secret_there_is_nothing_to_set() {
        assert!(injection(json!({ "a": "Bearer ${secrets.KEY}" })).is_err());
        assert!(injection(json!({ "a": "ünï" })).is_ok());
    }

    #[test]
    fn what_is_set_is_not_printed() {
        let mut headers = HeaderMap::new();
        injection(json!({ "a": "hidden" })).unwrap().apply(&mut headers);
        assert!(!format!("{headers:?}").contains("hidden"));
    }
}
