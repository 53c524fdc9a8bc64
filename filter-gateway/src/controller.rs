//! Who may ask a sandbox's controller. Rules, texts and signatures are those of E2B's `envd`.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use http::{Method, request::Parts};
use sha2::{Digest as _, Sha256};

use crate::{directory::Secret, refusal::Refusal};

/// The header that the controller's token comes in.
pub const HEADER: &str = "x-access-token";

const UNAUTHORIZED: &str =
    "unauthorized access, please provide a valid access token or method signing if supported";
const OTHER_TOKEN: &str = "access token present in header but does not match";
const NO_SIGNATURE: &str = "missing signature query parameter";
const BAD_SIGNATURE: &str = "invalid signature";
const EXPIRED: &str = "signature is already expired";

/// Whether a request may reach the controller of a sandbox that is secured by `token`.
///
/// # Errors
/// If neither the token nor a signature says so.
pub fn admit(parts: &Parts, token: &Secret, now: SystemTime) -> Result<(), Refusal> {
    let mut shown = parts.headers.get_all(HEADER).iter();
    let (first, second) = (shown.next(), shown.next());
    let operation = match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/health") => return Ok(()),
        (&Method::GET, "/files") => Some("read"),
        (&Method::POST, "/files") => Some("write"),
        _ => None,
    };
    // envd takes an empty header for none.
    let first = first.filter(|value| !value.is_empty() || second.is_some());
    match (first, operation) {
        (Some(value), _) if token.is(value.as_bytes()) && second.is_none() => Ok(()),
        (Some(_), Some(_)) => Err(Refusal::Unauthorized(OTHER_TOKEN)),
        (Some(_), None) | (None, None) => Err(Refusal::Unauthorized(UNAUTHORIZED)),
        (None, Some(operation)) => {
            let query = parts.uri.query().unwrap_or_default();
            signed(query, operation, token, now).map_err(Refusal::Unauthorized)
        }
    }
}

fn signed(query: &str, operation: &str, token: &Secret, now: SystemTime) -> Result<(), &'static str> {
    let (path, user) = (only(query, "path")?, only(query, "username")?);
    let expiration = only(query, "signature_expiration")?;
    let signature = only(query, "signature")?.ok_or(NO_SIGNATURE)?;
    let expected = sign(
        path.as_deref().unwrap_or_default(),
        operation,
        user.as_deref().unwrap_or_default(),
        token,
        expiration.as_deref(),
    );
    if !Secret::new(expected).is(signature.as_bytes()) {
        return Err(BAD_SIGNATURE);
    }
    let Some(expiration) = expiration else { return Ok(()) };
    let until: u64 = expiration.parse().map_err(|_| BAD_SIGNATURE)?;
    let now = now.duration_since(UNIX_EPOCH).map(|now| now.as_secs()).unwrap_or(u64::MAX);
    if until < now { Err(EXPIRED) } else { Ok(()) }
}

/// What signs one operation on one path for one user, until a time in seconds since 1970 where there is one.
pub fn sign(path: &str, operation: &str, user: &str, token: &Secret, expiration: Option<&str>) -> String {
    let mut hash = Sha256::new();
    for part in [path, ":", operation, ":", user, ":", token.expose()] {
        hash.update(part);
    }
    if let Some(expiration) = expiration {
        hash.update(":");
        hash.update(expiration);
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(hash.finalize()))
}

