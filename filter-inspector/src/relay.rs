//! Moves bytes from one socket to another, and both ways.
//!
//! Little is copied through a buffer, which costs two calls; much is spliced through a pipe, which costs no
//! copy. Which of the two it is follows what the socket has: a read that fills the buffer means that there
//! is more. A direction that waits holds neither buffer nor pipe.

use std::{
    cell::Cell,
    future::poll_fn,
    io::{self, ErrorKind},
    net::Shutdown,
    os::fd::{AsFd, AsRawFd},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    task::{Context, Poll, ready},
};

use nix::{
    libc::{MSG_MORE, MSG_NOSIGNAL},
    sys::socket::{MsgFlags, recv},
};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use crate::pipe::{CAPACITY, Lease, Pipes};

/// What is read at once without a pipe.
const BUFFER: usize = 16 * 1024;
/// A pipe is not worth it for bursts shorter than this.
const BURST: usize = 64 * 1024;
/// Reads and writes before others get their turn.
const TURNS: usize = 8;

thread_local! {
    /// The buffer that is read into. A thread moves one piece at a time, and what the other end does not take
    /// is set aside.
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Lends the thread's buffer.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut scratch = SCRATCH.take().unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice());
    let result = work(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// Why a direction has nothing more to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Done {
    /// The sender ended.
    End,
    /// As many bytes as were wanted are through.
    Limit,
}

/// Which end failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The sender.
    Read,
    /// The receiver.
    Write,
}

/// What a connection lends to its directions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means<'a> {
    /// The pipes of all.
    pub(crate) pipes: &'a Pipes,
    /// How many of them the sandbox has.
    pub(crate) share: &'a AtomicUsize,
}

#[derive(Debug)]
enum Held<'a> {
    Nothing,
    Bytes { bytes: Vec<u8>, from: usize },
    Pipe(Lease<'a>),
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    tally: &'a AtomicU64,
    means: Means<'a>,
    held: Held<'a>,
    left: u64,
    bulk: bool,
    burst: usize,
    ended: bool,
}

impl<'a> Way<'a> {
    /// Until the sender ends.
    pub(crate) fn new(
        from: &'a TcpStream,
        to: &'a TcpStream,
        tally: &'a AtomicU64,
        means: Means<'a>,
    ) -> Self {
        Self::limited(from, to, tally, means, u64::MAX)
    }

    /// Until the sender ends or so many bytes are through.
    pub(crate) fn limited(
        from: &'a TcpStream,
        to: &'a TcpStream,
        tally: &'a AtomicU64,
        means: Means<'a>,
        limit: u64,
    ) -> Self {
        Self { from, to, tally, means, held: Held::Nothing, left: limit, bulk: false, burst: 0, ended: false }
    }

