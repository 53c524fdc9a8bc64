//! The project's own routes, on the control socket alone: interfaces that are there already are filtered, as the
//! command line asks for it.
#![expect(unused_qualifications, reason = "the description of parameters is generated with paths in full")]

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    body::{self, Document, Params},
    error::{ApiError, Refusal},
    schema::PolicyDocument,
    to_the_end,
};
use crate::{
    error::ControlError,
    protocol::{AttachRequest, Authority, Change, SandboxId, Show, Stats, Summary, UpdateRequest, etag},
};

/// The id in a path of these routes: what no sandbox can be called is not well-formed.
pub struct Id(SandboxId);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let text = path.map(|path| path.0).unwrap_or_default();
        text.parse().map(Self).map_err(|error| ControlError::usage(error).into())
    }
}

/// Filter an interface from now on; the answer comes when its policy is enforced.
#[utoipa::path(post, path = "/v1/attachments", tag = "attachments", request_body = AttachRequest, responses(
    (status = 201, description = "It is filtered", body = Show, headers(("etag" = String))),
    (status = 400, description = "Not valid", body = Refusal),
    (status = 409, description = "Id, interface or address are another's", body = Refusal),
    (status = 500, description = "The interface is not there, or cannot be filtered", body = Refusal),
))]
pub async fn attach(State(api): State<Arc<Api>>, body: Document) -> Result<Response, ApiError> {
    let request: AttachRequest = body.parse().map_err(|error| error.as_usage())?;
    let show = to_the_end(async move { api.control.attach(request).await }).await?;
    Ok((StatusCode::CREATED, tagged(show)).into_response())
}

/// Everything that is filtered.
#[utoipa::path(get, path = "/v1/attachments", tag = "attachments", responses(
    (status = 200, description = "All of it", body = Vec<Summary>),
))]
pub async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<Summary>>, ApiError> {
    Ok(Json(api.control.list().await?))
}

/// What to show.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ShowParams {
    /// Whether its secrets are shown too.
    #[serde(default)]
    tokens: bool,
}

/// One sandbox in full.
#[utoipa::path(get, path = "/v1/attachments/{id}", tag = "attachments",
    params(("id" = String, Path), ShowParams), responses(
    (status = 200, description = "There it is", body = Show, headers(("etag" = String))),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 404, description = "Not there", body = Refusal),
))]
pub async fn show(
    State(api): State<Arc<Api>>,
    Id(id): Id,
    Params(params): Params<ShowParams>,
) -> Result<Response, ApiError> {
    Ok(tagged(api.control.show(id, params.tokens).await?))
}

/// Replace a policy; the answer comes when no packet is judged by the old one any more.
#[utoipa::path(put, path = "/v1/attachments/{id}/policy", tag = "attachments", request_body = PolicyDocument,
    params(("id" = String, Path), ("If-Match" = Option<String>, Header)), responses(
    (status = 200, description = "It is enforced", body = Show, headers(("etag" = String))),
    (status = 400, description = "Not valid; nothing has changed", body = Refusal),
    (status = 404, description = "Not there", body = Refusal),
    (status = 412, description = "Not what `If-Match` says; nothing has changed", body = Refusal),
))]
pub async fn replace(
    api: State<Arc<Api>>,
    id: Id,
    headers: HeaderMap,
    Document { value, .. }: Document,
) -> Result<Response, ApiError> {
    change(api, id, &headers, Change::Replace(value)).await
}

/// Change what is named of a policy; `null` puts a field back to its default.
#[utoipa::path(patch, path = "/v1/attachments/{id}/policy", tag = "attachments", request_body = PolicyDocument,
    params(("id" = String, Path), ("If-Match" = Option<String>, Header)), responses(
    (status = 200, description = "It is enforced", body = Show, headers(("etag" = String))),
    (status = 400, description = "Not valid; nothing has changed", body = Refusal),
    (status = 404, description = "Not there", body = Refusal),
    (status = 412, description = "Not what `If-Match` says; nothing has changed", body = Refusal),
))]
pub async fn merge(
    api: State<Arc<Api>>,
    id: Id,
    headers: HeaderMap,
    Document { value, .. }: Document,
) -> Result<Response, ApiError> {
    change(api, id, &headers, Change::Merge(value)).await
}

