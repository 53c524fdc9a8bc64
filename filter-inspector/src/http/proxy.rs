//! HTTP connections: every request judged by the name it bears, and forwarded byte for byte.
//!
//! One request at a time. What the client sends behind it waits in the socket. A request is sent at most
//! once: where an upstream may have got it and closed, the client is told by a close, as it would be without
//! a filter.

use std::{future::poll_fn, io, sync::atomic::Ordering, task::Poll};

use filter_common::Reason;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    exchange::{Ends, Next, exchange, fill},
    refusal::{self, Why},
    request::{Body, Method, Request, RequestReader},
};
use crate::{
    connection::{Connection, Refused, write_all},
    host::Host,
    relay, transform,
};

/// A buffer that is kept while no request is there is no larger than that.
const KEPT: usize = 4 * 1024;

/// Serves a connection.
pub(crate) async fn serve<H: Host>(connection: Connection<H>) {
    let deadline = Instant::now() + connection.shared.settings.peek_timeout;
    if connection.is_nobodys_business() {
        return connection.pass().await;
    }
    Proxy { connection, inbox: Vec::new(), back: Vec::new() }.serve(deadline).await;
}

struct Proxy<H: Host> {
    connection: Connection<H>,
    /// What the client said and is not dealt with.
    inbox: Vec<u8>,
    /// What the upstream said and is not dealt with.
    back: Vec<u8>,
}

/// Why there is no request.
enum Missing {
    /// The client ended between requests, or said nothing for long.
    Over,
    /// It began one and did not go on as it should.
    Refused(Why),
}

impl<H: Host> Proxy<H> {
    async fn serve(mut self, deadline: Instant) {
        let mut request = match self.first_request(deadline).await {
            Ok(request) => request,
            Err(why) => return self.object(why, None).await,
        };
        loop {
            if self.connection.sets_headers_in_clear(&request.name) {
                self.connection.leave_upstream();
                return transform::serve_clear(self.connection, self.inbox).await;
            }
            if let Err(refused) = self.aim(&request).await {
                return self.refuse(Why::Denied(refused.reason), refused, Some(&request)).await;
            }
            match self.exchange(&request).await {
                Next::Request => {}
                Next::Close { heard } => return self.close(heard).await,
                Next::Tunnel => return self.tunnel().await,
                Next::Refuse(why) => {
                    return self.object(why, Some(&request)).await;
                }
                Next::Break => return self.connection.break_off(),
            }
            request = match self.next_request().await {
                Ok(request) => request,
                Err(Missing::Over) => return self.close(true).await,
                Err(Missing::Refused(why)) => {
                    return self.object(why, None).await;
                }
            };
        }
    }

    /// The first request, of which something has to come before the deadline.
    async fn first_request(&mut self, deadline: Instant) -> Result<Request, Why> {
        match timeout_at(deadline, fill(&self.connection.client, &mut self.inbox)).await {
            Ok(Ok(0) | Err(_)) => Err(Why::Denied(Reason::NoName)),
            Ok(Ok(_)) => self.read_head().await,
            Err(_) => Err(Why::Denied(Reason::PeekTimeout)),
        }
    }

    /// Another request, which may be long in coming.
    async fn next_request(&mut self) -> Result<Request, Missing> {
        if self.inbox.is_empty() {
            self.inbox.shrink_to(KEPT);
            self.back.shrink_to(KEPT);
            match timeout(self.connection.shared.settings.idle_timeout, self.wait()).await {
                Ok(Ok(count)) if count > 0 => {}
                Ok(_) | Err(_) => return Err(Missing::Over),
            }
        }
        self.read_head().await.map_err(Missing::Refused)
    }

    /// Waits until the client says something. An upstream that closes meanwhile is left; one that speaks
    /// without being asked has nothing to say to the client.
    async fn wait(&mut self) -> io::Result<usize> {
        let waited = {
            let Connection { client, upstream, .. } = &self.connection;
            let inbox = &mut self.inbox;
            let mut filling = std::pin::pin!(fill(client, inbox));
            poll_fn(|context| {
                if let Poll::Ready(filled) = filling.as_mut().poll(context) {
                    return Poll::Ready(Some(filled));
                }
                match upstream {
                    Some(upstream) if is_stale(upstream, context) => Poll::Ready(None),
                    Some(_) | None => Poll::Pending,
                }
            })
            .await
        };
        match waited {
            Some(filled) => filled,
            None => {
                self.connection.leave_upstream();
                fill(&self.connection.client, &mut self.inbox).await
            }
        }
    }

