//! What an HTTP client is told when its request goes nowhere.

use filter_common::Reason;
use filter_policy::Name;
use serde_json::json;

use super::request::BadRequest;

/// Why there is no response from the server that the client wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// The policy, or the state of the filter.
    Denied(Reason),
    /// The request can be read in more than one way.
    BadRequest(BadRequest),
    /// So can its body.
    BadBody,
    /// So can the response.
    BadResponse,
    /// It is for another host than the one that the connection was opened for.
    Misdirected,
    /// It asks to be shown itself, with the headers that were set in it.
    Trace,
    /// The server is not to be believed, and why.
    Untrusted(&'static str),
}

impl Why {
    /// The reason that it is counted and told as.
    pub(crate) const fn reason(self) -> Reason {
        match self {
            Self::Denied(reason) => reason,
            Self::BadRequest(bad) => bad.reason(),
            Self::BadBody | Self::BadResponse | Self::Misdirected | Self::Trace => Reason::BadRequest,
            Self::Untrusted(_) => Reason::UpstreamTls,
        }
    }

    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Denied(Reason::Unresolved | Reason::NoSecret | Reason::UpstreamTls)
            | Self::BadResponse
            | Self::Untrusted(_) => 502,
            Self::Misdirected => 421,
            Self::Trace => 405,
            Self::Denied(Reason::Capacity) => 503,
            Self::Denied(Reason::PeekTimeout) => 408,
            Self::Denied(_) => 403,
            Self::BadRequest(bad) => bad.status(),
            Self::BadBody => 400,
        }
    }

    fn error(self) -> &'static str {
        match (self, self.status()) {
            (Self::BadRequest(_) | Self::BadBody | Self::Misdirected | Self::Trace, _) => "bad_request",
            (_, 408) => "timeout",
            (_, 502) => "bad_gateway",
            (_, 503) => "unavailable",
            _ => "policy_denied",
        }
    }

    /// What whoever wrote the client can do about it.
    fn hint(self, host: Option<&Name>) -> String {
        let hint = match self {
            Self::BadRequest(bad) => bad.explanation(),
            Self::BadBody => "The chunks of the body are malformed.",
            Self::BadResponse => "The server's response can be read in more than one way.",
            Self::Misdirected => "Open another connection: a request's host is that of its connection.",
            Self::Trace => "TRACE is not passed on where headers are set.",
            Self::Untrusted(why) => why,
            Self::Denied(reason) => match (reason, host) {
                (Reason::NameNotAllowed, Some(host)) => {
                    return format!("Add \"{host}\" to allowOut in the sandbox's network policy.");
                }
                (Reason::NoName, _) => "Name a host: the policy allows names, and the request has none.",
                (Reason::BadName, _) => {
                    "Host must be a host name, with the connection's port or without one."
                }
                (Reason::Guarded, _) => {
                    "The name leads to an address of the platform, which no policy opens."
                }
                (Reason::Unresolved, _) => "The name is allowed, but no address of it answers.",
                (Reason::Capacity, _) => "The sandbox has too many connections at once; try again later.",
                (Reason::NoSecret, _) => {
                    "A header of the host's rule names a secret that the operator has not put into \
                     [transform].secrets_dir."
                }
                (Reason::PeekTimeout, _) => "The request did not arrive in time.",
                (Reason::Revoked, _) => "The sandbox's network policy is no longer in force.",
                _ => "The sandbox's network policy does not allow it.",
            },
        };
        hint.to_owned()
    }
}

/// What a client is told. `rule` is the JSON pointer of the entry that decided.
pub(crate) fn body(why: Why, rule: Option<&str>, host: Option<&Name>) -> String {
    let body = json!({
        "error": why.error(),
        "reason": why.reason().name(),
        "rule": rule,
        "host": host.map(Name::as_str),
        "hint": why.hint(host),
    });
    format!("{body}\n")
}

/// A whole response, after which the connection is closed. `bodiless` is for a request whose response has no
/// body.
pub(crate) fn response(why: Why, rule: Option<&str>, host: Option<&Name>, bodiless: bool) -> Vec<u8> {
    let status = why.status();
    let body = body(why, rule, host);
    let mut response = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        phrase(status),
        body.len()
    );
    if !bodiless {
        response += &body;
    }
    response.into_bytes()
}

fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Refused",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn split(response: &[u8]) -> (String, Value) {
        let text = String::from_utf8(response.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        (head.to_owned(), serde_json::from_str(body).unwrap())
    }

    #[test]
    fn a_denial_says_what_to_do() {
        let host = Name::parse("denied.test").unwrap();
        let why = Why::Denied(Reason::NameNotAllowed);
        let (head, body) = split(&response(why, Some("/denyOut/0"), Some(&host), false));
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n") && head.ends_with("Connection: close"));
        assert_eq!(
            body,
            json!({
                "error": "policy_denied",
                "reason": "name_not_allowed",
                "rule": "/denyOut/0",
                "host": "denied.test",
                "hint": "Add \"denied.test\" to allowOut in the sandbox's network policy.",
            })
        );
    }

    #[test]
    fn every_refusal_has_status_and_error() {
        for (why, status, error) in [
            (Why::Denied(Reason::NoName), 403, "policy_denied"),
            (Why::Denied(Reason::Unresolved), 502, "bad_gateway"),
            (Why::Denied(Reason::Capacity), 503, "unavailable"),
            (Why::Denied(Reason::PeekTimeout), 408, "timeout"),
            (Why::BadRequest(BadRequest::TwoLengths), 400, "bad_request"),
            (Why::BadRequest(BadRequest::Connect), 403, "bad_request"),
            (Why::BadBody, 400, "bad_request"),
            (Why::BadResponse, 502, "bad_gateway"),
            (Why::Misdirected, 421, "bad_request"),
            (Why::Trace, 405, "bad_request"),
            (Why::Untrusted("It has expired."), 502, "bad_gateway"),
            (Why::Denied(Reason::NoSecret), 502, "bad_gateway"),
        ] {
            let (head, body) = split(&response(why, None, None, false));
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{why:?}");
            assert_eq!((&body["error"], &body["rule"]), (&json!(error), &Value::Null), "{why:?}");
        }
    }

    #[test]
    fn a_response_to_head_has_no_body() {
        let response = response(Why::Denied(Reason::NoName), None, None, true);
        assert!(response.ends_with(b"\r\n\r\n"));
    }
}
