//! Why a request is not passed on, and what the client is told.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS},
};
use serde::Serialize;

use crate::page;

/// Why a request is not passed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is not sound, or is for nobody here.
    BadRequest(&'static str),
    /// It expects what nobody here promises.
    Expectation,
    /// It came over a connection that is another sandbox's.
    Misdirected,
    /// The client asks too fast.
    TooFast {
        /// When it may ask again.
        wait: Duration,
    },
    /// As many requests of the sandbox are under way as may be.
    Busy {
        /// The sandbox.
        id: String,
    },
    /// There is no such sandbox.
    UnknownSandbox {
        /// The name.
        id: String,
    },
    /// Nobody listens there.
    PortClosed {
        /// The sandbox.
        id: String,
        /// The port.
        port: u16,
    },
    /// What the sandbox answers is no HTTP, or too much of it.
    BadAnswer {
        /// The sandbox.
        id: String,
        /// The port.
        port: u16,
    },
    /// The sandbox does not answer in time.
    NoAnswer {
        /// The sandbox.
        id: String,
        /// The port.
        port: u16,
    },
    /// The sandbox wants a token.
    TokenMissing {
        /// The sandbox.
        id: String,
    },
    /// The token is another one.
    TokenInvalid {
        /// The sandbox.
        id: String,
    },
    /// The controller wants a token or a signature. The text is E2B's.
    Unauthorized(&'static str),
}

/// The words for refusals in logs and counters. The list is only added to.
pub const REASONS: [&str; 12] = [
    "bad_request",
    "expectation",
    "misdirected",
    "client_rate",
    "sandbox_busy",
    "unknown_sandbox",
    "port_closed",
    "bad_answer",
    "no_answer",
    "token_missing",
    "token_invalid",
    "unauthorized",
];

impl Refusal {
    /// One of [`REASONS`].
    pub const fn reason(&self) -> &'static str {
        REASONS[self.index()]
    }

    pub(crate) const fn index(&self) -> usize {
        match self {
            Self::BadRequest(_) => 0,
            Self::Expectation => 1,
            Self::Misdirected => 2,
            Self::TooFast { .. } => 3,
            Self::Busy { .. } => 4,
            Self::UnknownSandbox { .. } => 5,
            Self::PortClosed { .. } => 6,
            Self::BadAnswer { .. } => 7,
            Self::NoAnswer { .. } => 8,
            Self::TokenMissing { .. } => 9,
            Self::TokenInvalid { .. } => 10,
            Self::Unauthorized(_) => 11,
        }
    }

    /// The status of the answer.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::TooFast { .. } | Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::UnknownSandbox { .. } | Self::PortClosed { .. } | Self::BadAnswer { .. } => {
                StatusCode::BAD_GATEWAY
            }
            Self::NoAnswer { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::TokenMissing { .. } | Self::TokenInvalid { .. } => StatusCode::FORBIDDEN,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
        }
    }

    /// The sentence of the answer. Clients of E2B know those about tokens, sandboxes and ports word for word.
    pub const fn message(&self) -> &'static str {
        match self {
            Self::BadRequest(message) | Self::Unauthorized(message) => message,
            Self::Expectation => "Unknown expectation",
            Self::Misdirected => "The connection was opened for another sandbox",
            Self::TooFast { .. } => "Rate limit exceeded",
            Self::Busy { .. } => "The sandbox has too many requests at the same time",
            Self::UnknownSandbox { .. } => "The sandbox was not found",
            Self::PortClosed { .. } => "The sandbox is running but port is not open",
            Self::BadAnswer { .. } => "The sandbox is running but what answers on the port is not HTTP",
            Self::NoAnswer { .. } => "The sandbox is running but does not answer in time",
            Self::TokenMissing { .. } => {
                "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"
            }
            Self::TokenInvalid { .. } => {
                "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid"
            }
        }
    }

    /// What to do about it, for people.
    pub(crate) const fn advice(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::Misdirected | Self::Expectation => {
                "Check the address: public URLs begin with the port, a hyphen and the sandbox's id."
            }
            Self::TooFast { .. } | Self::Busy { .. } => "Wait a moment and load the page again.",
            Self::UnknownSandbox { .. } => "It may have ended. Check its id, or start another one.",
            Self::PortClosed { .. } => {
                "Start a server on this port inside the sandbox. It must listen on all addresses (0.0.0.0), not on \
                 localhost alone."
            }
            Self::BadAnswer { .. } => "Check what listens on this port inside the sandbox.",
            Self::NoAnswer { .. } => "The server inside the sandbox may be busy. Load the page again later.",
            Self::TokenMissing { .. } | Self::TokenInvalid { .. } => {
                "Ask the sandbox's owner for an address that ends with ?e2b-traffic-access-token= and the token. After \
                 it was opened once, this browser may visit the sandbox."
            }
            Self::Unauthorized(_) => "This is the sandbox's controller, which is for programs.",
        }
    }

    /// The sandbox that it is about, where there is one.
    pub(crate) fn sandbox(&self) -> Option<&str> {
        match self {
            Self::Busy { id }
            | Self::UnknownSandbox { id }
            | Self::PortClosed { id, .. }
            | Self::BadAnswer { id, .. }
            | Self::NoAnswer { id, .. }
            | Self::TokenMissing { id }
            | Self::TokenInvalid { id } => Some(id),
            Self::BadRequest(_)
            | Self::Expectation
            | Self::Misdirected
            | Self::TooFast { .. }
            | Self::Unauthorized(_) => None,
        }
    }

    const fn port(&self) -> Option<u16> {
        match self {
            Self::PortClosed { port, .. } | Self::BadAnswer { port, .. } | Self::NoAnswer { port, .. } => {
                Some(*port)
            }
            Self::BadRequest(_)
            | Self::Expectation
            | Self::Misdirected
            | Self::TooFast { .. }
            | Self::Busy { .. }
            | Self::UnknownSandbox { .. }
            | Self::TokenMissing { .. }
            | Self::TokenInvalid { .. }
            | Self::Unauthorized(_) => None,
        }
    }

    /// The answer: JSON, or a page for whoever looks at it in a browser.
    pub fn answer(&self, for_people: bool) -> Response<Bytes> {
        let (text, kind) = if for_people {
            (page::of(self).into(), "text/html; charset=utf-8")
        } else {
            (self.json(), "application/json")
        };
        let mut response = Response::new(text);
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if for_people {
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::POLICY));
        }
        if let Some(wait) = self.retry_after() {
            headers.insert(RETRY_AFTER, wait.into());
        }
        response
    }

    /// In whole seconds, of which none is too early (RFC 9110 section 10.2.3).
    fn retry_after(&self) -> Option<u64> {
        match self {
            Self::TooFast { wait } => Some((wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)),
            Self::Busy { .. } => Some(1),
            Self::BadRequest(_)
            | Self::Expectation
            | Self::Misdirected
            | Self::UnknownSandbox { .. }
            | Self::PortClosed { .. }
            | Self::BadAnswer { .. }
            | Self::NoAnswer { .. }
            | Self::TokenMissing { .. }
            | Self::TokenInvalid { .. }
            | Self::Unauthorized(_) => None,
        }
    }

    fn json(&self) -> Bytes {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Document<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            sandbox_id: Option<&'a str>,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            port: Option<u16>,
            code: u16,
        }
        let document = Document {
            sandbox_id: self.sandbox(),
            message: self.message(),
            port: self.port(),
            code: self.status().as_u16(),
        };
        // Strings and numbers always have a form in JSON.
        serde_json::to_vec(&document).unwrap_or_default().into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn all() -> Vec<Refusal> {
        let (id, port) = ("abc".to_owned(), 3000);
        vec![
            Refusal::BadRequest("x"),
            Refusal::Expectation,
            Refusal::Misdirected,
            Refusal::TooFast { wait: Duration::from_millis(1500) },
            Refusal::Busy { id: id.clone() },
            Refusal::UnknownSandbox { id: id.clone() },
            Refusal::PortClosed { id: id.clone(), port },
            Refusal::BadAnswer { id: id.clone(), port },
            Refusal::NoAnswer { id: id.clone(), port },
            Refusal::TokenMissing { id: id.clone() },
            Refusal::TokenInvalid { id },
            Refusal::Unauthorized("y"),
        ]
    }

    #[test]
    fn each_has_a_word_of_its_own() {
        let words: HashSet<_> = all().iter().map(Refusal::reason).collect();
        assert_eq!(words, HashSet::from(REASONS));
    }

    #[test]
    fn bodies_are_as_clients_know_them() {
        let body = |refusal: Refusal| String::from_utf8(refusal.answer(false).into_body().to_vec()).unwrap();
        let id = || "abc".to_owned();
        assert_eq!(
            body(Refusal::TokenMissing { id: id() }),
            r#"{"sandboxId":"abc","message":"Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing","code":403}"#
        );
        assert_eq!(
            body(Refusal::TokenInvalid { id: id() }),
            r#"{"sandboxId":"abc","message":"Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid","code":403}"#
        );
        assert_eq!(
            body(Refusal::PortClosed { id: id(), port: 3000 }),
            r#"{"sandboxId":"abc","message":"The sandbox is running but port is not open","port":3000,"code":502}"#
        );
        assert_eq!(
            body(Refusal::UnknownSandbox { id: id() }),
            r#"{"sandboxId":"abc","message":"The sandbox was not found","code":502}"#
        );
        assert_eq!(
            body(Refusal::Unauthorized("invalid signature")),
            r#"{"message":"invalid signature","code":401}"#
        );
    }

    #[test]
    fn waiting_is_told_in_whole_seconds() {
        let after = |refusal: Refusal| refusal.answer(false).headers().get(RETRY_AFTER).cloned();
        assert_eq!(after(Refusal::TooFast { wait: Duration::from_millis(1500) }).unwrap(), "2");
        assert_eq!(after(Refusal::TooFast { wait: Duration::ZERO }).unwrap(), "1");
        assert_eq!(after(Refusal::Busy { id: "a".into() }).unwrap(), "1");
        assert!(after(Refusal::Misdirected).is_none());
    }

    #[test]
    fn people_get_a_page_that_runs_nothing() {
        for refusal in all() {
            let answer = refusal.answer(true);
            assert_eq!(answer.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
            assert!(
                answer.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().contains("default-src 'none'")
            );
            let text = String::from_utf8(answer.into_body().to_vec()).unwrap();
            assert!(text.contains(&page::escaped(refusal.message())), "{text}");
        }
    }
}
