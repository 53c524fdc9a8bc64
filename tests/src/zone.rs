//! The internet's DNS: servers that know the names of a test, remember what they were asked, and can be hostile.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{
    Alpn, EchConfigList, IpHint, SVCB, SvcParamKey, SvcParamValue,
};
use hickory_proto::rr::rdata::{A, CNAME, HTTPS, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::netns::Netns;
use crate::workers::{Workers, lock};

/// Where the servers are.
const SERVERS: [&str; 4] = ["8.8.8.8", "8.8.4.4", "1.1.1.1", "2001:4860:4860::8888"];
const PORT: u16 = 53;
/// What an answer is good for unless it is told otherwise.
const TTL: u32 = 60;

/// DNS servers at 8.8.8.8, 8.8.4.4, 1.1.1.1 and 2001:4860:4860::8888, over UDP and TCP.
#[derive(Debug)]
pub struct Zone {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
    _workers: Vec<Workers>,
}

#[derive(Debug, Default)]
struct Shared {
    names: Mutex<HashMap<String, Entry>>,
    asked: Mutex<Vec<Asked>>,
}

/// What there is at a name.
#[derive(Clone, Debug)]
struct Entry {
    records: Vec<RData>,
    ttl: u32,
    behaviour: Behaviour,
}

impl Default for Entry {
    fn default() -> Self {
        Self { records: Vec::new(), ttl: TTL, behaviour: Behaviour::Honest }
    }
}

/// How a server answers for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// With what there is.
    Honest,
    /// Not at all.
    Silent,
    /// With a code and nothing else.
    Fails(ResponseCode),
    /// Over UDP that it does not fit, over TCP with what there is.
    Truncates,
    /// Somebody else is faster, and leads to this address; the honest answer comes a moment later.
    Forged(Forgery, IpAddr),
    /// With aliases that lead back to the name.
    AliasLoop,
    /// With a name that points to itself.
    PointerLoop,
    /// With what there is, after a while.
    Slow(Duration),
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgery {
    /// The id.
    Id,
    /// The name in the question.
    Name,
    /// The type in the question.
    Type,
    /// The port that it comes from.
    Port,
    /// The address that it comes from.
    Address,
    /// It is a query.
    Query,
    /// The case of the name is not as asked.
    Case,
    /// The question is right, the answer is about another name.
    Owner,
}

/// A query that a server got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name, in lower case, without the root's dot.
    pub name: String,
    /// The type.
    pub kind: RecordType,
    /// The server.
    pub server: IpAddr,
    /// Who asked.
    pub from: SocketAddr,
    /// Over TCP rather than UDP.
    pub tcp: bool,
    /// The query as it came.
    pub bytes: Vec<u8>,
}

impl Zone {
    /// Serves these names; any other does not exist.
    pub fn serve(netns: &Netns, names: &[(&str, &[&str])]) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (mut threads, mut workers) = (Vec::new(), Vec::new());
        for server in SERVERS {
            let at = SocketAddr::new(server.parse()?, PORT);
            let socket = netns.run(|| UdpSocket::bind(at).with_context(|| format!("cannot serve DNS at {at}")))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let (state, told) = (Arc::clone(&shared), Arc::clone(&stop));
            threads.push(netns.spawn(move || {
                over_udp(&socket, &state, &told);
                Ok(())
            })?);
            let state = Arc::clone(&shared);
            workers.push(Workers::at(netns, at, move |client| {
                // How a client ends is its own affair.
                let _ = over_tcp(client.stream, client.peer, client.local.ip(), &state);
            })?);
        }
        let zone = Self { shared, stop, threads, _workers: workers };
        for (name, addresses) in names {
            zone.set(name, addresses)?;
        }
        Ok(zone)
    }

    /// Has a name lead to these addresses, and to nothing else, from now on.
    pub fn set(&self, name: &str, addresses: &[&str]) -> Result<()> {
        let addresses = addresses.iter().map(|text| text.parse::<IpAddr>().context("an address"));
        let records = addresses.map(|address| Ok(RData::from(address?))).collect::<Result<_>>()?;
        self.entry(name, |entry| entry.records = records);
        Ok(())
    }

    /// Makes a name an alias.
    pub fn alias(&self, name: &str, target: &str) -> Result<()> {
        let target = RData::CNAME(CNAME(fqdn(target)?));
        self.entry(name, |entry| entry.records = vec![target]);
        Ok(())
    }

    /// Adds a TXT record.
    pub fn text(&self, name: &str, text: &str) {
        let text = RData::TXT(TXT::new(vec![text.to_owned()]));
        self.entry(name, |entry| entry.records.push(text));
    }

    /// Adds an HTTPS record with ALPN, the key of an encrypted hello, and these addresses as hints.
    pub fn https(&self, name: &str, ech: &[u8], hints: &[&str]) -> Result<()> {
        let hints = hints.iter().map(|hint| Ok(A(hint.parse()?))).collect::<Result<Vec<_>>>()?;
        let parameters = vec![
            (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec!["h2".to_owned()]))),
            (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(hints))),
            (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(EchConfigList(ech.to_vec()))),
        ];
        let record = RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), parameters)));
        self.entry(name, |entry| entry.records.push(record));
        Ok(())
    }

    /// Says how long answers about a name are good.
    pub fn ttl(&self, name: &str, ttl: u32) {
        self.entry(name, |entry| entry.ttl = ttl);
    }

    /// Has the servers behave in some way about a name.
    pub fn behave(&self, name: &str, behaviour: Behaviour) {
        self.entry(name, |entry| entry.behaviour = behaviour);
    }

    fn entry(&self, name: &str, change: impl FnOnce(&mut Entry)) {
        change(lock(&self.shared.names).entry(name.to_owned()).or_default());
    }

    /// The names that were asked for so far, in lower case, each as often as it was.
    pub fn asked(&self) -> Vec<String> {
        self.queries().into_iter().map(|asked| asked.name).collect()
    }

    /// The queries so far.
    pub fn queries(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// How many queries for a name there were, of any type and over anything.
    pub fn count(&self, name: &str) -> usize {
        lock(&self.shared.asked).iter().filter(|asked| asked.name == name).count()
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Ok(Err(error)) = thread.join() {
                eprintln!("warning: a DNS server had failed: {error:#}");
            }
        }
    }
}

