//! A download that runs in the background and says how it goes.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::stage::{PATIENCE, STREAM};
use anyhow::{Context as _, Result};
use filter_tests::Sandbox;

pub struct Transfer {
    pub from: Ipv4Addr,
    state: Arc<State>,
    stream: TcpStream,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    bytes: AtomicU64,
    end: OnceLock<(Instant, io::Result<()>)>,
}

impl Transfer {
    /// Begins to download.
    pub fn start(sandbox: &Sandbox, from: Ipv4Addr) -> Result<Self> {
        let attempt = sandbox.tcp_connect((from, STREAM), PATIENCE);
        let stream = attempt.result.with_context(|| format!("cannot begin the transfer from {from}"))?;
        let state = Arc::new(State::default());
        let reader = thread::spawn({
            let (mut stream, state) = (stream.try_clone()?, Arc::clone(&state));
            move || {
                let end = state.read(&mut stream);
                // There is but one reader, so nothing was set before.
                let _ = state.end.set((Instant::now(), end));
            }
        });
        Ok(Self { from, state, stream, reader: Some(reader) })
    }

    /// Bytes since the last call.
    pub fn take(&self) -> u64 {
        self.state.bytes.swap(0, Ordering::Relaxed)
    }

    /// When it ended, and the error that the program in the sandbox got.
    pub fn end(&self) -> Option<(Instant, &io::Result<()>)> {
        self.state.end.get().map(|(when, how)| (*when, how))
    }
}

impl State {
    fn read(&self, stream: &mut TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                length => self.bytes.fetch_add(length as u64, Ordering::Relaxed),
            };
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Wakes the reader; a connection that was cut is closed already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            // It returns its error through the state, and panics nowhere.
            let _ = reader.join();
        }
    }
}
