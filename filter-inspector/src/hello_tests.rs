//! Tests of the hello's reader: real hellos cut in every way, evil ones, and rustls as a second opinion.

use std::io::Cursor;
use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;

const ALLOWED: &str = "allowed.test";

/// Real hellos, and whom they ask for.
const SEEDS: &[(&str, Option<&str>)] = &[
    ("chrome131", Some(ALLOWED)), // post-quantum, GREASE, GREASE ECH, 1.8 kB
    ("chrome99", Some(ALLOWED)),
    ("curl", Some(ALLOWED)),
    ("curl_address", None),
    ("edge101", Some(ALLOWED)),
    ("firefox133", Some(ALLOWED)), // post-quantum, GREASE ECH, 1.8 kB
    ("git", Some(ALLOWED)),
    ("java", Some(ALLOWED)),
    ("node", Some(ALLOWED)),
    ("openssl_early_data", Some(ALLOWED)), // and early data behind it
    ("openssl_no_name", None),
    ("openssl_resumed", Some(ALLOWED)),
    ("openssl_split_records", Some(ALLOWED)),
    ("openssl_tls12", Some(ALLOWED)),
    ("openssl_tls13", Some(ALLOWED)),
    ("openssl_trailing_dot", Some(ALLOWED)), // `Allowed.TEST.`
    ("python_ssl", Some(ALLOWED)),
    ("rustls", Some(ALLOWED)), // post-quantum
    ("rustls_tls12", Some(ALLOWED)),
    ("safari18_0", Some(ALLOWED)),
    ("wget", Some("localhost")),
];

fn seed(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/hello").join(name)).unwrap()
}

fn seeds() -> impl Iterator<Item = (&'static str, Vec<u8>, Option<&'static str>)> {
    SEEDS.iter().map(|(file, name)| (*file, seed(file), *name))
}

/// Length of the first record, in which each of the real hellos is alone.
fn first_record(stream: &[u8]) -> usize {
    RECORD_HEADER + usize::from(u16::from_be_bytes([stream[3], stream[4]]))
}

fn whole(stream: &[u8]) -> Result<Option<ClientHello>, BadHello> {
    HelloReader::new().feed(stream)
}

fn in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<ClientHello>, BadHello> {
    let mut reader = HelloReader::new();
    pieces.into_iter().try_fold(None, |_, piece| reader.feed(piece))
}

fn name_of(answer: &Result<Option<ClientHello>, BadHello>) -> Option<&str> {
    answer.as_ref().unwrap().as_ref().unwrap().server_name.as_ref().map(Name::as_str)
}

fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
    let len = content.len().to_be_bytes();
    [&len[len.len() - length_bytes..], content].concat()
}

fn record(content: &[u8]) -> Vec<u8> {
    [&[HANDSHAKE, 3, 1][..], &vector(2, content)].concat()
}

fn message(body: &[u8]) -> Vec<u8> {
    [&[CLIENT_HELLO][..], &vector(3, body)].concat()
}

/// A hello's body up to its extensions.
fn front() -> Vec<u8> {
    [&[3, 3][..], &[7; 32], &vector(1, &[9; 32]), &vector(2, &[0x13, 1, 0x13, 2]), &vector(1, &[0])].concat()
}

fn body(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let extensions: Vec<_> = extensions
        .iter()
        .flat_map(|(kind, content)| [&kind.to_be_bytes()[..], &vector(2, content)].concat())
        .collect();
    [front(), vector(2, &extensions)].concat()
}

fn entry(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind][..], &vector(2, name)].concat()
}

fn sni(name: impl AsRef<[u8]>) -> (u16, Vec<u8>) {
    (SERVER_NAME, vector(2, &entry(HOST_NAME, name.as_ref())))
}

fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    record(&message(&body(extensions)))
}

/// `content` in records of `size` bytes.
fn records(content: &[u8], size: usize) -> Vec<u8> {
    content.chunks(size).flat_map(record).collect()
}

#[test]
fn every_prefix_of_a_real_hello_waits_and_the_whole_answers() {
    for (file, stream, name) in seeds() {
        let end = first_record(&stream);
        for len in 0..end {
            assert_eq!(whole(&stream[..len]), Ok(None), "{file}, {len} bytes");
        }
        for len in end..=stream.len() {
            assert_eq!(name_of(&whole(&stream[..len])), name, "{file}, {len} bytes");
        }
    }
}

