//! A web site as the internet has them: HTTP/1.1 and HTTP/2 over TLS, HTTP/1.1 without, on addresses of its own. It
//! remembers who asked for what.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::connect_info::Connected;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, Path as Captured, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::serve::{IncomingStream, Listener};
use futures_util::{StreamExt as _, stream};
use rustls::{NamedGroup, ServerConfig};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_rustls::LazyConfigAcceptor;

use crate::netns::Netns;
use crate::tls::Ca;
use crate::workers::{lock, pattern};

mod git;

/// A web site. What it does depends on the path:
///
/// | path | answer |
/// |---|---|
/// | `/down/N` | N bytes that [`pattern`] gives |
/// | `/up` | how many bytes came, and whether they are those |
/// | `/ws` | a WebSocket that sends back its messages |
/// | `/events` | server-sent events; each but the first once the one before was answered with `/seen` |
/// | `/git/…` | the repositories below [`Site::repositories`], to read and to write |
/// | what was published | that |
/// | any other of one word | a greeting |
#[derive(Debug)]
pub struct Site {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// The ends of a connection, and what a TLS hello says of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub peer: SocketAddr,
    /// What it connected to.
    pub local: SocketAddr,
    /// Whom it asked for; nobody without TLS.
    pub server_name: Option<String>,
    /// Whether it offered a post-quantum key exchange, which makes a hello larger than a packet.
    pub post_quantum: bool,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The connection that it came on.
    pub ends: Ends,
    /// `GET` and so on.
    pub method: String,
    /// The path, without a query.
    pub path: String,
    /// Whom it was for: `Host`, or `:authority`.
    pub host: String,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub version: String,
}

#[derive(Debug, Default)]
struct Shared {
    accepted: Mutex<Vec<SocketAddr>>,
    visits: Mutex<Vec<Visit>>,
    published: Mutex<HashMap<String, (&'static str, Bytes)>>,
    repositories: Mutex<PathBuf>,
    seen: Notify,
}

impl Site {
    /// Serves at these addresses, on port 443 with certificates of `ca` for every name, and on port 80.
    pub fn start(netns: &Netns, ca: &Ca, addresses: &[&str]) -> Result<Self> {
        let mut config = ca.server_config()?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let mut doors = Vec::new();
        for address in addresses {
            let address: IpAddr = address.parse().context("an address")?;
            for (port, tls) in [(443, Some(Arc::clone(&config))), (80, None)] {
                let at = SocketAddr::new(address, port);
                let socket = netns.run(|| listen(at)).with_context(|| format!("cannot serve {at}"))?;
                doors.push((socket, tls));
            }
        }
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let known = Arc::clone(&shared);
        let thread = netns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (entrance, streams) = mpsc::channel(64);
                for (socket, tls) in doors {
                    let socket = TcpListener::from_std(socket)?;
                    tokio::spawn(accept(socket, tls, entrance.clone(), Arc::clone(&known)));
                }
                let service = routes(known).into_make_service_with_connect_info::<Ends>();
                tokio::select! {
                    served = axum::serve(Entrance(streams), service) => Ok(served?),
                    // The other end going away is a stop as well.
                    _ = stopped => Ok(()),
                }
            })
        })?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Answers requests for a path with this from now on.
    pub fn publish(&self, path: &str, kind: &'static str, content: impl Into<Bytes>) {
        lock(&self.shared.published).insert(path.to_owned(), (kind, content.into()));
    }

    /// Publishes the files below a directory at their paths in it; `index.html` also at its directory's.
    pub fn publish_files(&self, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            self.publish_below(directory, &entry?.path())?;
        }
        Ok(())
    }

    fn publish_below(&self, root: &Path, path: &Path) -> Result<()> {
        if path.is_dir() {
            return fs::read_dir(path)?.try_for_each(|entry| self.publish_below(root, &entry?.path()));
        }
        let name = format!("/{}", path.strip_prefix(root)?.display());
        let kind = match path.extension().and_then(|extension| extension.to_str()) {
            Some("html") => "text/html",
            Some("json") => "application/json",
            _ => "application/octet-stream",
        };
        let content = Bytes::from(fs::read(path)?);
        // A registry's document has the name of its package.
        let short = name.strip_suffix("index.html").or_else(|| name.strip_suffix(".json"));
        if let Some(short) = short {
            self.publish(short, kind, content.clone());
        }
        self.publish(&name, kind, content);
        Ok(())
    }

    /// Serves the git repositories below a directory.
    pub fn repositories(&self, directory: &Path) {
        directory.clone_into(&mut lock(&self.shared.repositories));
    }

    /// Where clients connected to, in order.
    pub fn accepted(&self) -> Vec<SocketAddr> {
        lock(&self.shared.accepted).clone()
    }

    /// The requests so far.
    pub fn visits(&self) -> Vec<Visit> {
        lock(&self.shared.visits).clone()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("warning: a web site had failed: {error:#}");
        }
    }
}

fn listen(at: SocketAddr) -> Result<StdListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(at))?;
    socket.listen(4096)?;
    Ok(socket.into())
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Arrival = (Box<dyn Stream>, Ends);

