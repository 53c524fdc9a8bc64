//! The bytes of a head, before anything in it has a meaning.

/// The longest head.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// Why bytes are no head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadBytes {
    /// A control byte, NUL included.
    Control,
    /// A carriage return or a line feed that is not one half of a line's end.
    LineEnd,
    /// It begins with an empty line or with space.
    Start,
    /// It is longer than [`MAX_HEAD`].
    TooLarge,
}

/// Looks for the end of a head in a buffer that grows, at each byte once.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Bytes looked at.
    at: usize,
    /// Where the line begins that the next byte belongs to.
    line: usize,
}

/// What there is now in a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Not even what the last call found.
    Nothing,
    /// The first line, of this length without its end.
    FirstLine(usize),
    /// The whole head, of this length with its empty line.
    Head(usize),
}

impl Scan {
    /// Looks on; `buf` is everything from the head's first byte, so it begins with what it was before.
    /// Says once that the first line is there, and is to be called again then.
    pub(super) fn advance(&mut self, buf: &[u8]) -> Result<Found, BadBytes> {
        while let Some(byte) = buf.get(self.at) {
            if self.at == MAX_HEAD {
                return Err(BadBytes::TooLarge);
            }
            let after_cr = self.at > 0 && buf[self.at - 1] == b'\r';
            if after_cr != (*byte == b'\n') {
                return Err(BadBytes::LineEnd);
            }
            let begins = self.at == 0;
            self.at += 1;
            match byte {
                b' ' | b'\t' | b'\r' if begins => return Err(BadBytes::Start),
                b'\n' => {
                    let first = self.line == 0;
                    let empty = self.at - self.line == 2;
                    self.line = self.at;
                    if empty {
                        return Ok(Found::Head(self.at));
                    }
                    if first {
                        return Ok(Found::FirstLine(self.at - 2));
                    }
                }
                b'\t' | b'\r' => {}
                byte if byte.is_ascii_control() => return Err(BadBytes::Control),
                _ => self.skip_plain(buf),
            }
        }
        Ok(Found::Nothing)
    }

    /// Nearly all bytes are of the kind that needs no looking at.
    fn skip_plain(&mut self, buf: &[u8]) {
        let rest = buf.get(self.at..buf.len().min(MAX_HEAD)).unwrap_or_default();
        self.at += rest.iter().take_while(|byte| **byte >= b' ' && **byte != 0x7f).count();
    }
}

/// A line of a head's fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Line<'a> {
    /// A name, and whatever stands behind its colon.
    Field(&'a [u8], &'a [u8]),
    /// The line before goes on (RFC 9112 section 5.2).
    Folded,
    /// No field: no colon, or no token in front of it.
    Malformed,
}

/// The lines of `head`, which [`Scan`] found, but for the first and the empty one.
pub(super) fn lines(head: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let fields = head.strip_suffix(b"\r\n\r\n").unwrap_or_default();
    // No carriage return is anywhere but in front of a line feed.
    fields.split(|byte| *byte == b'\r').skip(1).map(|line| line.strip_prefix(b"\n").unwrap_or(line)).map(line)
}

fn line(line: &[u8]) -> Line<'_> {
    if line.first().is_some_and(|byte| is_space(*byte)) {
        return Line::Folded;
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Line::Malformed };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if is_token(name) { Line::Field(name, value) } else { Line::Malformed }
}

/// A value without the space around it.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let Some((first, rest)) = value.split_first()
        && is_space(*first)
    {
        value = rest;
    }
    while let Some((last, rest)) = value.split_last()
        && is_space(*last)
    {
        value = rest;
    }
    value
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Whether it is a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token_byte(*byte))
}

pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The fields that decide whom a message is for and where it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Http2Settings,
    Expect,
    /// A name that some server takes for one of the above: gateways turn every byte that is no letter
    /// into the same one (RFC 3875 section 4.1.18).
    Lookalike,
    /// Any other.
    Other,
}

impl Field {
    const NAMES: [(&[u8], Self); 7] = [
        (b"host", Self::Host),
        (b"content-length", Self::ContentLength),
        (b"transfer-encoding", Self::TransferEncoding),
        (b"connection", Self::Connection),
        (b"upgrade", Self::Upgrade),
        (b"http2-settings", Self::Http2Settings),
        (b"expect", Self::Expect),
    ];

    /// Which one `name` names.
    pub(super) fn of(name: &[u8]) -> Self {
        let Some((_, field)) = Self::NAMES.iter().find(|(known, _)| resembles(name, known)) else {
            return Self::Other;
        };
        let odd = name.iter().any(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
        if odd { Self::Lookalike } else { *field }
    }
}

/// Whether a name in lower case, with a hyphen for every byte that is neither letter nor digit, is the known one.
fn resembles(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len() && name.iter().zip(known).all(|(byte, known)| plain_byte(*byte) == *known)
}

/// A name in lower case, with a hyphen for every byte that is neither letter nor digit.
pub(super) fn plain(name: &[u8]) -> Vec<u8> {
    name.iter().copied().map(plain_byte).collect()
}

fn plain_byte(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

/// What the `Connection` fields of a message say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Options {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

impl Options {
    /// Adds what one field says. `None` when it is no list of tokens, or wants a field forgotten on the
    /// way that the message cannot be read without (RFC 9110 section 7.6.1).
    pub(super) fn add(&mut self, value: &[u8]) -> Option<()> {
        for option in value.split(|byte| *byte == b',').map(trim).filter(|option| !option.is_empty()) {
            if !is_token(option) {
                return None;
            }
            match Field::of(option) {
                Field::Upgrade => self.upgrade = true,
                Field::Http2Settings | Field::Other => {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
                Field::Host
                | Field::ContentLength
                | Field::TransferEncoding
                | Field::Connection
                | Field::Expect
                | Field::Lookalike => return None,
            }
        }
        Some(())
    }

    /// Whether the connection stays open after a message of this minor version (RFC 9112 section 9.3).
    pub(super) fn stays(self, version_minor: u8) -> bool {
        !self.close && (version_minor >= 1 || self.keep_alive)
    }
}

/// The minor version of `HTTP/1.0` or `HTTP/1.1`; of nothing else, and in no other spelling.
pub(super) fn minor_version(version: &[u8]) -> Option<u8> {
    match version {
        b"HTTP/1.1" => Some(1),
        b"HTTP/1.0" => Some(0),
        _ => None,
    }
}

/// A number of bytes: digits and nothing else, and no more than any reader can count.
pub(super) fn length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length = std::str::from_utf8(digits).ok()?.parse::<u64>().ok()?;
    i64::try_from(length).is_ok().then_some(length)
}
