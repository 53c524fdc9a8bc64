//! The head of a request: whom it is for and where it ends.
//!
//! Whatever RFC 9112 lets a server tolerate is refused here, because the next server may not tolerate it,
//! or may tolerate it differently: the head goes on verbatim.

use std::{error, fmt};

use filter_common::Reason;

use super::head::{self, BadBytes, Field, Found, Line, Options, Scan};
use crate::{authority, rules::Named};

/// The most fields that a request may have.
const MAX_FIELDS: usize = 128;

/// The head of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Its length, with the empty line; the body comes next.
    pub head_len: usize,
    /// Whom it is for.
    pub name: Named,
    /// What has a part in how the response is framed.
    pub method: Method,
    /// What follows the head.
    pub body: Body,
    /// It asks for the connection to become another protocol's.
    pub upgrade: bool,
    /// The body waits for a `100 Continue`.
    pub expects_continue: bool,
    /// Another request may follow on the connection.
    pub keep_alive: bool,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub version_minor: u8,
}

/// What a response's framing depends on in a request's method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// `HEAD`: the response has no body, whatever its head says.
    Head,
    /// Any other.
    Other,
}

/// How a request's body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// As [`Chunked`](super::body::Chunked) finds.
    Chunked,
}

/// Why a request is refused, whatever the policy says of its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadRequest {
    /// It does not begin as HTTP does; TLS, say.
    NotHttp,
    /// A control byte.
    Control,
    /// A carriage return or line feed alone.
    LineEnd,
    /// Space or an empty line in front of it.
    Start,
    /// A head longer than 64 KiB.
    TooLarge,
    /// More than 128 fields.
    TooManyFields,
    /// A first line that is not method, target and version with one space between.
    RequestLine,
    /// A version other than 1.0 and 1.1; the preface of HTTP/2 among them.
    Version,
    /// `CONNECT`.
    Connect,
    /// A target that is no path, no `http://` URI and not the `*` of `OPTIONS`.
    Target,
    /// A line that is no field, or a name that a server could take for that of another field.
    Field,
    /// A field that goes on in the next line.
    Folded,
    /// More than one `Host`, or one with space about it.
    Host,
    /// The target's authority is not `Host`.
    HostMismatch,
    /// More than one `Content-Length`, or one that is no plain number.
    ContentLength,
    /// A `Transfer-Encoding` other than one `chunked`, or any in HTTP/1.0.
    TransferEncoding,
    /// Both `Content-Length` and `Transfer-Encoding`.
    TwoLengths,
    /// A `Connection` that is no list of names, or that names a field of framing or routing.
    Connection,
    /// An upgrade to another version of HTTP.
    Upgrade,
    /// An `Expect` other than `100-continue`.
    Expect,
}

impl BadRequest {
    /// The reason that the denial is counted under.
    pub const fn reason(self) -> Reason {
        if matches!(self, Self::NotHttp) { Reason::NoName } else { Reason::BadRequest }
    }

    /// The status of the answer.
    pub const fn status(self) -> u16 {
        match self {
            Self::NotHttp
            | Self::Control
            | Self::LineEnd
            | Self::Start
            | Self::RequestLine
            | Self::Target
            | Self::Field
            | Self::Folded
            | Self::Host
            | Self::HostMismatch
            | Self::ContentLength
            | Self::TwoLengths
            | Self::Connection => 400,
            Self::Connect | Self::Upgrade => 403,
            Self::Expect => 417,
            Self::TooLarge | Self::TooManyFields => 431,
            Self::TransferEncoding => 501,
            Self::Version => 505,
        }
    }

    /// One sentence for whoever wrote the client.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::NotHttp => "This is not HTTP.",
            Self::Control => "The head contains a control byte.",
            Self::LineEnd => "A line ends otherwise than with CR and LF.",
            Self::Start => "An empty line or space stands before the request.",
            Self::TooLarge => "The head is longer than 64 KiB.",
            Self::TooManyFields => "The head has more than 128 fields.",
            Self::RequestLine => "The first line is not method, target and version with one space between.",
            Self::Version => "Only HTTP/1.0 and HTTP/1.1 are spoken here.",
            Self::Connect => "CONNECT is not allowed.",
            Self::Target => "The target is neither a path nor an http URI.",
            Self::Field => "A line is not a header field, or its name resembles that of another.",
            Self::Folded => "A header field goes on in a second line.",
            Self::Host => "There is more than one Host, or space about it.",
            Self::HostMismatch => "The target names another host than Host does.",
            Self::ContentLength => "There is more than one Content-Length, or it is no plain number.",
            Self::TransferEncoding => "The only Transfer-Encoding is one chunked, in HTTP/1.1.",
            Self::TwoLengths => "There are both Content-Length and Transfer-Encoding.",
            Self::Connection => "Connection is no list of names, or names a field that the request needs.",
            Self::Upgrade => "An upgrade to another version of HTTP is not allowed.",
            Self::Expect => "The only expectation is 100-continue.",
        }
    }
}

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.explanation())
    }
}