#[test]
fn no_cut_of_a_real_hello_makes_a_difference() {
    for (file, stream, _) in seeds() {
        let answer = whole(&stream);
        assert_eq!(in_pieces(stream.chunks(1)), answer, "{file} byte by byte");
        for cut in 0..=stream.len() {
            let (left, right) = stream.split_at(cut);
            assert_eq!(in_pieces([left, right]), answer, "{file} cut at {cut}");
        }
    }
}

#[test]
fn no_division_into_records_makes_a_difference() {
    for (file, stream, _) in seeds() {
        let answer = whole(&stream);
        let content = &stream[RECORD_HEADER..first_record(&stream)];
        for size in 1..=content.len() {
            assert_eq!(whole(&records(content, size)), answer, "{file} in records of {size}");
        }
        for cut in 1..content.len() {
            let (left, right) = content.split_at(cut);
            assert_eq!(whole(&[record(left), record(right)].concat()), answer, "{file} cut at {cut}");
        }
        let tiny = records(content, 1);
        assert_eq!(in_pieces(tiny.chunks(1)), answer, "{file} byte by byte in records of one");
    }
}

#[test]
fn what_is_offered_is_told() {
    let hello = whole(&seed("openssl_tls13")).unwrap().unwrap();
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(whole(&seed("python_ssl")).unwrap().unwrap().alpn.is_empty());
}

#[test]
fn post_quantum_seeds_are_larger_than_a_segment() {
    for file in ["chrome131", "firefox133", "rustls"] {
        assert!(seed(file).len() > 1200, "{file}");
    }
}

#[test]
fn record_versions_are_ignored() {
    for version in [[0, 0], [2, 0], [3, 0], [3, 4], [3, 255], [0xfa, 0xfa], [254, 253]] {
        let mut stream = hello(&[sni(ALLOWED)]);
        stream[1..3].copy_from_slice(&version);
        assert_eq!(name_of(&whole(&stream)), Some(ALLOWED), "{version:?}");
    }
}

#[test]
fn a_name_is_found_wherever_it_stands_and_grease_is_passed_over() {
    let grease = |n: u16| (n * 0x1010 + 0x0a0a, vec![n as u8; usize::from(n)]);
    for place in 0..=16 {
        let mut extensions: Vec<_> = (0..16).map(grease).collect();
        extensions.insert(place, sni("Allowed.Test."));
        extensions.push((0xfe0d, vec![0; 300])); // encrypted_client_hello
        assert_eq!(name_of(&whole(&hello(&extensions))), Some(ALLOWED), "at {place}");
    }
}

#[test]
fn a_hello_may_be_as_long_as_the_limit_and_no_longer() {
    let of = |len: usize| {
        let empty = message(&body(&[(1, vec![]), (2, vec![]), sni(ALLOWED)])).len();
        let padding = len - empty;
        let (left, right) = (padding / 2, padding - padding / 2);
        message(&body(&[(1, vec![0; left]), (2, vec![0; right]), sni(ALLOWED)]))
    };
    // Four records at least: 16 KiB each is the most.
    let longest = MAX_HELLO - 4 * RECORD_HEADER;
    let stream = records(&of(longest), MAX_RECORD);
    assert_eq!(stream.len(), MAX_HELLO);
    assert_eq!(name_of(&whole(&stream)), Some(ALLOWED));
    assert_eq!(name_of(&in_pieces(stream.chunks(1))), Some(ALLOWED));

    let stream = records(&of(longest + 1), MAX_RECORD);
    assert_eq!(whole(&stream), Err(BadHello::TooLarge));
    assert_eq!(in_pieces(stream.chunks(1)), Err(BadHello::TooLarge));
    // The headers count, too.
    let stream = records(&of(20_000), 1);
    assert_eq!(whole(&stream), Err(BadHello::TooLarge));
    // What says that it will be longer is not waited for.
    assert_eq!(whole(&record(&[CLIENT_HELLO, 1, 0, 0])), Err(BadHello::TooLarge));
    assert_eq!(whole(&record(&[CLIENT_HELLO, 255, 255, 255])), Err(BadHello::TooLarge));
}