async fn change(
    State(api): State<Arc<Api>>,
    Id(id): Id,
    headers: &HeaderMap,
    change: Change,
) -> Result<Response, ApiError> {
    let request = UpdateRequest { id: id.clone(), change, condition: body::condition(headers) };
    let show = to_the_end(async move {
        api.control.update(request).await?;
        api.control.show(id, false).await
    })
    .await?;
    Ok(tagged(show))
}

/// Take the filter off. What was made at `/sandboxes` ends there instead: it would go on unfiltered.
#[utoipa::path(delete, path = "/v1/attachments/{id}", tag = "attachments",
    params(("id" = String, Path)), responses(
    (status = 204, description = "It is unfiltered now"),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 404, description = "Not there", body = Refusal),
    (status = 409, description = "It was made at `/sandboxes`", body = Refusal),
))]
pub async fn detach(State(api): State<Arc<Api>>, Id(id): Id) -> Result<StatusCode, ApiError> {
    if api.sandboxes.keeps(&id) {
        let message = format!(
            "sandbox {id} was made through the API and would go on unfiltered; end it with DELETE /sandboxes/{id}"
        );
        return Err(ControlError::conflict(message).into());
    }
    to_the_end(async move { api.control.detach(id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose numbers.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StatsParams {
    /// This sandbox's alone.
    #[param(value_type = Option<String>)]
    id: Option<SandboxId>,
}

/// The numbers of one sandbox or of all, and their sum.
#[utoipa::path(get, path = "/v1/stats", tag = "attachments", params(StatsParams), responses(
    (status = 200, description = "These are", body = Stats),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 404, description = "Not there", body = Refusal),
))]
pub async fn stats(
    State(api): State<Arc<Api>>,
    Params(params): Params<StatsParams>,
) -> Result<Json<Stats>, ApiError> {
    Ok(Json(api.control.stats(params.id).await?))
}

/// Make every token of before invalid: those of public URLs and those of controllers.
#[utoipa::path(post, path = "/v1/tokens/rotate", tag = "daemon", responses(
    (status = 204, description = "The old ones are refused from now on"),
    (status = 500, description = "Nothing has changed", body = Refusal),
))]
pub async fn rotate_tokens(State(api): State<Arc<Api>>) -> Result<StatusCode, ApiError> {
    to_the_end(async move { api.control.rotate_tokens().await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What the daemon finds of its own health.
#[utoipa::path(get, path = "/v1/doctor", tag = "daemon", responses(
    (status = 200, description = "This is", body = Vec<crate::doctor::Finding>),
))]
pub async fn doctor(State(api): State<Arc<Api>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(api.control.doctor().await?))
}

/// The certificate that sandboxes must trust where headers are set in their requests.
#[utoipa::path(get, path = "/v1/ca", tag = "daemon", responses(
    (status = 200, description = "This is", body = Authority),
))]
pub async fn authority(State(api): State<Arc<Api>>) -> Result<Json<Authority>, ApiError> {
    Ok(Json(api.control.authority().await?))
}

/// Replace it. Sandboxes that trust the old one get no further until they are given the new one.
#[utoipa::path(post, path = "/v1/ca/rotate", tag = "daemon", responses(
    (status = 200, description = "The new one", body = Authority),
    (status = 500, description = "It cannot be made or written down; the old one is used on", body = Refusal),
))]
pub async fn rotate_authority(State(api): State<Arc<Api>>) -> Result<Json<Authority>, ApiError> {
    Ok(Json(to_the_end(async move { api.control.rotate_authority().await }).await?))
}

/// A release.
#[derive(Debug, Serialize, ToSchema)]
pub struct Release {
    /// As `sandbox-filter --version` says it.
    release: &'static str,
}

/// Which release the daemon is of.
#[utoipa::path(get, path = "/v1/version", tag = "daemon", responses(
    (status = 200, description = "This one", body = Release),
))]
pub async fn version() -> Json<Release> {
    Json(Release { release: env!("CARGO_PKG_VERSION") })
}

fn tagged(show: Show) -> Response {
    ([(header::ETAG, etag(show.generation, &show.policy_hash))], Json(show)).into_response()
}
