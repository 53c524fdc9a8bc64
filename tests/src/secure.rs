//! An HTTPS server that speaks HTTP/1.1 and HTTP/2 and remembers what it was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::Result;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as _, Bytes, Frame, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use socket2::Type;
use tokio::io::copy;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::netns::Netns;
use crate::server::{bind, unmapped};
use crate::tls::Ca;
use crate::workers::{lock, pattern};

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecureRequest {
    /// The connection that it came on, counted from 0.
    pub connection: usize,
    /// What the client connected to.
    pub local: SocketAddr,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// `GET` and so on.
    pub method: String,
    /// The path and what is behind it.
    pub path: String,
    /// Whom it is for, by `Host` or `:authority`.
    pub host: String,
    /// All fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Those behind the body.
    pub trailers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl SecureRequest {
    /// The values of a field.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// An HTTPS server at every address of its namespace, with a certificate for whoever is asked for: an old one for
/// `expired.test`, another's for `wrong.test`, and a stranger's for `stranger.test`.
///
/// | path | answer |
/// |---|---|
/// | `/echo` | the body, as it comes |
/// | `/headers` | the request's fields, a line each |
/// | `/redirect` | 302 to `https://other.test/headers`, and `Alt-Svc` |
/// | `/trailers` | a body with a trailer, as gRPC has it |
/// | `/ws` | 101, then an echo of anything |
/// | `/down/N` | N bytes of `pattern` |
/// | `/close` | a greeting and the end |
/// | any other | a greeting |
#[derive(Debug)]
pub struct SecureServer {
    log: Arc<Mutex<Vec<SecureRequest>>>,
    connections: Arc<Mutex<usize>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

type Body = BoxBody<Bytes, hyper::Error>;

impl SecureServer {
    /// Starts a server that whoever trusts `ca` believes.
    pub fn start(netns: &Netns, ca: &Ca, port: u16) -> Result<Self> {
        let socket = netns.run(|| Ok(bind(Type::STREAM, port)?))?;
        socket.set_nonblocking(true)?;
        let keys = Keys { ca: ca.clone(), stranger: Ca::new()?, made: Mutex::default() };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(keys));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (log, connections) = (Arc::new(Mutex::default()), Arc::new(Mutex::new(0)));
        let (stop, stopped) = oneshot::channel();
        let (noted, counted) = (Arc::clone(&log), Arc::clone(&connections));
        let thread = std::thread::Builder::new().name("secure".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let listener = TcpListener::from_std(socket.into())?;
                tokio::select! {
                    () = accept(listener, acceptor, noted, counted) => {}
                    _ = stopped => {}
                }
                Ok(())
            })
        })?;
        Ok(Self { log, connections, stop: Some(stop), thread: Some(thread) })
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<SecureRequest> {
        lock(&self.log).clone()
    }

    /// The last one.
    pub fn last(&self) -> Option<SecureRequest> {
        lock(&self.log).last().cloned()
    }

    /// TCP connections so far, whatever became of them.
    pub fn connections(&self) -> usize {
        *lock(&self.connections)
    }
}

impl Drop for SecureServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("warning: a server had failed: {error:#}");
        }
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    log: Arc<Mutex<Vec<SecureRequest>>>,
    connections: Arc<Mutex<usize>>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let connection = {
            let mut connections = lock(&connections);
            *connections += 1;
            *connections - 1
        };
        let (acceptor, log) = (acceptor.clone(), Arc::clone(&log));
        // How a client ends is its own affair.
        tokio::spawn(async move {
            let _ = serve(stream, acceptor, connection, log).await;
        });
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    connection: usize,
    log: Arc<Mutex<Vec<SecureRequest>>>,
) -> Result<()> {
    let local = unmapped(stream.local_addr()?);
    let tls = acceptor.accept(stream).await?;
    let service = service_fn(move |request| answer(request, connection, local, Arc::clone(&log)));
    let http = auto::Builder::new(TokioExecutor::new());
    let served = http.serve_connection_with_upgrades(TokioIo::new(tls), service).await;
    served.map_err(anyhow::Error::from_boxed)
}

async fn answer(
    mut request: Request<Incoming>,
    connection: usize,
    local: SocketAddr,
    log: Arc<Mutex<Vec<SecureRequest>>>,
) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let mut noted = SecureRequest {
        connection,
        local,
        version: format!("{:?}", request.version()),
        method: request.method().to_string(),
        path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        host: host_of(&request),
        headers: fields(request.headers()),
        trailers: Vec::new(),
        body: Vec::new(),
    };
    if path == "/ws" {
        lock(&log).push(noted);
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = copy(&mut read, &mut write).await;
        });
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        return Ok(response);
    }
    if path == "/echo" && request.body().size_hint().exact().is_none() {
        // As it comes, so that a client may wait for one piece before it sends the next.
        lock(&log).push(noted);
        return Ok(Response::new(request.into_body().boxed()));
    }
    let fields_seen: String =
        noted.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    let (host, collected) = (noted.host.clone(), request.into_body().collect().await?);
    noted.trailers = collected.trailers().map(fields).unwrap_or_default();
    noted.body = collected.to_bytes().to_vec();
    let body = noted.body.clone();
    lock(&log).push(noted);
    let mut response = Response::new(full(format!("hello from {local} as {host}\n")));
    match path.as_str() {
        "/echo" => *response.body_mut() = full(body),
        "/headers" => *response.body_mut() = full(fields_seen),
        "/redirect" => {
            *response.status_mut() = StatusCode::FOUND;
            let headers = response.headers_mut();
            headers.insert(header::LOCATION, HeaderValue::from_static("https://other.test/headers"));
            headers.insert(header::ALT_SVC, HeaderValue::from_static("h3=\":443\""));
        }
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("grpc-status"));
            let frames = [Frame::data(Bytes::from_static(b"message")), Frame::trailers(trailers)];
            let frames = frames.map(Ok::<_, hyper::Error>);
            *response.body_mut() = BoxBody::new(StreamBody::new(futures_util::stream::iter(frames)));
        }
        "/close" => {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        path => {
            if let Some(length) = path.strip_prefix("/down/").and_then(|length| length.parse().ok()) {
                *response.body_mut() = full(pattern(0, length));
            }
        }
    }
    Ok(response)
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn host_of(request: &Request<Incoming>) -> String {
    let authority = request.uri().authority().map(ToString::to_string);
    let host =
        request.headers().get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    authority.or(host).unwrap_or_default()
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let field = |(name, value): (&header::HeaderName, &HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    headers.iter().map(field).collect()
}

/// A certificate for whoever is asked for.
#[derive(Debug)]
struct Keys {
    ca: Ca,
    stranger: Ca,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl ResolvesServerCert for Keys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or("nobody.test").to_owned();
        let mut made = lock(&self.made);
        if let Some(key) = made.get(&name) {
            return Some(Arc::clone(key));
        }
        let key = match name.as_str() {
            "expired.test" => self.ca.old_key_for(&name),
            "wrong.test" => self.ca.key_for("somebody-else.test"),
            "stranger.test" => self.stranger.key_for(&name),
            _ => self.ca.key_for(&name),
        };
        let key = Arc::new(key.ok()?);
        made.insert(name, Arc::clone(&key));
        Some(key)
    }
}
