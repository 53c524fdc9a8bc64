//! A client that sends the bytes that it is told to, in the segments that it is told to, and says all that came
//! back.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::{HttpAnswer, parse_answer};
use crate::netns::Netns;

/// What to say, and when.
#[derive(Clone, Debug)]
pub struct Talk {
    steps: Vec<Step>,
    patience: Duration,
}

#[derive(Clone, Debug)]
enum Step {
    Say(Vec<u8>),
    Pause(Duration),
    Await(Vec<u8>),
    End,
}

/// How a conversation ended, as the client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The other end closed in order.
    End,
    /// The other end reset it.
    Reset,
    /// Nothing more came, and the connection was still open when the client lost its patience.
    Silence,
    /// There was no connection.
    Unreached(Option<Errno>),
}

/// What came of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// All that the other end said.
    pub bytes: Vec<u8>,
    /// How it ended.
    pub ending: Ending,
    /// The client's own end.
    pub from: SocketAddr,
    /// From the attempt to connect to the end.
    pub took: Duration,
    /// Whether the client got to say all of it.
    pub said_all: bool,
}

impl Talk {
    /// Says nothing, and listens.
    pub fn new() -> Self {
        Self { steps: Vec::new(), patience: Duration::from_secs(5) }
    }

    /// Says something and listens.
    pub fn say(self, bytes: impl AsRef<[u8]>) -> Self {
        self.and(Step::Say(bytes.as_ref().to_vec()))
    }

    /// Says something in segments of so many bytes.
    pub fn say_in(mut self, size: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.steps.extend(bytes.as_ref().chunks(size.max(1)).map(|piece| Step::Say(piece.to_vec())));
        self
    }

    /// Says nothing for a while.
    pub fn pause(self, time: Duration) -> Self {
        self.and(Step::Pause(time))
    }

    /// Waits until the other end has said this, behind what was waited for before.
    pub fn until(self, bytes: impl AsRef<[u8]>) -> Self {
        self.and(Step::Await(bytes.as_ref().to_vec()))
    }

    /// Ends sending.
    pub fn end(self) -> Self {
        self.and(Step::End)
    }

    /// How long to wait for the next byte, and for the end.
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn and(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}

impl Default for Talk {
    fn default() -> Self {
        Self::new()
    }
}

impl Heard {
    /// Level and description of the TLS alert, if that is all that was said.
    pub fn alert(&self) -> Option<(u8, u8)> {
        match self.bytes.as_slice() {
            // Type, version, length (RFC 8446 section 5.1).
            [21, 3, _, 0, 2, level, description] => Some((*level, *description)),
            _ => None,
        }
    }

    /// The HTTP answer, if that is what was said.
    pub fn http(&self) -> Option<HttpAnswer> {
        parse_answer(&self.bytes).ok()
    }

    /// How it went, for people.
    pub fn summary(&self) -> String {
        let start = self.bytes.get(..self.bytes.len().min(600)).unwrap_or_default();
        let (length, text) = (self.bytes.len(), String::from_utf8_lossy(start));
        format!("{:?} after {:?}, {length} bytes: {text:?}", self.ending, self.took)
    }
}

impl Netns {
    /// Has a conversation from inside.
    pub fn talk(&self, to: impl Into<SocketAddr>, talk: &Talk) -> Result<Heard> {
        let to = to.into();
        self.run(|| hold(to, talk))
    }
}

#[derive(Default)]
struct Ear {
    heard: Mutex<(Vec<u8>, Option<Ending>)>,
    changed: Condvar,
}

fn hold(to: SocketAddr, talk: &Talk) -> Result<Heard> {
    let start = Instant::now();
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(any, 0).into())?;
    let port = socket.local_addr()?.as_socket().map_or(0, |local| local.port());
    if let Err(error) = socket.connect_timeout(&to.into(), talk.patience) {
        let errno = error.raw_os_error().map(Errno::from_raw);
        let from = SocketAddr::new(any, port);
        let ending = Ending::Unreached(errno);
        return Ok(Heard { bytes: Vec::new(), ending, from, took: start.elapsed(), said_all: false });
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(talk.patience))?;
    stream.set_write_timeout(Some(talk.patience))?;
    let (from, ear) = (stream.local_addr()?, Ear::default());
    thread::scope(|scope| -> Result<Heard> {
        scope.spawn(|| ear.listen(&stream));
        let mut awaited = 0;
        let said_all = talk.steps.iter().all(|step| match step {
            Step::Say(bytes) => (&stream).write_all(bytes).is_ok(),
            Step::Pause(time) => {
                thread::sleep(*time);
                true
            }
            Step::Await(bytes) => ear.hears(bytes, &mut awaited),
            Step::End => stream.shutdown(Shutdown::Write).is_ok(),
        });
        let mut heard = ear.heard.lock().unwrap_or_else(PoisonError::into_inner);
        while heard.1.is_none() {
            heard = ear.changed.wait(heard).unwrap_or_else(PoisonError::into_inner);
        }
        let (bytes, ending) = (heard.0.clone(), heard.1.unwrap_or(Ending::Silence));
        Ok(Heard { bytes, ending, from, took: start.elapsed(), said_all })
    })
}

impl Ear {
    fn listen(&self, mut stream: &TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = stream.read(&mut buffer);
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            match read {
                Ok(0) => heard.1 = Some(Ending::End),
                Ok(count) => heard.0.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => heard.1 = Some(Ending::Silence),
                Err(_) => heard.1 = Some(Ending::Reset),
            }
            self.changed.notify_all();
            if heard.1.is_some() {
                return;
            }
        }
    }

    /// Waits until `bytes` were heard behind `from`, which moves behind them. False once nothing more comes.
    fn hears(&self, bytes: &[u8], from: &mut usize) -> bool {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let rest = heard.0.get(*from..).unwrap_or_default();
            if let Some(at) = rest.windows(bytes.len().max(1)).position(|window| window == bytes) {
                *from += at + bytes.len();
                return true;
            }
            if heard.1.is_some() {
                return false;
            }
            heard = self.changed.wait(heard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
