//! The name in an authority: what stands in a `Host` header or an absolute URI.

use filter_policy::{BadName, Name};

/// The name in `authority`, on a connection to `port`.
///
/// Only the connection's own port is stripped, written as a client would write it. Anything else that may
/// stand beside a name (another port, user information, brackets, space) is left in place, where it makes
/// the whole no name.
pub fn parse(authority: &[u8], port: u16) -> Result<Name, BadName> {
    let port = format!(":{port}");
    Name::parse(authority.strip_suffix(port.as_bytes()).unwrap_or(authority))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_port_of_the_connection_the_last_dot_and_the_case_do_not_matter() {
        for text in ["allowed.test", "ALLOWED.test", "allowed.test.", "allowed.test:80", "Allowed.Test.:80"] {
            assert_eq!(parse(text.as_bytes(), 80).unwrap().as_str(), "allowed.test", "{text}");
        }
        assert_eq!(parse(b"a.test:8080", 8080).unwrap().as_str(), "a.test");
        assert_eq!(parse(b"80.test:80", 80).unwrap().as_str(), "80.test");
    }

    #[test]
    fn whatever_else_stands_there_is_no_name() {
        use BadName::{Address, Byte, Empty, LabelLength};
        for (text, why) in [
            ("", Empty),
            (".", Empty),
            (":80", Empty),
            (".:80", Empty),
            ("..", LabelLength),
            ("allowed.test:443", Byte),
            ("allowed.test:", Byte),
            ("allowed.test:080", Byte),
            ("allowed.test:+80", Byte),
            ("allowed.test: 80", Byte),
            ("allowed.test :80", Byte),
            ("allowed.test:80:80", Byte),
            ("allowed.test:443:80", Byte),
            ("allowed.test:80.", Byte),
            ("allowed.test:http", Byte),
            ("allowed.test:65616", Byte),
            ("allowed.test:0x50", Byte),
            ("allowed.test@evil.test", Byte),
            ("allowed.test:80@evil.test", Byte),
            ("evil.test:80@allowed.test:80", Byte),
            ("@allowed.test", Byte),
            ("//allowed.test", Byte),
            ("allowed.test/", Byte),
            ("allowed.test\\.evil.test", Byte),
            ("allowed.test?", Byte),
            ("allowed.test#", Byte),
            ("allowed.test,evil.test", Byte),
            ("allowed%2etest", Byte),
            ("allowed.test\0", Byte),
            ("allowed.test\0.evil.test", Byte),
            ("allowed.test\t", Byte),
            (" allowed.test", Byte),
            ("allowed.test\r\n", Byte),
            ("allowed.test\u{7f}", Byte),
            ("*.wild.test", Byte),
            ("*", Byte),
            ("bücher.example", Byte),
            ("allowed。test", Byte),
            ("allowed．test", Byte),
            ("ａllowed.test", Byte),
            ("[::1]", Byte),
            ("[::1]:80", Byte),
            ("[::ffff:7f00:1]", Byte),
            ("[fe80::1%25eth0]:80", Byte),
            ("[allowed.test]", Byte),
            ("[v1.allowed.test]:80", Byte),
            ("::1", Byte),
            ("127.0.0.1", Address),
            ("127.0.0.1:80", Address),
            ("127.0.0.1.:80", Address),
            ("127.1", Address),
            ("0177.0.0.1", Address),
            ("0x7f.0.0.1", Address),
            ("2130706433", Address),
            ("017700000001:80", Address),
            ("0x7F000001", Address),
            ("allowed.test.1", Address),
        ] {
            assert_eq!(parse(text.as_bytes(), 80), Err(why), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_and_a_name_is_its_own_canonical_form(
            text in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                "[a-zA-Z0-9._:@-]{0,30}(:80|:443|)".prop_map(String::into_bytes),
            ],
            port in prop_oneof![Just(80u16), any::<u16>()],
        ) {
            if let Ok(name) = parse(&text, port) {
                prop_assert_eq!(parse(name.as_str().as_bytes(), port), Ok(name.clone()));
                prop_assert_eq!(parse(format!("{name}.:{port}").as_bytes(), port), Ok(name.clone()));
                prop_assert!(text.to_ascii_lowercase().starts_with(name.as_str().as_bytes()));
            }
        }
    }
}
