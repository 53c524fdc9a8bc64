//! Taking connections, and a thread for each processor that serves them.
//!
//! A client's connection stays on one thread, with the connections to sandboxes that its requests go over: nothing is
//! handed from one processor to another while a request is under way.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    counters::Counters,
    directory::Directory,
    gateway::{Connection, Shared, Worker},
    idle::{Activity, Watched},
    limit::{ClientRate, Places},
    pool::Pool,
    settings::{REQUEST_HEAD, Settings},
    tls::{Certificate, TlsError},
};

const BACKLOG: i32 = 4096;
/// How long requests that are under way have once the gateway shall stop.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often what is idle is looked for, and whether the certificate has changed.
const TIDY: Duration = Duration::from_secs(1);
/// How often clients are forgotten.
const TIDY_CLIENTS: Duration = Duration::from_secs(60);
/// Connections that wait for a thread.
const ARRIVALS: usize = 1024;
/// Requests of one client that are under way over one connection.
const STREAMS: u32 = 256;
/// What a client may send of one request before the sandbox takes it, and of all over one connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Why the gateway does not run.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address cannot be used.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no thread for it.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// A gateway that listens and does not answer yet.
pub struct Gateway {
    shared: Arc<Shared>,
    listeners: Vec<(SocketAddr, StdListener)>,
    certificate: Option<Arc<Certificate>>,
}

/// What can be said to a gateway, from anywhere.
#[derive(Clone)]
pub struct Handle {
    pools: Arc<[Arc<Pool>]>,
    counters: Arc<Counters>,
}

/// A gateway that answers, until it is told to stop.
pub struct Running {
    handle: Handle,
    stop: watch::Sender<bool>,
    accepting: JoinSet<()>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Arrival {
    stream: StdStream,
    peer: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl Gateway {
    /// Listens.
    ///
    /// # Errors
    /// If an address or the certificate cannot be used.
    pub fn bind(settings: Settings, directory: Arc<dyn Directory>) -> Result<Self, StartError> {
        let certificate =
            settings.tls.as_ref().map(|(cert, key)| Certificate::load(cert, key)).transpose()?;
        let bound = settings.listen.iter().map(|address| {
            let listener = listen(*address);
            listener
                .map(|listener| (*address, listener))
                .map_err(|source| StartError::Listen { address: *address, source })
        });
        let listeners = bound.collect::<Result<_, _>>()?;
        let shared = Arc::new(Shared {
            directory,
            rate: ClientRate::new(settings.client_rate),
            places: Places::new(settings.sandbox_requests),
            counters: Arc::default(),
            settings,
        });
        Ok(Self { shared, listeners, certificate })
    }

    /// Answers. Must be called within a runtime, on which connections are accepted.
    ///
    /// # Errors
    /// If there are no threads for it.
    pub fn run(self) -> Result<Running, StartError> {
        let Self { shared, listeners, certificate } = self;
        let acceptor = match &certificate {
            Some(certificate) => Some(TlsAcceptor::from(Arc::new(certificate.server()?))),
            None => None,
        };
        let (stop, told) = watch::channel(false);
        let (mut queues, mut threads, mut pools) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (queue, arrivals) = mpsc::channel(ARRIVALS);
            queues.push(queue);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(StartError::Thread)?;
            let pool: Arc<Pool> = Arc::default();
            pools.push(pool.clone());
            let worker = Arc::new(Worker { shared: shared.clone(), pool });
            let (acceptor, told) = (acceptor.clone(), told.clone());
            let work = move || runtime.block_on(serve(worker, acceptor, arrivals, told));
            threads
                .push(thread::Builder::new().name("gateway".into()).spawn(work).map_err(StartError::Thread)?);
        }
        let places = Arc::new(Semaphore::new(shared.settings.connections));
        let mut accepting = JoinSet::new();
        for (address, listener) in listeners {
            let listener =
                TcpListener::from_std(listener).map_err(|source| StartError::Listen { address, source })?;
            accepting.spawn(accept(listener, places.clone(), queues.clone()));
        }
        let handle = Handle { pools: pools.into(), counters: shared.counters.clone() };
        accepting.spawn(look_after(shared, certificate));
        Ok(Running { handle, stop, accepting, threads })
    }
}

impl Handle {
    /// Ends every connection to a sandbox that leaves: nothing at its address would.
    pub fn forget(&self, tenant: u32) {
        self.pools.iter().for_each(|pool| pool.forget(tenant));
    }