    /// The request whose beginning is in the inbox.
    async fn read_head(&mut self) -> Result<Request, Why> {
        let mut reader = RequestReader::new(self.connection.flow().destination.port());
        if let Some(request) = reader.advance(&self.inbox).map_err(Why::BadRequest)? {
            return Ok(request);
        }
        self.connection.expect_more();
        let head = timeout(self.connection.shared.settings.head_timeout, async {
            if !self.connection.charge(self.inbox.len()) {
                return Err(Why::Denied(Reason::Capacity));
            }
            loop {
                match fill(&self.connection.client, &mut self.inbox).await {
                    Ok(0) | Err(_) => return Err(Why::Denied(Reason::NoName)),
                    Ok(count) if !self.connection.charge(count) => {
                        return Err(Why::Denied(Reason::Capacity));
                    }
                    Ok(_) => {}
                }
                if let Some(request) = reader.advance(&self.inbox).map_err(Why::BadRequest)? {
                    return Ok(request);
                }
            }
        });
        let head = head.await.unwrap_or(Err(Why::Denied(Reason::PeekTimeout)));
        self.connection.discharge();
        head
    }

    /// Judges the request and sees to it that the upstream is the one that it is for.
    async fn aim(&mut self, request: &Request) -> Result<(), Refused> {
        if let Some(upstream) = &self.connection.upstream {
            let target = self.connection.judge(&request.name);
            let serves = |target| self.connection.entry.leads_to(target);
            match &target {
                Ok(target) if serves(target) && !is_spoken_for(upstream) => return Ok(()),
                Ok(_) | Err(_) => self.connection.leave_upstream(),
            }
            target?;
        }
        self.back.clear();
        self.connection.reach(&request.name).await
    }

    async fn exchange(&mut self, request: &Request) -> Next {
        let Some(upstream) = &self.connection.upstream else { return Next::Break };
        if request.body != Body::None {
            self.connection.expect_more();
        }
        let ends = Ends {
            client: &self.connection.client,
            upstream,
            sent: &self.connection.entry.sent,
            received: &self.connection.entry.received,
            means: self.connection.means(),
        };
        let next = exchange(ends, request, &mut self.inbox, &mut self.back).await;
        // The upstream said more than it was asked for. Whatever it is, it is not the next response.
        if next == Next::Request && !self.back.is_empty() { Next::Close { heard: true } } else { next }
    }

    /// Both ends speak something else from here on.
    async fn tunnel(self) {
        let Self { mut connection, inbox, back } = self;
        if pass(&connection, &inbox, &back).await.is_err() {
            return connection.break_off();
        }
        drop((inbox, back));
        connection.relay().await;
    }

    /// Closes so that the client gets the last response in full.
    async fn close(mut self, heard: bool) {
        self.connection.leave_upstream();
        if heard && self.inbox.is_empty() && !is_spoken_for(&self.connection.client) {
            return;
        }
        relay::finish(&self.connection.client);
        self.connection.listen_out().await;
    }

    /// Refuses what no rule decided.
    async fn object(self, why: Why, request: Option<&Request>) {
        let refused = self.connection.refused(why.reason());
        self.refuse(why, refused, request).await;
    }

    /// Tells of a refusal, and the client why.
    async fn refuse(mut self, why: Why, refused: Refused, request: Option<&Request>) {
        self.connection.leave_upstream();
        let name = request.and_then(|request| request.name.as_ref().ok()).and_then(Option::as_ref);
        let bytes = request.map_or(self.inbox.len(), |request| request.head_len);
        self.connection.tell_refused(refused, name, bytes);
        let pointer = self.connection.pointer(&refused);
        let bodiless = request.is_some_and(|request| request.method == Method::Head);
        let response = refusal::response(why, pointer.as_deref(), name, bodiless);
        self.inbox = Vec::new();
        self.connection.say_farewell(&response).await;
    }
}

/// Gives both ends what the other has said already.
async fn pass<H: Host>(connection: &Connection<H>, inbox: &[u8], back: &[u8]) -> io::Result<()> {
    let Some(upstream) = &connection.upstream else { return Ok(()) };
    write_all(upstream, inbox).await?;
    connection.entry.sent.fetch_add(inbox.len() as u64, Ordering::Relaxed);
    write_all(&connection.client, back).await?;
    connection.entry.received.fetch_add(back.len() as u64, Ordering::Relaxed);
    Ok(())
}

/// Whether an upstream that was not asked anything closes or speaks all the same.
fn is_stale(upstream: &TcpStream, context: &mut std::task::Context<'_>) -> bool {
    loop {
        match upstream.poll_read_ready(context) {
            Poll::Pending => return false,
            Poll::Ready(_) if is_spoken_for(upstream) => return true,
            Poll::Ready(_) => {}
        }
    }
}

/// Whether there is something to read: bytes, the end or an error. What it is is lost, so this is for who has
/// no use for it.
fn is_spoken_for(stream: &TcpStream) -> bool {
    !matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