    /// Moves what there is. Not to be called again once it is ready.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Done, Failure>> {
        for _ in 0..TURNS {
            ready!(self.poll_flush(context)).map_err(|_| Failure::Write)?;
            if self.ended {
                self.held = Held::Nothing;
                return Poll::Ready(Ok(Done::End));
            }
            if self.left == 0 {
                self.held = Held::Nothing;
                return Poll::Ready(Ok(Done::Limit));
            }
            if self.bulk { ready!(self.poll_splice(context))? } else { ready!(self.poll_copy(context))? }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives what is held to the receiver.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let wrote = match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Pipe(lease) if lease.held() == 0 => return Poll::Ready(Ok(())),
                Held::Pipe(lease) => {
                    ready!(self.to.poll_write_ready(context))?;
                    self.to.try_io(Interest::WRITABLE, || lease.drain(self.to.as_fd()))
                }
                Held::Bytes { bytes, from } => {
                    ready!(self.to.poll_write_ready(context))?;
                    let wrote = self.to.try_write(bytes.get(*from..).unwrap_or_default());
                    *from += *wrote.as_ref().unwrap_or(&0);
                    if *from >= bytes.len() {
                        self.held = Held::Nothing;
                    }
                    wrote
                }
            };
            match wrote {
                Ok(count) => self.count(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_copy(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let (from, to) = (self.from, self.to);
        let limit = usize::try_from(self.left).unwrap_or(BUFFER).min(BUFFER);
        with_scratch(|scratch| {
            let scratch = scratch.get_mut(..limit).unwrap_or_default();
            let mut count = ready!(poll_read(from, context, scratch)).map_err(|_| Failure::Read)?;
            if count == 0 {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            self.bulk = count == BUFFER;
            // Still readable after a read that emptied the socket: it has ended, most likely. Then the end goes
            // out in one segment with the last bytes.
            if count < limit && from.poll_read_ready(context).is_ready() {
                match try_read(from, scratch.get_mut(count..).unwrap_or_default()) {
                    Ok(0) => self.ended = true,
                    Ok(more) => count += more,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return Poll::Ready(Err(Failure::Read)),
                }
            }
            let got = scratch.get(..count).unwrap_or_default();
            self.left -= count as u64;
            let wrote = match if self.ended { try_write_last(to, got) } else { to.try_write(got) } {
                Ok(wrote) => wrote,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => return Poll::Ready(Err(Failure::Write)),
            };
            self.count(wrote);
            match got.get(wrote..) {
                None | Some([]) => {}
                Some(rest) => self.held = Held::Bytes { bytes: rest.to_vec(), from: 0 },
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_splice(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let mut lease = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Pipe(lease) => lease,
            Held::Nothing | Held::Bytes { .. } => match self.means.pipes.lend(self.means.share) {
                Some(lease) => lease,
                None => return self.poll_copy(context),
            },
        };
        let limit = usize::try_from(self.left).unwrap_or(CAPACITY).min(CAPACITY);
        loop {
            match self.from.poll_read_ready(context) {
                Poll::Ready(ready) => ready.map_err(|_| Failure::Read)?,
                Poll::Pending => {
                    // The pipe goes back. What comes in drops is copied.
                    self.bulk = self.burst >= BURST;
                    self.burst = 0;
                    return Poll::Pending;
                }
            }
            match self.from.try_io(Interest::READABLE, || lease.fill(self.from.as_fd(), limit)) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.left -= count as u64;
                    self.burst = self.burst.saturating_add(count);
                    self.held = Held::Pipe(lease);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => return Poll::Ready(Err(Failure::Read)),
            }
            return Poll::Ready(Ok(()));
        }
    }

    fn count(&self, bytes: usize) {
        self.tally.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Reads what there is. A read that does not fill the buffer has emptied the socket, which is noted within the
/// read, so that the next one waits instead of finding out.
pub(crate) fn poll_read(
    from: &TcpStream,
    context: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(from.poll_read_ready(context))?;
        match try_read(from, buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

fn try_read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = None;
    let tried = from.try_io(Interest::READABLE, || {
        let count = recv(from.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?;
        got = Some(count);
        // The runtime forgets that the socket was readable unless it became so again since it looked.
        if count != 0 && count < buffer.len() { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match got {
        Some(count) => Ok(count),
        None => tried.map(|()| 0),
    }
}

/// Writes what the end of the direction follows upon, which sends it.
pub(crate) fn try_write_last(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    to.try_io(Interest::WRITABLE, || SockRef::from(to).send_with_flags(bytes, MSG_MORE | MSG_NOSIGNAL))
}

/// Forwards the end of a direction.
pub(crate) fn finish(stream: &TcpStream) {
    // An error says that the other end is gone, which the other direction notices.
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
}

/// How a relay ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// Both directions came to their end; the close of the sockets tells those that do not know yet.
    Whole,
    /// The upstream ended and takes no more; what the client still sends is for nobody.
    Unheard,
    /// One end broke off, so that the other has to hear of it.
    Broken,
}

/// Both directions, each until its own end.
pub(crate) async fn relay(
    client: &TcpStream,
    upstream: &TcpStream,
    (sent, received): (&AtomicU64, &AtomicU64),
    means: Means<'_>,
) -> Ending {
    let mut out = Way::new(client, upstream, sent, means);
    let mut back = Way::new(upstream, client, received, means);
    enum First {
        Out(Result<Done, Failure>),
        Back(Result<Done, Failure>),
    }
    let first = poll_fn(|context| {
        if let Poll::Ready(done) = out.poll(context) {
            return Poll::Ready(First::Out(done));
        }
        back.poll(context).map(First::Back)
    });
    match first.await {
        First::Out(Ok(_)) => {
            finish(upstream);
            match or_gone(&mut back, client).await {
                Some(Ok(_)) => Ending::Whole,
                Some(Err(_)) | None => Ending::Broken,
            }
        }
        // What the upstream said before it closed is still the client's to have.
        First::Out(Err(Failure::Write)) => match poll_fn(|context| back.poll(context)).await {
            Ok(_) => {
                finish(client);
                Ending::Unheard
            }
            Err(_) => Ending::Broken,
        },
        First::Back(Ok(_)) => {
            finish(client);
            match or_gone(&mut out, upstream).await {
                Some(Ok(_)) => Ending::Whole,
                Some(Err(Failure::Write)) | None => Ending::Unheard,
                Some(Err(Failure::Read)) => Ending::Broken,
            }
        }
        First::Out(Err(Failure::Read)) | First::Back(Err(_)) => Ending::Broken,
    }
}

/// The rest of a direction; `None` once its receiver, which has said all it had to say, breaks off. Nothing else
/// would notice: the end of a stream can be read any number of times.
async fn or_gone(way: &mut Way<'_>, ended: &TcpStream) -> Option<Result<Done, Failure>> {
    tokio::select! {
        biased;
        done = poll_fn(|context| way.poll(context)) => Some(done),
        _ = ended.ready(Interest::ERROR) => None,
    }
}
