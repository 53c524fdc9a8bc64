//! Taking connections: on the control socket, whose mode is its access control, and on TCP.
//!
//! Clients are bounded in number, in how long a request may take to arrive, and in how long an answer may take to be
//! read. HTTP/1.1 alone, where all three can be: a silent client of HTTP/2 is as good as any.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, UnixListener, UnixSocket},
    sync::{Semaphore, watch},
    task::JoinSet,
    time,
};

use crate::error::ControlError;

const SOCKET_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o755;
const BACKLOG: u32 = 1024;
/// The longest head of a request. It is kept before it is known whose it is.
const MAX_HEAD: usize = 32 << 10;

/// What clients are held to.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Bounds {
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// How long the head of a request may take to arrive, also the next one of a connection that is kept.
    pub patience: Duration,
    /// How long requests that are being answered have once the server shall stop.
    pub farewell: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: 4096, patience: Duration::from_secs(20), farewell: Duration::from_secs(30) }
    }
}

/// Where connections come from.
pub trait Source: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The next one.
    fn next(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// A listening control socket; its file goes when this does.
#[derive(Debug)]
pub struct ControlSocket {
    socket: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens at a path, whose directory is made where it is missing. Belongs inside a tokio runtime.
    ///
    /// # Errors
    /// A conflict when somebody already answers there; otherwise that the path cannot be used.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed =
            |error: io::Error| ControlError::failed(format!("cannot listen at {}: {error}", path.display()));
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(failed)?;
        }
        remove_stale(path)?;
        let socket = UnixSocket::new_stream().map_err(failed)?;
        socket.bind(path).map_err(failed)?;
        // Nobody can connect before `listen`, so that the file is never open to others.
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
        let socket = socket.listen(BACKLOG).map_err(failed)?;
        Ok(Self { socket, path: path.to_owned() })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // A file that stays is replaced by the next daemon.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody listens at any more, and nothing else.
fn remove_stale(path: &Path) -> Result<(), ControlError> {
    let shown = path.display();
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ControlError::failed(format!("cannot look at {shown}: {error}"))),
    };
    if !kind.is_socket() {
        return Err(ControlError::failed(format!("{shown} is no socket; remove it or choose another path")));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ControlError::conflict(format!("another daemon answers at {shown}; stop it first"))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| {
                ControlError::failed(format!("cannot remove the stale socket {shown}: {error}"))
            })
        }
        Err(error) => Err(ControlError::failed(format!("cannot tell who listens at {shown}: {error}"))),
    }
}

impl Source for ControlSocket {
    type Stream = tokio::net::UnixStream;

    async fn next(&mut self) -> io::Result<Self::Stream> {
        self.socket.accept().await.map(|(stream, _)| stream)
    }
}

/// Listens on TCP.
#[derive(Debug)]
pub struct Tcp {
    listener: TcpListener,
    patience: Duration,
}

impl Tcp {
    /// Listens at an address; what a client does not take within `bounds.patience` is not kept for it. Belongs inside
    /// a tokio runtime.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn bind(address: SocketAddr, bounds: Bounds) -> io::Result<Self> {
        let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        // That of the daemon before may linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { listener: socket.listen(BACKLOG)?, patience: bounds.patience })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Source for Tcp {
    type Stream = tokio::net::TcpStream;

    async fn next(&mut self) -> io::Result<Self::Stream> {
        let (stream, _) = self.listener.accept().await?;
        // Answers are small and waited for.
        stream.set_nodelay(true)?;
        // Also of a peer that is alive and has closed its window (tcp(7)).
        let patience = u32::try_from(self.patience.as_millis()).unwrap_or(u32::MAX);
        setsockopt(&stream, sockopt::TcpUserTimeout, &patience)?;
        Ok(stream)
    }
}

/// Serves until `shutdown`, and then until what is under way is answered.
pub async fn serve(
    bounds: Bounds,
    mut source: impl Source,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let (stop, stopped) = watch::channel(false);
    let mut clients = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, source.next().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
            Some(_) = clients.join_next() => continue,
        };
        match accepted {
            Ok(stream) => {
                let connection = converse(bounds, stream, router.clone(), stopped.clone());
                clients.spawn(async move {
                    let _place = place;
                    connection.await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client of the API");
                // Out of descriptors, most likely: trying again at once would spin.
                time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(source);
    // Fails only when there is no connection left to hear it.
    let _ = stop.send(true);
    let answered = async { while clients.join_next().await.is_some() {} };
    if time::timeout(bounds.farewell, answered).await.is_err() {
        tracing::warn!("requests were still running at shutdown");
    }
}

/// Resolves once the server shall stop. Nothing of the channel is held on to.
async fn told(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn converse(
    bounds: Bounds,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(bounds.patience).max_buf_size(MAX_HEAD);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = told(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client of the API went away");
    }
}
