//! A request from its arrival to its answer: each step lets it through or refuses it.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tokio::sync::Notify;

use crate::{
    access::{self, Admission},
    authority::Authority,
    body::Answer,
    client::Client,
    controller,
    counters::Counters,
    directory::{Directory, Sandbox},
    forward::{self, Order},
    headers,
    idle::Activity,
    limit::{ClientRate, Places},
    pool::Pool,
    refusal::Refusal,
    route::{self, Target},
    settings::Settings,
};

/// What all threads share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) rate: ClientRate,
    pub(crate) places: Arc<Places>,
    pub(crate) counters: Arc<Counters>,
}

/// What one thread has.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Arc<Pool>,
}

/// A client's connection.
pub(crate) struct Connection {
    peer: IpAddr,
    /// Over TLS, the host that it is for: as the handshake names it, or else the first request.
    host: Option<OnceLock<String>>,
    pub(crate) activity: Activity,
    /// Told by the first request.
    pub(crate) begun: Notify,
}

impl Connection {
    pub(crate) fn cleartext(peer: IpAddr, activity: Activity) -> Self {
        Self { peer, host: None, activity, begun: Notify::new() }
    }

    pub(crate) fn tls(peer: IpAddr, server_name: Option<&str>, activity: Activity) -> Self {
        let host = server_name.map(|name| OnceLock::from(name.to_owned())).unwrap_or_default();
        Self { peer, host: Some(host), activity, begun: Notify::new() }
    }

    fn check(&self, request: &Authority, domain: &str) -> Result<(), Refusal> {
        let Some(host) = &self.host else { return Ok(()) };
        let host = host.get_or_init(|| request.host.clone());
        if route::belongs(host, request, domain) { Ok(()) } else { Err(Refusal::Misdirected) }
    }
}

impl Worker {
    /// Answers a request, whatever it is.
    pub(crate) async fn answer(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Infallible> {
        connection.begun.notify_one();
        let for_people = headers::is_navigation(request.headers());
        let counters = &self.shared.counters;
        let response = self.respond(&connection, request).await.unwrap_or_else(|refusal| {
            counters.refused(&refusal);
            tracing::debug!(
                reason = refusal.reason(),
                sandbox = refusal.sandbox().unwrap_or_default(),
                peer = %connection.peer,
                "refused: {}",
                refusal.message()
            );
            words(refusal.answer(for_people))
        });
        counters.answered(response.status());
        Ok(response)
    }

    async fn respond(
        &self,
        connection: &Connection,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Refusal> {
        let Shared { settings, directory, rate, places, .. } = &*self.shared;
        let (parts, body) = request.into_parts();
        let is_tls = connection.host.is_some();
        let client = Client::of(connection.peer, is_tls, &parts.headers, &settings.trusted_proxies);
        rate.check(client.addr).map_err(|wait| Refusal::TooFast { wait })?;
        let target = route::target(&parts, &settings.domain)?;
        connection.check(&target.authority, &settings.domain)?;
        let sandbox =
            directory.sandbox(&target.id).ok_or_else(|| Refusal::UnknownSandbox { id: target.id.clone() })?;
        let mask = match self.admit(&parts, &target, &sandbox)? {
            Admitted::ToController => None,
            Admitted::ToService => sandbox.mask.as_deref(),
            Admitted::Again(token) => {
                return Ok(words(access::welcome(&parts, token, client.secure).map(|()| Bytes::new())));
            }
        };
        let place = places.take(sandbox.tenant).ok_or_else(|| Refusal::Busy { id: target.id.clone() })?;
        let order = Order { parts, body, target: &target, sandbox: &sandbox, mask, client: &client, place };
        forward::forward(&self.pool, settings, &connection.activity, order).await
    }

    fn admit<'a>(
        &self,
        parts: &http::request::Parts,
        target: &Target,
        sandbox: &'a Sandbox,
    ) -> Result<Admitted<'a>, Refusal> {
        if target.port == self.shared.settings.controller_port {
            if let Some(token) = &sandbox.controller_token {
                controller::admit(parts, token, SystemTime::now())?;
            }
            return Ok(Admitted::ToController);
        }
        let Some(token) = &sandbox.traffic_token else { return Ok(Admitted::ToService) };
        Ok(match access::admit(parts, token, &target.id)? {
            Admission::Pass => Admitted::ToService,
            Admission::Welcome => Admitted::Again(token),
        })
    }
}

enum Admitted<'a> {
    ToController,
    ToService,
    /// At the same address without the token.
    Again(&'a crate::directory::Secret),
}

fn words(response: Response<Bytes>) -> Response<Answer> {
    response.map(|text| Either::Left(Full::new(text)))
}
