//! Bodies: of a request on its way to a sandbox, and of an answer on its way to a client.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::{Either, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::{limit::Place, pool::Used};

/// What is sent to a sandbox: the client's body, or none.
pub(crate) type Outgoing = Either<Incoming, Empty<Bytes>>;

/// What is sent to a client: words of the gateway, or a sandbox's body.
pub(crate) type Answer = Either<Full<Bytes>, Held>;

/// A sandbox's body, with what it keeps until it is over.
pub(crate) struct Held {
    body: Incoming,
    ended: bool,
    upstream: Option<Used>,
    _place: Place,
}

impl Held {
    pub(crate) fn new(body: Incoming, upstream: Option<Used>, place: Place) -> Self {
        Self { body, ended: false, upstream, _place: place }
    }
}

impl Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.ended |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A connection whose answer was read to the end can be asked again. Any other is closed.
        if let Some(upstream) = self.upstream.take()
            && (self.ended || self.body.is_end_stream())
        {
            upstream.keep();
        }
    }
}
