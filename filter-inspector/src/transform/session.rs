//! A connection whose requests are taken one by one: each is judged by the rules in force when it comes, and its
//! headers are set by the same.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use filter_common::{Reason, RuleWord};
use filter_policy::{Name, Scheme};
use http_body_util::{Either, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::Incoming,
    header,
    http::uri,
    server,
    service::service_fn,
    upgrade::{self, OnUpgrade},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    sync,
    time::{timeout, timeout_at},
};

use super::{
    body::{Answer, Outgoing},
    headers::{self, Injection},
    nursery::{Nursery, Spawner},
    protocol::{Offer, Protocol},
    upstream::{Lost, Sender},
};
use crate::{
    authority,
    connection::{Connection, Refused},
    host::Host,
    http::{
        refusal::{self, Why},
        request::BadRequest,
    },
    rules::{Named, Rules, Target, Verdict},
    server::Shared,
    stream::Stream,
};

/// How often a request may have its upstream replaced under it, by updates or by upstreams that close, before it is
/// given up.
const ATTEMPTS: usize = 3;
/// How long both ends have to hear of the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// Streams that a client may have open at once.
const STREAMS: u32 = 128;

/// What the client speaks.
pub(super) enum Front {
    /// TLS, as with this host.
    Tls {
        /// Whom the client asked for.
        name: Name,
        /// What was agreed on.
        protocol: Protocol,
    },
    /// HTTP/1.1 in the clear.
    Clear,
}

/// A connection at work.
pub(super) struct Session<H: Host> {
    shared: Arc<Shared<H>>,
    front: Front,
    /// What the client connected to.
    port: u16,
    lane: sync::Mutex<Lane<H>>,
    spawner: Spawner,
    tunnel: Mutex<Option<Tunnel>>,
}

/// The connection, and who takes requests at its other end.
struct Lane<H: Host> {
    connection: Connection<H>,
    sender: Option<Sender>,
}

type Tunnel = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why a request goes nowhere.
struct Refusal {
    why: Why,
    /// What decided, if not the state of things.
    by: Option<(RuleWord, u32)>,
}

/// The client learns from the end of its connection, or stream, that its request may or may not have arrived.
#[derive(Debug, thiserror::Error)]
#[error("the server broke off")]
pub(super) struct BrokenOff;

impl From<Why> for Refusal {
    fn from(why: Why) -> Self {
        Self { why, by: None }
    }
}

impl From<BadRequest> for Refusal {
    fn from(bad: BadRequest) -> Self {
        Why::BadRequest(bad).into()
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self { why: Why::Denied(refused.reason), by: Some((refused.rule, refused.generation)) }
    }
}

/// Serves a connection in the clear, whose next request is one that headers are set in.
pub(crate) async fn serve_clear<H: Host>(connection: Connection<H>, inbox: Vec<u8>) {
    let (nursery, spawner) = Nursery::new();
    let client = Stream::of_client(&connection, inbox);
    Session::new(connection, Front::Clear, spawner).serve(client, nursery).await;
}

impl<H: Host> Lane<H> {
    fn leave(&mut self) {
        self.sender = None;
        self.connection.leave_upstream();
    }
}

impl<H: Host> Session<H> {
    pub(super) fn new(connection: Connection<H>, front: Front, spawner: Spawner) -> Arc<Self> {
        let shared = Arc::clone(&connection.shared);
        let port = connection.flow().destination.port();
        let lane = sync::Mutex::new(Lane { connection, sender: None });
        Arc::new(Self { shared, front, port, lane, spawner, tunnel: Mutex::default() })
    }

    /// Has an upstream that was reached already take the first request.
    pub(super) async fn begin_with(&self, nursery: &mut Nursery, upstream: impl Io) {
        let sender = nursery.beside(Sender::new(upstream, self.protocol(), &self.spawner)).await;
        let mut lane = self.lane.lock().await;
        match sender {
            Ok(sender) => lane.sender = Some(sender),
            Err(_) => lane.leave(),
        }
    }

