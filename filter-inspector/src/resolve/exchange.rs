//! One question to one server: over UDP, and over TCP where UDP will not do.
//!
//! A forger must guess 16 bits of id, the source port and the case of every letter of the name (the server
//! repeats it), from an address that the kernel compares for us: each query has a socket of its own, which
//! is connected, so that nothing from another address or port ever arrives on it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use hickory_proto::{
    ProtoError,
    op::{self, Edns, Message, ResponseCode},
};
use socket2::SockRef;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
};

use super::reading::Question;

/// The largest datagram that is asked for: no fragments on any path (RFC 9715 section 3.2, and 1,232 as
/// agreed on DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// The largest datagram that is read, from servers that do not care.
const UDP_BUFFER: usize = 4096;

/// Why a server gave no answer.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the query cannot be written: {0}")]
    Query(#[from] ProtoError),
    #[error("the server says {0}")]
    Unwilling(ResponseCode),
    #[error("over TCP came something else than an answer")]
    Foreign,
}

/// What a datagram is.
enum Heard {
    /// An answer to the query.
    Answer(Message),
    /// An answer to the query, but not to be used: cut short, or not surely the server's.
    Doubtful,
    /// Not an answer to the query.
    Foreign,
}

/// What matters of a header.
#[derive(Clone, Copy)]
struct Head {
    truncated: bool,
}

/// A query as it is sent: its own id, and its own case.
struct Query {
    id: u16,
    question: op::Query,
    bytes: Vec<u8>,
}

/// Asks a server. Takes as long as it takes.
pub(super) async fn ask(server: SocketAddr, mark: u32, question: &Question) -> Result<Message, Failure> {
    let mut answer = ask_with(server, mark, question, Some(UDP_PAYLOAD)).await?;
    // RFC 6891 section 7: this is how a server says that it does not know EDNS.
    if matches!(answer.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp) {
        answer = ask_with(server, mark, question, None).await?;
    }
    let code = answer.metadata.response_code;
    if matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        Ok(answer)
    } else {
        Err(Failure::Unwilling(code))
    }
}

async fn ask_with(
    server: SocketAddr,
    mark: u32,
    question: &Question,
    edns: Option<u16>,
) -> Result<Message, Failure> {
    let query = Query::new(question, edns)?;
    match over_udp(server, mark, &query).await? {
        Some(answer) => Ok(answer),
        None => over_tcp(server, mark, &query).await,
    }
}

/// `None`: to be asked over TCP.
async fn over_udp(server: SocketAddr, mark: u32, query: &Query) -> Result<Option<Message>, Failure> {
    // The kernel picks the port at random.
    let socket = UdpSocket::bind(unspecified(server)).await?;
    set_mark(&socket, mark)?;
    socket.connect(server).await?;
    socket.send(&query.bytes).await?;
    let mut buffer = vec![0; UDP_BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match query.hear(buffer.get(..length).unwrap_or_default()) {
            Heard::Answer(message) => return Ok(Some(message)),
            Heard::Doubtful => return Ok(None),
            Heard::Foreign => {}
        }
    }
}

async fn over_tcp(server: SocketAddr, mark: u32, query: &Query) -> Result<Message, Failure> {
    let socket = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    set_mark(&socket, mark)?;
    let mut stream = socket.connect(server).await?;
    // RFC 7766 section 8: length and message in one write.
    let length = u16::try_from(query.bytes.len()).map_err(|_| Failure::Foreign)?;
    stream.write_all(&[&length.to_be_bytes(), query.bytes.as_slice()].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    match query.read(&answer) {
        Some(message) if !message.metadata.truncation => Ok(message),
        _ => Err(Failure::Foreign),
    }
}

fn unspecified(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn set_mark<'a>(socket: impl Into<SockRef<'a>>, mark: u32) -> io::Result<()> {
    if mark == 0 { Ok(()) } else { socket.into().set_mark(mark) }
}

impl Query {
    /// `edns` is the size of datagram that is asked for.
    fn new(question: &Question, edns: Option<u16>) -> Result<Self, ProtoError> {
        let mut name = question.name.clone();
        // What draft-vixie-dnsext-dns0x20 proposes.
        name.randomize_label_case();
        let question = op::Query::query(name, question.kind);
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(question.clone());
        if let Some(size) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            message.set_edns(edns);
        }
        Ok(Self { id: message.metadata.id, question, bytes: message.to_vec()? })
    }

    /// Reads a datagram.
    fn hear(&self, bytes: &[u8]) -> Heard {
        let Some(head) = self.head(bytes) else { return Heard::Foreign };
        match self.read(bytes) {
            Some(message) if !head.truncated && self.repeats_case(&message) => Heard::Answer(message),
            Some(_) => Heard::Doubtful,
            // Some servers fill a datagram and cut the last record in two. Whoever forges this only makes
            // us ask over TCP.
            None if head.truncated => Heard::Doubtful,
            None => Heard::Foreign,
        }
    }

    /// Reads an answer to the query, RFC 5452 section 9.1, whatever the case of its name.
    fn read(&self, bytes: &[u8]) -> Option<Message> {
        let head = self.head(bytes)?;
        let message = Message::from_vec(bytes).ok()?;
        let code = message.metadata.response_code;
        match message.queries.as_slice() {
            [question] => (*question == self.question).then_some(message),
            // Who cannot read the question cannot repeat it.
            [] if !head.truncated && !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) => {
                Some(message)
            }
            _ => None,
        }
    }

    fn repeats_case(&self, message: &Message) -> bool {
        message.queries.iter().all(|question| question.name.eq_case(&self.question.name))
    }

    /// The header of an answer to the query. It is looked at before the rest is read, so that what others
    /// make up costs nothing.
    fn head(&self, bytes: &[u8]) -> Option<Head> {
        // RFC 1035 section 4.1.1.
        const RESPONSE: u8 = 1 << 7;
        const OPCODE: u8 = 0b1111 << 3;
        const TRUNCATED: u8 = 1 << 1;
        let [id_high, id_low, flags, _, questions_high, questions_low, ..] = *bytes else { return None };
        let answers = [id_high, id_low] == self.id.to_be_bytes()
            && flags & (RESPONSE | OPCODE) == RESPONSE
            && u16::from_be_bytes([questions_high, questions_low]) <= 1;
        answers.then_some(Head { truncated: flags & TRUNCATED != 0 })
    }
}

/// Has a query for the question answered with its own header, question and records that are cut somewhere,
/// followed by any bytes.
#[cfg(test)]
pub(super) fn hear_anything(question: &Question, tail: &[u8], cut: usize) {
    let query = Query::new(question, Some(UDP_PAYLOAD)).unwrap();
    let mut reply = Message::from_vec(&query.bytes).unwrap().into_response();
    reply.answers =
        vec![super::fake::a("n.test.", 1, [192, 0, 2, 1]), super::fake::alias("a.test.", 1, "n.test.")];
    let mut bytes = reply.to_vec().unwrap();
    bytes.truncate(cut.max(12));
    bytes.extend_from_slice(tail);
    if let Some(count) = tail.first() {
        bytes[7] = *count;
    }
    if let Heard::Answer(message) = query.hear(&bytes) {
        super::reading::read(question, message, &(1..=3600));
    }
    query.hear(tail);
    query.read(tail);
}