#[test]
fn the_answer_stays() {
    let mut reader = HelloReader::new();
    assert_eq!(reader.feed(b"GET / HTTP/1.1\r\n"), Err(BadHello::NotTls));
    assert_eq!(reader.feed(&hello(&[sni(ALLOWED)])), Err(BadHello::NotTls));
    let mut reader = HelloReader::new();
    let answer = reader.feed(&hello(&[sni(ALLOWED)]));
    assert_eq!(name_of(&answer), Some(ALLOWED));
    assert_eq!(reader.feed(b"anything"), answer);
    assert_eq!(reader.feed(b""), answer);
}

#[test]
fn what_may_follow_a_hello_is_not_looked_at() {
    let good = hello(&[sni(ALLOWED)]);
    for behind in [&[20, 3, 3, 0, 1, 1][..], &[23, 3, 3, 0x40, 0], &[22, 3, 3, 0, 0], &[0xff; 100]] {
        assert_eq!(name_of(&whole(&[&good, behind].concat())), Some(ALLOWED));
    }
}

#[test]
fn hellos_without_a_name_ask_for_nobody() {
    for stream in [
        hello(&[]),
        hello(&[(0x2a2a, vec![])]),
        record(&message(&front())), // no extensions at all, as before TLS 1.2
        seed("curl_address"),
    ] {
        assert_eq!(name_of(&whole(&stream)), None);
    }
}

