//! Reading what a request carries. Whatever is wrong with it is said in the form of [`ApiError`].

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use filter_policy::Format;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::timeout,
};

use super::{Caller, error::ApiError};
use crate::protocol::{Condition, MAX_DOCUMENT, SandboxId};

/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest body of a holder of a key: a policy with 100,000 prefixes fits.
const MAX_BODY: usize = 4 << 20;
/// The bodies of one holder at the same time. As a document each may take tens of times its length.
const MAX_BODIES: usize = 2 * MAX_BODY;

/// The JSON of a body, in which no member stands twice, however it was transferred.
pub struct Document {
    /// The document.
    pub value: Value,
    /// To be held for as long as something of the document is.
    pub room: Taken,
}

/// Where the bodies of one holder of a key have to fit in, so that they use up their own memory and nobody else's.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_BODIES)))
    }
}

/// A part of a [`Room`]; none of an operator's, who has as much as they like.
#[derive(Debug, Default)]
pub struct Taken(Option<OwnedSemaphorePermit>);

impl Taken {
    /// Takes more.
    fn grow(&mut self, room: &Room, bytes: usize) -> Result<(), ApiError> {
        let more =
            u32::try_from(bytes).ok().and_then(|bytes| room.0.clone().try_acquire_many_owned(bytes).ok());
        let more = more.ok_or_else(ApiError::too_much_at_once)?;
        match &mut self.0 {
            Some(taken) => taken.merge(more),
            None => self.0 = Some(more),
        }
        Ok(())
    }
}

impl<S: Send + Sync> FromRequest<S> for Document {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let room = request.extensions().get::<Caller>().and_then(|caller| caller.room.clone());
        let (bytes, taken) =
            timeout(PATIENCE, collect(request.into_body(), room.as_ref())).await.unwrap_or_else(|_| {
                let message = "the body did not arrive in time";
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
            })?;
        // A long policy takes a while, which is not the executor's.
        let value = spawn_blocking(move || read(&bytes))
            .await
            .map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be read"))??;
        Ok(Self { value, room: taken })
    }
}

async fn collect(body: Body, room: Option<&Room>) -> Result<(Vec<u8>, Taken), ApiError> {
    let limit = if room.is_some() { MAX_BODY } else { MAX_DOCUMENT };
    let mut body = Limited::new(body, limit);
    let (mut bytes, mut taken) = (Vec::new(), Taken::default());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                let message = format!("the body is longer than {} MiB", limit >> 20);
                return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message);
            }
            ApiError::bad_request(format!("the body did not arrive: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if let Some(room) = room {
            taken.grow(room, data.len())?;
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, taken))
}

fn read(bytes: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ApiError::bad_request("the body is no UTF-8"))?;
    Format::Json.read(text).map_err(|invalid| {
        let message = invalid.errors.into_iter().next().map(|problem| problem.message).unwrap_or_default();
        ApiError::bad_request(message.replacen("the policy", "the body", 1))
    })
}

impl Document {
    /// As [`parse`], where nothing long is kept of it.
    ///
    /// # Errors
    /// 400.
    pub fn parse<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        parse(self.value)
    }
}

/// A document as a type; the message names what is wrong.
///
/// # Errors
/// 400.
pub fn parse<T: DeserializeOwned>(document: Value) -> Result<T, ApiError> {
    // A list would do for a structure too.
    if !document.is_object() {
        return Err(ApiError::bad_request("the body is no JSON object"));
    }
    serde_path_to_error::deserialize(document).map_err(|error| {
        let place = error.path().to_string();
        let place = if place == "." { String::new() } else { format!("{place}: ") };
        ApiError::bad_request(format!("{place}{}", error.inner()))
    })
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