impl error::Error for BadRequest {}

impl From<BadBytes> for BadRequest {
    fn from(bad: BadBytes) -> Self {
        match bad {
            BadBytes::Control => Self::Control,
            BadBytes::LineEnd => Self::LineEnd,
            BadBytes::Start => Self::Start,
            BadBytes::TooLarge => Self::TooLarge,
        }
    }
}

/// The head at the beginning of `buf`, of a request on a connection to `port`; `None` while it goes on.
///
/// Whoever reads piece by piece keeps a [`RequestReader`] instead, which looks at no byte twice.
pub fn parse(buf: &[u8], port: u16) -> Result<Option<Request>, BadRequest> {
    RequestReader::new(port).advance(buf)
}

/// Reads the head of one request from a buffer that grows.
#[derive(Debug)]
pub struct RequestReader {
    port: u16,
    scan: Scan,
}

impl RequestReader {
    /// A reader for the next request on a connection to `port`.
    pub fn new(port: u16) -> Self {
        Self { port, scan: Scan::default() }
    }

    /// The head, once it is whole. `buf` is everything from its first byte on, at each call: what it was at
    /// the last one, and what came since. Refuses as soon as there is something to refuse.
    pub fn advance(&mut self, buf: &[u8]) -> Result<Option<Request>, BadRequest> {
        if buf.first().is_some_and(|first| !head::is_token_byte(*first) && !b" \t\r\n".contains(first)) {
            return Err(BadRequest::NotHttp);
        }
        loop {
            match self.scan.advance(buf)? {
                Found::Nothing => return Ok(None),
                Found::FirstLine(len) => _ = Start::parse(&buf[..len])?,
                Found::Head(len) => return request(&buf[..len], self.port).map(Some),
            }
        }
    }
}

/// A first line.
struct Start<'a> {
    method: Method,
    /// Of a target in absolute form.
    authority: Option<&'a [u8]>,
    version_minor: u8,
}

impl<'a> Start<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, BadRequest> {
        let mut words = line.split(|byte| *byte == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(BadRequest::RequestLine);
        };
        if !head::is_token(method) || target.is_empty() {
            return Err(BadRequest::RequestLine);
        }
        let version_minor = head::minor_version(version).ok_or(BadRequest::Version)?;
        if method.eq_ignore_ascii_case(b"CONNECT") {
            return Err(BadRequest::Connect);
        }
        // A server that does not mind the case would send no body where another sends one.
        let method = match method {
            b"HEAD" => Method::Head,
            other if other.eq_ignore_ascii_case(b"HEAD") => return Err(BadRequest::RequestLine),
            _ => Method::Other,
        };
        Ok(Self { method, authority: authority_of(target, line)?, version_minor })
    }
}

/// The authority of a target in absolute form (RFC 9112 section 3.2).
fn authority_of<'a>(target: &'a [u8], line: &[u8]) -> Result<Option<&'a [u8]>, BadRequest> {
    // A fragment belongs to no target; a byte that is not ASCII is space to some.
    if target.iter().any(|byte| !byte.is_ascii_graphic() || *byte == b'#') {
        return Err(BadRequest::Target);
    }
    if target.starts_with(b"/") || (target == b"*" && line.starts_with(b"OPTIONS ")) {
        return Ok(None);
    }
    match target.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"http://") => {
            Ok(rest.split(|byte| matches!(byte, b'/' | b'?')).next())
        }
        _ => Err(BadRequest::Target),
    }
}

/// What the fields say that matter here.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    options: Options,
    upgrade: bool,
    expects_continue: bool,
}

