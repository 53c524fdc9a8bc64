//! What would become of a connection.

use std::sync::Arc;

use axum::{Json, extract::State};

use super::{
    Api,
    body::Document,
    error::{ApiError, Refusal},
};
use crate::protocol::explain::{ExplainRequest, Explained};

/// What would become of a connection of a sandbox, or under a policy, and which rule decides: the kernel program and
/// the inspector are asked, on a copy; nothing is sent but queries for the target's name.
#[utoipa::path(post, path = "/v1/explain", tag = "attachments", request_body = ExplainRequest, responses(
    (status = 200, description = "This", body = Explained),
    (status = 400, description = "Not well-formed or not valid", body = Refusal),
    (status = 404, description = "Not there", body = Refusal),
))]
pub async fn explain(State(api): State<Arc<Api>>, body: Document) -> Result<Json<Explained>, ApiError> {
    let request: ExplainRequest = body.parse().map_err(|error| error.as_usage())?;
    Ok(Json(api.control.explain(request).await?))
}
