//! The control API: HTTP on the control socket and, where it is configured, on TCP.
//!
//! [`sandboxes`] and [`network`] are E2B's routes, so that its SDKs work unmodified; [`attachments`] are the
//! project's own, which the command line uses. The control socket serves both, and whoever may open it is the
//! operator. TCP serves the former to holders of keys ([`keys`]). [`listen`] takes connections, [`error`] is how
//! refusals look, [`openapi`] describes all of it as generated from the code.

pub mod attachments;
mod body;
pub mod error;
pub mod keys;
pub mod listen;
pub mod network;
pub mod openapi;
pub mod sandboxes;
pub mod schema;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{Extension, Router, http::StatusCode, middleware, routing::get};
use serde_json::Value;

use self::{body::Room, error::ApiError, keys::Keys};
use crate::{
    control::Control,
    error::ControlError,
    sandboxes::{Allowance, Owner, Sandboxes},
};

/// What requests are answered from.
pub struct Api {
    /// What can be done to interfaces.
    pub control: Arc<dyn Control>,
    /// The sandboxes that were made here.
    pub sandboxes: Arc<Sandboxes>,
    /// What the whole host may have.
    pub host: Allowance,
    /// The domain of public URLs, as clients are told it.
    pub domain: String,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// In whose name.
    pub owner: Owner,
    /// How many sandboxes they may have.
    pub allowance: Allowance,
    /// Where their bodies have to fit in; none where they are not bounded.
    pub room: Option<Room>,
}

impl Caller {
    /// Whoever may open the control socket.
    pub fn operator() -> Self {
        Self { owner: Owner::Operator, allowance: Allowance::default(), room: None }
    }
}

/// The routes on the control socket.
pub fn for_operator(api: Arc<Api>) -> Router {
    let (router, document) = openapi::routes(true);
    finish(router.layer(Extension(Caller::operator())), &document, api)
}

/// The routes on TCP, for holders of keys.
pub fn for_keys(api: Arc<Api>, keys: Arc<Keys>) -> Router {
    let (router, document) = openapi::routes(false);
    finish(router.route_layer(middleware::from_fn_with_state(keys, keys::authenticate)), &document, api)
}

fn finish(router: Router<Arc<Api>>, document: &utoipa::openapi::OpenApi, api: Arc<Api>) -> Router {
    // Written once; it does not change.
    let document = serde_json::to_value(document).unwrap_or(Value::Null);
    router
        .route("/openapi.json", get(async || axum::Json(document)))
        .route("/health", get(async || StatusCode::NO_CONTENT))
        .fallback(async || {
            ApiError::new(
                StatusCode::NOT_FOUND,
                "there is no such route; /openapi.json has those that there are",
            )
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not take that method")
        })
        .with_state(api)
}

/// Runs work to its end even if the client goes away, so that nothing is left half-done.
async fn to_the_end<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(ControlError::failed("the daemon failed on this request; its log says more").into()),
    }
}
