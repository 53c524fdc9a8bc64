//! Who may visit a sandbox that is not open to everybody.

use http::{
    HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{CACHE_CONTROL, LOCATION, REFERRER_POLICY, SET_COOKIE, UPGRADE},
    request::Parts,
    uri::PathAndQuery,
};

use crate::{cookies, directory::Secret, query, refusal::Refusal};

/// The header, the cookie and the parameter of a query that the traffic token comes in.
pub const TOKEN: &str = "e2b-traffic-access-token";
pub(crate) const TOKEN_HEADER: HeaderName = HeaderName::from_static(TOKEN);

/// What becomes of a request that shows the token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// It is passed on.
    Pass,
    /// The browser gets a cookie and comes again without the token in its address.
    Welcome,
}

/// Looks for the token. What was shown most deliberately decides: a header, then an address, then a cookie.
///
/// # Errors
/// If it is missing, another one, or there twice.
pub fn admit(parts: &Parts, token: &Secret, id: &str) -> Result<Admission, Refusal> {
    let invalid = || Refusal::TokenInvalid { id: id.to_owned() };
    let mut headers = parts.headers.get_all(TOKEN_HEADER).iter();
    if let Some(shown) = headers.next() {
        let alone = headers.next().is_none();
        return if token.is(shown.as_bytes()) && alone { Ok(Admission::Pass) } else { Err(invalid()) };
    }
    if may_be_sent_elsewhere(parts) {
        let mut in_query = query::tokens(parts.uri.query().unwrap_or_default());
        if let Some(shown) = in_query.next() {
            let alone = in_query.next().is_none();
            let valid = token.is(shown.as_bytes()) && alone;
            return if valid { Ok(Admission::Welcome) } else { Err(invalid()) };
        }
    }
    // Of several one may be the right one, and the others be put there by somebody who wants to lock its owner out.
    let (mut found, mut valid) = (false, false);
    for shown in cookies::tokens(&parts.headers) {
        found = true;
        valid |= token.is(shown);
    }
    match (found, valid) {
        (_, true) => Ok(Admission::Pass),
        (true, false) => Err(invalid()),
        (false, false) => Err(Refusal::TokenMissing { id: id.to_owned() }),
    }
}

/// Only what a browser fetches can be sent to another address without loss.
fn may_be_sent_elsewhere(parts: &Parts) -> bool {
    matches!(parts.method, Method::GET | Method::HEAD) && !parts.headers.contains_key(UPGRADE)
}

/// Sends a browser that has shown the token in its address to the same one without, with a cookie for this host alone.
pub fn welcome(parts: &Parts, token: &Secret, secure: bool) -> Response<()> {
    let target = parts.uri.path_and_query();
    let clean = target.and_then(query::without_token).unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut location = clean.to_string();
    // `//name` and `/\name` would be read as another host (RFC 3986 section 4.2).
    if location.starts_with("//") || location.starts_with("/\\") {
        location.insert_str(0, "/.");
    }
    let secure = if secure { "; Secure" } else { "" };
    let cookie = format!("{TOKEN}={}; Path=/; HttpOnly; SameSite=Lax{secure}", token.expose());
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    for (name, value) in [(LOCATION, location), (SET_COOKIE, cookie)] {
        // Of what can stand in a target, and of a token, which is hexadecimal.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use http::{Request, header::COOKIE};

    use super::*;

    fn request(method: Method, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn asked(method: Method, target: &str, headers: &[(&str, &str)]) -> Result<Admission, &'static str> {
        let token = Secret::new("right");
        admit(&request(method, target, headers), &token, "abc").map_err(|refusal| refusal.reason())
    }

    #[test]
    fn a_header_decides_alone() {
        let right = (TOKEN, "right");
        assert_eq!(asked(Method::GET, "/", &[right]), Ok(Admission::Pass));
        assert_eq!(asked(Method::POST, "/?e2b-traffic-access-token=wrong", &[right]), Ok(Admission::Pass));
        for headers in [
            &[(TOKEN, "wrong")][..],
            &[(TOKEN, "RIGHT")],
            &[(TOKEN, "")],
            &[(TOKEN, "right, right")],
            &[right, right],
            &[right, (TOKEN, "wrong")],
            &[(TOKEN, "wrong"), (COOKIE.as_str(), "e2b-traffic-access-token=right")],
        ] {
            assert_eq!(asked(Method::GET, "/", headers), Err("token_invalid"), "{headers:?}");
        }
        assert_eq!(asked(Method::GET, "/", &[("x-e2b-traffic-access-token", "right")]), Err("token_missing"));
    }

    #[test]
    fn an_address_is_good_for_a_welcome_only() {
        let right = "/?e2b-traffic-access-token=right";
        assert_eq!(asked(Method::GET, right, &[]), Ok(Admission::Welcome));
        assert_eq!(asked(Method::HEAD, right, &[]), Ok(Admission::Welcome));
        for method in [Method::POST, Method::PUT, Method::OPTIONS, Method::DELETE] {
            assert_eq!(asked(method, right, &[]), Err("token_missing"));
        }
        assert_eq!(asked(Method::GET, right, &[("upgrade", "websocket")]), Err("token_missing"));
        for wrong in [
            "/?e2b-traffic-access-token=wrong",
            "/?e2b-traffic-access-token",
            "/?e2b-traffic-access-token=right&e2b-traffic-access-token=right",
        ] {
            assert_eq!(asked(Method::GET, wrong, &[]), Err("token_invalid"), "{wrong}");
        }
    }

    #[test]
    fn of_cookies_one_must_be_right() {
        let cookie = |value| [(COOKIE.as_str(), value)];
        let ask = |value| asked(Method::POST, "/", &cookie(value));
        assert_eq!(ask("a=1; e2b-traffic-access-token=right"), Ok(Admission::Pass));
        assert_eq!(
            ask("e2b-traffic-access-token=wrong; e2b-traffic-access-token=right"),
            Ok(Admission::Pass)
        );
        assert_eq!(ask("e2b-traffic-access-token=wrong"), Err("token_invalid"));
        assert_eq!(ask("a=right"), Err("token_missing"));
    }

    #[test]
    fn the_welcome_leads_to_the_same_host_without_the_token() {
        for (target, location) in [
            ("/?e2b-traffic-access-token=right", "/"),
            ("/a/b?x=1&e2b-traffic-access-token=right&y=%20", "/a/b?x=1&y=%20"),
            ("//evil.test/?e2b-traffic-access-token=right", "/.//evil.test/"),
            ("/\\evil.test/?e2b-traffic-access-token=right", "/./\\evil.test/"),
        ] {
            let mut parts = request(Method::GET, "/", &[]);
            let mut uri = http::uri::Parts::default();
            uri.path_and_query = Some(PathAndQuery::try_from(target).unwrap());
            parts.uri = uri.try_into().unwrap();
            let response = welcome(&parts, &Secret::new("right"), false);
            assert_eq!(response.status(), 303);
            assert_eq!(response.headers()[LOCATION], location, "{target}");
            let cookie = &response.headers()[SET_COOKIE];
            assert_eq!(cookie, "e2b-traffic-access-token=right; Path=/; HttpOnly; SameSite=Lax");
        }
        let response = welcome(&request(Method::GET, "/", &[]), &Secret::new("right"), true);
        assert!(response.headers()[SET_COOKIE].to_str().unwrap().ends_with("; Secure"));
    }
}