/// Each row with the answer, and the answer byte by byte must be the same.
#[test]
fn evil_hellos_are_refused() {
    use BadHello::{DuplicateServerName, Malformed, NotTls, ServerName, ServerNameType};
    let named = || sni(ALLOWED);
    let list = |content: &[u8]| hello(&[(SERVER_NAME, content.to_vec())]);
    let raw = |front: &[u8], extensions: &[u8]| record(&message(&[front, extensions].concat()));
    let good = || message(&body(&[sni(ALLOWED)]));
    let mut long_session = front();
    long_session[34] = 33;
    long_session.insert(35, 9);
    let front_with = |suites: &[u8], compressions: &[u8]| {
        [&[3, 3][..], &[7; 32], &[0], &vector(2, suites), &vector(1, compressions)].concat()
    };
    let mut shorter = hello(&[sni(ALLOWED)]);
    shorter[8] -= 1;
    let table = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n".to_vec(), NotTls),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), NotTls),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), NotTls),
        ("SSLv2 hello", vec![0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10], NotTls),
        ("zeros", vec![0; 64], NotTls),
        ("PROXY protocol", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 443\r\n".to_vec(), NotTls),
        ("alert first", vec![21, 3, 3, 0, 2, 1, 0], Malformed),
        ("change_cipher_spec first", vec![20, 3, 3, 0, 1, 1], Malformed),
        ("application data first", vec![23, 3, 3, 0, 1, 0], Malformed),
        ("heartbeat first", vec![24, 3, 3, 0, 1, 0], Malformed),
        ("record of no bytes", vec![22, 3, 1, 0, 0], Malformed),
        ("record of no bytes later", [record(&good()[..9]), vec![22, 3, 1, 0, 0]].concat(), Malformed),
        ("alert in between", [record(&good()[..9]), vec![21, 3, 1, 0, 2, 1, 0]].concat(), Malformed),
        ("early data in between", [record(&good()[..9]), vec![23, 3, 1, 0, 2, 1, 0]].concat(), Malformed),
        ("unknown content in between", [record(&good()[..9]), vec![99, 3, 1]].concat(), Malformed),
        ("record too long", vec![22, 3, 1, 0x40, 1], Malformed),
        ("record much too long", vec![22, 3, 1, 0xff, 0xff], Malformed),
        ("server hello", record(&[2, 0, 0, 1, 0]), Malformed),
        ("hello request", record(&[0, 0, 0, 0]), Malformed),
        ("certificate", record(&[11, 0, 0, 3, 0, 0, 0]), Malformed),
        ("two hellos in a record", record(&[good(), good()].concat()), Malformed),
        ("a byte behind the hello", record(&[good(), vec![0]].concat()), Malformed),
        ("part of another message behind it", record(&[good(), vec![20, 0, 0]].concat()), Malformed),
        ("empty hello", record(&message(&[])), Malformed),
        ("session id too long", record(&message(&long_session)), Malformed),
        ("no cipher suites", raw(&front_with(&[], &[0]), &[0, 0]), Malformed),
        ("half a cipher suite", raw(&front_with(&[0x13, 1, 0x13], &[0]), &[0, 0]), Malformed),
        ("no compression methods", raw(&front_with(&[0x13, 1], &[]), &[0, 0]), Malformed),
        ("one byte of extensions", raw(&front(), &[0]), Malformed),
        ("bytes behind the extensions", raw(&front(), &[0, 0, 0]), Malformed),
        ("extensions longer than the hello", raw(&front(), &[0, 4, 0, 0]), Malformed),
        ("extension longer than the extensions", raw(&front(), &[0, 4, 0, 9, 0, 1]), Malformed),
        ("extensions that end within one", raw(&front(), &[0, 3, 0, 9, 0]), Malformed),
        ("message shorter than its record", shorter, Malformed),
        ("twice some extension", hello(&[(9, vec![]), named(), (9, vec![])]), Malformed),
        ("twice GREASE", hello(&[(0x1a1a, vec![]), named(), (0x1a1a, vec![])]), Malformed),
        ("pre_shared_key not last", hello(&[(PRE_SHARED_KEY, vec![1]), named()]), Malformed),
        ("twice the same name", hello(&[named(), named()]), DuplicateServerName),
        ("two names", hello(&[named(), sni("evil.test")]), DuplicateServerName),
        ("two names, far apart", hello(&[sni("evil.test"), (9, vec![]), named()]), DuplicateServerName),
        (
            "two names in a list",
            list(&vector(2, &[entry(0, b"allowed.test"), entry(0, b"evil.test")].concat())),
            DuplicateServerName,
        ),
        (
            "another kind behind the name",
            list(&vector(2, &[entry(0, b"allowed.test"), entry(1, b"x")].concat())),
            DuplicateServerName,
        ),
        (
            "another kind before the name",
            list(&vector(2, &[entry(1, b"x"), entry(0, b"allowed.test")].concat())),
            ServerNameType,
        ),
        ("another kind alone", list(&vector(2, &entry(255, b"allowed.test"))), ServerNameType),
        ("no name in the list", list(&vector(2, &[])), ServerNameType),
        ("no list", list(&[]), Malformed),
        ("list longer than the extension", list(&[0, 9, 0, 0, 1, b'a']), Malformed),
        ("list shorter than the extension", list(&[0, 4, 0, 0, 1, b'a', 0]), Malformed),
        ("name longer than the list", list(&[0, 4, 0, 0, 2, b'a']), Malformed),
        ("list that ends in the length", list(&[0, 2, 0, 0]), Malformed),
        ("a byte behind the name", list(&[0, 5, 0, 0, 1, b'a', 0]), DuplicateServerName),
        ("ALPN without a protocol", hello(&[(ALPN, vec![0, 0])]), Malformed),
        ("ALPN of no bytes", hello(&[(ALPN, vec![0, 1, 0])]), Malformed),
        ("ALPN that does not add up", hello(&[(ALPN, vec![0, 3, 9, b'h', b'2'])]), Malformed),
        ("no name at all in the entry", hello(&[sni("")]), ServerName(BadName::Empty)),
        ("the root", hello(&[sni(".")]), ServerName(BadName::Empty)),
        ("two dots", hello(&[sni("allowed.test..")]), ServerName(BadName::LabelLength)),
        ("NUL", hello(&[sni("allowed.test\0.evil.test")]), ServerName(BadName::Byte)),
        ("port", hello(&[sni("allowed.test:443")]), ServerName(BadName::Byte)),
        ("user", hello(&[sni("allowed.test@evil.test")]), ServerName(BadName::Byte)),
        ("space", hello(&[sni(" allowed.test")]), ServerName(BadName::Byte)),
        ("line", hello(&[sni("allowed.test\r\n")]), ServerName(BadName::Byte)),
        ("wildcard", hello(&[sni("*.wild.test")]), ServerName(BadName::Byte)),
        ("UTF-8", hello(&[sni("bücher.example")]), ServerName(BadName::Byte)),
        ("full-width dot", hello(&[sni("allowed。test")]), ServerName(BadName::Byte)),
        ("IPv4", hello(&[sni("203.0.113.5")]), ServerName(BadName::Address)),
        ("IPv4 as a number", hello(&[sni("3405803781")]), ServerName(BadName::Address)),
        ("IPv4 in octal", hello(&[sni("0313.0.0161.05")]), ServerName(BadName::Address)),
        ("IPv4 in hexadecimal", hello(&[sni("0xcb.0x0.0x71.0x5")]), ServerName(BadName::Address)),
        ("IPv6", hello(&[sni("2001:db8::1")]), ServerName(BadName::Byte)),
        ("IPv6 in brackets", hello(&[sni("[2001:db8::1]")]), ServerName(BadName::Byte)),
        ("254 bytes", hello(&[sni("a.".repeat(126) + "aa")]), ServerName(BadName::TooLong)),
        ("64 bytes in a label", hello(&[sni("a".repeat(64))]), ServerName(BadName::LabelLength)),
    ];
    for (what, stream, refusal) in table {
        assert_eq!(whole(&stream), Err(refusal), "{what}");
        assert_eq!(in_pieces(stream.chunks(1)), Err(refusal), "{what}, byte by byte");
    }
}

