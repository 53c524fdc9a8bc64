//! DNS as a sandbox speaks it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use filter_tests::hickory_proto::op::{Edns, Message, Query, ResponseCode};
use filter_tests::hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use filter_tests::hickory_proto::rr::{Name, RecordType};
use filter_tests::{Attempt, Netns};

use super::PATIENCE;

/// The resolver that a policy with names opens.
pub const RESOLVER: &str = "8.8.8.8";

/// A query for a name, which need not be one.
pub fn query(name: &str, kind: RecordType) -> Message {
    let labels = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    query_of(Name::from_labels(labels).unwrap(), kind)
}

pub fn query_of(mut name: Name, kind: RecordType) -> Message {
    name.set_fqdn(true);
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message
}

/// With room for so many bytes, and a cookie that says something.
pub fn with_edns(mut message: Message, room: u16, cookie: &[u8]) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(room);
    if !cookie.is_empty() {
        edns.options_mut().insert(EdnsOption::Unknown(EdnsCode::Cookie.into(), cookie.to_vec()));
    }
    message.set_edns(edns);
    message
}

/// Asks over UDP.
pub fn ask(netns: &Netns, to: SocketAddr, message: &Message) -> Result<Message> {
    let bytes = message.to_vec()?;
    let attempt = netns.udp_exchange(to, &bytes, PATIENCE + Duration::from_secs(1));
    let answer = attempt.result.with_context(|| format!("no answer from {to}"))?;
    read(message, &answer)
}

/// Asks over UDP and gives what came, whatever it is.
pub fn ask_raw(netns: &Netns, to: SocketAddr, bytes: &[u8]) -> Attempt<Vec<u8>> {
    netns.udp_exchange(to, bytes, Duration::from_millis(400))
}

/// Asks over TCP, one after the other without waiting, and gives the answers in the order of the questions.
pub fn ask_over_tcp(netns: &Netns, to: SocketAddr, messages: &[Message]) -> Result<Vec<Message>> {
    let mut stream = netns.tcp_connect(to, PATIENCE).result?;
    for message in messages {
        let bytes = message.to_vec()?;
        stream.write_all(&u16::try_from(bytes.len())?.to_be_bytes())?;
        stream.write_all(&bytes)?;
    }
    let mut answers = Vec::new();
    for _ in messages {
        let mut length = [0; 2];
        stream.read_exact(&mut length).context("no answer")?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        answers.push(Message::from_vec(&answer)?);
    }
    let answer_to = |message: &Message| {
        let mut found = answers.iter().filter(|answer| answer.metadata.id == message.metadata.id);
        found.next().cloned().context("a question was not answered")
    };
    messages.iter().map(answer_to).collect()
}

/// The answer to a query, which it must be.
fn read(message: &Message, answer: &[u8]) -> Result<Message> {
    let answer = Message::from_vec(answer)?;
    ensure!(answer.metadata.id == message.metadata.id && answer.queries == message.queries, "{answer}");
    ensure!(answer.metadata.recursion_available && answer.metadata.recursion_desired, "{answer}");
    Ok(answer)
}

/// The addresses in an answer.
pub fn addresses(answer: &Message) -> Vec<IpAddr> {
    answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

pub fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}
