//! The server of the control socket: takes lines apart, asks a [`Control`], writes answers.
//!
//! Who may open the socket may do everything, so that the file's mode is the access control. Clients
//! are bounded all the same: in the length of a line, in number, and in how long they may take.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixSocket, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, watch},
    task::{self, JoinSet},
    time,
};

use crate::{
    error::ControlError,
    protocol::{
        self, AttachRequest, MAX_LINE, Reply, Request, SandboxId, Show, Stats, Summary, UpdateRequest,
    },
};

const SOCKET_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o755;
const BACKLOG: u32 = 128;

/// What the daemon can do; the server asks for nothing else.
pub trait Control: Send + Sync + 'static {
    /// Filters an interface; returns when the policy is enforced.
    fn attach(&self, request: AttachRequest) -> impl Future<Output = Result<Show, ControlError>> + Send;
    /// Replaces a policy; returns when the new one is enforced.
    fn update(&self, request: UpdateRequest) -> impl Future<Output = Result<Show, ControlError>> + Send;
    /// Takes the programs off.
    fn detach(&self, id: SandboxId) -> impl Future<Output = Result<(), ControlError>> + Send;
    /// All sandboxes.
    fn list(&self) -> impl Future<Output = Result<Vec<Summary>, ControlError>> + Send;
    /// One sandbox.
    fn show(&self, id: SandboxId) -> impl Future<Output = Result<Show, ControlError>> + Send;
    /// The numbers of one sandbox, or of all.
    fn stats(&self, id: Option<SandboxId>) -> impl Future<Output = Result<Stats, ControlError>> + Send;
    /// What only the daemon knows of its own health.
    fn doctor(&self) -> impl Future<Output = Result<Value, ControlError>> + Send;
}

/// What clients are held to.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Bounds {
    /// The longest line in bytes.
    pub line: usize,
    /// Connections at the same time; more wait to be accepted.
    pub connections: usize,
    /// How long a request may take to arrive, and an answer to be taken.
    pub patience: Duration,
    /// How long requests that are being answered have once the server shall stop.
    pub farewell: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            line: MAX_LINE,
            connections: 64,
            patience: Duration::from_secs(30),
            farewell: Duration::from_secs(30),
        }
    }
}

/// A listening control socket; its file goes when this does.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
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

impl Drop for Listener {
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

/// Serves until `shutdown` resolves, and then until the requests that have arrived are answered.
pub async fn serve<C: Control>(listener: Listener, control: Arc<C>, shutdown: impl Future<Output = ()>) {
    serve_within(Bounds::default(), listener, control, shutdown).await;
}

/// As [`serve`], with other bounds.
pub async fn serve_within<C: Control>(
    bounds: Bounds,
    listener: Listener,
    control: Arc<C>,
    shutdown: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let (stop, stopped) = watch::channel(false);
    let mut clients = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.socket.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut shutdown => break,
            next = next => next,
            Some(_) = clients.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = Connection::new(stream, bounds, stopped.clone());
                let control = Arc::clone(&control);
                clients.spawn(async move {
                    let _place = place;
                    if let Err(error) = connection.serve(&*control).await {
                        tracing::debug!(%error, "a control client went away");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control client");
                // Out of descriptors, most likely: trying again at once would spin.
                time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    // Fails only when there is no connection left to hear it.
    let _ = stop.send(true);
    let answered = async { while clients.join_next().await.is_some() {} };
    if time::timeout(bounds.farewell, answered).await.is_err() {
        tracing::warn!("control requests were still running at shutdown");
    }
}

struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    bounds: Bounds,
    stopped: watch::Receiver<bool>,
}

/// What came from a client.
enum Line {
    Whole(Vec<u8>),
    /// The client is done.
    End,
    TooLong,
    TooSlow,
}

impl Connection {
    fn new(stream: UnixStream, bounds: Bounds, stopped: watch::Receiver<bool>) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader: BufReader::new(reader), writer, bounds, stopped }
    }

    async fn serve(mut self, control: &impl Control) -> io::Result<()> {
        let mut stopped = self.stopped.clone();
        loop {
            let line = tokio::select! {
                line = self.line() => line?,
                _ = stopped.wait_for(|stopped| *stopped) => Line::End,
            };
            let refusal = match line {
                Line::Whole(line) => {
                    let result = answer(line, control).await;
                    self.respond(result).await?;
                    continue;
                }
                Line::End => return Ok(()),
                Line::TooLong => format!("the line is longer than {} bytes", self.bounds.line),
                Line::TooSlow => {
                    let patience = humantime::format_duration(self.bounds.patience);
                    format!("no whole request came within {patience}")
                }
            };
            // What follows an unfinished line cannot be told from its rest.
            return self.respond(Err(ControlError::usage(refusal))).await;
        }
    }

    async fn line(&mut self) -> io::Result<Line> {
        let mut line = Vec::new();
        let limit = u64::try_from(self.bounds.line).unwrap_or(u64::MAX).saturating_add(1);
        let mut bounded = (&mut self.reader).take(limit);
        match time::timeout(self.bounds.patience, bounded.read_until(b'\n', &mut line)).await {
            Err(_) => return Ok(Line::TooSlow),
            Ok(read) => read?,
        };
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        Ok(match line.len() {
            0 if !whole => Line::End,
            length if length > self.bounds.line => Line::TooLong,
            // The last line may lack its end.
            _ => Line::Whole(line),
        })
    }

    async fn respond(&mut self, result: Result<Reply, ControlError>) -> io::Result<()> {
        let response = protocol::encode_response(&result)
            .or_else(|error| protocol::encode_response(&Err(error)))
            .map_err(io::Error::other)?;
        time::timeout(self.bounds.patience, self.writer.write_all(&response)).await?
    }
}

async fn answer(line: Vec<u8>, control: &impl Control) -> Result<Reply, ControlError> {
    // Reading a long policy takes a while, which is not the executor's.
    let request = task::spawn_blocking(move || protocol::decode_request(&line))
        .await
        .map_err(|_| ControlError::failed("the request could not be read"))??;
    match request {
        Request::Attach(request) => control.attach(request).await.map(Box::new).map(Reply::Sandbox),
        Request::Update(request) => control.update(request).await.map(Box::new).map(Reply::Sandbox),
        Request::Detach { id } => control.detach(id).await.map(|()| Reply::Done),
        Request::List => control.list().await.map(Reply::Sandboxes),
        Request::Show { id } => control.show(id).await.map(Box::new).map(Reply::Sandbox),
        Request::Stats { id } => control.stats(id).await.map(Reply::Stats),
        Request::Doctor => control.doctor().await.map(Reply::Doctor),
        Request::Ping => Ok(Reply::Pong { release: env!("CARGO_PKG_VERSION").to_owned() }),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
