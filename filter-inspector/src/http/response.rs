//! The head of a response: where the response ends, and whether another may follow.
//!
//! The sandbox's client reads the same bytes, and what it takes for the end must be what the filter takes
//! for it, or the rest of one response would be read as the next. So lines, lengths and encodings are as
//! strict as in a request. Servers are odd in everything else, and none of it is the filter's business: a
//! field that goes on in a second line passes where it has no part in the framing, which every client
//! reads alike (RFC 9112 section 5.2).

use filter_common::Reason;
use thiserror::Error;

use super::head::{self, BadBytes, Field, Found, Line, Options, Scan};
use super::request::{Method, Request};

/// The most fields that a response may have.
const MAX_FIELDS: usize = 256;

/// The head of a response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// Its length, with the empty line; the body comes next.
    pub head_len: usize,
    /// The status code.
    pub status: u16,
    /// What follows the head.
    pub body: Body,
    /// Another response may follow on the connection, once another request went out.
    pub keep_alive: bool,
}

/// What follows the head of a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// Nothing: the response is over.
    None,
    /// So many bytes.
    Length(u64),
    /// As [`Chunked`](super::body::Chunked) finds.
    Chunked,
    /// Everything until the server closes.
    UntilClose,
    /// The head of another response to the same request: this one was only informational (1xx).
    AnotherHead,
    /// Another protocol, for good: the upgrade that the request asked for (101).
    Upgraded,
}

/// Why a response cannot be passed on: its end is not certain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadResponse {
    /// A control byte, a carriage return or line feed alone, or space in front.
    #[error("a byte that belongs in no head")]
    Byte,
    /// A head longer than 64 KiB.
    #[error("the head is longer than 64 KiB")]
    TooLarge,
    /// More than 256 fields.
    #[error("the head has more than 256 fields")]
    TooManyFields,
    /// A first line that is none of HTTP/1.
    #[error("not a status line of HTTP/1")]
    StatusLine,
    /// A switch of protocols that the request did not ask for.
    #[error("an upgrade that was not asked for")]
    Upgrade,
    /// A line that is no field, or a name that a client could take for that of another field.
    #[error("a line is no header field, or resembles another")]
    Field,
    /// Different lengths, or one that is no number.
    #[error("the Content-Length is not certain")]
    ContentLength,
    /// Not `chunked`, once and last; or any in HTTP/1.0.
    #[error("the Transfer-Encoding is not certain")]
    TransferEncoding,
    /// Both of them.
    #[error("both Content-Length and Transfer-Encoding")]
    TwoLengths,
    /// A `Connection` that is no list of names, or that names a field of framing.
    #[error("the Connection field is malformed")]
    Connection,
}

impl BadResponse {
    /// The reason that the end of the connection is counted under.
    pub const fn reason(self) -> Reason {
        Reason::BadRequest
    }
}

impl From<BadBytes> for BadResponse {
    fn from(bad: BadBytes) -> Self {
        match bad {
            BadBytes::Control | BadBytes::LineEnd | BadBytes::Start => Self::Byte,
            BadBytes::TooLarge => Self::TooLarge,
        }
    }
}

/// The head at the beginning of `buf`, of a response to `request`; `None` while it goes on.
///
/// Whoever reads piece by piece keeps a [`ResponseReader`] instead, which looks at no byte twice.
pub fn parse(buf: &[u8], request: &Request) -> Result<Option<Response>, BadResponse> {
    ResponseReader::new(request).advance(buf)
}

/// Reads the head of one response from a buffer that grows.
#[derive(Debug)]
pub struct ResponseReader {
    method: Method,
    upgrade: bool,
    scan: Scan,
}

impl ResponseReader {
    /// A reader for the next response to `request`.
    pub fn new(request: &Request) -> Self {
        Self { method: request.method, upgrade: request.upgrade, scan: Scan::default() }
    }

    /// The head, once it is whole. `buf` is everything from its first byte on, at each call.
    pub fn advance(&mut self, buf: &[u8]) -> Result<Option<Response>, BadResponse> {
        loop {
            match self.scan.advance(buf)? {
                Found::Nothing => return Ok(None),
                Found::FirstLine(len) => _ = status_line(&buf[..len])?,
                Found::Head(len) => return self.response(&buf[..len]).map(Some),
            }
        }
    }