/// Where connections of all addresses come in, after their handshakes.
struct Entrance(mpsc::Receiver<Arrival>);

impl Listener for Entrance {
    type Io = Box<dyn Stream>;
    type Addr = Ends;

    async fn accept(&mut self) -> Arrival {
        match self.0.recv().await {
            Some(arrival) => arrival,
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Ends> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Connected<IncomingStream<'_, Entrance>> for Ends {
    fn connect_info(stream: IncomingStream<'_, Entrance>) -> Self {
        stream.remote_addr().clone()
    }
}

async fn accept(
    socket: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    entrance: mpsc::Sender<Arrival>,
    shared: Arc<Shared>,
) {
    loop {
        // One client that is gone again is no reason to stop.
        let Ok((stream, peer)) = socket.accept().await else { continue };
        let Ok(local) = stream.local_addr() else { continue };
        lock(&shared.accepted).push(local);
        let (tls, entrance) = (tls.clone(), entrance.clone());
        tokio::spawn(async move {
            // How a client ends is its own affair.
            if let Ok(arrival) = greet(stream, Ends::new(peer, local), tls).await {
                let _ = entrance.send(arrival).await;
            }
        });
    }
}

impl Ends {
    fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        Self { peer, local, server_name: None, post_quantum: false }
    }
}

async fn greet(stream: TcpStream, ends: Ends, tls: Option<Arc<ServerConfig>>) -> io::Result<Arrival> {
    stream.set_nodelay(true)?;
    let Some(config) = tls else { return Ok((Box::new(stream), ends)) };
    let handshake = LazyConfigAcceptor::new(Default::default(), stream).await?;
    let hello = handshake.client_hello();
    let ends = Ends {
        server_name: hello.server_name().map(str::to_owned),
        post_quantum: hello.named_groups().is_some_and(|groups| groups.contains(&NamedGroup::X25519MLKEM768)),
        ..ends
    };
    Ok((Box::new(handshake.into_stream(config).await?), ends))
}

fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/down/{length}", get(down))
        .route("/up", any(up))
        .route("/ws", any(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(echo)))
        .route("/events", get(events))
        .route("/seen", any(async |State(shared): State<Arc<Shared>>| shared.seen.notify_one()))
        .route("/git/{*path}", any(git::serve))
        .fallback(published)
        .layer(from_fn_with_state(Arc::clone(&shared), note))
        .with_state(shared)
}

/// Takes note of a request.
async fn note(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(ends): ConnectInfo<Ends>,
    request: Request,
    next: Next,
) -> Response {
    lock(&shared.visits).push(Visit {
        ends,
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        host: host(&request),
        version: format!("{:?}", request.version()),
    });
    next.run(request).await
}

fn host(request: &Request) -> String {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(ToString::to_string);
    named.map(str::to_owned).or(authority).unwrap_or_default()
}

async fn published(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(ends): ConnectInfo<Ends>,
    request: Request,
) -> Response {
    let found = lock(&shared.published).get(request.uri().path()).cloned();
    let is_word = request.uri().path().rfind('/') == Some(0);
    match found {
        Some((kind, content)) => ([(header::CONTENT_TYPE, kind)], content).into_response(),
        None if !is_word => StatusCode::NOT_FOUND.into_response(),
        None => format!("hello from {} as {}\n", ends.local, host(&request)).into_response(),
    }
}

async fn down(Captured(length): Captured<u64>) -> Response {
    const PIECE: u64 = 64 * 1024;
    let pieces = (0..length.div_ceil(PIECE)).map(move |number| {
        let from = number * PIECE;
        Ok::<_, Infallible>(Bytes::from(pattern(from, PIECE.min(length - from) as usize)))
    });
    let head: [(HeaderName, HeaderValue); 1] = [(header::CONTENT_LENGTH, length.into())];
    (head, Body::from_stream(stream::iter(pieces))).into_response()
}

async fn up(body: Body) -> Response {
    let (mut length, mut right) = (0, true);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let Ok(piece) = piece else { return StatusCode::BAD_REQUEST.into_response() };
        right &= pattern(length, piece.len()) == piece;
        length += piece.len() as u64;
    }
    format!("{length} bytes, {}\n", if right { "all right" } else { "and wrong ones" }).into_response()
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        // What is sent to a client that has gone is lost.
        let _ = socket.send(message).await;
    }
}

async fn events(State(shared): State<Arc<Shared>>) -> Response {
    const EVENTS: u32 = 4;
    /// No client waits longer than that for what it has not asked for.
    const PATIENCE: Duration = Duration::from_secs(20);
    let events = stream::unfold((shared, 0), |(shared, sent)| async move {
        if sent == EVENTS {
            return None;
        }
        if sent > 0 {
            tokio::time::timeout(PATIENCE, shared.seen.notified()).await.ok()?;
        }
        Some((Ok::<_, Infallible>(format!("data: event {sent}\n\n")), (shared, sent + 1)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

/// The whole body of a request, for whoever needs it in one piece.
async fn whole(body: Body) -> Result<Bytes> {
    const MOST: usize = 64 << 20;
    Ok(to_bytes(body, MOST).await?)
}
