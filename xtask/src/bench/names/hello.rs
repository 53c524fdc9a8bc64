//! What a TLS client says first, and how a server and a refusal answer.

/// Bytes of the hello: as browsers pad it.
pub const LENGTH: usize = 517;
/// What a server answers; the first byte says that it is a handshake record.
pub const ANSWER: [u8; 122] = {
    let mut answer = [0; 122];
    answer[0] = 22;
    answer[1] = 3;
    answer[2] = 3;
    answer[4] = 117;
    answer
};

/// Whether it is a server that says this, and not a filter with an alert.
pub fn is_answer(bytes: &[u8]) -> bool {
    bytes.first() == Some(&22)
}

/// A ClientHello (RFC 8446 section 4.1.2) that asks for `name`, in one record.
pub fn hello(name: &str) -> Vec<u8> {
    const RECORD_AND_MESSAGE: usize = 5 + 4;
    let mut extensions = Vec::new();
    // server_name: a list of one host name (RFC 6066 section 3).
    let host = [&[0][..], &sized(name.as_bytes())].concat();
    extension(&mut extensions, 0, &sized(&host));
    extension(&mut extensions, 10, &[0, 4, 0, 29, 0, 23]);
    extension(&mut extensions, 13, &[0, 8, 4, 3, 8, 4, 4, 1, 8, 5]);
    extension(&mut extensions, 16, b"\x00\x0c\x02h2\x08http/1.1");
    extension(&mut extensions, 43, &[4, 3, 4, 3, 3]);
    extension(&mut extensions, 45, &[1, 1]);
    let share = [&[0, 29][..], &sized(&[0x5a; 32])].concat();
    extension(&mut extensions, 51, &sized(&share));

    let mut body = vec![3, 3];
    body.extend([0xa5; 32]);
    body.push(32);
    body.extend([0x3c; 32]);
    body.extend(sized(&[0x13, 1, 0x13, 2, 0x13, 3, 0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 0xc0, 0x30]));
    body.extend([1, 0]);
    // padding (RFC 7685); two bytes are the length of the extensions, four the padding's own head.
    let so_far = RECORD_AND_MESSAGE + body.len() + 2 + extensions.len() + 4;
    extension(&mut extensions, 21, &vec![0; LENGTH.saturating_sub(so_far)]);
    body.extend(sized(&extensions));

    let mut message = vec![1, 0];
    message.extend(sized(&body));
    [&[22, 3, 1][..], &sized(&message)].concat()
}

fn extension(into: &mut Vec<u8>, kind: u16, content: &[u8]) {
    into.extend(kind.to_be_bytes());
    into.extend(sized(content));
}

/// With its length in two bytes before it.
fn sized(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hellos_are_of_one_length_whatever_the_name() {
        for name in ["a.test", "host-9999.service-96.edition-0.test"] {
            let hello = hello(name);
            assert_eq!(hello.len(), LENGTH);
            assert!(hello.windows(name.len()).any(|window| window == name.as_bytes()));
        }
    }
}
