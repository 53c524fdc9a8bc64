//! The daemon's control socket: one JSON line there, one back.
//!
//! The product's own client is not used: xtask would then need the kernel programs to be built before it can
//! build them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// Putting a million prefixes in force takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a daemon listens.
#[derive(Clone, Debug)]
pub struct Control(PathBuf);

/// A request that is ready to be sent, so that writing it as JSON is not measured.
pub struct Line(Vec<u8>);

impl Line {
    /// The line of a request.
    pub fn new(request: &Value) -> Self {
        let mut text = json!({ "version": 1, "request": request }).to_string();
        text.push('\n');
        Self(text.into_bytes())
    }
}

impl Control {
    /// A daemon's control socket.
    pub fn new(socket: PathBuf) -> Self {
        Self(socket)
    }

    /// Asks, and gives what is answered.
    pub fn ask(&self, request: &Value) -> Result<Value> {
        Ok(self.time(&Line::new(request))?.1)
    }

    /// Asks, and says how long it took from connecting to the last byte of the answer.
    pub fn time(&self, line: &Line) -> Result<(Duration, Value)> {
        let begun = Instant::now();
        let mut stream = UnixStream::connect(&self.0).context("the daemon does not answer")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&line.0)?;
        let mut answer = Vec::new();
        BufReader::new(stream).read_until(b'\n', &mut answer)?;
        let took = begun.elapsed();

        let mut answer: Value = serde_json::from_slice(&answer).context("the daemon's answer is no JSON")?;
        match answer.pointer_mut("/result/Ok") {
            Some(reply) => Ok((took, reply.take())),
            None => bail!("the daemon refuses: {answer}"),
        }
    }
}
