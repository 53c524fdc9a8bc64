//! The events of sandboxes: those of late and, for as long as somebody listens, those that come.
#![expect(unused_qualifications, reason = "the description of parameters is generated with paths in full")]

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    extract::State,
    response::sse::{self, KeepAlive, Sse},
};
use filter_common::Decision;
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    body::Params,
    error::{ApiError, Refusal},
};
use crate::{
    daemon::feed::{Filter, Reader},
    protocol::{SandboxId, event::Told},
};

/// How often a listener is shown that the daemon is there, while nothing happens.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ObserveParams {
    /// This sandbox's alone.
    #[param(value_type = Option<String>)]
    sandbox: Option<SandboxId>,
    /// Only what was decided so.
    decision: Option<Decided>,
    /// Only those of so long, such as `5m`; all that the daemon remembers without it.
    #[serde(default, with = "humantime_serde")]
    #[param(value_type = Option<String>)]
    since: Option<Duration>,
    /// Whether to go on with those that come.
    #[serde(default)]
    follow: bool,
}

/// What was decided.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Decided {
    Allow,
    Deny,
}

impl From<ObserveParams> for Filter {
    fn from(params: ObserveParams) -> Self {
        Self {
            sandbox: params.sandbox,
            decision: params.decision.map(|decided| match decided {
                Decided::Allow => Decision::Allow,
                Decided::Deny => Decision::Deny,
            }),
            since: params.since.and_then(|since| SystemTime::now().checked_sub(since)),
        }
    }
}

/// What happened to the flows of sandboxes, as server-sent events: one document each, oldest first. The daemon
/// remembers the last 32,768; where some are missing, a document says how many.
#[utoipa::path(get, path = "/v1/events", tag = "daemon", params(ObserveParams), responses(
    (status = 200, description = "These; each `data` is one", body = Told, content_type = "text/event-stream"),
    (status = 400, description = "Not well-formed", body = Refusal),
))]
pub async fn observe(
    State(api): State<Arc<Api>>,
    Params(params): Params<ObserveParams>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let follow = params.follow;
    let lines = told(api.feed.reader(params.into()), follow).map(|told| Ok(document(&told)));
    Ok(Sse::new(lines).keep_alive(KeepAlive::new().interval(HEARTBEAT)))
}

/// What a reader sees, one by one; to the end of what is there, or to the end of the daemon.
pub(super) fn told(reader: Reader, follow: bool) -> impl Stream<Item = Arc<Told>> {
    stream::unfold(reader, move |mut reader| async move {
        loop {
            if let Some(batch) = reader.take() {
                return Some((stream::iter(batch), reader));
            }
            if !follow || !reader.wait().await {
                return None;
            }
        }
    })
    .flatten()
}

pub(super) fn document(told: &Told) -> sse::Event {
    // Plain data with text for keys: there is nothing in it that JSON cannot have.
    sse::Event::default().json_data(told).unwrap_or_default()
}