fn over_udp(socket: &UdpSocket, shared: &Arc<Shared>, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    let Ok(server) = socket.local_addr() else { return };
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some(bytes) = buffer.get(..length) else { continue };
        let Some((query, entry)) = shared.take(bytes, server.ip(), from, false) else { continue };
        match entry.as_ref().map_or(Behaviour::Honest, |entry| entry.behaviour.clone()) {
            Behaviour::Silent => {}
            Behaviour::Truncates => {
                let mut answer = reply(&query, shared, entry.as_ref()).truncate();
                answer.metadata.truncation = true;
                send(socket, &answer, from);
            }
            Behaviour::Forged(forgery, address) => {
                forge(socket, &query, forgery, address, from);
                let (shared, socket) = (Arc::clone(shared), socket.try_clone());
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(100));
                    if let Ok(socket) = socket {
                        send(&socket, &reply(&query, &shared, entry.as_ref()), from);
                    }
                });
            }
            Behaviour::Slow(time) => {
                let (shared, socket) = (Arc::clone(shared), socket.try_clone());
                thread::spawn(move || {
                    thread::sleep(time);
                    if let Ok(socket) = socket {
                        send(&socket, &reply(&query, &shared, entry.as_ref()), from);
                    }
                });
            }
            Behaviour::PointerLoop => {
                let _ = socket.send_to(&pointer_loop(&query), from);
            }
            Behaviour::Honest | Behaviour::Fails(_) | Behaviour::AliasLoop => {
                send(socket, &reply(&query, shared, entry.as_ref()), from);
            }
        }
    }
}

fn over_tcp(
    mut stream: std::net::TcpStream,
    from: SocketAddr,
    server: IpAddr,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut bytes)?;
        let Some((query, entry)) = shared.take(&bytes, server, from, true) else { return Ok(()) };
        if entry.as_ref().is_some_and(|entry| entry.behaviour == Behaviour::Silent) {
            continue;
        }
        let answer = reply(&query, shared, entry.as_ref()).to_vec().map_err(io::Error::other)?;
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat())?;
    }
}

impl Shared {
    /// Takes note of a query; gives it and what there is at its name.
    fn take(
        &self,
        bytes: &[u8],
        server: IpAddr,
        from: SocketAddr,
        tcp: bool,
    ) -> Option<(Message, Option<Entry>)> {
        let query = Message::from_vec(bytes).ok()?;
        let question = query.queries.first()?;
        let (name, kind) = (key(question.name()), question.query_type());
        let entry = lock(&self.names).get(&name).cloned();
        lock(&self.asked).push(Asked { name, kind, server, from, tcp, bytes: bytes.to_vec() });
        Some((query, entry))
    }
}

/// The name as it is looked up.
fn key(name: &Name) -> String {
    name.to_ascii().to_ascii_lowercase().trim_end_matches('.').to_owned()
}

fn fqdn(name: &str) -> Result<Name> {
    Ok(Name::from_ascii(format!("{}.", name.trim_end_matches('.')))?)
}

