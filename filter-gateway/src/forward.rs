//! A request that may go on: to the sandbox, and its answer back.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::{Either, Empty, Full};
use hyper::{body::Incoming, upgrade::OnUpgrade};

use crate::{
    body::{Answer, Held, Outgoing},
    client::Client,
    directory::Sandbox,
    headers::{self, Way},
    idle::Activity,
    limit::Place,
    pool::{Failed, Pool, Used},
    query,
    refusal::Refusal,
    route::Target,
    settings::Settings,
    tunnel,
};

/// What is to be passed on.
pub(crate) struct Order<'a> {
    pub(crate) parts: Parts,
    pub(crate) body: Incoming,
    pub(crate) target: &'a Target,
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) mask: Option<&'a str>,
    pub(crate) client: &'a Client,
    pub(crate) place: Place,
}

/// Passes a request on; its body, and that of the answer, go as they come and are not waited for.
pub(crate) async fn forward(
    pool: &Arc<Pool>,
    settings: &Settings,
    activity: &Activity,
    order: Order<'_>,
) -> Result<Response<Answer>, Refusal> {
    let Order { mut parts, body, target, sandbox, mask, client, place } = order;
    let port = target.port;
    let way = headers::way(&parts);
    headers::request(&mut parts.headers, way, target, mask, client)?;
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let path = query::without_token(&path).unwrap_or(path);
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    parts.extensions.clear();

    let exchange = exchange(pool, settings, way, parts, body, path, sandbox, target);
    let Exchanged { response, used, key } = tokio::select! {
        exchanged = exchange => exchanged?,
        () = activity.over(settings.idle_timeout) => {
            return Err(Refusal::NoAnswer { id: target.id.clone(), port });
        }
    };
    let bad_answer = || Refusal::BadAnswer { id: target.id.clone(), port };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let agreed = way == Way::WebSocket && tunnel::is_agreed(response.headers(), key.as_ref());
        let client = on_upgrade.filter(|_| agreed).ok_or_else(bad_answer)?;
        let of = (&**pool, sandbox.tenant);
        return Ok(switch(of, response, client, key.is_some(), target, activity, settings, place));
    }
    let (mut parts, body) = response.into_parts();
    headers::response(&mut parts.headers, &target.authority.host);
    parts.version = Version::HTTP_11;
    Ok(Response::from_parts(parts, Either::Right(Held::new(body, used, place))))
}

#[expect(clippy::too_many_arguments, reason = "one step of `forward`, cut out of it for the reader")]
async fn exchange(
    pool: &Arc<Pool>,
    settings: &Settings,
    way: Way,
    mut parts: Parts,
    body: Incoming,
    path: PathAndQuery,
    sandbox: &Sandbox,
    target: &Target,
) -> Result<Exchanged, Refusal> {
    let patience = settings.dial_timeout;
    if way == Way::Call {
        parts.uri = absolute(path, target)?;
        parts.version = Version::HTTP_2;
        let request = Request::from_parts(parts, Either::Left(body));
        let response = pool.call(sandbox, target.port, patience, request).await.map_err(failed(target))?;
        return Ok(Exchanged { response, used: None, key: None });
    }
    let is_websocket = way == Way::WebSocket;
    let key = if is_websocket { tunnel::downgrade(&mut parts) } else { None };
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    let body: Outgoing = if is_websocket { Either::Right(Empty::new()) } else { Either::Left(body) };
    let request = Request::from_parts(parts, body);
    let answer = pool.request(sandbox, target.port, patience, request).await;
    let (response, used) = answer.map_err(failed(target))?;
    Ok(Exchanged { response, used: Some(used), key })
}

struct Exchanged {
    response: Response<Incoming>,
    used: Option<Used>,
    /// That of a WebSocket which the gateway began in the client's name.
    key: Option<HeaderValue>,
}

/// Answers that the connection is a WebSocket from now on, and makes it one.
#[expect(clippy::too_many_arguments, reason = "one step of `forward`, cut out of it for the reader")]
fn switch(
    (pool, tenant): (&Pool, u32),
    response: Response<Incoming>,
    client: OnUpgrade,
    over_h2: bool,
    target: &Target,
    activity: &Activity,
    settings: &Settings,
    place: Place,
) -> Response<Answer> {
    let mut response = response;
    let sandbox = hyper::upgrade::on(&mut response);
    pool.spawn(tenant, tunnel::join(client, sandbox, activity.clone(), settings.idle_timeout, place));
    let (mut parts, _) = response.into_parts();
    headers::response(&mut parts.headers, &target.authority.host);
    headers::upgrade(&mut parts.headers);
    parts.version = Version::HTTP_11;
    let mut response = Response::from_parts(parts, Bytes::new());
    if over_h2 {
        tunnel::upgraded(&mut response);
    }
    response.map(|text| Either::Left(Full::new(text)))
}

/// What a call over HTTP/2 names: the host that the client named.
fn absolute(path: PathAndQuery, target: &Target) -> Result<Uri, Refusal> {
    let invalid = |_| Refusal::BadRequest("Invalid host");
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(Authority::try_from(target.written.as_str()).map_err(invalid)?);
    uri.path_and_query = Some(path);
    Uri::from_parts(uri).map_err(|_| Refusal::BadRequest("Invalid path"))
}

fn failed(target: &Target) -> impl FnOnce(Failed) -> Refusal + '_ {
    move |failed| {
        let (id, port) = (target.id.clone(), target.port);
        match failed {
            Failed::Dial(error) => {
                tracing::debug!(sandbox = id, port, %error, "cannot connect");
                Refusal::PortClosed { id, port }
            }
            Failed::Exchange(error) => {
                tracing::debug!(sandbox = id, port, %error, "no answer to pass on");
                Refusal::BadAnswer { id, port }
            }
        }
    }
}
