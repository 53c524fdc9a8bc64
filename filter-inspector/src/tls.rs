//! TLS connections: the name out of the hello, a verdict, and then a relay that knows nothing of TLS.

use std::{future::poll_fn, io, task::Poll};

use filter_common::Reason;
use tokio::time::{Instant, timeout_at};

use crate::{
    connection::{Connection, Refused},
    hello::{BadHello, ClientHello, HelloReader},
    host::Host,
    relay::{poll_read, with_scratch},
    rules::Named,
    transform,
};

/// Alert descriptions (RFC 8446 section 6.2).
const ACCESS_DENIED: u8 = 49;
const INTERNAL_ERROR: u8 = 80;
const UNRECOGNIZED_NAME: u8 = 112;

/// What a client said until its name was known, or was known never to come.
#[derive(Debug, Default)]
struct Said {
    bytes: Vec<u8>,
}

/// Serves a connection.
pub(crate) async fn serve<H: Host>(mut connection: Connection<H>) {
    let deadline = Instant::now() + connection.shared.settings.peek_timeout;
    let mut said = Said::default();
    let named = match timeout_at(deadline, read_hello(&mut connection, &mut said)).await {
        Ok(Ok(named)) => named,
        Ok(Err(Reason::Capacity)) => return refuse(connection, Reason::Capacity, &said, &Ok(None)).await,
        // Whoever may go there in any case may be silent, too.
        Ok(Err(_)) | Err(_) if connection.passes_unnamed() => Ok(None),
        Ok(Err(reason)) => return refuse(connection, reason, &said, &Ok(None)).await,
        Err(_) => return refuse(connection, Reason::PeekTimeout, &said, &Ok(None)).await,
    };
    if let Ok(Some(name)) = &named
        && connection.sets_headers(name)
    {
        return match transform::tls::serve(connection, name, &said.bytes).await {
            Ok(()) => {}
            Err((connection, refused)) => refuse_as(connection, refused, &said, &named).await,
        };
    }
    if let Err(refused) = connection.reach(&named).await {
        return refuse_as(connection, refused, &said, &named).await;
    }
    let said = said.bytes;
    connection.go_on(said).await;
}

/// Reads until the hello is whole, or is none. An error is the reason of a refusal without a verdict.
async fn read_hello<H: Host>(connection: &mut Connection<H>, said: &mut Said) -> Result<Named, Reason> {
    let mut reader = HelloReader::new();
    loop {
        let mut answer: Result<Option<ClientHello>, BadHello> = Ok(None);
        let count = poll_fn(|context| {
            with_scratch(|scratch| {
                let count = match poll_read(&connection.client, context, scratch) {
                    Poll::Ready(Ok(count)) => count,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                };
                let got = scratch.get(..count).unwrap_or_default();
                said.bytes.extend_from_slice(got);
                answer = reader.feed(got);
                Poll::<io::Result<usize>>::Ready(Ok(count))
            })
        });
        match count.await {
            Ok(0) | Err(_) => return Err(Reason::NoName),
            // Once for the relay and once for the reader.
            Ok(count) if !connection.charge(2 * count) => return Err(Reason::Capacity),
            Ok(_) => {}
        }
        match answer {
            Ok(None) => connection.expect_more(),
            Ok(Some(hello)) => return Ok(Ok(hello.server_name)),
            Err(bad) => return Ok(bad.named()),
        }
    }
}

async fn refuse<H: Host>(connection: Connection<H>, reason: Reason, said: &Said, named: &Named) {
    let refused = connection.refused(reason);
    refuse_as(connection, refused, said, named).await;
}

/// Tells of the refusal and says so in TLS.
async fn refuse_as<H: Host>(mut connection: Connection<H>, refused: Refused, said: &Said, named: &Named) {
    let name = named.as_ref().ok().and_then(Option::as_ref);
    connection.tell_refused(refused, name, said.bytes.len());
    connection.discharge();
    connection.say_farewell(&alert(refused.reason)).await;
}

/// A fatal alert, in a record of its own.
fn alert(reason: Reason) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    #[expect(clippy::wildcard_enum_match_arm, reason = "reasons are many, and access was denied")]
    let description = match reason {
        Reason::NameNotAllowed | Reason::NoName | Reason::BadName => UNRECOGNIZED_NAME,
        Reason::Unresolved => INTERNAL_ERROR,
        _ => ACCESS_DENIED,
    };
    // Version 1.2, which every version's records bear (RFC 8446 section 5.1).
    [ALERT, 3, 3, 0, 2, FATAL, description]
}
