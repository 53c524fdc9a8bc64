//! E2B's routes about sandboxes.
#![expect(unused_qualifications, reason = "the description of parameters is generated with paths in full")]

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderName, StatusCode},
    response::{IntoResponse, Response},
};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Api, Caller,
    body::{self, Document, Id, Params},
    error::{ApiError, Refusal},
    network,
    schema::{Connect, Lifecycle, ListedSandbox, NewSandbox, Sandbox, SandboxDetail, Timeout},
    to_the_end,
};
use crate::{
    error::ControlError,
    protocol::{SandboxId, Tokens},
    sandboxes::{self, MAX_TIMEOUT, Record},
};

/// What SDKs may ask of the controller inside.
const ENVD_VERSION: &str = "0.5.13";
/// E2B's, which has one only for its clients' sake.
const CLIENT_ID: &str = "sandbox-filter";
/// How long a sandbox lives whose maker does not say: E2B's numbers.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
const DEFAULT_TIMEOUT_V2: Duration = Duration::from_secs(300);
/// The most that an owner may say about a sandbox, in bytes.
const MAX_METADATA: usize = 64 << 10;
const MAX_TEMPLATE_ID: usize = 256;
const MAX_PAGE: usize = 100;

/// Make a sandbox; the answer comes when its policy is enforced.
#[utoipa::path(post, path = "/sandboxes", tag = "sandboxes", request_body = NewSandbox, responses(
    (status = 201, description = "It runs", body = Sandbox),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 429, description = "Too many, or too fast", body = Refusal),
    (status = 500, description = "The provider failed", body = Refusal),
))]
pub async fn create(
    api: State<Arc<Api>>,
    caller: Extension<Caller>,
    body: Document,
) -> Result<Response, ApiError> {
    make(api, caller, body, None, DEFAULT_TIMEOUT).await
}

/// Make a sandbox whose controller asks for a token; the answer comes when its policy is enforced.
#[utoipa::path(post, path = "/v2/sandboxes", tag = "sandboxes", request_body = NewSandbox, responses(
    (status = 201, description = "It runs", body = Sandbox),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 429, description = "Too many, or too fast", body = Refusal),
    (status = 500, description = "The provider failed", body = Refusal),
))]
pub async fn create_v2(
    api: State<Arc<Api>>,
    caller: Extension<Caller>,
    body: Document,
) -> Result<Response, ApiError> {
    make(api, caller, body, Some(true), DEFAULT_TIMEOUT_V2).await
}

async fn make(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Document { value, room }: Document,
    secure: Option<bool>,
    default_timeout: Duration,
) -> Result<Response, ApiError> {
    let asked: NewSandbox = body::parse(value)?;
    let timeout = asked.timeout.map_or(Ok(default_timeout), lifetime)?;
    if asked.template_id.is_empty() || asked.template_id.len() > MAX_TEMPLATE_ID {
        return Err(ApiError::bad_request(format!("templateID: expected 1 to {MAX_TEMPLATE_ID} bytes")));
    }
    if asked.template_id.chars().any(char::is_control) {
        return Err(ApiError::bad_request("templateID: has control characters"));
    }
    let metadata = asked.metadata.unwrap_or_default();
    let said: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if said > MAX_METADATA {
        return Err(ApiError::bad_request(format!("metadata: at most {} KiB", MAX_METADATA >> 10)));
    }
    let new = sandboxes::NewSandbox {
        policy: network::of_new(asked.network, asked.allow_internet_access)?,
        owner: caller.owner,
        template_id: asked.template_id,
        metadata,
        env_vars: asked.env_vars.unwrap_or_default(),
        secure: secure.or(asked.secure).unwrap_or(false),
        timeout,
    };
    let (record, show) = to_the_end({
        let api = api.clone();
        async move {
            let _room = room;
            let made = api.sandboxes.create(new, &caller.allowance, &api.host).await;
            made.map_err(ApiError::of_creation)
        }
    })
    .await?;
    let tokens = show.tokens.ok_or_else(no_tokens)?;
    Ok((StatusCode::CREATED, Json(sandbox(&api, record, tokens))).into_response())
}

