//! How a refusal looks: E2B's `{"code", "message"}`, and for the project's own clients an `error` beside it that
//! says more.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    error::{ControlError, ErrorCode},
    limits::{Refused, Standing, seconds},
    sandboxes::CreateError,
};

pub(super) const RATE_LIMITED: &str = "Rate limit exceeded";

/// A refusal.
#[derive(Clone, PartialEq, Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    error: Option<Box<ControlError>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The body of a refusal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// The status.
    pub code: u16,
    /// A sentence.
    pub message: String,
    /// What the project's own routes say besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ControlError>,
}

impl ApiError {
    /// A refusal with nothing but a sentence.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), error: None, headers: Vec::new() }
    }

    /// What was sent is not well-formed.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// No sandbox of the caller has this id; in E2B's words.
    pub fn no_sandbox(id: &str) -> Self {
        let message = format!("Sandbox \"{id}\" doesn't exist or you don't have access to it");
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// Too fast.
    pub fn rate_limited(refused: Refused) -> Self {
        let wait = seconds(refused.wait).max(1);
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, RATE_LIMITED);
        error.headers =
            rate_headers(Standing { limit: refused.limit, remaining: 0, reset: Duration::from_secs(wait) });
        error.headers.push((header::RETRY_AFTER, wait.into()));
        error
    }

    /// Too many at the same time.
    fn too_many(limit: u32) -> Self {
        /// One may end at any time.
        const WAIT: Duration = Duration::from_secs(1);
        let mut error = Self::rate_limited(Refused { limit, wait: WAIT });
        error.message = format!("you have reached the maximum number of concurrent sandboxes ({limit})");
        error
    }

    /// Too much of one caller is on its way.
    pub fn too_much_at_once() -> Self {
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too much is being sent with this key at the same time; send one long body after the other",
        );
        error.headers.push((header::RETRY_AFTER, 1.into()));
        error
    }

    /// Whether it says that something is not there.
    pub fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// As the project's own clients are told of it.
    pub fn as_usage(self) -> Self {
        if self.status == StatusCode::BAD_REQUEST { ControlError::usage(self.message).into() } else { self }
    }

    /// A refusal of E2B's routes, about this sandbox.
    pub fn about(id: &str, error: ControlError) -> Self {
        if error.code == ErrorCode::NotFound { Self::no_sandbox(id) } else { error.into() }
    }

    /// A refusal of making a sandbox.
    pub fn of_creation(error: CreateError) -> Self {
        match error {
            CreateError::TooMany(limit) => Self::too_many(limit),
            CreateError::TooFast(refused) => Self::rate_limited(refused),
            CreateError::Control(error) => error.into(),
        }
    }
}

/// The headers that say how the caller stands
/// (<https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-07.html>).
pub(super) fn rate_headers(standing: Standing) -> Vec<(HeaderName, HeaderValue)> {
    vec![
        (HeaderName::from_static("ratelimit-limit"), standing.limit.into()),
        (HeaderName::from_static("ratelimit-remaining"), standing.remaining.into()),
        (HeaderName::from_static("ratelimit-reset"), seconds(standing.reset).into()),
    ]
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let status = match error.code {
            ErrorCode::Usage | ErrorCode::InvalidPolicy => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            ErrorCode::Failed | ErrorCode::Unreachable => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, message: error.message.clone(), error: Some(Box::new(error)), headers: Vec::new() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, message, error, headers } = self;
        if status.is_server_error() {
            tracing::warn!(%status, message, "a request failed");
        }
        let body = Refusal { code: status.as_u16(), message, error: error.map(|error| *error) };
        let mut response = (status, Json(body)).into_response();
        response.headers_mut().extend(headers);
        response
    }
}
