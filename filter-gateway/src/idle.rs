//! Connections on which nothing moves any more.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time,
};

/// When something last moved.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    since: Instant,
    /// Milliseconds after `since`.
    last: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner { since: Instant::now(), last: AtomicU64::new(0) }))
    }

    fn moved(&self) {
        let passed = u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(passed, Relaxed);
    }

    /// Waits until nothing has moved for so long.
    pub(crate) async fn over(&self, silence: Duration) {
        loop {
            let end = self.0.since + Duration::from_millis(self.0.last.load(Relaxed)) + silence;
            if end <= Instant::now() {
                return;
            }
            time::sleep_until(end.into()).await;
        }
    }
}

/// A stream that notes when bytes move.
pub(crate) struct Watched<T> {
    stream: T,
    activity: Activity,
}

impl<T> Watched<T> {
    pub(crate) fn new(stream: T, activity: Activity) -> Self {
        Self { stream, activity }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.activity.moved();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.activity.moved();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.activity.moved();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn silence_begins_with_the_last_byte() {
        let (near, mut far) = tokio::io::duplex(64);
        let activity = Activity::new();
        let mut stream = Watched::new(near, activity.clone());
        let begun = Instant::now();
        let talk = async {
            for _ in 0..4 {
                time::sleep(Duration::from_millis(50)).await;
                far.write_all(b"x").await.unwrap();
                stream.read_exact(&mut [0]).await.unwrap();
            }
        };
        let silence = Duration::from_millis(150);
        tokio::join!(talk, activity.over(silence));
        assert!(begun.elapsed() >= Duration::from_millis(340), "{:?}", begun.elapsed());
    }
}
