//! Learning what a sandbox does: everything is allowed for as long as somebody listens.

use std::{convert::Infallible, sync::Arc, time::SystemTime};

use axum::{
    extract::State,
    http::StatusCode,
    response::sse::{KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt};

use super::{
    Api,
    attachments::Id,
    error::{ApiError, Refusal},
    events::{HEARTBEAT, document, told},
    to_the_end,
};
use crate::{
    daemon::feed::Filter,
    error::ControlError,
    protocol::{SandboxId, event::Told},
};

/// Puts the policy in force again when nobody listens any more.
struct Ending {
    api: Arc<Api>,
    id: SandboxId,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let (api, id) = (self.api.clone(), self.id.clone());
        tokio::spawn(async move {
            if let Err(error) = api.control.end_learning(id.clone()).await {
                tracing::error!(sandbox = %id, %error, "everything is still allowed; update or detach it");
            }
        });
    }
}

/// Allow a sandbox everything but what the platform guards, and tell what it does as server-sent events. Its own
/// policy is in force again as soon as the client goes away or asks for it with `DELETE`.
#[utoipa::path(post, path = "/v1/attachments/{id}/learning", tag = "attachments", params(("id" = String, Path)), responses(
    (status = 200, description = "Everything is allowed; each `data` is an event", body = Told, content_type = "text/event-stream"),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 404, description = "Not there", body = Refusal),
    (status = 409, description = "Somebody is learning already", body = Refusal),
))]
pub async fn learn(
    State(api): State<Arc<Api>>,
    Id(id): Id,
) -> Result<Sse<impl Stream<Item = Result<axum::response::sse::Event, Infallible>>>, ApiError> {
    let since = Some(SystemTime::now());
    let ending = {
        let (api, id) = (api.clone(), id.clone());
        // Should the client go away meanwhile, what was begun is ended.
        to_the_end(async move {
            api.control.begin_learning(id.clone()).await?;
            Ok::<_, ControlError>(Ending { api, id })
        })
        .await?
    };
    let filter = Filter { sandbox: Some(id), since, ..Filter::default() };
    let lines = told(api.feed.reader(filter), true).map(move |told| {
        let _until_the_stream_ends = &ending;
        Ok(document(&told))
    });
    Ok(Sse::new(lines).keep_alive(KeepAlive::new().interval(HEARTBEAT)))
}

/// Put a sandbox's own policy in force again; the answer comes when it is enforced.
#[utoipa::path(delete, path = "/v1/attachments/{id}/learning", tag = "attachments", params(("id" = String, Path)), responses(
    (status = 204, description = "It is enforced"),
    (status = 400, description = "Not well-formed", body = Refusal),
))]
pub async fn end(State(api): State<Arc<Api>>, Id(id): Id) -> Result<StatusCode, ApiError> {
    to_the_end(async move { api.control.end_learning(id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