#[test]
fn refusals_are_counted_as_what_they_are() {
    use BadHello::{DuplicateServerName, Malformed, NotTls, ServerName, ServerNameType, TooLarge};
    for refusal in [NotTls, Malformed, TooLarge] {
        assert_eq!((refusal.reason(), refusal.named()), (Reason::NoName, Ok(None)));
    }
    for refusal in [ServerName(BadName::Address), DuplicateServerName, ServerNameType] {
        assert_eq!(refusal.reason(), Reason::BadName);
        assert!(refusal.named().is_err());
    }
}

/// What rustls' acceptor makes of a stream that is over.
fn rustls_reads(stream: &[u8]) -> Result<Option<Option<String>>, rustls::Error> {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = Cursor::new(stream);
    while acceptor.read_tls(&mut rest).is_ok_and(|read| read > 0) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                return Ok(Some(accepted.client_hello().server_name().map(str::to_owned)));
            }
            Err((error, _)) => return Err(error),
        }
    }
    Ok(None)
}

/// What the other TLS parser makes of a hello's body: every name in it.
fn tls_parser_reads(body: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (_, hello) = tls_parser::parse_tls_handshake_client_hello(body).ok()?;
    let (_, extensions) =
        tls_parser::parse_tls_client_hello_extensions(hello.ext.unwrap_or_default()).ok()?;
    let names = extensions.into_iter().filter_map(|extension| {
        let tls_parser::TlsExtension::SNI(names) = extension else { return None };
        Some(names.into_iter().map(|(_, name)| name.to_vec()))
    });
    Some(names.flatten().collect())
}

#[test]
fn rustls_and_tls_parser_read_the_same_names_in_real_hellos() {
    for (file, stream, name) in seeds() {
        let theirs = rustls_reads(&stream).unwrap().unwrap();
        assert_eq!(theirs.as_deref(), name, "{file}");
        let content = &stream[RECORD_HEADER + MESSAGE_HEADER..first_record(&stream)];
        let names = tls_parser_reads(content).unwrap();
        let names: Vec<_> = names.iter().map(|name| Name::parse(name).unwrap()).collect();
        assert_eq!(names.iter().map(Name::as_str).collect::<Vec<_>>(), Vec::from_iter(name), "{file}");
    }
}

/// A hello of any shape that could be read: what follows from the kind of an extension is not kept to.
fn any_hello() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        Just(b"allowed.test".to_vec()),
        "[a-zA-Z0-9._:@-]{0,12}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..8),
    ];
    let name =
        (prop_oneof![9 => Just(0u8), 1 => any::<u8>()], name).prop_map(|(kind, name)| entry(kind, &name));
    let names =
        proptest::collection::vec(name, 0..3).prop_map(|names| (SERVER_NAME, vector(2, &names.concat())));
    let other = (0u16..60, proptest::collection::vec(any::<u8>(), 0..6));
    let extension = prop_oneof![2 => names, 1 => other];
    proptest::collection::vec(extension, 0..5).prop_map(|extensions| message(&body(&extensions)))
}

