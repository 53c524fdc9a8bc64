//! A DNS server on loopback for tests, which answers as the test wants.
#![expect(clippy::wildcard_enum_match_arm, reason = "record types are without number")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};

use crate::host::Transport;

/// A query that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) over: Transport,
    pub(crate) from: SocketAddr,
    pub(crate) query: Message,
}

/// The server, as long as the test runs.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    /// Sends for each query the messages that `answer` gives, in this order.
    pub(crate) async fn new(answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::at([127, 0, 0, 1], answer).await
    }

    /// As [`Self::new`], at another address.
    pub(crate) async fn at(
        address: [u8; 4],
        answer: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind(SocketAddr::from((address, 0))).await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let address = udp.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let note = {
            let asked = Arc::clone(&asked);
            Arc::new(move |over, from, bytes: &[u8]| {
                let query = Asked { over, from, query: Message::from_vec(bytes).unwrap() };
                asked.lock().unwrap().push(query.clone());
                answer(&query)
            })
        };
        let on_udp = Arc::clone(&note);
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                // A closed port at the other end is said here, too.
                let Ok((count, from)) = udp.recv_from(&mut buffer).await else { continue };
                for message in on_udp(Transport::Udp, from, &buffer[..count]) {
                    let _ = udp.send_to(&message, from).await;
                }
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, from) = tcp.accept().await.unwrap();
                let note = Arc::clone(&note);
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut query = vec![0; length.into()];
                        stream.read_exact(&mut query).await.unwrap();
                        for message in note(Transport::Tcp, from, &query) {
                            stream.write_u16(message.len().try_into().unwrap()).await.unwrap();
                            stream.write_all(&message).await.unwrap();
                        }
                    }
                });
            }
        });
        Self { address, asked }
    }

    /// One that answers every query for addresses with one address of each family, and others with nothing.
    pub(crate) async fn plain() -> Self {
        Self::new(|asked| vec![asked.answer(asked.addresses(60))]).await
    }

    /// What arrived so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Asked {
    pub(crate) fn name(&self) -> &Name {
        &self.query.queries[0].name
    }

    pub(crate) fn kind(&self) -> RecordType {
        self.query.queries[0].query_type
    }

    /// One address of the type that is asked for, if it is one.
    pub(crate) fn addresses(&self, ttl: u32) -> Vec<Record> {
        let data = match self.kind() {
            RecordType::A => RData::A(rdata::A::new(192, 0, 2, 1)),
            RecordType::AAAA => RData::AAAA(rdata::AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            _ => return Vec::new(),
        };
        vec![Record::from_rdata(self.name().clone(), ttl, data)]
    }

    /// A reply without records.
    pub(crate) fn reply(&self, rcode: ResponseCode) -> Message {
        let mut reply = Message::response(self.query.metadata.id, self.query.metadata.op_code);
        assert_eq!(self.query.metadata.message_type, MessageType::Query);
        reply.metadata.response_code = rcode;
        reply.metadata.recursion_available = true;
        reply.queries = self.query.queries.clone();
        reply
    }

    /// A reply with records.
    pub(crate) fn answer(&self, records: Vec<Record>) -> Vec<u8> {
        let mut reply = self.reply(ResponseCode::NoError);
        reply.answers = records;
        reply.to_vec().unwrap()
    }

    /// A reply with a code.
    pub(crate) fn code(&self, rcode: ResponseCode) -> Vec<u8> {
        self.reply(rcode).to_vec().unwrap()
    }
}

/// An A record.
pub(crate) fn a(name: &str, ttl: u32, address: [u8; 4]) -> Record {
    Record::from_rdata(name.parse().unwrap(), ttl, RData::A(rdata::A(address.into())))
}

/// A CNAME record.
pub(crate) fn alias(name: &str, ttl: u32, target: &str) -> Record {
    let target = rdata::CNAME(target.parse().unwrap());
    Record::from_rdata(name.parse().unwrap(), ttl, RData::CNAME(target))
}

/// An SOA record.
pub(crate) fn soa(zone: &str, ttl: u32, minimum: u32) -> Record {
    let soa = rdata::SOA::new(zone.parse().unwrap(), zone.parse().unwrap(), 1, 1, 1, 1, minimum);
    Record::from_rdata(zone.parse().unwrap(), ttl, RData::SOA(soa))
}
