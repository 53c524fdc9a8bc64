//! Queries of every kind, byte by byte.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// A query for the A records of `www.allowed.test`, as the C library sends it.
const PLAIN: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x03WwW\x07allowed\x04test\0\0\x01\0\x01";
/// OPT: 4,096 bytes, DO, and a client subnet.
const WITH_OPT: &[u8] = b"\0\0\x29\x10\0\0\0\x80\0\0\x0b\0\x08\0\x07\0\x01\x18\0\xcb\0\x71";

fn with(additional: &[&[u8]]) -> Vec<u8> {
    let mut bytes = PLAIN.to_vec();
    bytes[11] = additional.len().try_into().unwrap();
    bytes.extend(additional.concat());
    bytes
}

fn query(bytes: &[u8]) -> Query {
    let Parsed::Query(query) = parse(bytes) else { panic!("no query: {bytes:?}") };
    query
}

fn code(bytes: &[u8]) -> ResponseCode {
    let Parsed::Rejected(_, code) = parse(bytes) else { panic!("not rejected: {bytes:?}") };
    code
}

/// The plain query with some bytes replaced.
fn but(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut query = PLAIN.to_vec();
    query[at..at + bytes.len()].copy_from_slice(bytes);
    query
}

/// A query for a name of these labels.
fn named(labels: &[&[u8]]) -> Vec<u8> {
    let mut bytes = PLAIN[..12].to_vec();
    for label in labels {
        bytes.push(label.len().try_into().unwrap());
        bytes.extend_from_slice(label);
    }
    bytes.extend(b"\0\0\x01\0\x01");
    bytes
}

#[test]
fn a_query_is_read() {
    let read = query(PLAIN);
    assert_eq!((read.header.id, read.header.opcode, read.class), (0x1234, 0, 1));
    assert!(read.header.recursion_desired && !read.header.checking_disabled);
    assert!(read.name.eq_case(&rr::Name::from_ascii("WwW.allowed.test.").unwrap()));
    assert_eq!((read.kind, read.edns, read.payload()), (RecordType::A, None, 512));
    assert_eq!(read.host().unwrap().as_str(), "www.allowed.test");
}

#[test]
fn of_additional_records_only_opt_is_looked_at() {
    let other = b"\x01a\xc0\x0c\0\x10\0\x01\0\0\0\x09\0\x02\x01x";
    for additional in [vec![WITH_OPT], vec![WITH_OPT, other], vec![other, WITH_OPT]] {
        let read = query(&with(&additional));
        assert_eq!(read.edns, Some(Edns { version: 0, payload: 4096 }));
    }
    assert_eq!(query(&with(&[other])).edns, None);
    // RFC 6891 section 6.2.3: less than 512 is 512.
    assert_eq!(query(&with(&[b"\0\0\x29\0\x10\0\0\0\0\0\0"])).payload(), 512);
}

#[test]
fn what_is_no_query_is_not_answered() {
    for bytes in [&PLAIN[..11], b"", b"\0", &but(2, &[0x81]), &but(2, &[0xa8])] {
        assert_eq!(parse(bytes), Parsed::Nothing);
    }
}

#[test]
fn other_operations_are_not_implemented() {
    // Inverse query, status, notify, update, and what is not assigned.
    for opcode in 1..16 {
        let bytes = but(2, &[opcode << 3 | 1]);
        let header = Header { id: 0x1234, opcode, recursion_desired: true, checking_disabled: false };
        assert_eq!(parse(&bytes), Parsed::Rejected(header, ResponseCode::NotImp));
    }
}

#[test]
fn anything_that_could_be_read_in_two_ways_is_malformed() {
    let no_question = &PLAIN[..12];
    let two_questions = [&but(5, b"\x02"), &PLAIN[12..]].concat();
    let long = named(&[&[b'a'; 63], &[b'a'; 63], &[b'a'; 63], &[b'a'; 62]]);
    for (what, bytes) in [
        ("no question", but(5, b"\0")),
        ("nothing behind the header", no_question.to_vec()),
        ("two questions", two_questions),
        ("an answer", but(7, b"\x01")),
        ("an authority", but(9, b"\x01")),
        ("an additional record that is not there", but(11, b"\x01")),
        ("many of them", but(10, b"\xff\xff")),
        ("bytes left over", [PLAIN, b"\0"].concat()),
        ("a pointer to itself", [&PLAIN[..12], b"\xc0\x0c\0\x01\0\x01"].concat()),
        ("a pointer into the header", [&PLAIN[..12], b"\xc0\x00\0\x01\0\x01"].concat()),
        ("a pointer behind a label", [&PLAIN[..12], b"\x01a\xc0\x0c\0\x01\0\x01"].concat()),
        ("a label of type 01", but(12, b"\x43")),
        ("a label of type 10", but(12, &[0x83])),
        ("a label past the end", but(12, b"\x3f")),
        ("a name of 256 bytes", long),
        ("two OPT records", with(&[WITH_OPT, WITH_OPT])),
        ("OPT at a name", with(&[b"\x01a\0\0\x29\x10\0\0\0\0\0\0\0"])),
        ("OPT past the end", with(&[b"\0\0\x29\x10\0\0\0\0\0\0\x01"])),
        ("an endless name", with(&[&[1; 400]])),
    ] {
        assert_eq!(code(&bytes), ResponseCode::FormErr, "{what}");
    }
    let longest = named(&[&[b'a'; 63], &[b'a'; 63], &[b'a'; 63], &[b'a'; 61]]);
    assert_eq!(query(&longest).host().unwrap().as_str().len(), 253);
}

