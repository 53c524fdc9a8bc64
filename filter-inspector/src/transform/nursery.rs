//! Futures that live and end with the one task of a connection.
//!
//! Streams and upstreams of a connection are not spawned: they would go on when it is cut, and each message between
//! them would cross threads.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::rt::Executor;
use tokio::sync::mpsc;

type Child = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Those that are there.
pub(super) struct Nursery {
    arriving: mpsc::UnboundedReceiver<Child>,
    running: FuturesUnordered<Child>,
}

/// Adds to them.
#[derive(Clone)]
pub(super) struct Spawner(mpsc::UnboundedSender<Child>);

impl Nursery {
    pub(super) fn new() -> (Self, Spawner) {
        let (sender, arriving) = mpsc::unbounded_channel();
        (Self { arriving, running: FuturesUnordered::new() }, Spawner(sender))
    }

    /// Lets all of them go on. Ready when there is none.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            while let Poll::Ready(Some(child)) = self.arriving.poll_recv(context) {
                self.running.push(child);
            }
            match self.running.poll_next_unpin(context) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(()),
                // One of them may have added another.
                Poll::Pending if self.arriving.is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }

    /// Waits for something while all of them go on.
    pub(super) async fn beside<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| {
            if let Poll::Ready(done) = future.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            let _ = self.poll(context);
            Poll::Pending
        })
        .await
    }
}

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        // Without the connection nothing is to be done any more.
        let _ = self.0.send(Box::pin(async move {
            future.await;
        }));
    }
}
