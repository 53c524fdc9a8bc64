//! Cookies: what a sandbox does not get to see, and what it does not get to set.

use http::{
    HeaderMap, HeaderValue,
    header::{COOKIE, Entry, SET_COOKIE},
};

use crate::access::TOKEN;

/// The values of all traffic tokens that come as cookies. There may be several: another sandbox's page can have set one
/// for the whole domain.
pub(crate) fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    crumbs(headers).filter_map(|crumb| value(crumb, TOKEN.as_bytes()))
}

/// Makes the cookies one header, as HTTP/1.1 has them (RFC 6265 section 5.4; HTTP/2 may split them, RFC 9113 section
/// 8.2.3), without the traffic token.
pub(crate) fn forward(headers: &mut HeaderMap) {
    let mut values = headers.get_all(COOKIE).iter();
    let Some(first) = values.next() else { return };
    if values.next().is_none() && crumbs_of(first).all(|crumb| value(crumb, TOKEN.as_bytes()).is_none()) {
        return;
    }
    let kept: Vec<&[u8]> = crumbs(headers).filter(|crumb| value(crumb, TOKEN.as_bytes()).is_none()).collect();
    // Joined from parts of header values, it is one.
    let joined = HeaderValue::from_bytes(&kept.join(&b"; "[..]));
    match joined {
        Ok(joined) if !joined.is_empty() => drop(headers.insert(COOKIE, joined)),
        Ok(_) | Err(_) => drop(headers.remove(COOKIE)),
    }
}

/// Drops cookies of an answer that are meant for more than `host`, which is in lower case and without port.
pub(crate) fn keep_own(headers: &mut HeaderMap, host: &str) {
    if headers.get_all(SET_COOKIE).iter().all(|cookie| is_own(cookie.as_bytes(), host)) {
        return;
    }
    let Entry::Occupied(entry) = headers.entry(SET_COOKIE) else { return };
    let (name, values) = entry.remove_entry_mult();
    let own: Vec<_> = values.filter(|cookie| is_own(cookie.as_bytes(), host)).collect();
    for cookie in own {
        headers.append(name.clone(), cookie);
    }
}

/// Whether every `Domain` of a cookie is the host itself. One without a value does not count (RFC 6265 section 5.2.3).
fn is_own(cookie: &[u8], host: &str) -> bool {
    let attributes = cookie.split(|byte| *byte == b';').skip(1).map(<[u8]>::trim_ascii);
    attributes.filter_map(|attribute| value(attribute, b"domain")).all(|domain| {
        let domain = domain.strip_prefix(b".").unwrap_or(domain);
        domain.is_empty() || domain.eq_ignore_ascii_case(host.as_bytes())
    })
}

fn crumbs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(COOKIE).iter().flat_map(crumbs_of)
}

fn crumbs_of(header: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    let crumbs = header.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    crumbs.filter(|crumb| !crumb.is_empty())
}

/// The value of `name=value`, if it is that. Cookies' names are told apart by case; a token that is not sent as one is
/// hidden all the same.
fn value<'a>(pair: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let equals = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
    let (found, value) = pair.split_at(equals);
    found.trim_ascii().eq_ignore_ascii_case(name).then(|| value.get(1..).unwrap_or_default().trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookies(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (COOKIE, HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn the_token_is_taken_out_and_the_rest_joined() {
        for (sent, seen) in [
            (&["a=1; b=2"][..], Some("a=1; b=2")),
            (&["a=1;b=2"], Some("a=1;b=2")),
            (&["a=1", "b=2"], Some("a=1; b=2")),
            (&["e2b-traffic-access-token=t"], None),
            (
                &["a=1; e2b-traffic-access-token=t; b=e2b-traffic-access-token"],
                Some("a=1; b=e2b-traffic-access-token"),
            ),
            (&["a=1", "E2B-Traffic-Access-Token = t"], Some("a=1")),
            (&["e2b-traffic-access-token"], None),
            (&["xe2b-traffic-access-token=1"], Some("xe2b-traffic-access-token=1")),
        ] {
            let mut headers = cookies(sent);
            forward(&mut headers);
            assert_eq!(headers.get(COOKIE).map(|value| value.to_str().unwrap()), seen, "{sent:?}");
        }
        let mut none = HeaderMap::new();
        forward(&mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn all_tokens_are_found() {
        let headers = cookies(&["e2b-traffic-access-token=a; x=1", "e2b-traffic-access-token=b"]);
        assert_eq!(tokens(&headers).collect::<Vec<_>>(), [b"a", b"b"]);
    }

    #[test]
    fn cookies_for_more_than_the_own_host_are_dropped() {
        const HOST: &str = "3000-abc.sandbox.localhost";
        for (cookie, own) in [
            ("a=1", true),
            ("a=1; Path=/; HttpOnly", true),
            ("a=domain=x", true),
            ("a=1; Domain=3000-abc.sandbox.localhost", true),
            ("a=1; domain=.3000-ABC.sandbox.localhost", true),
            ("a=1; Domain=", true),
            ("a=1; Domain", true),
            ("a=1; Domain=sandbox.localhost", false),
            ("a=1; DOMAIN = .sandbox.localhost", false),
            ("a=1;Domain=localhost", false),
            ("a=1; Domain=3000-abc.sandbox.localhost; Domain=sandbox.localhost", false),
            ("a=1; Domain=sandbox.localhost; Domain=3000-abc.sandbox.localhost", false),
            ("a=1; Domain=example.com", false),
            ("a=1; Domain=\"sandbox.localhost\"", false),
            ("a=1; Domain=sandbox.localhost.", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(SET_COOKIE, HeaderValue::from_static("first=1"));
            headers.append(SET_COOKIE, HeaderValue::from_str(cookie).unwrap());
            headers.append(SET_COOKIE, HeaderValue::from_static("last=1"));
            keep_own(&mut headers, HOST);
            assert_eq!(headers.get_all(SET_COOKIE).iter().count(), if own { 3 } else { 2 }, "{cookie}");
        }
    }
}