impl<'a> Fields<'a> {
    fn parse(head: &'a [u8]) -> Result<Self, BadRequest> {
        let mut fields = Self::default();
        for (count, line) in head::lines(head).enumerate() {
            if count == MAX_FIELDS {
                return Err(BadRequest::TooManyFields);
            }
            match line {
                Line::Field(name, value) => fields.add(name, value)?,
                Line::Folded => return Err(BadRequest::Folded),
                Line::Malformed => return Err(BadRequest::Field),
            }
        }
        Ok(fields)
    }

    fn add(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), BadRequest> {
        match Field::of(name) {
            Field::Host => {
                let host = bare(value).ok_or(BadRequest::Host)?;
                if self.host.replace(host).is_some() {
                    return Err(BadRequest::Host);
                }
            }
            Field::ContentLength => {
                let digits = bare(value).ok_or(BadRequest::ContentLength)?;
                // Some read a leading zero as the sign of another base.
                if digits.len() > 1 && digits.starts_with(b"0") {
                    return Err(BadRequest::ContentLength);
                }
                let length = head::length(digits).ok_or(BadRequest::ContentLength)?;
                if self.length.replace(length).is_some() {
                    return Err(BadRequest::ContentLength);
                }
            }
            Field::TransferEncoding => {
                if self.chunked || bare(value) != Some(b"chunked") {
                    return Err(BadRequest::TransferEncoding);
                }
                self.chunked = true;
            }
            Field::Connection => self.options.add(value).ok_or(BadRequest::Connection)?,
            Field::Upgrade => {
                self.upgrade = true;
                if !value.split(|byte| *byte == b',').map(head::trim).all(is_other_protocol) {
                    return Err(BadRequest::Upgrade);
                }
            }
            Field::Http2Settings => return Err(BadRequest::Upgrade),
            Field::Expect => {
                if self.expects_continue || !head::trim(value).eq_ignore_ascii_case(b"100-continue") {
                    return Err(BadRequest::Expect);
                }
                self.expects_continue = true;
            }
            Field::Lookalike => return Err(BadRequest::Field),
            Field::Other => {}
        }
        Ok(())
    }
}

/// A value with at most the one customary space before it, and none elsewhere: readers differ in what
/// they strip.
fn bare(value: &[u8]) -> Option<&[u8]> {
    let value = value.strip_prefix(b" ").unwrap_or(value);
    value.iter().all(|byte| !matches!(byte, b' ' | b'\t')).then_some(value)
}

/// Whether it names a protocol that is not another HTTP, in which requests could name other hosts.
fn is_other_protocol(protocol: &[u8]) -> bool {
    let protocol = protocol.to_ascii_lowercase();
    let is_http = matches!(protocol.as_slice(), [b'h', b'0'..=b'9', ..]) || protocol.starts_with(b"http");
    !protocol.is_empty() && !is_http
}

fn request(head: &[u8], port: u16) -> Result<Request, BadRequest> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let start = Start::parse(line)?;
    let fields = Fields::parse(head)?;
    let body = match (fields.chunked, fields.length) {
        (false, None) => Body::None,
        (false, Some(length)) => Body::Length(length),
        (true, None) if start.version_minor == 0 => return Err(BadRequest::TransferEncoding),
        (true, None) => Body::Chunked,
        (true, Some(_)) => return Err(BadRequest::TwoLengths),
    };
    let current = start.version_minor >= 1;
    Ok(Request {
        head_len: head.len(),
        name: name(fields.host, start.authority, port)?,
        method: start.method,
        body,
        // HTTP/1.0 knows neither (RFC 9110 sections 7.8 and 10.1.1).
        upgrade: current && fields.upgrade && fields.options.upgrade,
        expects_continue: current && fields.expects_continue,
        keep_alive: fields.options.stays(start.version_minor),
        version_minor: start.version_minor,
    })
}

/// Whom the request is for. Some servers go by `Host`, some by the target (RFC 9112 section 3.2.2), so
/// both must say the same, and `Host` must be there.
fn name(host: Option<&[u8]>, target: Option<&[u8]>, port: u16) -> Result<Named, BadRequest> {
    let host = host.map(|host| authority::parse(host, port)).transpose();
    let Some(target) = target else { return Ok(host) };
    match (&host, authority::parse(target, port)) {
        (Ok(Some(host)), Ok(target)) if *host != target => Err(BadRequest::HostMismatch),
        (Ok(_), Err(why)) => Ok(Err(why)),
        (Ok(_), Ok(_)) | (Err(_), Ok(_) | Err(_)) => Ok(host),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