/// Connect to a sandbox: it lives at least as long as is asked for.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/connect", tag = "sandboxes", request_body = Connect,
    params(("sandboxID" = String, Path)), responses(
    (status = 200, description = "It runs", body = Sandbox),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 404, description = "Not there, or not the caller's", body = Refusal),
))]
pub async fn connect(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    body: Document,
) -> Result<Json<Sandbox>, ApiError> {
    let asked: Connect = body.parse()?;
    let timeout = asked.timeout.map_or(Ok(DEFAULT_TIMEOUT_V2), lifetime)?;
    let (record, show) = to_the_end({
        let (api, id) = (api.clone(), id.clone());
        async move {
            let record = api.sandboxes.set_timeout(&caller.owner, &id, timeout, false).await?;
            let show = api.control.show(id, true).await?;
            Ok::<_, ControlError>((record, show))
        }
    })
    .await
    .map_err(|error| error.naming(&id))?;
    let tokens = show.tokens.ok_or_else(no_tokens)?;
    Ok(Json(sandbox(&api, record, tokens)))
}

/// Connect to a sandbox: it lives at least as long as is asked for.
#[utoipa::path(post, path = "/v2/sandboxes/{sandboxID}/connect", tag = "sandboxes", request_body = Connect,
    params(("sandboxID" = String, Path)), responses(
    (status = 200, description = "It runs", body = Sandbox),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 404, description = "Not there, or not the caller's", body = Refusal),
))]
pub async fn connect_v2(
    api: State<Arc<Api>>,
    caller: Extension<Caller>,
    id: Id,
    body: Document,
) -> Result<Json<Sandbox>, ApiError> {
    connect(api, caller, id, body).await
}

/// Set when a sandbox ends.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/timeout", tag = "sandboxes", request_body = Timeout,
    params(("sandboxID" = String, Path)), responses(
    (status = 204, description = "It ends then"),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 404, description = "Not there, or not the caller's", body = Refusal),
))]
pub async fn timeout(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    body: Document,
) -> Result<StatusCode, ApiError> {
    let asked: Timeout = body.parse()?;
    let timeout = lifetime(asked.timeout)?;
    let work = {
        let id = id.clone();
        async move { api.sandboxes.set_timeout(&caller.owner, &id, timeout, true).await }
    };
    to_the_end(work).await.map_err(|error| error.naming(&id))?;
    Ok(StatusCode::NO_CONTENT)
}

/// End a sandbox; the answer comes when nothing of it is left.
#[utoipa::path(delete, path = "/sandboxes/{sandboxID}", tag = "sandboxes",
    params(("sandboxID" = String, Path)), responses(
    (status = 204, description = "It has ended"),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 404, description = "Not there, or not the caller's", body = Refusal),
    (status = 500, description = "The provider failed", body = Refusal),
))]
pub async fn kill(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    let work = {
        let id = id.clone();
        async move { api.sandboxes.kill(&caller.owner, &id).await }
    };
    to_the_end(work).await.map_err(|error| error.naming(&id))?;
    Ok(StatusCode::NO_CONTENT)
}

/// A sandbox in full, with what is enforced.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}", tag = "sandboxes",
    params(("sandboxID" = String, Path)), responses(
    (status = 200, description = "There it is", body = SandboxDetail),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
    (status = 404, description = "Not there, or not the caller's", body = Refusal),
))]
pub async fn detail(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
) -> Result<Json<SandboxDetail>, ApiError> {
    let record = api.sandboxes.get(&caller.owner, &id).ok_or_else(|| ApiError::no_sandbox(id.as_str()))?;
    let show = api.control.show(id.clone(), true).await;
    let show = show.map_err(|error| ApiError::about(id.as_str(), error))?;
    let envd_access_token = if record.secure {
        show.tokens.as_ref().map(|tokens| tokens.envd_access_token.clone())
    } else {
        None
    };
    Ok(Json(SandboxDetail {
        listed: listed(record),
        envd_access_token,
        domain: api.domain.clone(),
        lifecycle: Lifecycle { auto_resume: false, on_timeout: "kill" },
        enforced: network::enforced(show),
    }))
}

/// Which sandboxes to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// `key=value&…`, each key and value URL-encoded; all must be the sandbox's.
    metadata: Option<String>,
    /// States, comma-separated; there are none but `running` here.
    state: Option<String>,
    /// `asc` or `desc`, by the time they were made.
    #[param(inline)]
    order: Option<Order>,
    /// Only those made at this time or later.
    #[param(value_type = Option<String>, format = DateTime)]
    started_after: Option<String>,
    /// Only those made from this.
    template: Option<String>,
    /// Where the last page ended.
    next_token: Option<String>,
    /// How many a page.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// By the time they were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The first one first.
    Asc,
    /// The last one first.
    #[default]
    Desc,
}

