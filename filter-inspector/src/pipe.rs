//! Pipes that bytes are spliced through, lent to a connection while it has something to move.
//!
//! A pipe is two descriptors and up to [`CAPACITY`] of kernel memory, so that an idle connection has none.
//! One that stalls keeps what it holds; that is why a sandbox gets only so many at a time.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};

/// What a pipe holds: larger ones are no faster, smaller ones are slower.
pub(crate) const CAPACITY: usize = 256 * 1024;
/// Pipes that are kept for the next connection.
const IDLE: usize = 32;
/// Pipes in all.
pub(crate) const TOTAL: usize = 1024;
/// Pipes of one sandbox at a time.
const SHARE: usize = 128;

#[derive(Debug)]
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// The pipes of the inspector.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    idle: Mutex<Vec<Pipe>>,
    made: AtomicUsize,
}

/// A pipe on loan.
#[derive(Debug)]
pub(crate) struct Lease<'a> {
    pipes: &'a Pipes,
    share: &'a AtomicUsize,
    pipe: Option<Pipe>,
    held: usize,
}

impl Pipes {
    /// An empty pipe, charged to a sandbox's share; `None` if there is none for it, so that the caller copies.
    pub(crate) fn lend<'a>(&'a self, share: &'a AtomicUsize) -> Option<Lease<'a>> {
        if share.fetch_add(1, Ordering::Relaxed) >= SHARE {
            share.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        // From here on the share is given back by the lease.
        let mut lease = Lease { pipes: self, share, pipe: None, held: 0 };
        lease.pipe = self.idle().pop().or_else(|| self.make());
        lease.pipe.is_some().then_some(lease)
    }

    fn make(&self) -> Option<Pipe> {
        if self.made.fetch_add(1, Ordering::Relaxed) >= TOTAL {
            self.made.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let Ok((reader, writer)) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) else {
            self.made.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        // Beyond the system's bound on pipe memory the default size has to do.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32));
        Some(Pipe { reader, writer })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Pipe>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease<'_> {
    /// Bytes inside.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Takes up to `limit` bytes from a socket; 0 at its end. Only for an empty pipe: a full one would look
    /// like a socket that has nothing.
    pub(crate) fn fill(&mut self, from: impl AsFd, limit: usize) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let moved = splice(from, None, &pipe.writer, None, limit.min(CAPACITY), flags)?;
        self.held += moved;
        Ok(moved)
    }

    /// Gives what is inside to a socket, as much as it takes.
    pub(crate) fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let moved = splice(&pipe.reader, None, to, None, self.held, flags)?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.share.fetch_sub(1, Ordering::Relaxed);
        let Some(pipe) = self.pipe.take() else { return };
        if self.held == 0 {
            let mut idle = self.pipes.idle();
            if idle.len() < IDLE {
                idle.push(pipe);
                return;
            }
        }
        self.pipes.made.fetch_sub(1, Ordering::Relaxed);
    }
}
