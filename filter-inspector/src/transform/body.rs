//! Bodies on their way through.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::headers::Injection;

/// The body of a response: the server's, or one of the filter's own.
pub(super) type Answer = Either<Incoming, Full<Bytes>>;

/// The body of a request, without trailers that could pass for headers that are set.
pub(super) struct Outgoing {
    body: Incoming,
    injection: Option<Arc<Injection>>,
}

impl Outgoing {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, injection: None }
    }

    /// Leaves out of its trailers what is set from now on.
    pub(super) fn cleanse(&mut self, injection: Option<Arc<Injection>>) {
        self.injection = injection;
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(injection) = &self.injection
            && let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            injection.cleanse(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
