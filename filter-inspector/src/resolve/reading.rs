//! What is to be had of an answer: the chain of aliases from the name that was asked for, and the records
//! of the wanted type where it ends. The rest of the message is somebody's idea of what we might like to
//! know, and is thrown away unread.

use std::ops::RangeInclusive;

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};

use super::Answer;

/// How many aliases are followed; as many as BIND's resolver follows.
const MAX_ALIASES: usize = 16;
/// The longest that the absence of something is believed, in seconds. RFC 2308 section 5 allows hours, but
/// whoever just made a name wants it to work.
const MAX_NEGATIVE: u32 = 300;
/// How long a failure is remembered, in seconds: at least 1 (RFC 9520 section 3.2), and not longer, since
/// the next try may find a server that answers.
pub(super) const FAILURE: u32 = 1;

/// A type of record at a name, in class IN.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: RecordType,
}

/// An answer, and for how many seconds it is good.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Dated {
    pub(super) answer: Answer,
    pub(super) life: u32,
}

impl Question {
    /// In lower case, so that a question is asked once however it is spelled.
    pub(super) fn new(name: &Name, kind: RecordType) -> Self {
        let mut name = name.to_lowercase();
        name.set_fqdn(true);
        Self { name, kind }
    }
}

impl Dated {
    /// That nobody gave an answer.
    pub(super) fn failure() -> Self {
        let answer = Answer { rcode: ResponseCode::ServFail, answers: Vec::new(), authorities: Vec::new() };
        Self { answer, life: FAILURE }
    }
}

/// Reads a message that answers the question.
pub(super) fn read(question: &Question, message: Message, ttl: &RangeInclusive<u32>) -> Dated {
    let rcode = message.metadata.response_code;
    let mut records = message.answers;
    records.retain(|record| record.dns_class == DNSClass::IN);
    let mut answers: Vec<Record> = Vec::new();
    let mut owner = question.name.clone();
    for _ in 0..=MAX_ALIASES {
        let wanted = |record: &Record| record.record_type() == question.kind && record.name == owner;
        if records.iter().any(wanted) {
            answers.extend(records.extract_if(.., |record| wanted(record)));
            return found(answers, ttl);
        }
        let alias = records.iter().find_map(|record| {
            let RData::CNAME(target) = &record.data else { return None };
            (record.name == owner).then(|| (record.clone(), target.0.clone()))
        });
        match alias {
            Some((record, target)) => {
                answers.push(record);
                owner = target;
            }
            None => return absent(rcode, answers, &owner, message.authorities, ttl),
        }
    }
    // Aliases in a circle, or too many of them.
    Dated::failure()
}

fn found(mut answers: Vec<Record>, ttl: &RangeInclusive<u32>) -> Dated {
    let life = clamp(&mut answers, ttl).unwrap_or(*ttl.start());
    Dated { answer: Answer { rcode: ResponseCode::NoError, answers, authorities: Vec::new() }, life }
}

/// RFC 2308 sections 3 and 5: the SOA says for how long the absence is good; without one, hardly at all.
fn absent(
    rcode: ResponseCode,
    mut answers: Vec<Record>,
    owner: &Name,
    authorities: Vec<Record>,
    ttl: &RangeInclusive<u32>,
) -> Dated {
    let soa = authorities.into_iter().find_map(|mut record| {
        let RData::SOA(soa) = &record.data else { return None };
        if record.dns_class != DNSClass::IN || !record.name.zone_of(owner) {
            return None;
        }
        record.ttl = seconds(record.ttl).min(seconds(soa.minimum)).min(MAX_NEGATIVE);
        Some(record)
    });
    let mut authorities: Vec<_> = soa.into_iter().collect();
    let absence = clamp(&mut authorities, ttl).unwrap_or(*ttl.start());
    let aliases = clamp(&mut answers, ttl).unwrap_or(absence);
    Dated { answer: Answer { rcode, answers, authorities }, life: absence.min(aliases) }
}

/// Brings the times into their bounds, and says which is the shortest.
fn clamp(records: &mut [Record], ttl: &RangeInclusive<u32>) -> Option<u32> {
    for record in &mut *records {
        // Not `clamp`, which panics where a configuration has them the wrong way round.
        record.ttl = seconds(record.ttl).max(*ttl.start()).min(*ttl.end());
    }
    records.iter().map(|record| record.ttl).min()
}

/// RFC 2181 section 8: a time with its highest bit set is none.
fn seconds(ttl: u32) -> u32 {
    if i32::try_from(ttl).is_ok() { ttl } else { 0 }
}
