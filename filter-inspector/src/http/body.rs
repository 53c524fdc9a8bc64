//! A chunked body, followed while it goes by (RFC 9112 section 7.1).
//!
//! The bytes go on verbatim, so they are validated strictly: the next reader must find the same end. Nothing
//! is held but the name of a trailer field; chunk data need not even be looked at.

use filter_common::Reason;
use thiserror::Error;

use super::head;

/// The most digits of a chunk's size.
const MAX_DIGITS: u8 = 16;
/// The largest chunk: some readers' numbers have a sign.
const MAX_SIZE: u64 = i64::MAX as u64;
/// The most bytes of a chunk's extensions.
const MAX_EXTENSION: u16 = 1024;
/// The most bytes of the trailer section.
const MAX_TRAILERS: u16 = 16 * 1024;
/// The most bytes of a trailer field's name.
const MAX_TRAILER_NAME: usize = 256;

/// Fields that must not stand in trailers: a reader that merged them into the head would find another
/// message there (RFC 9110 section 6.5.1). In the form that [`head::plain`] gives.
const NOT_IN_TRAILERS: &[&[u8]] = &[
    b"authorization",
    b"cache-control",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"host",
    b"http2-settings",
    b"keep-alive",
    b"max-forwards",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"range",
    b"set-cookie",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"www-authenticate",
];

/// Why bytes are no chunked body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadChunk {
    /// A chunk's size is no hexadecimal number, or too large a one.
    #[error("a chunk's size is no number")]
    Size,
    /// A chunk's extension is malformed or too long.
    #[error("a chunk's extension is malformed or too long")]
    Extension,
    /// A line or a chunk's data does not end with CR and LF.
    #[error("a chunk does not end where it should")]
    LineEnd,
    /// A trailer field is malformed.
    #[error("a trailer field is malformed")]
    Trailer,
    /// A trailer field that belongs into the head.
    #[error("a trailer field that must stand in the head")]
    ForbiddenTrailer,
    /// The trailers are too long.
    #[error("the trailers are too long")]
    TooLarge,
}

impl BadChunk {
    /// The reason that the denial is counted under.
    pub const fn reason(self) -> Reason {
        Reason::BadRequest
    }
}

/// How far [`Chunked::advance`] came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advance {
    /// Bytes of the body; what is behind them is not of it.
    pub consumed: usize,
    /// The body is over.
    pub finished: bool,
}

/// Follows a chunked body.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    /// Of the chunk whose size is being read, then what of its data has not come yet.
    size: u64,
    /// Of the trailer section.
    trailer_bytes: u16,
    trailer_name: Vec<u8>,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A size, of which so many digits came.
    Size(u8),
    /// An extension, of which so many bytes came.
    Extension(u16),
    /// The line feed behind a size.
    SizeEnd,
    /// A chunk's data.
    Data,
    /// The carriage return behind the data.
    DataReturn,
    /// The line feed behind the data.
    DataEnd,
    /// A trailer field's name, or the end of the body.
    TrailerName,
    /// A trailer field's value.
    TrailerValue,
    /// The line feed behind a trailer field.
    TrailerEnd,
    /// The last line feed.
    End,
    /// Nothing of the body.
    Finished,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { state: State::Size(0), size: 0, trailer_bytes: 0, trailer_name: Vec::new() }
    }
}

impl Chunked {
    /// At the beginning of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes come next that are data and need not be looked at. Whoever moves some of them
    /// without [`advance`](Self::advance) says so with [`skip`](Self::skip).
    pub fn plain(&self) -> u64 {
        if self.state == State::Data { self.size } else { 0 }
    }

    /// Takes note that `moved` of the [`plain`](Self::plain) bytes went by; gives how many were counted, which
    /// is all of them unless there were fewer.
    pub fn skip(&mut self, moved: u64) -> u64 {
        let counted = moved.min(self.plain());
        self.size -= counted;
        if self.state == State::Data && self.size == 0 {
            self.state = State::DataReturn;
        }
        counted
    }

    /// Whether the body is over.
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// Follows `bytes` up to the body's end. After an error nothing more may be asked of it.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Advance, BadChunk> {
        let mut rest = bytes;
        while let Some((byte, behind)) = rest.split_first()
            && !self.is_finished()
        {
            if self.state == State::Data {
                let counted = self.skip(rest.len() as u64);
                rest = usize::try_from(counted).ok().and_then(|counted| rest.get(counted..)).unwrap_or(&[]);
            } else {
                self.state = self.step(*byte)?;
                rest = behind;
            }
        }
        Ok(Advance { consumed: bytes.len() - rest.len(), finished: self.is_finished() })
    }

    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        match (self.state, byte) {
            (State::Size(digits), _) => self.size_byte(digits, byte),
            (State::Extension(_), b'\r') => Ok(State::SizeEnd),
            (State::Extension(bytes), _) if bytes < MAX_EXTENSION && is_text(byte) => {
                Ok(State::Extension(bytes + 1))
            }
            (State::Extension(_), _) => Err(BadChunk::Extension),
            (State::SizeEnd, b'\n') => Ok(if self.size == 0 { State::TrailerName } else { State::Data }),
            (State::DataReturn, b'\r') => Ok(State::DataEnd),
            (State::DataEnd, b'\n') => Ok(State::Size(0)),
            (State::End, b'\n') => Ok(State::Finished),
            (State::TrailerName | State::TrailerValue | State::TrailerEnd, _) => self.trailer_byte(byte),
            (State::SizeEnd | State::DataReturn | State::DataEnd | State::End, _) => Err(BadChunk::LineEnd),
            (State::Data | State::Finished, _) => Ok(self.state),
        }
    }

    fn size_byte(&mut self, digits: u8, byte: u8) -> Result<State, BadChunk> {
        match (char::from(byte).to_digit(16), byte) {
            (Some(digit), _) if digits < MAX_DIGITS => {
                self.size = (self.size << 4) | u64::from(digit);
                if self.size > MAX_SIZE { Err(BadChunk::Size) } else { Ok(State::Size(digits + 1)) }
            }
            (None, b'\r') if digits > 0 => Ok(State::SizeEnd),
            (None, b';') if digits > 0 => Ok(State::Extension(0)),
            (Some(_) | None, _) => Err(BadChunk::Size),
        }
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<State, BadChunk> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > MAX_TRAILERS {
            return Err(BadChunk::TooLarge);
        }
        match (self.state, byte) {
            (State::TrailerName, b'\r') if self.trailer_name.is_empty() => Ok(State::End),
            (State::TrailerName, b':') if !self.trailer_name.is_empty() => {
                let name = head::plain(&std::mem::take(&mut self.trailer_name));
                if NOT_IN_TRAILERS.contains(&name.as_slice()) {
                    return Err(BadChunk::ForbiddenTrailer);
                }
                Ok(State::TrailerValue)
            }
            (State::TrailerName, _)
                if head::is_token_byte(byte) && self.trailer_name.len() < MAX_TRAILER_NAME =>
            {
                self.trailer_name.push(byte);
                Ok(State::TrailerName)
            }
            (State::TrailerValue, b'\r') => Ok(State::TrailerEnd),
            (State::TrailerValue, _) if is_text(byte) => Ok(State::TrailerValue),
            (State::TrailerEnd, b'\n') => Ok(State::TrailerName),
            (State::TrailerEnd, _) => Err(BadChunk::LineEnd),
            _ => Err(BadChunk::Trailer),
        }
    }
}

/// Whether it may stand in a value: visible, space, tab, or beyond ASCII.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
