//! The name that a TLS client asks for: its ClientHello, put together and taken apart.
//!
//! The reader is fed what the client sends and says when the hello is whole. It looks at nothing that
//! comes after, keeps no bytes for the caller, and never guesses: what a server could read in another way
//! is refused. The outer name counts, whatever an encrypted hello may hide inside; the connection is
//! dialled to the outer name, so the inner one leads nowhere else.

use std::collections::HashSet;

use filter_common::Reason;
use filter_policy::{BadName, Name};
use thiserror::Error;

use crate::rules::Named;

/// The most that a client may send until its hello is whole, record headers included.
pub const MAX_HELLO: usize = 64 * 1024;

/// Type, version and length (RFC 8446 section 5.1).
const RECORD_HEADER: usize = 5;
/// The most that a record holds (RFC 8446 section 5.1).
const MAX_RECORD: usize = 1 << 14;
/// Type and length of a handshake message (RFC 8446 section 4).
const MESSAGE_HEADER: usize = 4;

/// Content types of records (RFC 8446 section 5.1; heartbeat is RFC 6520's).
const HANDSHAKE: u8 = 22;
const OTHER_CONTENT: [u8; 4] = [20, 21, 23, 24];
/// Handshake type of a ClientHello (RFC 8446 section 4).
const CLIENT_HELLO: u8 = 1;

/// Extensions (RFC 8446 section 4.2).
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const PRE_SHARED_KEY: u16 = 41;
/// The only kind of name that was ever defined (RFC 6066 section 3).
const HOST_NAME: u8 = 0;

/// What a ClientHello says, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientHello {
    /// Who is asked for; `None` if nobody is.
    pub server_name: Option<Name>,
    /// The application protocols that are offered (RFC 7301), in the client's order.
    pub alpn: Vec<Vec<u8>>,
}

/// Why bytes are no ClientHello that can be judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadHello {
    /// The first byte begins no TLS record.
    #[error("not TLS")]
    NotTls,
    /// It is TLS, but not a well-formed ClientHello.
    #[error("malformed ClientHello")]
    Malformed,
    /// It is longer than [`MAX_HELLO`].
    #[error("ClientHello longer than {MAX_HELLO} bytes")]
    TooLarge,
    /// The name that is asked for is no host name.
    #[error("the server name is none: {0}")]
    ServerName(BadName),
    /// More than one name is asked for.
    #[error("more than one server name")]
    DuplicateServerName,
    /// A name of an unknown kind is asked for, or an empty list of names.
    #[error("a server name that is no host name")]
    ServerNameType,
}

impl BadHello {
    /// The reason that the denial is counted under.
    pub const fn reason(self) -> Reason {
        match self {
            Self::NotTls | Self::Malformed | Self::TooLarge => Reason::NoName,
            Self::ServerName(_) | Self::DuplicateServerName | Self::ServerNameType => Reason::BadName,
        }
    }

    /// What was found where a name belongs, for [`Rules::judge`](crate::rules::Rules::judge), which asks
    /// only whether there was a name, none, or something else.
    pub const fn named(self) -> Named {
        match self {
            Self::NotTls | Self::Malformed | Self::TooLarge => Ok(None),
            Self::ServerName(why) => Err(why),
            Self::DuplicateServerName | Self::ServerNameType => Err(BadName::Byte),
        }
    }
}

/// Puts a ClientHello together from what a client sends.
///
/// Every byte is moved once, however small the pieces. The answer to a stream does not depend on how it
/// is cut into pieces.
#[derive(Debug, Default)]
pub struct HelloReader {
    /// Bytes taken, headers included.
    taken: usize,
    /// The header of the record that is under way, as far as it came.
    header: Header,
    /// What of the record's content has not come yet.
    record_left: usize,
    /// The handshake message as far as it came.
    message: Vec<u8>,
    /// What was answered; the answer stays.
    answer: Option<Result<ClientHello, BadHello>>,
}

#[derive(Debug, Default)]
struct Header {
    bytes: [u8; RECORD_HEADER],
    len: usize,
}

