//! The routes, and their description: both come from the same handlers.

use std::sync::Arc;

use axum::Router;
use utoipa::{
    Modify, OpenApi as _,
    openapi::{
        OpenApi,
        security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Api, attachments, network, sandboxes};

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "sandbox-filter",
    description = "Decides what sandboxes may reach. `/sandboxes` is E2B's API; `/v1` is on the control socket alone."
))]
struct Description;

/// All routes, or those for holders of keys.
pub(super) fn routes(for_operator: bool) -> (Router<Arc<Api>>, OpenApi) {
    let mut description = Description::openapi();
    if !for_operator {
        Keyed.modify(&mut description);
    }
    let mut router = OpenApiRouter::with_openapi(description)
        .routes(routes!(sandboxes::create, sandboxes::list))
        .routes(routes!(sandboxes::create_v2, sandboxes::list_v2))
        .routes(routes!(sandboxes::detail, sandboxes::kill))
        .routes(routes!(sandboxes::connect))
        .routes(routes!(sandboxes::connect_v2))
        .routes(routes!(sandboxes::timeout))
        .routes(routes!(network::read, network::replace, network::merge));
    if for_operator {
        router = router
            .routes(routes!(attachments::attach, attachments::list))
            .routes(routes!(attachments::show, attachments::detach))
            .routes(routes!(attachments::replace, attachments::merge))
            .routes(routes!(attachments::stats))
            .routes(routes!(attachments::rotate_tokens))
            .routes(routes!(attachments::doctor))
            .routes(routes!(attachments::authority))
            .routes(routes!(attachments::rotate_authority))
            .routes(routes!(attachments::version));
    }
    router.split_for_parts()
}

/// Says that every route wants a key.
struct Keyed;

impl Modify for Keyed {
    fn modify(&self, description: &mut OpenApi) {
        const NAME: &str = "key";
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        description.components.get_or_insert_default().add_security_scheme(NAME, scheme);
        description.security = Some(vec![SecurityRequirement::new(NAME, Vec::<String>::new())]);
    }
}