/// A real hello or one of any shape, with some bytes changed, put in or taken out, in records of some size.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let real = proptest::sample::select(SEEDS)
        .prop_map(|(file, _)| seed(file))
        .prop_map(|stream| stream[RECORD_HEADER..first_record(&stream)].to_vec());
    let content = prop_oneof![real, any_hello()];
    let change = (any::<proptest::sample::Index>(), any::<u8>(), 0..4u8);
    let changes = proptest::collection::vec(change, 0..4);
    (content, changes, 1..2000usize).prop_map(|(mut content, changes, size)| {
        for (at, byte, how) in changes {
            let at = at.index(content.len());
            match how {
                0 => content.insert(at, byte),
                1 if content.len() > 1 => _ = content.remove(at),
                2 => content[at] = content[at].wrapping_add(1),
                _ => content[at] = byte,
            }
        }
        records(&content, size)
    })
}

/// The hello of a stream that is well-formed, with what this module reads of its extensions.
fn without_other_extensions(stream: &[u8]) -> Vec<u8> {
    let mut stream = Reader(stream);
    let mut content = Vec::new();
    while !stream.is_empty() {
        stream.take(3).unwrap();
        content.extend_from_slice(stream.vector(2).unwrap().0);
    }
    let mut rest = Reader(&content[MESSAGE_HEADER..]);
    rest.take(34).unwrap();
    for length_bytes in [1, 2, 1] {
        rest.vector(length_bytes).unwrap();
    }
    let front = &content[MESSAGE_HEADER..content.len() - rest.0.len()];
    if rest.is_empty() {
        return message(front);
    }
    let mut extensions = rest.vector(2).unwrap();
    let mut kept = Vec::new();
    while !extensions.is_empty() {
        let kind = extensions.number().unwrap();
        let content = extensions.vector(2).unwrap();
        if [SERVER_NAME, ALPN].contains(&kind) {
            kept.extend([&kind.to_be_bytes()[..], &vector(2, content.0)].concat());
        }
    }
    message(&[front, &vector(2, &kept)].concat())
}

proptest! {
    #[test]
    fn any_bytes_are_answered_alike_however_they_are_cut(
        stream in prop_oneof![mutated(), proptest::collection::vec(any::<u8>(), 0..600)],
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
    ) {
        let answer = whole(&stream);
        prop_assert_eq!(&in_pieces(stream.chunks(1)), &answer);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        prop_assert_eq!(&in_pieces(cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]])), &answer);
    }

    #[test]
    fn tls_parser_finds_the_same_name_and_no_other(stream in mutated()) {
        let Ok(Some(hello)) = whole(&stream) else { return Ok(()) };
        // It gives up in silence at an extension that it does not like.
        let names = tls_parser_reads(&without_other_extensions(&stream)[MESSAGE_HEADER..]).unwrap();
        let names = names.iter().map(Name::parse).collect::<Result<Vec<_>, _>>();
        prop_assert_eq!(names, Ok(Vec::from_iter(hello.server_name)));
    }

    #[test]
    fn where_rustls_reads_a_hello_too_it_reads_the_same_name(stream in mutated()) {
        let Ok(Some(hello)) = whole(&stream) else { return Ok(()) };
        let ours = hello.server_name.map(|name| name.as_str().to_owned());
        match rustls_reads(&stream) {
            Ok(Some(theirs)) => prop_assert_eq!(theirs.map(|name| name.to_ascii_lowercase()), ours),
            Ok(None) => prop_assert!(false, "rustls waits for more"),
            // It needs something of the client that does not matter here: signature algorithms, say.
            Err(rustls::Error::PeerIncompatible(_)) => {}
            // It found another extension malformed, of which only the length matters here: without
            // the others, there is nothing to find.
            Err(error) => match rustls_reads(&record(&without_other_extensions(&stream))) {
                Ok(Some(theirs)) => prop_assert_eq!(theirs, ours),
                Err(rustls::Error::PeerIncompatible(_)) => {}
                other => prop_assert!(false, "rustls refuses: {error}; and then: {other:?}"),
            },
        }
    }
}