impl HelloReader {
    /// A reader that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what came in next; gives the hello once it is whole. What follows it is not looked at.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<ClientHello>, BadHello> {
        if self.answer.is_none() {
            self.answer = self.advance(bytes).transpose();
        }
        self.answer.clone().transpose()
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<Option<ClientHello>, BadHello> {
        while let Some(first) = bytes.first() {
            if self.record_left == 0 {
                self.take_header_byte(*first)?;
                bytes = &bytes[1..];
                continue;
            }
            let (content, rest) = bytes.split_at(bytes.len().min(self.record_left));
            bytes = rest;
            self.record_left -= content.len();
            self.taken += content.len();
            self.message.extend_from_slice(content);
            if let Some(hello) = self.message()? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }

    fn take_header_byte(&mut self, byte: u8) -> Result<(), BadHello> {
        if self.header.len == 0 && byte != HANDSHAKE {
            let is_tls = self.taken > 0 || OTHER_CONTENT.contains(&byte);
            return Err(if is_tls { BadHello::Malformed } else { BadHello::NotTls });
        }
        self.header.bytes[self.header.len] = byte;
        self.header.len += 1;
        self.taken += 1;
        if self.header.len < RECORD_HEADER {
            return Ok(());
        }
        // The version must be ignored for all purposes (RFC 8446 section 5.1).
        let [_, _, _, high, low] = self.header.bytes;
        self.header.len = 0;
        self.record_left = usize::from(u16::from_be_bytes([high, low]));
        if self.record_left == 0 || self.record_left > MAX_RECORD {
            return Err(BadHello::Malformed);
        }
        if self.taken + self.record_left > MAX_HELLO {
            return Err(BadHello::TooLarge);
        }
        Ok(())
    }

    fn message(&self) -> Result<Option<ClientHello>, BadHello> {
        if self.message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(BadHello::Malformed);
        }
        let Some((&[_, high, middle, low], body)) = self.message.split_first_chunk::<MESSAGE_HEADER>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes([0, high, middle, low]) as usize;
        if len > MAX_HELLO - MESSAGE_HEADER - RECORD_HEADER {
            return Err(BadHello::TooLarge);
        }
        // Until the server has answered, no handshake message may follow a ClientHello: what else a client
        // may send by then has a record of its own (RFC 8446 sections 4.2.10 and D.4).
        if body.len() + self.record_left > len {
            return Err(BadHello::Malformed);
        }
        if body.len() < len {
            return Ok(None);
        }
        parse(body).map(Some)
    }
}

/// Takes apart the body of a ClientHello (RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2).
fn parse(body: &[u8]) -> Result<ClientHello, BadHello> {
    let mut body = Reader(body);
    let _legacy_version = body.take(2)?;
    let _random = body.take(32)?;
    let session = body.vector(1)?;
    let suites = body.vector(2)?;
    let compressions = body.vector(1)?;
    if session.0.len() > 32 || suites.is_empty() || suites.0.len() % 2 != 0 || compressions.is_empty() {
        return Err(BadHello::Malformed);
    }
    let mut hello = ClientHello { server_name: None, alpn: Vec::new() };
    // A hello without extensions ends here (RFC 5246 section 7.4.1.2).
    if body.is_empty() {
        return Ok(hello);
    }
    let mut extensions = body.vector(2)?;
    body.end()?;
    let mut seen = HashSet::new();
    while !extensions.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.vector(2)?;
        if !seen.insert(kind) {
            let twice_named = kind == SERVER_NAME;
            return Err(if twice_named { BadHello::DuplicateServerName } else { BadHello::Malformed });
        }
        match kind {
            SERVER_NAME => hello.server_name = Some(server_name(content)?),
            ALPN => hello.alpn = protocols(content)?,
            // It signs what stands before it, so nothing may stand behind it (RFC 8446 section 4.2.11).
            PRE_SHARED_KEY if !extensions.is_empty() => return Err(BadHello::Malformed),
            _ => {}
        }
    }
    Ok(hello)
}

/// Takes apart a `server_name` extension: exactly one entry, and that a host name (RFC 6066 section 3).
fn server_name(mut content: Reader<'_>) -> Result<Name, BadHello> {
    let mut names = content.vector(2)?;
    content.end()?;
    if names.is_empty() || names.byte()? != HOST_NAME {
        return Err(BadHello::ServerNameType);
    }
    let name = names.vector(2)?;
    if !names.is_empty() {
        return Err(BadHello::DuplicateServerName);
    }
    Name::parse(name.0).map_err(BadHello::ServerName)
}

/// Takes apart an `application_layer_protocol_negotiation` extension (RFC 7301 section 3.1).
fn protocols(mut content: Reader<'_>) -> Result<Vec<Vec<u8>>, BadHello> {
    let mut list = content.vector(2)?;
    content.end()?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let protocol = list.vector(1)?;
        if protocol.is_empty() {
            return Err(BadHello::Malformed);
        }
        protocols.push(protocol.0.to_vec());
    }
    if protocols.is_empty() {
        return Err(BadHello::Malformed);
    }
    Ok(protocols)
}

/// What is left to read. Whoever reads a structure in full asks for its [`end`](Self::end).
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(&self) -> Result<(), BadHello> {
        if self.is_empty() { Ok(()) } else { Err(BadHello::Malformed) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], BadHello> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(BadHello::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, BadHello> {
        let (byte, rest) = self.0.split_first().ok_or(BadHello::Malformed)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn number(&mut self) -> Result<u16, BadHello> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// What a length of one or two bytes says comes next.
    fn vector(&mut self, length_bytes: u8) -> Result<Self, BadHello> {
        let len = if length_bytes == 1 { u16::from(self.byte()?) } else { self.number()? };
        self.take(usize::from(len)).map(Reader)
    }
}

#[cfg(test)]
#[path = "hello_tests.rs"]
mod tests;
