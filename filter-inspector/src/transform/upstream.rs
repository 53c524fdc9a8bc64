//! Who takes requests at the other end.

use filter_common::Reason;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::{body::Outgoing, nursery::Spawner, protocol::Protocol, session::Io};
use crate::http::refusal::Why;
use hyper::rt::Executor as _;

/// The other end of a connection, ready for requests.
pub(super) enum Sender {
    /// One at a time.
    H1(http1::SendRequest<Outgoing>),
    /// Many at a time.
    H2(http2::SendRequest<Outgoing>),
}

/// What became of a request that has no response.
pub(super) enum Lost {
    /// Nothing of it went out: it can be sent again.
    Unsent(Box<Request<Outgoing>>),
    /// Some of it may have arrived.
    Sent,
    /// There is a response, and it cannot be read.
    Unreadable,
}

impl Sender {
    /// Begins to speak HTTP; what moves the bytes lives with the connection.
    ///
    /// # Errors
    /// If the other end does not speak it.
    pub(super) async fn new(stream: impl Io, protocol: Protocol, spawner: &Spawner) -> Result<Self, Why> {
        let io = TokioIo::new(stream);
        let failed = |_| Why::Denied(Reason::Unresolved);
        match protocol {
            Protocol::H1 => {
                let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
                spawner.execute(connection.with_upgrades());
                Ok(Self::H1(sender))
            }
            Protocol::H2 => {
                let mut http = http2::Builder::new(spawner.clone());
                let (sender, connection) =
                    http.timer(TokioTimer::new()).handshake(io).await.map_err(failed)?;
                spawner.execute(connection);
                Ok(Self::H2(sender))
            }
        }
    }

    /// Another one for the same end, where many requests go at a time.
    pub(super) fn share(&self) -> Option<Self> {
        match self {
            Self::H1(_) => None,
            Self::H2(sender) => Some(Self::H2(sender.clone())),
        }
    }

    /// Whether the other end takes no more.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::H1(sender) => sender.is_closed(),
            Self::H2(sender) => sender.is_closed(),
        }
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, Lost> {
        match self {
            Self::H1(sender) => {
                if sender.ready().await.is_err() {
                    return Err(Lost::Unsent(Box::new(request)));
                }
                sender.try_send_request(request).await.map_err(lost)
            }
            Self::H2(sender) => {
                if sender.ready().await.is_err() {
                    return Err(Lost::Unsent(Box::new(request)));
                }
                sender.try_send_request(request).await.map_err(lost)
            }
        }
    }
}

fn lost(mut error: TrySendError<Request<Outgoing>>) -> Lost {
    match error.take_message() {
        Some(request) => Lost::Unsent(Box::new(request)),
        None if error.error().is_parse() => Lost::Unreadable,
        None => Lost::Sent,
    }
}
