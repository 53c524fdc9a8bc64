//! WebSockets: over an upgraded HTTP/1.1 connection (RFC 6455), or a stream of HTTP/2 (RFC 8441); in the sandbox always
//! the former.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Version,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
    request::Parts,
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sha1::{Digest as _, Sha1};
use tokio::io::copy_bidirectional;

use crate::{idle::Activity, limit::Place};

/// Makes the beginning of a WebSocket over HTTP/2 one over HTTP/1.1. The key that is to be confirmed is returned.
pub(crate) fn downgrade(parts: &mut Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_2 {
        return None;
    }
    parts.method = Method::GET;
    let key = HeaderValue::try_from(STANDARD.encode(rand::random::<[u8; 16]>())).ok()?;
    parts.headers.insert(SEC_WEBSOCKET_KEY, key.clone());
    parts.headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    Some(key)
}

/// Whether a sandbox that answered 101 agreed to a WebSocket, and, where the gateway made the key, to this one.
pub(crate) fn is_agreed(headers: &HeaderMap, key: Option<&HeaderValue>) -> bool {
    let upgrade = headers.get(UPGRADE).map(HeaderValue::as_bytes).unwrap_or_default();
    let confirmed =
        |key: &HeaderValue| headers.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|accept| *accept == accepted(key));
    upgrade.eq_ignore_ascii_case(b"websocket") && key.is_none_or(confirmed)
}

/// RFC 6455 section 1.3.
fn accepted(key: &HeaderValue) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// Makes the answer to a WebSocket over HTTP/1.1 one over HTTP/2.
pub(crate) fn upgraded(response: &mut Response<Bytes>) {
    *response.status_mut() = StatusCode::OK;
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
        response.headers_mut().remove(name);
    }
}

/// Passes bytes on between two connections that are about to be tunnels, until both ends have closed or nothing moves.
pub(crate) async fn join(
    client: OnUpgrade,
    sandbox: OnUpgrade,
    activity: Activity,
    silence: Duration,
    place: Place,
) {
    let _place = place;
    let passing = async {
        let (client, sandbox) = tokio::try_join!(client, sandbox)?;
        // How it ended is the ends' business.
        let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(sandbox)).await;
        Ok::<_, hyper::Error>(())
    };
    tokio::select! {
        _ = passing => {}
        () = activity.over(silence) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_confirmed_as_the_standard_has_it() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accepted(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let mut headers = HeaderMap::new();
        assert!(!is_agreed(&headers, None));
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        assert!(is_agreed(&headers, None) && !is_agreed(&headers, Some(&key)));
        headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(is_agreed(&headers, Some(&key)));
        headers.insert(UPGRADE, HeaderValue::from_static("h2c"));
        assert!(!is_agreed(&headers, None));
    }
}