#[test]
fn every_prefix_of_a_query_is_malformed() {
    for whole in [PLAIN.to_vec(), with(&[WITH_OPT])] {
        for length in 0..whole.len() {
            match parse(&whole[..length]) {
                Parsed::Nothing => assert!(length < HEADER),
                Parsed::Rejected(_, code) => assert!(length >= HEADER && code == ResponseCode::FormErr),
                Parsed::Query(query) => panic!("{query:?} of {length} bytes"),
            }
        }
    }
}

#[test]
fn names_are_hosts_only_if_they_can_be_read_in_one_way() {
    let host = |labels: &[&[u8]]| query(&named(labels)).host().map(|name| name.to_string());
    assert_eq!(host(&[b"WWW", b"Allowed", b"test"]).as_deref(), Some("www.allowed.test"));
    assert_eq!(host(&[b"_sip", b"_tcp", b"allowed", b"test"]).as_deref(), Some("_sip._tcp.allowed.test"));
    for labels in [
        [b"www.allowed".as_slice(), b"test"],
        [b"www.", b"test"],
        [b"www\0", b"test"],
        [b"www", b"test\0"],
        [b"a b", b"test"],
        [b"a\\", b"test"],
        [b"*", b"test"],
        [b"-a", b"test"],
        ["bücher".as_bytes(), b"test"],
        ["a。b".as_bytes(), b"test"],
        [b"a@b", b"test"],
        [b"127", b"1"],
    ] {
        assert_eq!(host(&labels), None, "{labels:?}");
    }
    assert_eq!(host(&[]), None);
}

/// Rules that allow `allowed.test` and what is below `wild.test`, in mode strict.
fn strict() -> Rules {
    let policy = serde_json::json!({
        "allowOut": ["allowed.test", "*.wild.test"], "denyOut": ["0.0.0.0/0"], "dns": {"mode": "strict"}
    });
    let policy = filter_policy::Policy::from_value(policy, &filter_policy::Defaults::default()).unwrap();
    let guard = filter_policy::Guard::default();
    Rules {
        generation: 1,
        names: Arc::new(filter_policy::Matcher::new(&policy)),
        compiled: Arc::new(filter_policy::compile(&policy, &guard)),
        policy: Arc::new(policy),
        guard: Arc::new(guard),
    }
}

proptest! {
    #[test]
    fn strict_lets_out_nothing_but_what_is_allowed_label_by_label(
        labels in proptest::collection::vec(
            proptest::sample::select(vec!["allowed", "Test", "test", "wild", "evil", "a.wild", "wild.test", "*", "a\0", "x-1", "_s", "."]),
            0..5,
        )
    ) {
        let bytes: Vec<&[u8]> = labels.iter().map(|label| label.as_bytes()).collect();
        let lower: Vec<_> = labels.iter().map(|label| label.to_lowercase()).collect();
        let plain = lower.iter().all(|label| !label.contains(['.', '*', '\0']));
        let allowed = lower == ["allowed", "test"] || (lower.len() > 2 && lower.ends_with(&["wild".into(), "test".into()]));
        let verdict = query(&named(&bytes)).judge(&strict());
        prop_assert_eq!(verdict == Verdict::Ask, plain && allowed, "{:?}", labels);
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        parse(&bytes);
    }

    #[test]
    fn a_damaged_query_is_answered(
        at in 0..60usize, byte in any::<u8>(), cut in 0..80usize, tail in proptest::collection::vec(any::<u8>(), 0..40)
    ) {
        let mut bytes = with(&[WITH_OPT]);
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        bytes.truncate(cut);
        bytes.extend(tail);
        if let Parsed::Query(query) = parse(&bytes) {
            // What was read is what is there: the question goes back byte for byte.
            let reply = crate::dns::answer::write(&query, crate::dns::answer::empty(ResponseCode::NoError), crate::host::Transport::Udp).unwrap();
            let question = 12 + query.name.len() + 4;
            prop_assert_eq!(&reply[12..question], &bytes[12..question]);
            prop_assert_eq!(&reply[..2], &bytes[..2]);
        }
    }
}
