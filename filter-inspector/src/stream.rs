//! A socket for whoever wants one to read from and write to, while the connection keeps its hand on it.

use std::{
    io::{self, ErrorKind},
    net::Shutdown,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    connection::Connection,
    host::Host,
    open::Entry,
    relay::{poll_read, try_write_last},
};

/// A socket, beginning with what was read from it already.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Arc<TcpStream>,
    /// Where bytes are counted, if it is the client's.
    entry: Option<Arc<Entry>>,
    /// What was read already, and how much of it was read again.
    said: Vec<u8>,
    from: usize,
    /// Whether the other end has said all that it had to say.
    ended: bool,
}

impl Stream {
    /// A socket that nothing was read from.
    pub(crate) fn new(socket: Arc<TcpStream>) -> Self {
        Self { socket, entry: None, said: Vec::new(), from: 0, ended: false }
    }

    /// The socket of a client, that `said` was read from. What it says and hears is counted.
    pub(crate) fn of_client<H: Host>(connection: &Connection<H>, said: Vec<u8>) -> Self {
        let (socket, entry) = (Arc::clone(&connection.client), Arc::clone(&connection.entry));
        Self { socket, entry: Some(entry), said, from: 0, ended: false }
    }

    fn count_sent(&self, bytes: usize) {
        if let Some(entry) = &self.entry {
            entry.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    fn count_received(&self, done: &io::Result<usize>) {
        if let (Some(entry), Ok(bytes)) = (&self.entry, done) {
            entry.received.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(left @ [_, ..]) = self.said.get(self.from..) {
            let count = left.len().min(buffer.remaining());
            buffer.put_slice(left.get(..count).unwrap_or_default());
            self.from += count;
            self.count_sent(count);
            if self.from >= self.said.len() {
                (self.said, self.from) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        let count = ready!(poll_read(&self.socket, context, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        self.ended |= count == 0;
        self.count_sent(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(context))?;
            // Who has ended may be gone, and would break off at a farewell before the end that follows upon it.
            let wrote =
                if self.ended { try_write_last(&self.socket, bytes) } else { self.socket.try_write(bytes) };
            match wrote {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => {
                    self.count_received(&done);
                    return Poll::Ready(done);
                }
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(context))?;
            match self.socket.try_write_vectored(pieces) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => {
                    self.count_received(&done);
                    return Poll::Ready(done);
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.socket).shutdown(Shutdown::Write))
    }
}