/// The caller's sandboxes, the last one first.
#[utoipa::path(get, path = "/sandboxes", tag = "sandboxes", params(("metadata" = Option<String>, Query)), responses(
    (status = 200, description = "All of them", body = Vec<ListedSandbox>),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
))]
pub async fn list(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Params(filter): Params<Filter>,
) -> Result<Json<Vec<ListedSandbox>>, ApiError> {
    let filter = Filter { metadata: filter.metadata, ..Filter::default() };
    let (records, _) = page(api.sandboxes.list(&caller.owner), &filter, usize::MAX)?;
    Ok(Json(records.into_iter().map(listed).collect()))
}

/// The caller's sandboxes, page by page; `x-next-token` leads to the next.
#[utoipa::path(get, path = "/v2/sandboxes", tag = "sandboxes", params(Filter), responses(
    (status = 200, description = "A page", body = Vec<ListedSandbox>,
        headers(("x-next-token" = String, description = "`nextToken` of the next page, where there is one"))),
    (status = 400, description = "Not well-formed", body = Refusal),
    (status = 401, description = "No key, or an unknown one", body = Refusal),
))]
pub async fn list_v2(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Params(filter): Params<Filter>,
) -> Result<Response, ApiError> {
    let limit = filter.limit.unwrap_or(MAX_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit: expected 1 to {MAX_PAGE}")));
    }
    let (records, next) = page(api.sandboxes.list(&caller.owner), &filter, limit)?;
    let mut response = Json(records.into_iter().map(listed).collect::<Vec<_>>()).into_response();
    if let Some(next) = next.and_then(|next| next.parse().ok()) {
        response.headers_mut().insert(HeaderName::from_static("x-next-token"), next);
    }
    Ok(response)
}

/// Those that the filter lets through, in order, and the token of the next page.
fn page(
    mut records: Vec<Record>,
    filter: &Filter,
    limit: usize,
) -> Result<(Vec<Record>, Option<String>), ApiError> {
    let metadata: BTreeMap<String, String> = match &filter.metadata {
        Some(query) => read_metadata(query)?,
        None => BTreeMap::new(),
    };
    let started_after = match &filter.started_after {
        Some(text) => Some(read_time(text)?),
        None => None,
    };
    let after = match &filter.next_token {
        Some(token) => Some(read_token(token)?),
        None => None,
    };
    let wants_running =
        filter.state.as_deref().is_none_or(|states| states.split(',').any(|state| state == "running"));
    let order = filter.order.unwrap_or_default();
    // Behind the last one of the page before, which may be gone by now.
    let is_behind = |place: &(u128, String)| match (&after, order) {
        (None, _) => true,
        (Some(last), Order::Asc) => place > last,
        (Some(last), Order::Desc) => place < last,
    };
    records.retain(|record| {
        wants_running
            && metadata.iter().all(|(key, value)| record.metadata.get(key) == Some(value))
            && started_after.is_none_or(|time| record.started_at >= time)
            && filter.template.as_ref().is_none_or(|template| record.template_id == *template)
            && is_behind(&place(record))
    });
    records.sort_by_cached_key(place);
    if order == Order::Desc {
        records.reverse();
    }
    let more = records.len() > limit;
    records.truncate(limit);
    let next = records.last().filter(|_| more).map(|last| {
        let (time, id) = place(last);
        format!("{time}-{id}")
    });
    Ok((records, next))
}

/// Where a sandbox stands in the order.
fn place(record: &Record) -> (u128, String) {
    let since = record.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since.as_nanos(), record.id.to_string())
}

fn read_token(token: &str) -> Result<(u128, String), ApiError> {
    let parts = token.split_once('-').and_then(|(time, id)| Some((time.parse().ok()?, id.to_owned())));
    parts.ok_or_else(|| ApiError::bad_request("nextToken: not one that was given out"))
}

