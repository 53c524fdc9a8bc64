//! E2B's routes about the network of a sandbox, and what this server has besides: reading it with a tag, changing
//! it only if it is still what the client has seen, and changing a part.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use super::{
    Api, Caller,
    body::{self, Document, Id, Taken},
    error::{ApiError, Refusal},
    schema::{Enforced, NetworkUpdate},
    to_the_end,
};
use crate::protocol::{Change, Show, etag};

/// What is enforced.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/network", tag = "network",
    params(("sandboxID" = String, Path), ("If-None-Match" = Option<String>, Header)), responses(
    (status = 200, description = "This is", body = Enforced, headers(("etag" = String))),
    (status = 304, description = "What the client has"),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 404, description = "Not there, or not the caller's", body = Refusal),
))]
pub async fn read(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if api.sandboxes.get(&caller.owner, &id).is_none() {
        return Err(ApiError::no_sandbox(id.as_str()));
    }
    let show = api.control.show(id.clone(), false).await;
    let show = show.map_err(|error| ApiError::about(id.as_str(), error))?;
    let tag = etag(show.generation, &show.policy_hash);
    if body::has_already(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(([(header::ETAG, tag)], Json(enforced(show))).into_response())
}

/// Replace the whole network of a running sandbox: what is left out is cleared. The answer comes when no packet is
/// judged by the old one any more.
#[utoipa::path(put, path = "/sandboxes/{sandboxID}/network", tag = "network", request_body = NetworkUpdate,
    params(("sandboxID" = String, Path), ("If-Match" = Option<String>, Header)), responses(
    (status = 204, description = "It is enforced", headers(("etag" = String))),
    (status = 400, description = "Not valid; nothing has changed", body = Refusal),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 404, description = "Not there, or not the caller's", body = Refusal),
    (status = 412, description = "Not what `If-Match` says; nothing has changed", body = Refusal),
))]
pub async fn replace(
    api: State<Arc<Api>>,
    caller: Extension<Caller>,
    id: Id,
    headers: HeaderMap,
    Document { value, room }: Document,
) -> Result<Response, ApiError> {
    let change = Change::Replace(of_update(value)?);
    update(api, caller, id, &headers, change, room).await
}

/// Change what is named of the network of a running sandbox; `null` puts a field back to its default. The answer
/// comes when no packet is judged by the old one any more.
#[utoipa::path(patch, path = "/sandboxes/{sandboxID}/network", tag = "network", request_body = NetworkUpdate,
    params(("sandboxID" = String, Path), ("If-Match" = Option<String>, Header)), responses(
    (status = 204, description = "It is enforced", headers(("etag" = String))),
    (status = 400, description = "Not valid; nothing has changed", body = Refusal),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 404, description = "Not there, or not the caller's", body = Refusal),
    (status = 412, description = "Not what `If-Match` says; nothing has changed", body = Refusal),
))]
pub async fn merge(
    api: State<Arc<Api>>,
    caller: Extension<Caller>,
    id: Id,
    headers: HeaderMap,
    Document { value, room }: Document,
) -> Result<Response, ApiError> {
    let change = Change::Merge(document_of(value, Nulls::Kept, &FIXED)?);
    update(api, caller, id, &headers, change, room).await
}

async fn update(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    headers: &HeaderMap,
    change: Change,
    room: Taken,
) -> Result<Response, ApiError> {
    let condition = body::condition(headers);
    let changed = to_the_end(async move {
        let _room = room;
        let changed = api.sandboxes.change_network(&caller.owner, &id, change, condition).await;
        changed.map_err(|error| ApiError::about(id.as_str(), error))
    })
    .await?;
    Ok((StatusCode::NO_CONTENT, [(header::ETAG, changed.etag())]).into_response())
}

/// What a sandbox may reach, in E2B's shape.
pub(super) fn enforced(show: Show) -> Enforced {
    let mut network = show.policy;
    let mut allow_internet_access = true;
    if let Value::Object(network) = &mut network {
        if let Some(allowed) = network.shift_remove("allowInternetAccess") {
            allow_internet_access = allowed.as_bool().unwrap_or(true);
        }
        if let Some(servers) = network.get("dns").and_then(|dns| dns.get("servers")).cloned() {
            network.insert("dnsServers".to_owned(), servers);
        }
    }
    Enforced {
        allow_internet_access,
        network,
        generation: show.generation,
        policy_hash: show.policy_hash,
        enforced: show.enforced,
    }
}

