//! A sandbox's query: read in full or not at all, and judged. Pure.
//!
//! The reader is stricter than servers are: one question, nothing but the additional section behind it,
//! no byte left over. Everything else is either no query or a malformed one.

use filter_policy::{DnsMode, Name};
use hickory_proto::{
    op::ResponseCode,
    rr::{self, RecordType},
};

use crate::rules::Rules;

/// RFC 1035 section 4.1.1.
const HEADER: usize = 12;
/// The longest label and the longest name on the wire (RFC 1035 section 2.3.4).
const MAX_LABEL: u8 = 63;
const MAX_NAME: usize = 255;
/// The top two bits of a compression pointer (RFC 1035 section 4.1.4).
const POINTER: u8 = 0b1100_0000;
/// RFC 6891 section 6.1.2: the type of the OPT record.
const OPT: u16 = 41;
/// RFC 6891 section 6.2.3: smaller sizes are taken for this one. Also the size without EDNS.
pub(super) const MIN_PAYLOAD: u16 = 512;
/// RFC 1035 section 3.2.4: the Internet.
const IN: u16 = 1;

/// What bytes from a sandbox are.
#[derive(Clone, PartialEq, Debug)]
pub enum Parsed {
    /// A query.
    Query(Query),
    /// Not a query that anything is known of but its header; to be answered with this code.
    Rejected(Header, ResponseCode),
    /// Nothing that wants an answer.
    Nothing,
}

/// What an answer repeats of a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The number by which the asker knows the answer.
    pub id: u16,
    /// What is asked for: 0 is a query.
    pub opcode: u8,
    /// Whether recursion is desired.
    pub recursion_desired: bool,
    /// Whether the asker checks signatures itself.
    pub checking_disabled: bool,
}

/// A query.
#[derive(Clone, PartialEq, Debug)]
pub struct Query {
    /// Its header.
    pub header: Header,
    /// The name that is asked for, in the case in which it is written.
    pub name: rr::Name,
    /// The type of record.
    pub kind: RecordType,
    /// The class of record.
    pub class: u16,
    /// What its OPT record says, if it has one.
    pub edns: Option<Edns>,
}

/// What matters of an OPT record. Its options and flags do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edns {
    /// The version; 0 is the only one that there is.
    pub version: u8,
    /// How large a datagram the asker takes.
    pub payload: u16,
}

/// What becomes of a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is answered with what the resolver finds.
    Ask,
    /// It is answered with as little as possible, without asking anybody.
    Minimal,
    /// The policy does not let it out.
    Refuse,
    /// It is answered with this code.
    Reject(ResponseCode),
}

/// Reads what a sandbox sent.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut reader = Reader(bytes);
    let Some(head) = reader.take(HEADER).and_then(|head| head.first_chunk::<HEADER>()) else {
        return Parsed::Nothing;
    };
    let [id_high, id_low, high, low, counts @ ..] = *head;
    // A response is nobody's business, and answering one would make two forwarders talk for ever.
    if high & (1 << 7) != 0 {
        return Parsed::Nothing;
    }
    let header = Header {
        id: u16::from_be_bytes([id_high, id_low]),
        opcode: (high >> 3) & 0b1111,
        recursion_desired: high & 1 != 0,
        checking_disabled: low & (1 << 4) != 0,
    };
    if header.opcode != 0 {
        return Parsed::Rejected(header, ResponseCode::NotImp);
    }
    match read(header, counts, reader) {
        Some(query) => Parsed::Query(query),
        None => Parsed::Rejected(header, ResponseCode::FormErr),
    }
}

/// One question, no answers or authorities, and additional records of which only OPT matters.
fn read(header: Header, counts: [u8; 8], mut reader: Reader<'_>) -> Option<Query> {
    let [0, 1, 0, 0, 0, 0, high, low] = counts else { return None };
    let name = reader.name()?;
    let kind = RecordType::from(reader.u16()?);
    let class = reader.u16()?;
    let mut edns = None;
    for _ in 0..u16::from_be_bytes([high, low]) {
        if let Some(found) = reader.additional()?
            && edns.replace(found).is_some()
        {
            // RFC 6891 section 6.1.1: there is one, or none.
            return None;
        }
    }
    reader.is_empty().then_some(Query { header, name, kind, class, edns })
}

impl Query {
    /// The name, if it is a host's. Joining labels with dots is only right if no label has a dot of its own:
    /// `www.allowed` as one label is not two.
    pub fn host(&self) -> Option<Name> {
        let labels: Vec<&[u8]> = self.name.iter().collect();
        if labels.iter().any(|label| label.contains(&b'.')) {
            return None;
        }
        Name::parse(labels.join(&b'.')).ok()
    }

    /// What becomes of the query of a sandbox with these rules.
    pub fn judge(&self, rules: &Rules) -> Verdict {
        if self.edns.is_some_and(|edns| edns.version != 0) {
            return Verdict::Reject(ResponseCode::BADVERS);
        }
        let allowed = match rules.policy.dns.mode {
            DnsMode::Open => true,
            DnsMode::Strict => self.host().is_some_and(|name| rules.names.find(&name).is_some()),
        };
        match u16::from(self.kind) {
            _ if !allowed || self.class != IN => Verdict::Refuse,
            // RFC 8482: whoever asks for everything gets the least.
            255 => Verdict::Minimal,
            // RFC 6895 section 3.1: types of questions and of messages, not of data; zone transfers among
            // them. 0 and OPT are no data either.
            0 | OPT | 128..=254 => Verdict::Refuse,
            _ => Verdict::Ask,
        }
    }

    /// How large a datagram the asker takes.
    pub fn payload(&self) -> u16 {
        self.edns.map_or(MIN_PAYLOAD, |edns| edns.payload.max(MIN_PAYLOAD))
    }
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().copied().map(u16::from_be_bytes)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of the question. It is the first in the message, so that a compression pointer could only
    /// lead into the header or to itself; there is none.
    fn name(&mut self) -> Option<rr::Name> {
        let mut labels = Vec::new();
        let mut length = 1;
        loop {
            let label = match self.u8()? {
                0 => return rr::Name::from_labels(labels).ok(),
                count @ 1..=MAX_LABEL => self.take(count.into())?,
                _ => return None,
            };
            length += 1 + label.len();
            if length > MAX_NAME {
                return None;
            }
            labels.push(label);
        }
    }

    /// An additional record (RFC 1035 section 4.1.3): what it says if it is OPT.
    fn additional(&mut self) -> Option<Option<Edns>> {
        let at_root = self.skip_name()?;
        let kind = self.u16()?;
        let payload = self.u16()?;
        let [_, version, _, _] = *self.take(4)?.first_chunk()?;
        let length = self.u16()?;
        self.take(length.into())?;
        match (kind, at_root) {
            // RFC 6891 section 6.1.2.
            (OPT, true) => Some(Some(Edns { version, payload })),
            (OPT, false) => None,
            _ => Some(None),
        }
    }

    /// Passes over a name that nobody looks at, and says whether it is the root.
    fn skip_name(&mut self) -> Option<bool> {
        let mut at_root = true;
        loop {
            match self.u8()? {
                0 => return Some(at_root),
                count @ 1..=MAX_LABEL => {
                    self.take(count.into())?;
                }
                POINTER.. => {
                    self.u8()?;
                    return Some(false);
                }
                _ => return None,
            }
            at_root = false;
        }
    }
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
