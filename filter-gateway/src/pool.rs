//! Connections to sandboxes that wait for their next request.
//!
//! They are found by the sandbox's number and port, so that whoever gets its address later does not get its connections.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::AbortHandle;

use crate::{body::Outgoing, dial::dial, directory::Sandbox, settings::RESPONSE_HEAD};

/// How long a connection waits. Common servers close theirs after 5 seconds; whoever closes first does not lose a
/// request.
const WAIT: Duration = Duration::from_secs(4);
/// How long one over which calls are made waits.
const WAIT_CALLS: Duration = Duration::from_secs(60);
/// Connections that wait, for each port and in all.
const MOST_OF_PORT: usize = 256;
const MOST: usize = 4096;
/// What may be under way of one call before its reader takes it.
const CALL_WINDOW: u32 = 256 << 10;

type Key = (u32, u16);

/// Connections that wait.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    plain: HashMap<Key, Vec<(http1::SendRequest<Outgoing>, Instant)>>,
    waiting: usize,
    calls: HashMap<Key, (http2::SendRequest<Outgoing>, Instant)>,
    /// What runs for each sandbox: its connections, waiting and in use, and its tunnels.
    tasks: HashMap<u32, Vec<AbortHandle>>,
}

/// A connection that a request is sent over.
pub(crate) struct Used {
    sender: http1::SendRequest<Outgoing>,
    key: Key,
    pool: Arc<Pool>,
    /// Whether it was used before, and so may have been closed by now.
    again: bool,
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum Failed {
    /// There is no connection.
    Dial(io::Error),
    /// There was one.
    Exchange(hyper::Error),
}

impl Pool {
    /// Sends a request over HTTP/1.1. The connection is to be kept once the answer is read.
    pub(crate) async fn request(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        port: u16,
        patience: Duration,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Used), Failed> {
        let key = (sandbox.tenant, port);
        loop {
            let mut used = match self.waiting(key).await {
                Some(used) => used,
                None => self.connect(sandbox, port, patience).await?,
            };
            match used.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, used)),
                Err(error) => request = unsent(error, used.again)?,
            }
        }
    }

    /// Sends a request over HTTP/2, which the service is known to speak (RFC 9113 section 3.3).
    pub(crate) async fn call(
        &self,
        sandbox: &Sandbox,
        port: u16,
        patience: Duration,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Failed> {
        let key = (sandbox.tenant, port);
        loop {
            let kept = self.lock().calls.get_mut(&key).filter(|(sender, _)| !sender.is_closed()).map(
                |(sender, since)| {
                    *since = Instant::now();
                    sender.clone()
                },
            );
            let again = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect_for_calls(sandbox, port, patience).await?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(error) => request = unsent(error, again)?,
            }
        }
    }

    /// Closes connections that have waited long enough, or that the sandbox closed.
    pub(crate) fn tidy(&self) {
        let mut inner = self.lock();
        inner.plain.retain(|_, waiting| {
            waiting.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < WAIT);
            !waiting.is_empty()
        });
        inner.waiting = inner.plain.values().map(Vec::len).sum();
        inner.calls.retain(|_, (sender, since)| !sender.is_closed() && since.elapsed() < WAIT_CALLS);
        inner.tasks.retain(|_, tasks| {
            tasks.retain(|task| !task.is_finished());
            !tasks.is_empty()
        });
    }

    /// Runs something that ends with a sandbox.
    pub(crate) fn spawn(&self, tenant: u32, work: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(work).abort_handle();
        self.lock().tasks.entry(tenant).or_default().push(task);
    }

    /// Ends all that there is of a sandbox. Whoever waits for an answer of it is told that there is none.
    pub(crate) fn forget(&self, tenant: u32) {
        let mut inner = self.lock();
        inner.plain.retain(|(of, _), _| *of != tenant);
        inner.waiting = inner.plain.values().map(Vec::len).sum();
        inner.calls.retain(|(of, _), _| *of != tenant);
        for task in inner.tasks.remove(&tenant).into_iter().flatten() {
            task.abort();
        }
    }

    /// The one that has waited the shortest time.
    async fn waiting(self: &Arc<Self>, key: Key) -> Option<Used> {
        loop {
            let mut sender = {
                let mut inner = self.lock();
                let (sender, since) = inner.plain.get_mut(&key)?.pop()?;
                inner.waiting -= 1;
                if sender.is_closed() || since.elapsed() >= WAIT {
                    continue;
                }
                sender
            };
            if sender.ready().await.is_ok() {
                return Some(Used { sender, key, pool: self.clone(), again: true });
            }
        }
    }

    async fn connect(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        port: u16,
        patience: Duration,
    ) -> Result<Used, Failed> {
        let stream = dial(sandbox, port, patience).await.map_err(Failed::Dial)?;
        let handshake = http1::Builder::new().max_buf_size(RESPONSE_HEAD).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(Failed::Exchange)?;
        self.spawn(sandbox.tenant, async move {
            // Whoever waits for an answer is told of an error.
            let _ = connection.with_upgrades().await;
        });
        Ok(Used { sender, key: (sandbox.tenant, port), pool: self.clone(), again: false })
    }

    async fn connect_for_calls(
        &self,
        sandbox: &Sandbox,
        port: u16,
        patience: Duration,
    ) -> Result<http2::SendRequest<Outgoing>, Failed> {
        let stream = dial(sandbox, port, patience).await.map_err(Failed::Dial)?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.max_header_list_size(u32::try_from(RESPONSE_HEAD).unwrap_or(u32::MAX));
        builder.initial_stream_window_size(CALL_WINDOW).initial_connection_window_size(CALL_WINDOW * 4);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(Failed::Exchange)?;
        self.spawn(sandbox.tenant, async move {
            let _ = connection.await;
        });
        self.lock().calls.insert((sandbox.tenant, port), (sender.clone(), Instant::now()));
        Ok(sender)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that holds it panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    /// Lets the next request have it.
    pub(crate) fn keep(self) {
        if self.sender.is_closed() {
            return;
        }
        let mut inner = self.pool.lock();
        if inner.waiting >= MOST {
            return;
        }
        let waiting = inner.plain.entry(self.key).or_default();
        if waiting.len() < MOST_OF_PORT {
            waiting.push((self.sender, Instant::now()));
            inner.waiting += 1;
        }
    }
}

/// A request of which nothing was sent can be sent over another connection.
fn unsent(mut error: TrySendError<Request<Outgoing>>, again: bool) -> Result<Request<Outgoing>, Failed> {
    match error.take_message() {
        Some(request) if again => Ok(request),
        Some(_) | None => Err(Failed::Exchange(error.into_error())),
    }
}
