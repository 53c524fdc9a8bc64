//! One request and its response: both move at once, and each byte that is forwarded was looked at as far as
//! its message's end depends on it.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::Poll,
};

use tokio::{io::Interest, net::TcpStream};

use super::{
    body::Chunked,
    refusal::Why,
    request::{self, Request},
    response::{self, ResponseReader},
};
use crate::{
    connection::write_all,
    relay::{Done, Failure, Means, Way, poll_read, with_scratch},
};

/// The data of a chunk is moved without looking at it if there is at least so much.
const PLAIN: u64 = 64 * 1024;

/// What comes after a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Another one may.
    Request,
    /// The end, in good order.
    Close {
        /// The client has said all of its request, so that nothing of it can still come.
        heard: bool,
    },
    /// Another protocol, to which the response switched.
    Tunnel,
    /// A response of the filter's own; the client had none yet.
    Refuse(Why),
    /// The end, and both sides shall know that it is none in good order.
    Break,
}

/// The two ends of a request.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    /// Who sent it.
    pub(crate) client: &'a TcpStream,
    /// Who gets it.
    pub(crate) upstream: &'a TcpStream,
    /// Bytes that the upstream was given.
    pub(crate) sent: &'a AtomicU64,
    /// Bytes that the client was given.
    pub(crate) received: &'a AtomicU64,
    /// What may be used.
    pub(crate) means: Means<'a>,
}

/// One of the two directions.
#[derive(Clone, Copy)]
struct Lane<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    tally: &'a AtomicU64,
    means: Means<'a>,
}

/// How a message goes on behind its head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Why a message did not get through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// The sender broke off, or ended before the message did.
    Sender,
    /// The sender ended where a head would begin.
    NoMessage,
    /// The receiver broke off.
    Receiver,
    /// It can be read in more than one way.
    Ambiguous,
}

/// How a response came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Came {
    Whole { keep_alive: bool, continued: bool },
    Upgraded,
}

/// Forwards a request, whose head is the beginning of `inbox`, and its response. What is left in `inbox` and
/// `back` came behind them.
pub(crate) async fn exchange(
    ends: Ends<'_>,
    request: &Request,
    inbox: &mut Vec<u8>,
    back: &mut Vec<u8>,
) -> Next {
    let Ends { client, upstream, sent, received, means } = ends;
    let framing = match request.body {
        request::Body::None => Framing::Length(0),
        request::Body::Length(length) => Framing::Length(length),
        request::Body::Chunked => Framing::Chunked,
    };
    let began = AtomicBool::new(false);
    let out = Lane { from: client, to: upstream, tally: sent, means };
    let mut sending = pin!(forward(out, inbox, request.head_len, framing));
    let mut receiving =
        pin!(receive(Lane { from: upstream, to: client, tally: received, means }, back, request, &began));
    // The end of a stream says nothing: a client may end after its last request and wait for the response.
    let mut gone = pin!(client.ready(Interest::ERROR));

    let mut whole: Option<Result<(), Fault>> = None;
    let came = poll_fn(|context| {
        if whole.is_none()
            && let Poll::Ready(done) = sending.as_mut().poll(context)
        {
            // An upstream that takes no more may have answered.
            if let Err(fault @ (Fault::Sender | Fault::NoMessage | Fault::Ambiguous)) = done {
                return Poll::Ready(Err(Side::Request(fault)));
            }
            whole = Some(done);
        }
        if let Poll::Ready(came) = receiving.as_mut().poll(context) {
            return Poll::Ready(came.map_err(Side::Response));
        }
        gone.as_mut().poll(context).map(|_| Err(Side::Request(Fault::Sender)))
    })
    .await;

    let began = began.load(Ordering::Relaxed);
    match came {
        Ok(Came::Upgraded) if whole == Some(Ok(())) => Next::Tunnel,
        Ok(Came::Upgraded) => Next::Break,
        Ok(Came::Whole { keep_alive: true, continued }) if request.keep_alive => {
            let whole = match whole {
                Some(whole) => whole,
                // Whether the body still comes is not certain: what follows could be the next request.
                None if request.expects_continue && !continued => return Next::Close { heard: false },
                None => sending.await,
            };
            if whole.is_ok() { Next::Request } else { Next::Close { heard: false } }
        }
        Ok(Came::Whole { .. }) => Next::Close { heard: whole == Some(Ok(())) },
        Err(Side::Request(Fault::Ambiguous)) if !began => Next::Refuse(Why::BadBody),
        Err(Side::Response(Fault::Ambiguous)) if !began => Next::Refuse(Why::BadResponse),
        Err(Side::Response(Fault::NoMessage)) => Next::Close { heard: whole == Some(Ok(())) },
        Err(_) => Next::Break,
    }
}

