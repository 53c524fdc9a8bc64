//! The query of a request's target: whether the traffic token is in it, and the target without.

use std::borrow::Cow;

use form_urlencoded::parse;
use http::uri::PathAndQuery;

use crate::access::TOKEN;

/// The tokens in a query, in order.
pub(crate) fn tokens(query: &str) -> impl Iterator<Item = Cow<'_, str>> {
    parse(query.as_bytes()).filter(|(name, _)| name == TOKEN).map(|(_, value)| value)
}

/// The target without any token; `None` if there is none in it. All else stays as it was written.
pub(crate) fn without_token(target: &PathAndQuery) -> Option<PathAndQuery> {
    let query = target.query()?;
    // Whatever else it is called, the name has either these letters in it or an escaped one.
    if !query.contains("e2b") && !query.contains('%') {
        return None;
    }
    let is_token = |part: &&str| parse(part.as_bytes()).any(|(name, _)| name == TOKEN);
    if !query.split('&').any(|part| is_token(&part)) {
        return None;
    }
    let rest: Vec<_> = query.split('&').filter(|part| !is_token(part)).collect();
    let path = target.path();
    let text = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
    // A part of what was a target is one.
    PathAndQuery::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(target: &str) -> Option<String> {
        without_token(&PathAndQuery::try_from(target).unwrap()).map(|target| target.to_string())
    }

    #[test]
    fn the_token_goes_and_all_else_stays() {
        for (target, expected) in [
            ("/", None),
            ("/?a=1", None),
            ("/?e2b=1&x=%20", None),
            ("/?E2B-traffic-access-token=t", None),
            ("/e2b-traffic-access-token=t", None),
            ("/x?e2b-traffic-access-token=t", Some("/x")),
            ("/x?a=%2F&e2b-traffic-access-token=t&&b=+", Some("/x?a=%2F&&b=+")),
            ("/x?e2b-traffic-access-token", Some("/x")),
            ("/x?e2b%2Dtraffic%2daccess-token=t&a", Some("/x?a")),
            ("/x?%65%32%62-traffic-access-token=t&e2b-traffic-access-token=u", Some("/x")),
        ] {
            assert_eq!(without(target).as_deref(), expected, "{target}");
        }
        let found: Vec<_> =
            tokens("a=b&e2b-traffic-access-token=x%41&e2b%2dtraffic-access-token=y").collect();
        assert_eq!(found, ["xA", "y"]);
    }
}
