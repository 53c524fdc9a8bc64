//! The client of the control socket, as commands use it: one request, one answer, blocking.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::ControlError,
    protocol::{self, Reply, Request},
};

/// How long an answer may take: putting a policy with a million prefixes in force takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where the daemon is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the daemon at this socket; it connects with each request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), patience: PATIENCE }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks the daemon.
    ///
    /// # Errors
    /// [`ErrorCode::Unreachable`](crate::error::ErrorCode::Unreachable) when nobody listens;
    /// otherwise what the daemon answers, or that it did not.
    pub fn ask(&self, request: &Request) -> Result<Reply, ControlError> {
        let line = protocol::encode_request(request)?;
        let mut stream = UnixStream::connect(&self.socket).map_err(|error| self.unreachable(&error))?;
        let answer = self.exchange(&mut stream, &line).map_err(|error| self.interrupted(&error))?;
        if answer.is_empty() {
            return Err(ControlError::failed(
                "the daemon closed the connection without an answer; its log says why",
            ));
        }
        protocol::decode_response(&answer)
    }

    fn exchange(&self, stream: &mut UnixStream, line: &[u8]) -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let sent = stream.write_all(line);
        let mut answer = Vec::new();
        let received = BufReader::new(stream).read_until(b'\n', &mut answer);
        // A daemon that refuses in the middle of a request says why and closes: its answer tells more
        // than the failed write.
        if answer.is_empty() {
            sent?;
        }
        received?;
        Ok(answer)
    }

    fn unreachable(&self, error: &io::Error) -> ControlError {
        let socket = self.socket.display();
        let message = if error.kind() == io::ErrorKind::PermissionDenied {
            format!("no permission to open {socket}; run this as the user that the daemon runs as")
        } else {
            format!(
                "no daemon answers at {socket} ({error}); start it with `sandbox-filter run`, or name its \
                 socket with --socket"
            )
        };
        ControlError::unreachable(message)
    }

    fn interrupted(&self, error: &io::Error) -> ControlError {
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            let message = format!(
                "the daemon did not answer within {}; `sandbox-filter show` says whether it did what was asked",
                humantime::format_duration(self.patience)
            );
            return ControlError::failed(message);
        }
        ControlError::failed(format!("the connection to the daemon broke: {error}; its log says why"))
    }
}