    /// What was done.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Running {
    /// What can be said to it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes no more connections, and waits a moment for what is under way.
    pub async fn stop(mut self) {
        self.accepting.shutdown().await;
        // Fails only when no thread is left to hear it.
        let _ = self.stop.send(true);
        let ended = tokio::task::spawn_blocking(move || {
            self.threads.into_iter().try_for_each(thread::JoinHandle::join)
        });
        if !matches!(ended.await, Ok(Ok(()))) {
            tracing::error!("a thread of the gateway failed");
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts, and hands connections to the threads in turn.
async fn accept(listener: TcpListener, places: Arc<Semaphore>, queues: Vec<mpsc::Sender<Arrival>>) {
    for queue in queues.iter().cycle() {
        let Ok(permit) = places.clone().acquire_owned().await else { return };
        let (stream, peer) = loop {
            match listener.accept().await.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
                Ok(accepted) => break accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client of public URLs");
                    // Out of descriptors, most likely: trying again at once would spin.
                    time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        if queue.send(Arrival { stream, peer, _permit: permit }).await.is_err() {
            return;
        }
    }
}

async fn look_after(shared: Arc<Shared>, certificate: Option<Arc<Certificate>>) {
    let mut files = time::interval(TIDY);
    let mut clients = time::interval(TIDY_CLIENTS);
    loop {
        tokio::select! {
            _ = files.tick() => if let Some(certificate) = certificate.clone() {
                // Fails only when the runtime ends.
                let _ = tokio::task::spawn_blocking(move || certificate.follow()).await;
            },
            _ = clients.tick() => shared.rate.tidy(),
        }
    }
}

/// Serves connections on this thread.
async fn serve(
    worker: Arc<Worker>,
    acceptor: Option<TlsAcceptor>,
    mut arrivals: mpsc::Receiver<Arrival>,
    told: watch::Receiver<bool>,
) {
    let mut tidy = time::interval(TIDY);
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => {
                    clients.spawn(receive(worker.clone(), acceptor.clone(), arrival, told.clone()));
                }
                None => break,
            },
            _ = tidy.tick() => worker.pool.tidy(),
            Some(_) = clients.join_next() => {}
        }
    }
    let answered = async { while clients.join_next().await.is_some() {} };
    if time::timeout(FAREWELL, answered).await.is_err() {
        tracing::warn!("requests to sandboxes were still running at shutdown");
    }
}

/// A connection from its arrival to its end.
async fn receive(
    worker: Arc<Worker>,
    acceptor: Option<TlsAcceptor>,
    arrival: Arrival,
    told: watch::Receiver<bool>,
) {
    let connections = &worker.shared.counters.connections;
    connections.fetch_add(1, Relaxed);
    let peer = arrival.peer.ip().to_canonical();
    let activity = Activity::new();
    let head_timeout = worker.shared.settings.head_timeout;
    let served = async {
        let stream = TcpStream::from_std(arrival.stream)?;
        stream.set_nodelay(true)?;
        let stream = Watched::new(stream, activity.clone());
        match acceptor {
            None => {
                let connection = Connection::cleartext(peer, activity);
                converse(&worker, connection, stream, told).await;
            }
            Some(acceptor) => {
                let stream = time::timeout(head_timeout, acceptor.accept(stream)).await??;
                let connection = Connection::tls(peer, stream.get_ref().1.server_name(), activity);
                converse(&worker, connection, stream, told).await;
            }
        }
        Ok::<_, io::Error>(())
    };
    if let Err(error) = served.await {
        tracing::debug!(%error, %peer, "no request came");
    }
    connections.fetch_sub(1, Relaxed);
}

async fn converse(
    worker: &Arc<Worker>,
    connection: Connection,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut told: watch::Receiver<bool>,
) {
    let settings = &worker.shared.settings;
    let connection = Arc::new(connection);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // Whoever has sent everything may say so and still wants the answer.
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(settings.head_timeout)
        .max_buf_size(REQUEST_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(REQUEST_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_connect_protocol();
    let (answering, asked) = (worker.clone(), connection.clone());
    let service = service_fn(move |request| answering.clone().answer(asked.clone(), request));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    // Until the first request is there, whatever form it has, no other limit of time applies.
    let silent = async {
        if time::timeout(settings.head_timeout, connection.begun.notified()).await.is_ok() {
            connection.activity.over(settings.idle_timeout + TIDY).await;
        }
    };
    let stopped = async {
        // Gone or told: both mean to stop.
        let _ = told.wait_for(|told| *told).await;
    };
    let result = tokio::select! {
        result = &mut serving => result,
        () = silent => return,
        () = stopped => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client of public URLs went away");
    }
}