/// The one value of a parameter. With two, the controller might take the one that was not signed.
fn only(query: &str, name: &str) -> Result<Option<String>, &'static str> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(found, _)| found == name);
    let first = values.next().map(|(_, value)| value.into_owned());
    if values.next().is_some() { Err(BAD_SIGNATURE) } else { Ok(first) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn asked(method: Method, target: &str, tokens: &[&str]) -> Result<(), &'static str> {
        let mut request = Request::builder().method(method).uri(target);
        for token in tokens {
            request = request.header(HEADER, *token);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        admit(&parts, &Secret::new("secret"), now).map_err(|refusal| refusal.message())
    }

    #[test]
    fn a_token_opens_everything_and_health_is_open() {
        for (method, path) in [(Method::GET, "/files"), (Method::POST, "/process.Process/Start")] {
            assert_eq!(asked(method, path, &["secret"]), Ok(()));
        }
        assert_eq!(asked(Method::GET, "/health", &[]), Ok(()));
        assert_eq!(asked(Method::GET, "/health?x=1", &["wrong"]), Ok(()));
        for (method, path, tokens, message) in [
            (Method::GET, "/", &[][..], UNAUTHORIZED),
            (Method::GET, "/", &["wrong"], UNAUTHORIZED),
            (Method::GET, "/", &["Secret"], UNAUTHORIZED),
            (Method::GET, "/", &["secret", "secret"], UNAUTHORIZED),
            (Method::POST, "/health", &[], UNAUTHORIZED),
            (Method::GET, "/health/", &[], UNAUTHORIZED),
            (Method::GET, "/files/", &[], UNAUTHORIZED),
            (Method::PUT, "/files", &[], UNAUTHORIZED),
            (Method::GET, "/files?signature=x", &["wrong"], OTHER_TOKEN),
            (Method::GET, "/files", &["", "secret"], OTHER_TOKEN),
            (Method::GET, "/files", &[], NO_SIGNATURE),
            (Method::GET, "/files", &[""], NO_SIGNATURE),
        ] {
            assert_eq!(asked(method, path, tokens), Err(message), "{path} {tokens:?}");
        }
    }

    #[test]
    fn a_signature_is_for_one_path_operation_user_and_time() {
        // As the SDKs make them: sha256("/home/a b.txt:read:user:secret:1700000060").
        let secret = Secret::new("secret");
        let timed = sign("/home/a b.txt", "read", "user", &secret, Some("1700000060"));
        let encoded: String = form_urlencoded::byte_serialize(timed.as_bytes()).collect();
        let url = |rest: &str| format!("/files?signature={encoded}&{rest}");
        let right = url("path=%2Fhome%2Fa%20b.txt&username=user&signature_expiration=1700000060");
        assert_eq!(asked(Method::GET, &right, &[]), Ok(()));
        for wrong in [
            url("path=%2Fhome%2Fb.txt&username=user&signature_expiration=1700000060"),
            url("path=%2Fhome%2Fa%20b.txt&username=root&signature_expiration=1700000060"),
            url("path=%2Fhome%2Fa%20b.txt&signature_expiration=1700000060"),
            url("path=%2Fhome%2Fa%20b.txt&username=user&signature_expiration=1700000061"),
            url("path=%2Fhome%2Fa%20b.txt&username=user"),
            format!("{right}&path=%2Fetc%2Fshadow"),
            format!("{right}&signature=x"),
            "/files?signature=v1_".to_owned(),
            "/files?signature=".to_owned(),
        ] {
            assert_eq!(asked(Method::GET, &wrong, &[]), Err(BAD_SIGNATURE), "{wrong}");
        }
        assert_eq!(asked(Method::POST, &right, &[]), Err(BAD_SIGNATURE));
        let write = sign("/x", "write", "", &secret, None);
        let encoded: String = form_urlencoded::byte_serialize(write.as_bytes()).collect();
        assert_eq!(asked(Method::POST, &format!("/files?path=/x&signature={encoded}"), &[]), Ok(()));
        assert_eq!(
            asked(Method::GET, &format!("/files?path=/x&signature={encoded}"), &[]),
            Err(BAD_SIGNATURE)
        );
    }

    #[test]
    fn a_signature_ends() {
        let secret = Secret::new("secret");
        for (until, expected) in [
            ("1700000000", Ok(())),
            ("1699999999", Err(EXPIRED)),
            ("0", Err(EXPIRED)),
            ("-1", Err(BAD_SIGNATURE)),
            ("", Err(BAD_SIGNATURE)),
            ("soon", Err(BAD_SIGNATURE)),
        ] {
            let signature = sign("/x", "read", "", &secret, Some(until));
            let encoded: String = form_urlencoded::byte_serialize(signature.as_bytes()).collect();
            let url = format!("/files?path=/x&signature={encoded}&signature_expiration={until}");
            assert_eq!(asked(Method::GET, &url, &[]), expected, "{until}");
        }
    }

    #[test]
    fn signatures_are_those_of_the_sdks() {
        // printf '/a:read:user:token' | openssl dgst -sha256 -binary | base64
        let signature = sign("/a", "read", "user", &Secret::new("token"), None);
        assert_eq!(signature, "v1_MTo2xowazkHy1MgGwYBHxr+gIN82G3dLPTD2iJqUjig");
    }
}
