//! Reading what a request carries. Whatever is wrong with it is said in the form of [`ApiError`].

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use filter_policy::Format;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{task::spawn_blocking, time::timeout};

use super::{Caller, error::ApiError};
use crate::{
    protocol::{Condition, MAX_DOCUMENT, SandboxId},
    sandboxes::Owner,
};

/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest body of a holder of a key.
const MAX_BODY: usize = 16 << 20;

/// The JSON of a body, in which no member stands twice, however it was transferred.
pub struct Document(pub Value);

impl<S: Send + Sync> FromRequest<S> for Document {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let is_operator =
            request.extensions().get::<Caller>().is_some_and(|caller| caller.owner == Owner::Operator);
        let limit = if is_operator { MAX_DOCUMENT } else { MAX_BODY };
        let body = Limited::new(request.into_body(), limit);
        let bytes = match timeout(PATIENCE, body.collect()).await {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let message = format!("the body is longer than {} MiB", limit >> 20);
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
            }
            Ok(Err(error)) => return Err(ApiError::bad_request(format!("the body did not arrive: {error}"))),
            Err(_) => {
                let message = "the body did not arrive in time";
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message));
            }
        };
        // A long policy takes a while, which is not the executor's.
        let value = spawn_blocking(move || read(&bytes))
            .await
            .map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be read"))??;
        Ok(Self(value))
    }
}

fn read(bytes: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ApiError::bad_request("the body is no UTF-8"))?;
    Format::Json.read(text).map_err(|invalid| {
        let message = invalid.errors.into_iter().next().map(|problem| problem.message).unwrap_or_default();
        ApiError::bad_request(message.replacen("the policy", "the body", 1))
    })
}

impl Document {
    /// As a type; the message names what is wrong.
    ///
    /// # Errors
    /// 400.
    pub fn parse<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        // A list would do for a structure too.
        if !self.0.is_object() {
            return Err(ApiError::bad_request("the body is no JSON object"));
        }
        serde_path_to_error::deserialize(self.0).map_err(|error| {
            let place = error.path().to_string();
            let place = if place == "." { String::new() } else { format!("{place}: ") };
            ApiError::bad_request(format!("{place}{}", error.inner()))
        })
    }
}

/// The id in a path. What no sandbox can be called does not exist.
pub struct Id(pub SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::no_sandbox("\u{fffd}"))?;
        text.parse().map(Self).map_err(|_| ApiError::no_sandbox(&text))
    }
}

/// The parameters of a query.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
        }
    }
}

/// `If-Match`.
pub fn condition(headers: &HeaderMap) -> Option<Condition> {
    let values: Vec<_> =
        headers.get_all(header::IF_MATCH).iter().filter_map(|value| value.to_str().ok()).collect();
    if headers.contains_key(header::IF_MATCH) { Some(Condition::parse(&values.join(", "))) } else { None }
}

/// Whether the client has what this tag names already (`If-None-Match`).
pub fn has_already(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    // Weak comparison, RFC 9110 section 13.1.2.
    let mut listed =
        values.flat_map(|value| value.split(',')).map(|listed| listed.trim().trim_start_matches("W/"));
    listed.any(|listed| listed == "*" || listed == tag)
}
