//! What a sandbox tries, and what it sees: an answer or an errno, and how long it took.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// How an attempt went.
#[derive(Debug)]
pub struct Attempt<T> {
    /// What came of it. No answer in time is `ErrorKind::TimedOut` without an errno.
    pub result: io::Result<T>,
    /// How long it took.
    pub took: Duration,
}

impl<T> Attempt<T> {
    /// Whether it succeeded.
    pub fn is_ok(&self) -> bool {
        self.result.is_ok()
    }

    /// The errno that the program in the sandbox got.
    pub fn errno(&self) -> Option<Errno> {
        self.result.as_ref().err()?.raw_os_error().map(Errno::from_raw)
    }

    /// Whether nothing came back in time.
    pub fn timed_out(&self) -> bool {
        self.result.as_ref().is_err_and(|error| error.kind() == ErrorKind::TimedOut)
    }
}

/// An HTTP/1.1 answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Clients. All of them run inside the namespace.
impl Netns {
    /// Connects. The stream may be used from anywhere.
    pub fn tcp_connect(&self, to: impl Into<SocketAddr>, timeout: Duration) -> Attempt<TcpStream> {
        let to = to.into();
        self.attempt(|| {
            let stream = TcpStream::connect_timeout(&to, timeout)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        })
    }

    /// Connects, sends `payload`, ends sending, and reads all that comes.
    pub fn tcp_exchange(
        &self,
        to: impl Into<SocketAddr>,
        payload: &[u8],
        timeout: Duration,
    ) -> Attempt<Vec<u8>> {
        let to = to.into();
        self.attempt(|| {
            let mut stream = TcpStream::connect_timeout(&to, timeout)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            stream.write_all(payload)?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        })
    }

    /// `GET /` with `host` as Host, on a connection of its own.
    pub fn http_get(&self, to: impl Into<SocketAddr>, host: &str, timeout: Duration) -> Attempt<HttpAnswer> {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let Attempt { result, took } = self.tcp_exchange(to, request.as_bytes(), timeout);
        Attempt { result: result.and_then(|answer| parse_answer(&answer)), took }
    }

    /// Sends one datagram and waits for the answer; an ICMP error about it comes as its errno.
    pub fn udp_exchange(
        &self,
        to: impl Into<SocketAddr>,
        payload: &[u8],
        timeout: Duration,
    ) -> Attempt<Vec<u8>> {
        let to = to.into();
        self.attempt(|| {
            let socket = UdpSocket::bind((unspecified_like(to.ip()), 0))?;
            // Only a connected socket hears of ICMP errors.
            socket.connect(to)?;
            socket.set_read_timeout(Some(timeout))?;
            socket.send(payload)?;
            let mut answer = vec![0; 65_536];
            let length = socket.recv(&mut answer)?;
            answer.truncate(length);
            Ok(answer)
        })
    }

    /// One echo request; an ICMP error about it comes as its errno.
    pub fn ping(&self, to: impl Into<IpAddr>, timeout: Duration) -> Attempt<()> {
        const PAYLOAD: &[u8] = b"sandbox filter test";
        let to = to.into();
        self.attempt(|| {
            // Types of RFC 792 and RFC 4443.
            let (domain, protocol, request, reply) = match to {
                IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
                IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
            };
            let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
            socket.connect(&SocketAddr::new(to, 0).into())?;
            socket.set_read_timeout(Some(timeout))?;
            // Type, code, checksum, identifier (both the kernel's to fill in), sequence number 1.
            let mut packet = vec![request, 0, 0, 0, 0, 0, 0, 1];
            packet.extend_from_slice(PAYLOAD);
            socket.send(&packet)?;

            let mut answer = [0; 256];
            let length = (&socket).read(&mut answer)?;
            // The kernel hands over only answers to this socket's identifier.
            if length == packet.len() && answer.first() == Some(&reply) {
                Ok(())
            } else {
                Err(io::Error::new(ErrorKind::InvalidData, "that is no echo reply"))
            }
        })
    }

    fn attempt<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Attempt<T> {
        let run = || -> Result<Attempt<T>> {
            let start = Instant::now();
            // A socket's timeout shows as EAGAIN.
            let timed_out = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
            let result = work().map_err(|error| {
                if timed_out(&error) {
                    io::Error::new(ErrorKind::TimedOut, "no answer in time")
                } else {
                    error
                }
            });
            Ok(Attempt { result, took: start.elapsed() })
        };
        self.run(run)
            .unwrap_or_else(|error| Attempt { result: Err(io::Error::other(error)), took: Duration::ZERO })
    }
}

fn unspecified_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

pub fn parse_answer(answer: &[u8]) -> io::Result<HttpAnswer> {
    let text = String::from_utf8_lossy(answer);
    let parsed = text.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        Some(HttpAnswer { status, head: head.to_owned(), body: body.to_owned() })
    });
    parsed.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("that is no HTTP answer: {text:?}")))
}