    /// Serves the client until either side has enough.
    pub(super) async fn serve(self: Arc<Self>, client: impl Io, mut nursery: Nursery) {
        let idle = self.shared.settings.idle_timeout;
        let client = TokioIo::new(client);
        let session = Arc::clone(&self);
        let service = service_fn(move |request| Arc::clone(&session).answer(request));
        // How it ends is the client's affair.
        match self.protocol() {
            Protocol::H1 => {
                let mut http = server::conn::http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(idle);
                let _ = nursery.beside(http.serve_connection(client, service).with_upgrades()).await;
            }
            Protocol::H2 => {
                let mut http = server::conn::http2::Builder::new(self.spawner.clone());
                http.timer(TokioTimer::new()).max_concurrent_streams(STREAMS);
                let _ = nursery.beside(http.serve_connection(client, service)).await;
            }
        }
        let tunnel = self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tunnel) = tunnel {
            return nursery.beside(tunnel).await;
        }
        let Some(session) = Arc::into_inner(self) else { return };
        let Lane { mut connection, sender } = session.lane.into_inner();
        drop((sender, session.spawner));
        // Upstreams hear that there will be nothing more.
        let _ = timeout(FAREWELL, std::future::poll_fn(|context| nursery.poll(context))).await;
        connection.leave_upstream();
        connection.listen_out().await;
    }

    fn protocol(&self) -> Protocol {
        match self.front {
            Front::Tls { protocol, .. } => protocol,
            Front::Clear => Protocol::H1,
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Answer>, BrokenOff> {
        let named = name_of(request.uri(), request.headers(), self.port);
        let is_head = request.method() == Method::HEAD;
        let forwarded = match &named {
            Ok(named) => self.forward(named, request).await,
            Err(bad) => Err((*bad).into()),
        };
        match forwarded {
            Ok(response) => response,
            Err(refusal) => {
                let name = named.as_ref().ok().and_then(|named| named.as_ref().ok()).and_then(Option::as_ref);
                Ok(self.refuse(&refusal, name, is_head).await)
            }
        }
    }

    /// Sends a request to where it may go.
    async fn forward(
        self: &Arc<Self>,
        named: &Named,
        mut request: Request<Incoming>,
    ) -> Result<Result<Response<Answer>, BrokenOff>, Refusal> {
        if request.method() == Method::CONNECT {
            return Err(BadRequest::Connect.into());
        }
        if let Front::Tls { name, .. } = &self.front {
            match named {
                Ok(Some(asked)) if asked == name => {}
                Ok(Some(_)) => return Err(Why::Misdirected.into()),
                Ok(None) => return Err(Why::Denied(Reason::NoName).into()),
                Err(_) => return Err(Why::Denied(Reason::BadName).into()),
            }
        }
        let wants_upgrade = headers::go_on(request.headers_mut())?;
        let upgrade = wants_upgrade.then(|| upgrade::on(&mut request));
        self.readdress(&mut request)?;
        let mut unsent = Some(request.map(Outgoing::new));
        for _ in 0..ATTEMPTS {
            let mut lane = self.lane.lock().await;
            let rules = self.aim(&mut lane, named).await?;
            let injection = self.injection(&rules, named)?;
            let Some(mut request) = unsent.take() else { break };
            if let Some(injection) = &injection {
                if request.method() == Method::TRACE {
                    return Err(Why::Trace.into());
                }
                injection.apply(request.headers_mut());
                self.shared.transformer.count_one();
            }
            request.body_mut().cleanse(injection.clone());
            let Some(sender) = &mut lane.sender else { break };
            let sent = match sender.share() {
                // Many at a time.
                Some(mut sender) => {
                    drop(lane);
                    sender.send(request).await
                }
                None => {
                    let sent = sender.send(request).await;
                    drop(lane);
                    sent
                }
            };
            match sent {
                Ok(response) => return Ok(Ok(self.pass_back(response, upgrade))),
                Err(Lost::Unsent(mut request)) => {
                    // The rules may be others for the next attempt.
                    if let Some(injection) = &injection {
                        injection.cleanse(request.headers_mut());
                    }
                    unsent = Some(*request);
                    self.lane.lock().await.leave();
                }
                Err(Lost::Unreadable) => return Err(Why::BadResponse.into()),
                Err(Lost::Sent) => return Ok(Err(BrokenOff)),
            }
        }
        Err(Why::Denied(Reason::Unresolved).into())
    }

    /// Sees to it that the upstream is the one that the rules in force send the request to; gives those rules.
    async fn aim(&self, lane: &mut Lane<H>, named: &Named) -> Result<Arc<Rules>, Refusal> {
        for _ in 0..ATTEMPTS {
            let tenant = lane.connection.tenant();
            let Some(rules) = self.shared.host.rules(tenant) else {
                return Err(lane.connection.refused(Reason::Revoked).into());
            };
            let target = match rules.judge(named, lane.connection.flow().destination.ip()) {
                Verdict::Allow { target, .. } => target,
                Verdict::Deny { reason, rule } => {
                    lane.leave();
                    return Err(Refused { reason, rule, generation: rules.generation }.into());
                }
            };
            let is_there = lane.sender.as_ref().is_some_and(|sender| !sender.is_closed());
            if is_there && lane.connection.entry.leads_to(&target) {
                return Ok(rules);
            }
            lane.leave();
            lane.connection.reach(named).await?;
            lane.sender = Some(self.speak(&mut lane.connection, &target).await?);
        }
        Err(lane.connection.refused(Reason::Revoked).into())
    }

    /// Speaks with the upstream that was reached.
    async fn speak(&self, connection: &mut Connection<H>, target: &Target) -> Result<Sender, Refusal> {
        let Some(upstream) = &connection.upstream else {
            return Err(Why::Denied(Reason::Unresolved).into());
        };
        let stream = Stream::new(Arc::clone(upstream));
        let deadline = tokio::time::Instant::now() + self.shared.settings.dial_timeout;
        let spoken = match (&self.front, target) {
            (Front::Tls { protocol, .. }, Target::Name(name)) => {
                let offer = Offer::only(*protocol);
                let connecting = self.shared.transformer.trust.connect(name, offer, stream);
                match timeout_at(deadline, connecting).await {
                    Ok(Ok(stream)) if Protocol::agreed(stream.get_ref().1.alpn_protocol()) == *protocol => {
                        Sender::new(stream, *protocol, &self.spawner).await
                    }
                    Ok(Ok(_)) => {
                        Err(Why::Untrusted("The server no longer speaks the HTTP version that it did."))
                    }
                    Ok(Err(why)) => Err(Why::Untrusted(why)),
                    Err(_) => Err(Why::Untrusted("The server does not answer the TLS handshake.")),
                }
            }
            // Headers are set for a name. Without it there is nobody to be sure of.
            (Front::Tls { .. }, Target::Address(_)) => Err(Why::Denied(Reason::Revoked)),
            (Front::Clear, _) => Sender::new(stream, Protocol::H1, &self.spawner).await,
        };
        spoken.map_err(|why| {
            connection.leave_upstream();
            why.into()
        })
    }

    /// What the rules set in a request.
    fn injection(&self, rules: &Rules, named: &Named) -> Result<Option<Arc<Injection>>, Refusal> {
        let Ok(Some(name)) = named else { return Ok(None) };
        let Some(transform) = rules.policy.transform(name) else { return Ok(None) };
        match (&self.front, transform.scheme) {
            (Front::Clear, Scheme::Https) => return Ok(None),
            (Front::Tls { .. }, _) | (Front::Clear, Scheme::Http) => {}
        }
        let injection = Injection::new(transform, &self.shared.transformer.secrets);
        injection.map(|injection| Some(Arc::new(injection))).map_err(|_| Why::Denied(Reason::NoSecret).into())
    }

    /// Writes whom a request is for as its upstream expects it.
    fn readdress(&self, request: &mut Request<Incoming>) -> Result<(), BadRequest> {
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
        *request.uri_mut() = match self.protocol() {
            Protocol::H1 => {
                *request.version_mut() = Version::HTTP_11;
                Uri::from(path)
            }
            Protocol::H2 => {
                request.headers_mut().remove(header::HOST);
                let authority = request.uri().authority().cloned().ok_or(BadRequest::Host)?;
                let uri = Uri::builder().scheme(uri::Scheme::HTTPS).authority(authority).path_and_query(path);
                uri.build().map_err(|_| BadRequest::Target)?
            }
        };
        Ok(())
    }

    fn pass_back(
        self: &Arc<Self>,
        mut response: Response<Incoming>,
        upgrade: Option<OnUpgrade>,
    ) -> Response<Answer> {
        let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        headers::come_back(response.headers_mut(), is_upgrade);
        if is_upgrade && let Some(client) = upgrade {
            let (server, session) = (upgrade::on(&mut response), Arc::clone(self));
            let tunnel = Box::pin(async move {
                let Ok((client, server)) = tokio::try_join!(client, server) else { return };
                // How it ends is for the two to know.
                let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
                drop(session);
            });
            *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
        }
        response.map(Either::Left)
    }

    /// Tells of a refusal, and the client why.
    async fn refuse(&self, refusal: &Refusal, name: Option<&Name>, is_head: bool) -> Response<Answer> {
        let lane = self.lane.lock().await;
        let mut refused = lane.connection.refused(refusal.why.reason());
        if let Some((rule, generation)) = refusal.by {
            (refused.rule, refused.generation) = (rule, generation);
        }
        lane.connection.tell_refused(refused, name, 0);
        let body = refusal::body(refusal.why, lane.connection.pointer(&refused).as_deref(), name);
        drop(lane);
        let length = body.len();
        let body = if is_head { Full::default() } else { Full::from(body) };
        let mut response = Response::new(Either::Right(body));
        *response.status_mut() =
            StatusCode::from_u16(refusal.why.status()).unwrap_or(StatusCode::BAD_GATEWAY);
        let headers = response.headers_mut();
        let fixed = header::HeaderValue::from_static;
        headers.insert(header::CONTENT_TYPE, fixed("application/json"));
        headers.insert(header::CONTENT_LENGTH, length.into());
        headers.insert(header::CACHE_CONTROL, fixed("no-store"));
        if self.protocol() == Protocol::H1 {
            headers.insert(header::CONNECTION, fixed("close"));
        }
        response
    }
}

/// Either end of a connection.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// Whom a request is for: every place that says so has to say the same.
fn name_of(uri: &Uri, headers: &HeaderMap, port: u16) -> Result<Named, BadRequest> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|host| authority::parse(host.as_bytes(), port));
    if hosts.next().is_some() {
        return Err(BadRequest::Host);
    }
    let target = uri.authority().map(|target| authority::parse(target.as_str().as_bytes(), port));
    match (target, host) {
        (Some(target), Some(host)) if target != host => Err(BadRequest::HostMismatch),
        (Some(named), _) | (None, Some(named)) => Ok(named.map(Some)),
        (None, None) => Ok(Ok(None)),
    }
}
