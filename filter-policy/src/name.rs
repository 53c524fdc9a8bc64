//! The one canonicaliser of host names: policy, matcher, resolver and log all go through it.
//!
//! What two parsers could read differently is no name at all: anything outside ASCII letters, digits,
//! hyphen and underscore, and whatever some resolver would take for an address.

use std::{borrow::Borrow, fmt};

use thiserror::Error;

/// The longest name in bytes, without the root's dot (RFC 1035 section 2.3.4, as text).
const MAX_NAME: usize = 253;
/// The longest label in bytes (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// A host name in canonical form: lower case, without the root's dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name(String);

/// Why bytes are no host name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadName {
    /// Nothing, or nothing but the root's dot.
    #[error("the name is empty")]
    Empty,
    /// More than 253 bytes.
    #[error("the name is longer than {MAX_NAME} bytes")]
    TooLong,
    /// A label of no bytes or of more than 63.
    #[error("a label has no bytes or more than {MAX_LABEL}")]
    LabelLength,
    /// A byte other than ASCII letters, digits, `-` and `_`.
    #[error("only ASCII letters, digits, `-` and `_` may stand between the dots")]
    Byte,
    /// A label that begins or ends with a hyphen.
    #[error("a label begins or ends with a hyphen")]
    Hyphen,
    /// The last label is a number, so that resolvers take the whole for an IPv4 address.
    #[error("it reads as an address")]
    Address,
}

impl Name {
    /// Reads a name; one trailing dot and the case do not matter.
    ///
    /// Ports, brackets, user information and surrounding space are not stripped: whoever has an
    /// authority instead of a name takes it apart first.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, BadName> {
        let bytes = text.as_ref();
        let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(BadName::Empty);
        }
        if bytes.len() > MAX_NAME {
            return Err(BadName::TooLong);
        }
        let mut last: &[u8] = &[];
        for label in bytes.split(|byte| *byte == b'.') {
            check_label(label)?;
            last = label;
        }
        if is_number(last) {
            return Err(BadName::Address);
        }
        // All of it is ASCII.
        Ok(Self(String::from_utf8_lossy(bytes).to_ascii_lowercase()))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it lies below, nearest first.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('.').map(|(dot, _)| &self.0[dot + 1..])
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_label(label: &[u8]) -> Result<(), BadName> {
    if label.is_empty() || label.len() > MAX_LABEL {
        return Err(BadName::LabelLength);
    }
    if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        return Err(BadName::Byte);
    }
    if label.starts_with(b"-") || label.ends_with(b"-") {
        return Err(BadName::Hyphen);
    }
    Ok(())
}

/// Whether a last label makes the whole an IPv4 address: decimal, octal or hexadecimal, as the C
/// library's `inet_aton` and the WHATWG URL standard ("ends in a number") read it.
fn is_number(label: &[u8]) -> bool {
    let hex = label.strip_prefix(b"0x").or_else(|| label.strip_prefix(b"0X"));
    match hex {
        Some(digits) => digits.iter().all(u8::is_ascii_hexdigit),
        None => label.iter().all(u8::is_ascii_digit),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn case_and_one_trailing_dot_do_not_matter() {
        for (text, name) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("localhost", "localhost"),
            ("_dmarc.a-b.x1", "_dmarc.a-b.x1"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("1.2.3.4.in-addr.arpa", "1.2.3.4.in-addr.arpa"),
            ("0xg.0xfg", "0xg.0xfg"),
        ] {
            assert_eq!(Name::parse(text).unwrap().as_str(), name);
        }
    }

    #[test]
    fn anything_else_is_no_name() {
        use BadName::{Address, Byte, Empty, Hyphen, LabelLength, TooLong};
        for (text, why) in [
            ("", Empty),
            (".", Empty),
            ("a..b", LabelLength),
            (".a", LabelLength),
            ("a.b..", LabelLength),
            ("-a.b", Hyphen),
            ("a.b-", Hyphen),
            ("a b", Byte),
            (" a", Byte),
            ("a\0.b", Byte),
            ("a.com:443", Byte),
            ("user@a.com", Byte),
            ("https://a.com", Byte),
            ("*.a.com", Byte),
            ("bücher.example", Byte),
            ("a。com", Byte),
            ("[::1]", Byte),
            ("fe80::1%eth0", Byte),
            ("1.2.3.4", Address),
            ("127.1", Address),
            ("2130706433", Address),
            ("0x7f000001", Address),
            ("0X7F.0x1", Address),
            ("0x", Address),
            ("017700000001", Address),
            ("a.com.0x1f.", Address),
        ] {
            assert_eq!(Name::parse(text), Err(why), "{text:?}");
        }
        assert_eq!(Name::parse([0xff, 0xfe]), Err(Byte));
        assert_eq!(Name::parse(vec![b'a'; 254]), Err(TooLong));
    }

    #[test]
    fn lengths_at_their_edges() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
        assert_eq!(longest.len(), MAX_NAME);
        assert!(Name::parse(&longest).is_ok() && Name::parse(format!("{longest}.")).is_ok());
        assert_eq!(Name::parse(format!("{longest}b")), Err(BadName::TooLong));
        assert_eq!(Name::parse("a".repeat(64)), Err(BadName::LabelLength));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_and_a_name_is_its_own_canonical_form(
            bytes in prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), "[a-zA-Z0-9._-]{0,80}".prop_map(String::into_bytes)]
        ) {
            if let Ok(name) = Name::parse(&bytes) {
                prop_assert_eq!(Name::parse(name.as_str()), Ok(name.clone()));
                prop_assert!(name.as_str().len() <= MAX_NAME && !name.as_str().ends_with('.'));
                prop_assert!(!name.as_str().bytes().any(|byte| byte.is_ascii_uppercase()));
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
            }
        }
    }
}
