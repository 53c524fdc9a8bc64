//! The way in over TCP (RFC 7766): queries behind each other, each judged by the rules that are in force
//! when it comes, answers as they are found.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{Forwarder, Place, Reply};
use crate::host::{Flow, Host, Tenant};

/// How long a connection may be without a whole query or an answer. Bytes that trickle do not count.
const IDLE: Duration = Duration::from_secs(10);
/// How many queries of a connection are answered at once; the next one is not read before there is room.
const PIPELINE: usize = 32;
/// How many queries a connection may bring. Then it is closed, as RFC 7766 section 6.2.3 lets servers do.
const MAX_QUERIES: usize = 10_000;
/// The longest query. One with every option that there is comes nowhere near.
const MAX_QUERY: usize = 4096;
/// The length that stands before a message (RFC 1035 section 4.2.2).
const LENGTH: usize = 2;

/// Serves a connection of a sandbox to a resolver that its policy opens, until either end has enough.
///
/// # Errors
/// What happened to the connection; nothing that its owner would have to mend.
pub async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    flow: Flow,
    tenant: Tenant,
    host: Arc<impl Host>,
    forwarder: Forwarder,
) -> io::Result<()> {
    let mut inbox = Inbox::default();
    // An answer that nobody reads keeps its place, so that a sandbox cannot pile them up.
    let mut answering: JoinSet<Option<(Reply, Option<Place>)>> = JoinSet::new();
    let mut queries = 0;
    let mut open = true;
    let mut end = Instant::now() + IDLE;
    loop {
        while answering.len() < PIPELINE && queries < MAX_QUERIES {
            let Some(query) = inbox.next()? else { break };
            queries += 1;
            end = Instant::now() + IDLE;
            let (host, forwarder) = (Arc::clone(&host), forwarder.clone());
            let place = forwarder.admit(tenant);
            answering.spawn(async move {
                let reply = match &place {
                    Some(place) => forwarder.serve(place, &query, &flow, tenant, host.as_ref()).await,
                    None => forwarder.busy(&query, flow.transport),
                };
                reply.map(|reply| (reply, place))
            });
        }
        let reads = open && queries < MAX_QUERIES && answering.len() < PIPELINE;
        if !reads && answering.is_empty() {
            return stream.shutdown().await;
        }
        tokio::select! {
            Some(reply) = answering.join_next() => match reply {
                Ok(Some((reply, _place))) => {
                    timeout(IDLE, write(&mut stream, &reply.bytes)).await??;
                    end = Instant::now() + IDLE;
                }
                // No query, or the sandbox is detached: nothing more is to be had here.
                Ok(None) | Err(_) => return Ok(()),
            },
            count = stream.read(inbox.room()), if reads => open = inbox.filled(count?),
            () = sleep_until(end) => return Ok(()),
        }
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    // The forwarder writes nothing that is longer.
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // RFC 7766 section 8: length and message in one write.
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

/// What was read and is not yet a query.
struct Inbox {
    bytes: Vec<u8>,
    chunk: Box<[u8; 1024]>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { bytes: Vec::new(), chunk: Box::new([0; 1024]) }
    }
}

impl Inbox {
    /// Where to read to. Reading is given up and begun again, so that nothing may be kept anywhere else.
    fn room(&mut self) -> &mut [u8] {
        self.chunk.as_mut_slice()
    }

    /// So many bytes were read; none means the end.
    fn filled(&mut self, count: usize) -> bool {
        self.bytes.extend_from_slice(self.chunk.get(..count).unwrap_or_default());
        count > 0
    }

    /// The next query, if it is whole.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_QUERY {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the query is too long"));
        }
        let Some(query) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.bytes.drain(..LENGTH + length);
        Ok(Some(query))
    }
}