/// Where a fault lies.
enum Side {
    Request(Fault),
    Response(Fault),
}

/// Forwards the heads of a response, and its body.
async fn receive(
    lane: Lane<'_>,
    back: &mut Vec<u8>,
    request: &Request,
    began: &AtomicBool,
) -> Result<Came, Fault> {
    let mut continued = false;
    loop {
        let mut reader = ResponseReader::new(request);
        let response = loop {
            if let Some(response) = reader.advance(back).map_err(|_| Fault::Ambiguous)? {
                break response;
            }
            match fill(lane.from, back).await {
                Ok(0) if back.is_empty() => return Err(Fault::NoMessage),
                Ok(0) | Err(_) => return Err(Fault::Sender),
                Ok(_) => {}
            }
        };
        let framing = match response.body {
            response::Body::AnotherHead => {
                continued = true;
                forward(lane, back, response.head_len, Framing::Length(0)).await?;
                continue;
            }
            response::Body::None | response::Body::Upgraded => Framing::Length(0),
            response::Body::Length(length) => Framing::Length(length),
            response::Body::Chunked => Framing::Chunked,
            response::Body::UntilClose => Framing::UntilClose,
        };
        began.store(true, Ordering::Relaxed);
        forward(lane, back, response.head_len, framing).await?;
        if response.body == response::Body::Upgraded {
            return Ok(Came::Upgraded);
        }
        let keep_alive = response.keep_alive && framing != Framing::UntilClose;
        return Ok(Came::Whole { keep_alive, continued });
    }
}

/// Forwards a message whose head is the beginning of `buffer`. Head and as much of the body as is there go out
/// with one write.
async fn forward(lane: Lane<'_>, buffer: &mut Vec<u8>, head: usize, framing: Framing) -> Result<(), Fault> {
    let there = buffer.len().saturating_sub(head);
    let mut chunked = Chunked::new();
    let (now, left) = match framing {
        Framing::Length(length) => {
            let now = usize::try_from(length).map_or(there, |length| length.min(there));
            (now, length - now as u64)
        }
        Framing::Chunked => {
            let body = buffer.get(head..).unwrap_or_default();
            (chunked.advance(body).map_err(|_| Fault::Ambiguous)?.consumed, 0)
        }
        Framing::UntilClose => (there, u64::MAX),
    };
    give(lane, buffer, head + now).await?;
    match framing {
        Framing::Length(0) => Ok(()),
        Framing::Length(_) if left == 0 => Ok(()),
        Framing::Length(_) => stream(lane, left).await.and_then(|done| match done {
            Done::Limit => Ok(()),
            Done::End => Err(Fault::Sender),
        }),
        Framing::Chunked => forward_chunks(lane, buffer, chunked).await,
        Framing::UntilClose => stream(lane, left).await.map(|_| ()),
    }
}

async fn forward_chunks(lane: Lane<'_>, buffer: &mut Vec<u8>, mut chunked: Chunked) -> Result<(), Fault> {
    while !chunked.is_finished() {
        let plain = chunked.plain();
        if plain >= PLAIN {
            if stream(lane, plain).await? == Done::End {
                return Err(Fault::Sender);
            }
            chunked.skip(plain);
            continue;
        }
        match fill(lane.from, buffer).await {
            Ok(0) | Err(_) => return Err(Fault::Sender),
            Ok(_) => {}
        }
        let advance = chunked.advance(buffer).map_err(|_| Fault::Ambiguous)?;
        give(lane, buffer, advance.consumed).await?;
    }
    Ok(())
}

/// Moves so many bytes from socket to socket.
async fn stream(lane: Lane<'_>, limit: u64) -> Result<Done, Fault> {
    let mut way = Way::limited(lane.from, lane.to, lane.tally, lane.means, limit);
    poll_fn(|context| way.poll(context)).await.map_err(|failure| match failure {
        Failure::Read => Fault::Sender,
        Failure::Write => Fault::Receiver,
    })
}

/// Writes the beginning of the buffer and takes it out.
async fn give(lane: Lane<'_>, buffer: &mut Vec<u8>, count: usize) -> Result<(), Fault> {
    write_all(lane.to, buffer.get(..count).unwrap_or_default()).await.map_err(|_| Fault::Receiver)?;
    lane.tally.fetch_add(count as u64, Ordering::Relaxed);
    if count == buffer.len() {
        buffer.clear();
    } else {
        buffer.drain(..count);
    }
    Ok(())
}

/// Appends what the socket has; 0 at its end.
pub(crate) async fn fill(from: &TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|context| {
        with_scratch(|scratch| {
            poll_read(from, context, scratch).map_ok(|count| {
                buffer.extend_from_slice(scratch.get(..count).unwrap_or_default());
                count
            })
        })
    })
    .await
}