fn read_time(text: &str) -> Result<SystemTime, ApiError> {
    let refused = || ApiError::bad_request("startedAfter: expected a time such as 2026-01-31T12:00:00Z");
    // `humantime` reads UTC alone; clients send offsets too.
    let (plain, offset) = split_offset(text).ok_or_else(refused)?;
    let time = humantime::parse_rfc3339(&format!("{plain}Z")).map_err(|_| refused())?;
    let shift = Duration::from_secs(offset.unsigned_abs() * 60);
    let shifted = if offset >= 0 { time.checked_sub(shift) } else { time.checked_add(shift) };
    shifted.ok_or_else(refused)
}

/// A time without its offset, and the offset in minutes. A blank was a plus before it came through a URL.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(plain) = text.strip_suffix(['Z', 'z']) {
        return Some((plain, 0));
    }
    let at = text.len().checked_sub(6)?;
    let (plain, offset) = (text.get(..at)?, text.get(at..)?);
    let sign = match offset.as_bytes().first()? {
        b'+' | b' ' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let minutes: i64 = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    Some((plain, sign * minutes))
}

/// Keys and values that were encoded before they became a query, as E2B's SDKs send them, are decoded once more.
fn read_metadata(query: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let uri: Result<axum::http::Uri, _> = format!("/?{query}").parse();
    let pairs =
        uri.ok().and_then(|uri| axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri).ok());
    let pairs = pairs.ok_or_else(|| ApiError::bad_request("metadata: expected URL-encoded `key=value&…`"))?;
    // What is no encoding was not encoded.
    let plain = |text: String| percent_decode_str(&text).decode_utf8().map(Cow::into_owned).unwrap_or(text);
    Ok(pairs.0.into_iter().map(|(key, value)| (plain(key), plain(value))).collect())
}

fn lifetime(seconds: u64) -> Result<Duration, ApiError> {
    let timeout = Duration::from_secs(seconds);
    if timeout <= MAX_TIMEOUT {
        return Ok(timeout);
    }
    let hours = MAX_TIMEOUT.as_secs() / 3600;
    Err(ApiError::bad_request(format!("Timeout cannot be greater than {hours} hours")))
}

fn listed(record: Record) -> ListedSandbox {
    ListedSandbox {
        template_id: record.template_id,
        sandbox_id: record.id.to_string(),
        client_id: CLIENT_ID,
        started_at: record.started_at,
        end_at: record.end_at,
        cpu_count: 0,
        memory_mb: 0,
        disk_size_mb: 0,
        state: "running",
        envd_version: ENVD_VERSION,
        metadata: record.metadata,
    }
}

fn sandbox(api: &Api, record: Record, tokens: Tokens) -> Sandbox {
    Sandbox {
        template_id: record.template_id,
        sandbox_id: record.id.to_string(),
        client_id: CLIENT_ID,
        envd_version: ENVD_VERSION,
        envd_access_token: record.secure.then_some(tokens.envd_access_token),
        traffic_access_token: tokens.traffic_access_token,
        domain: api.domain.clone(),
    }
}

fn no_tokens() -> ApiError {
    ControlError::failed("the sandbox has no tokens").into()
}

impl ApiError {
    /// In E2B's words where the sandbox is not there.
    fn naming(self, id: &SandboxId) -> Self {
        if self.is_not_found() { Self::no_sandbox(id.as_str()) } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_offsets() {
        let noon = read_time("2026-01-31T12:00:00Z").unwrap();
        for same in
            ["2026-01-31T13:30:00.000+01:30", "2026-01-31T13:30:00 01:30", "2026-01-31T07:00:00-05:00"]
        {
            assert_eq!(read_time(same).unwrap(), noon, "{same}");
        }
        for bad in
            ["", "Z", "noon", "2026-01-31", "2026-01-31T12:00:00", "+01:00", "2026-01-31T12:00:00+xx:00"]
        {
            assert!(read_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_is_a_query_of_its_own() {
        let read = read_metadata("user=a%26b&app=x").unwrap();
        assert_eq!((read["user"].as_str(), read["app"].as_str()), ("a&b", "x"));
        // An SDK's, of `a b` and `ä & ö=+%`.
        let read =
            read_metadata("a%2520b=%25C3%25A4%2520%2526%2520%25C3%25B6%253D%252B%2525&b=100%25").unwrap();
        assert_eq!((read["a b"].as_str(), read["b"].as_str()), ("ä & ö=+%", "100%"));
    }
}
