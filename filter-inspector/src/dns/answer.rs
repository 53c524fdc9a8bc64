//! What a sandbox gets for its query: cleaned, and written in the size that it takes. Pure.

use std::net::IpAddr;

use filter_policy::Guard;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, RData, Record,
        rdata::{
            HINFO,
            svcb::{SVCB, SvcParamKey, SvcParamValue},
        },
    },
};

use super::query::{Header, Query};
use crate::{host::Transport, resolve::Answer};

/// The largest datagram that is sent: no fragments on any path (RFC 9715 section 3.1, and 1,232 as agreed on
/// DNS flag day 2020).
pub const MAX_DATAGRAM: u16 = 1232;
/// How long the answer to a question for everything is good, in seconds; long, as RFC 8482 section 4.2 has it.
const MINIMAL_TTL: u32 = 3600;

/// Takes out of an answer what a sandbox must not get.
///
/// - The keys for encrypted client hellos (ECH, RFC 9848): with them a client hides the name that its
///   connection is judged by, and is then refused. Without them it names it.
/// - Addresses that are guarded. A connection to them is refused in any case; without them clients go to
///   the addresses that work at once, and whoever owns a name cannot point a sandbox's programs at the
///   platform, nor does a resolver inside the platform tell the sandbox how it is laid out. Loopback and the
///   unspecified address stay: they lead a sandbox to itself, names for them are in use among developers,
///   and block lists answer with them.
pub fn clean(answer: &mut Answer, guard: &Guard) {
    let hidden = |ip: IpAddr| guard.contains(ip) && !ip.is_loopback() && !ip.is_unspecified();
    answer.answers.retain_mut(|record| {
        if let Some(service) = service(record) {
            clean_service(service, &hidden);
        }
        !record.data.ip_addr().is_some_and(hidden)
    });
}

fn service(record: &mut Record) -> Option<&mut SVCB> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "no other type has these parameters")]
    match &mut record.data {
        RData::HTTPS(https) => Some(&mut https.0),
        RData::SVCB(svcb) => Some(svcb),
        _ => None,
    }
}

fn clean_service(service: &mut SVCB, hidden: &impl Fn(IpAddr) -> bool) {
    let parameters = &mut service.svc_params;
    parameters.retain_mut(|(key, value)| {
        if let SvcParamValue::Ipv4Hint(hint) = value {
            hint.0.retain(|ip| !hidden(ip.0.into()));
            return !hint.0.is_empty();
        }
        if let SvcParamValue::Ipv6Hint(hint) = value {
            hint.0.retain(|ip| !hidden(ip.0.into()));
            return !hint.0.is_empty();
        }
        *key != SvcParamKey::EchConfigList
    });
    // RFC 9460 section 8: what is mandatory must be there, and a list of nothing is malformed.
    let keys: Vec<_> = parameters.iter().map(|(key, _)| *key).collect();
    parameters.retain_mut(|(_, value)| {
        let SvcParamValue::Mandatory(mandatory) = value else { return true };
        mandatory.0.retain(|key| keys.contains(key));
        !mandatory.0.is_empty()
    });
}

/// The least that can be said to a question for everything, RFC 8482 section 4.2.
pub fn minimal(query: &Query) -> Answer {
    let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
    let record = Record::from_rdata(query.name.clone(), MINIMAL_TTL, data);
    Answer { rcode: ResponseCode::NoError, answers: vec![record], authorities: Vec::new() }
}

/// Nothing but a code.
pub fn empty(rcode: ResponseCode) -> Answer {
    Answer { rcode, answers: Vec::new(), authorities: Vec::new() }
}

/// Writes the answer to a query. What does not fit into a datagram is left out whole and said to be missing
/// (TC), so that the asker comes back over TCP. `None`: it does not fit there either.
pub fn write(query: &Query, answer: Answer, over: Transport) -> Option<Vec<u8>> {
    let room = match over {
        Transport::Udp => query.payload().min(MAX_DATAGRAM),
        Transport::Tcp => u16::MAX,
    };
    let Answer { rcode, mut answers, authorities } = answer;
    for record in &mut answers {
        // As the asker spells it.
        if record.name == query.name {
            record.name = query.name.clone();
        }
    }
    let mut message = head(&query.header, rcode);
    message.queries.push(question(query));
    message.edns = query.edns.map(|_| edns());
    message.answers = answers;
    message.authorities = authorities;
    match message.to_vec() {
        // The writer stops at 64 KiB and sets TC, and then there is half an answer.
        Ok(bytes) if bytes.len() <= room.into() && !is_truncated(&bytes) => Some(bytes),
        Ok(_) | Err(_) if over == Transport::Udp => message.truncate().to_vec().ok(),
        Ok(_) | Err(_) => None,
    }
}

/// Writes an answer without a question, to what is no query.
pub fn write_bare(header: &Header, rcode: ResponseCode) -> Option<Vec<u8>> {
    head(header, rcode).to_vec().ok()
}

fn head(header: &Header, rcode: ResponseCode) -> Message {
    let mut message = Message::new(header.id, MessageType::Response, OpCode::from_u8(header.opcode));
    message.metadata.recursion_desired = header.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = header.checking_disabled;
    message.metadata.response_code = rcode;
    message
}

fn question(query: &Query) -> hickory_proto::op::Query {
    let mut question = hickory_proto::op::Query::query(query.name.clone(), query.kind);
    question.set_query_class(DNSClass::from(query.class));
    question
}

/// RFC 6891 section 7: there is an OPT record because there was one. The size is that of queries that are
/// taken; no option is understood and no signature fetched, so that all else is zero.
fn edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_DATAGRAM);
    edns
}

fn is_truncated(bytes: &[u8]) -> bool {
    // RFC 1035 section 4.1.1.
    bytes.get(2).is_none_or(|flags| flags & (1 << 1) != 0)
}
