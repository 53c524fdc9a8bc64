//! TCP through a lane: one stream as fast as it goes, and connections that are opened and closed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::lane::Lane;
use super::sys::{self, Cpu};

const BUFFER: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// Of each side, in [`connections`].
const THREADS: u8 = 4;

/// An address of the internet's servers.
const fn server(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 10 + n)
}

/// Sends for `time`: gigabits a second that arrive.
pub fn bulk(lane: &Lane, time: Duration) -> Result<f64> {
    let listener = lane.internet().run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
    let to = SocketAddr::from((server(0), listener.local_addr()?.port()));
    let out = lane.sandbox().tcp_connect(to, PATIENCE).result.context("cannot connect")?;
    let (into, _) = listener.accept()?;
    Ok(transfer(vec![(out, into)], time)?.gigabits_per_second())
}

/// What was transferred.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Bytes that arrived.
    pub bytes: u64,
    took: Duration,
}

impl Transfer {
    /// How fast that was.
    pub fn gigabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.took.as_nanos() as f64
    }
}

/// Sends for `time` into the first of each pair of ends, until all has arrived at the second. The senders have a
/// CPU of their own, and so have the receivers.
pub fn transfer(streams: Vec<(TcpStream, TcpStream)>, time: Duration) -> Result<Transfer> {
    let begun = Instant::now();
    let bytes = thread::scope(|scope| {
        let mut all = Vec::new();
        for (mut out, mut into) in streams {
            let sender = scope.spawn(move || -> Result<()> {
                sys::pin(Cpu::Last)?;
                let buffer = vec![0; BUFFER];
                while begun.elapsed() < time {
                    out.write_all(&buffer).context("cannot send")?;
                }
                Ok(out.shutdown(Shutdown::Write)?)
            });
            let receiver = scope.spawn(move || -> Result<u64> {
                sys::pin(Cpu::Other)?;
                into.set_read_timeout(Some(PATIENCE))?;
                let mut buffer = vec![0; BUFFER];
                let mut bytes = 0;
                loop {
                    match into.read(&mut buffer).context("cannot receive")? {
                        0 => return Ok(bytes),
                        more => bytes += more as u64,
                    }
                }
            });
            all.push((sender, receiver));
        }
        let mut bytes = 0;
        for (sender, receiver) in all {
            let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let received = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sent?;
            bytes += received?;
        }
        anyhow::Ok(bytes)
    })?;
    Ok(Transfer { bytes, took: begun.elapsed() })
}

/// Opens `count` connections, exchanges a byte each way and closes them: so many a second. Both ends share one
/// CPU, so that the figure is work and not waiting. The server closes first and keeps the TIME_WAIT; its port
/// is another one each time.
pub fn connections(lane: &Lane, count: usize) -> Result<f64> {
    let listener = lane.internet().run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
    // `accept` keeps to it: how long a server takes to notice that all is done.
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
    let port = listener.local_addr()?.port();
    let each = count / usize::from(THREADS);
    let done = AtomicBool::new(false);
    let took = thread::scope(|scope| {
        let servers: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| serve(&listener, &done))).collect();
        let took = lane.sandbox().run(|| {
            let begun = Instant::now();
            thread::scope(|scope| {
                let clients: Vec<_> = (0..THREADS)
                    .map(|n| scope.spawn(move || connect(SocketAddr::from((server(n), port)), each)))
                    .collect();
                clients.into_iter().try_for_each(|client| {
                    client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
            })?;
            Ok(begun.elapsed())
        });
        done.store(true, Ordering::Relaxed);
        for server in servers {
            server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        took
    })?;
    Ok((each * usize::from(THREADS)) as f64 / took.as_secs_f64())
}

fn serve(listener: &TcpListener, done: &AtomicBool) -> Result<()> {
    sys::pin(Cpu::Last)?;
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                let mut byte = [0];
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.read_exact(&mut byte)?;
                stream.write_all(&byte)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if done.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
            Err(error) => return Err(error).context("cannot accept"),
        }
    }
}

fn connect(to: SocketAddr, count: usize) -> Result<()> {
    sys::pin(Cpu::Last)?;
    for _ in 0..count {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("cannot connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[1])?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("no answer")?;
    }
    Ok(())
}