/// Members that only a new sandbox has a say about; E2B ignores them later on.
const FIXED: [&str; 4] =
    ["allowPublicTraffic", "allow_public_traffic", "maskRequestHost", "mask_request_host"];

/// The policy of a new sandbox; none where nothing is said about it.
pub(super) fn of_new(
    network: Option<Value>,
    allow_internet_access: Option<bool>,
) -> Result<Option<Value>, ApiError> {
    if network.is_none() && allow_internet_access.is_none() {
        return Ok(None);
    }
    let mut document = document_of(network.unwrap_or_else(|| json!({})), Nulls::Dropped, &[])?;
    if let (Some(allowed), Value::Object(document)) = (allow_internet_access, &mut document)
        && document.insert("allowInternetAccess".to_owned(), allowed.into()).is_some()
    {
        return Err(twice("allowInternetAccess"));
    }
    Ok(Some(document))
}

fn of_update(document: Value) -> Result<Value, ApiError> {
    document_of(document, Nulls::Dropped, &FIXED)
}

/// What a member is whose value is `null`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nulls {
    /// One that is not there.
    Dropped,
    /// One that shall go.
    Kept,
}

/// A policy document out of what E2B's clients send.
fn document_of(network: Value, nulls: Nulls, ignored: &[&str]) -> Result<Value, ApiError> {
    let Value::Object(members) = network else {
        return Err(ApiError::bad_request("network: expected an object"));
    };
    let mut document = Map::new();
    for (key, value) in members {
        if ignored.contains(&key.as_str()) || (nulls == Nulls::Dropped && value.is_null()) {
            continue;
        }
        match key.as_str() {
            "dnsServers" | "dns_servers" => {
                let Value::Object(dns) = document.entry("dns").or_insert_with(|| json!({})) else {
                    return Err(twice("dns"));
                };
                if dns.insert("servers".to_owned(), value).is_some() {
                    return Err(twice("dns.servers"));
                }
            }
            // How public URLs reach the sandbox, which the gateway finds out by itself.
            "httpsPorts" | "https_ports" => {}
            "egressProxy" | "egress_proxy" if value.is_null() => {}
            // Without it the sandbox would reach directly what its owner wants behind a proxy.
            "egressProxy" | "egress_proxy" => {
                return Err(ApiError::bad_request("egressProxy is not supported; leave it out"));
            }
            "dns" => match (document.get_mut("dns"), value) {
                (None, value) => drop(document.insert(key, value)),
                (Some(Value::Object(there)), Value::Object(more)) if !more.contains_key("servers") => {
                    there.extend(more);
                }
                (Some(_), _) => return Err(twice("dns.servers")),
            },
            _ => drop(document.insert(key, value)),
        }
    }
    Ok(Value::Object(document))
}

/// Which of the two is meant is anybody's guess, and one may open what the other closes.
fn twice(what: &str) -> ApiError {
    ApiError::bad_request(format!("{what} is said twice; leave one out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_e2b_clients_send_becomes_a_policy() {
        for (sent, policy) in [
            (json!({}), json!({})),
            (json!({ "allowOut": null, "denyOut": ["1.1.1.1"] }), json!({ "denyOut": ["1.1.1.1"] })),
            (json!({ "allow_internet_access": false }), json!({ "allow_internet_access": false })),
            (json!({ "dnsServers": ["1.1.1.1"] }), json!({ "dns": { "servers": ["1.1.1.1"] } })),
            (
                json!({ "dnsServers": [], "dns": { "mode": "strict" } }),
                json!({ "dns": { "servers": [], "mode": "strict" } }),
            ),
            (json!({ "httpsPorts": [443], "egressProxy": null }), json!({})),
            (json!({ "allowPublicTraffic": false, "maskRequestHost": "x" }), json!({})),
            (json!({ "unknown": 1 }), json!({ "unknown": 1 })),
        ] {
            assert_eq!(of_update(sent.clone()).unwrap(), policy, "{sent}");
        }
        assert!(of_update(json!({ "egressProxy": { "url": "socks5://x" } })).is_err());
        assert!(of_new(Some(json!([])), None).is_err());
        assert_eq!(of_new(None, None).unwrap(), None);
        assert_eq!(of_new(None, Some(false)).unwrap(), Some(json!({ "allowInternetAccess": false })));
        let public = json!({ "allowPublicTraffic": false });
        assert_eq!(of_new(Some(public.clone()), None).unwrap(), Some(public));
    }
}