    fn response(&self, head: &[u8]) -> Result<Response, BadResponse> {
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let (version_minor, status) = status_line(line)?;
        let fields = Fields::parse(head)?;
        let framed = match (fields.encoding, fields.length) {
            (Encoding::Absent, None) => Body::UntilClose,
            (Encoding::Absent, Some(length)) => Body::Length(length),
            (Encoding::Chunked, None) if version_minor >= 1 => Body::Chunked,
            (Encoding::Chunked | Encoding::Unfinished, None) => return Err(BadResponse::TransferEncoding),
            (Encoding::Chunked | Encoding::Unfinished, Some(_)) => return Err(BadResponse::TwoLengths),
        };
        // RFC 9112 section 6.3, in its order.
        let body = match status {
            101 if self.upgrade && fields.options.upgrade => Body::Upgraded,
            101 => return Err(BadResponse::Upgrade),
            100..=199 => Body::AnotherHead,
            204 | 304 => Body::None,
            _ if self.method == Method::Head => Body::None,
            _ => framed,
        };
        let keep_alive = body != Body::UntilClose && fields.options.stays(version_minor);
        Ok(Response { head_len: head.len(), status, body, keep_alive })
    }
}

/// Minor version and status code. What is said behind them is for people.
fn status_line(line: &[u8]) -> Result<(u8, u16), BadResponse> {
    let (version, rest) = line.split_at_checked(8).ok_or(BadResponse::StatusLine)?;
    let version_minor = head::minor_version(version).ok_or(BadResponse::StatusLine)?;
    let (b' ', [hundreds @ b'1'..=b'9', tens @ b'0'..=b'9', ones @ b'0'..=b'9', phrase @ ..]) =
        rest.split_first().map(|(space, rest)| (*space, rest)).ok_or(BadResponse::StatusLine)?
    else {
        return Err(BadResponse::StatusLine);
    };
    if phrase.first().is_some_and(|byte| *byte != b' ') {
        return Err(BadResponse::StatusLine);
    }
    let digits = [hundreds, tens, ones].map(|digit| u16::from(digit - b'0'));
    Ok((version_minor, digits.iter().fold(0, |number, digit| number * 10 + digit)))
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Encoding {
    /// No `Transfer-Encoding`.
    #[default]
    Absent,
    /// `chunked` is not the last; an error unless another field goes on with it.
    Unfinished,
    /// `chunked` is the last.
    Chunked,
}

/// What the fields say that matter here.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    encoding: Encoding,
    options: Options,
}

impl Fields {
    fn parse(head: &[u8]) -> Result<Self, BadResponse> {
        let mut fields = Self::default();
        let mut last = Field::Lookalike;
        for (count, line) in head::lines(head).enumerate() {
            if count == MAX_FIELDS {
                return Err(BadResponse::TooManyFields);
            }
            match line {
                Line::Field(name, value) => {
                    last = Field::of(name);
                    fields.add(last, head::trim(value))?;
                }
                Line::Folded if last == Field::Other => {}
                Line::Folded | Line::Malformed => return Err(BadResponse::Field),
            }
        }
        Ok(fields)
    }

    fn add(&mut self, field: Field, value: &[u8]) -> Result<(), BadResponse> {
        match field {
            Field::ContentLength => {
                let length = head::length(value).ok_or(BadResponse::ContentLength)?;
                // Twice the same is odd, but not uncertain (RFC 9112 section 6.3).
                if self.length.replace(length).is_some_and(|before| before != length) {
                    return Err(BadResponse::ContentLength);
                }
            }
            Field::TransferEncoding => {
                for coding in value.split(|byte| *byte == b',').map(head::trim) {
                    if self.encoding == Encoding::Chunked || !head::is_token(coding) {
                        return Err(BadResponse::TransferEncoding);
                    }
                    let chunked = coding.eq_ignore_ascii_case(b"chunked");
                    self.encoding = if chunked { Encoding::Chunked } else { Encoding::Unfinished };
                }
            }
            Field::Connection => self.options.add(value).ok_or(BadResponse::Connection)?,
            Field::Lookalike => return Err(BadResponse::Field),
            Field::Host | Field::Upgrade | Field::Http2Settings | Field::Expect | Field::Other => {}
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