fn reply(query: &Message, shared: &Shared, entry: Option<&Entry>) -> Message {
    let mut reply = header_of(query);
    let Some(question) = query.queries.first() else { return reply };
    match entry {
        Some(Entry { behaviour: Behaviour::Fails(code), .. }) => reply.metadata.response_code = *code,
        Some(Entry { behaviour: Behaviour::AliasLoop, ttl, .. }) => {
            let hop = |from: &Name, to: &Name| Record::from_rdata(from.clone(), *ttl, RData::CNAME(CNAME(to.clone())));
            if let Ok(other) = fqdn("loop.test") {
                reply.add_answers([hop(question.name(), &other), hop(&other, question.name())]);
            }
        }
        Some(entry) => add_records(&mut reply, shared, question, entry),
        None => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    if reply.answers.is_empty() {
        // What vouches for there being nothing (RFC 2308 section 3).
        let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, 60);
        reply.add_authority(Record::from_rdata(Name::root(), TTL, RData::SOA(soa)));
    }
    reply
}

fn add_records(reply: &mut Message, shared: &Shared, question: &Query, entry: &Entry) {
    let (mut owner, mut entry) = (question.name().clone(), entry.clone());
    for _ in 0..40 {
        let alias = entry.records.iter().find_map(|data| match data {
            RData::CNAME(target) => Some(target.0.clone()),
            _ => None,
        });
        for data in &entry.records {
            if data.record_type() == question.query_type() || alias.is_some() {
                reply.add_answer(Record::from_rdata(owner.clone(), entry.ttl, data.clone()));
            }
        }
        let Some(target) = alias.filter(|_| question.query_type() != RecordType::CNAME) else { return };
        let Some(next) = lock(&shared.names).get(&key(&target)).cloned() else { return };
        (owner, entry) = (target, next);
    }
}

fn header_of(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    reply
}

/// Sends an answer that nobody should believe.
fn forge(socket: &UdpSocket, query: &Message, forgery: Forgery, address: IpAddr, to: SocketAddr) {
    let Some(question) = query.queries.first() else { return };
    let mut forged = header_of(query);
    let mut owner = question.name().clone();
    let data = RData::from(address);
    let mut asked = question.clone();
    match forgery {
        Forgery::Id => forged.metadata.id ^= 1,
        Forgery::Name => {
            owner = fqdn("other.test").unwrap_or_else(|_| Name::root());
            asked.set_name(owner.clone());
        }
        Forgery::Type => {
            let other = if asked.query_type() == RecordType::A { RecordType::AAAA } else { RecordType::A };
            asked.set_query_type(other);
        }
        Forgery::Query => forged.metadata.message_type = hickory_proto::op::MessageType::Query,
        Forgery::Case => {
            // Whatever case it was asked in, this is another.
            let flipped: String = owner.to_ascii().chars().map(flip).collect();
            owner = Name::from_ascii(flipped).unwrap_or_else(|_| Name::root());
            asked.set_name(owner.clone());
        }
        Forgery::Owner => owner = fqdn("other.test").unwrap_or_else(|_| Name::root()),
        Forgery::Port | Forgery::Address => {}
    }
    forged.queries = vec![asked];
    forged.add_answer(Record::from_rdata(owner, TTL, data));
    let elsewhere = match (forgery, socket.local_addr()) {
        (Forgery::Port, Ok(server)) => UdpSocket::bind((server.ip(), 0)),
        // Of the internet's own addresses, another one with the same port.
        (Forgery::Address, _) => UdpSocket::bind(("198.51.100.53", PORT)),
        _ => socket.try_clone(),
    };
    match elsewhere {
        Ok(socket) => send(&socket, &forged, to),
        Err(error) => eprintln!("warning: cannot forge {forgery:?}: {error}"),
    }
}

fn flip(letter: char) -> char {
    if letter.is_ascii_uppercase() { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() }
}

/// An answer whose record has a name that points to itself (RFC 1035 section 4.1.4).
fn pointer_loop(query: &Message) -> Vec<u8> {
    let Ok(mut bytes) = header_of(query).to_vec() else { return Vec::new() };
    if let Some(answers) = bytes.get_mut(6..8) {
        answers.copy_from_slice(&[0, 1]);
    }
    let here = u16::try_from(bytes.len()).unwrap_or(0) | 0xc000;
    bytes.extend(here.to_be_bytes());
    // A, IN, a TTL, four bytes.
    bytes.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 66]);
    bytes
}

fn send(socket: &UdpSocket, message: &Message, to: SocketAddr) {
    // Whoever asked may be gone.
    if let Ok(bytes) = message.to_vec() {
        let _ = socket.send_to(&bytes, to);
    }
}
