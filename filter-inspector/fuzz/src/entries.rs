//! What each fuzz target does with an input, shared with the test that replays what was found.
//!
//! An entry panics when the parser breaks a promise: that an answer does not depend on how the input is cut
//! into pieces, that a name is canonical, that what is accepted means the same to another parser.

use std::io::Cursor;

use filter_inspector::dns::{
    answer,
    query::{self, Parsed},
};
use filter_inspector::hello::{BadHello, ClientHello, HelloReader};
use filter_inspector::host::Transport;
use filter_inspector::http::{
    body::{BadChunk, Chunked},
    request::{self, Body, Method, Request, RequestReader},
    response::{self, ResponseReader},
};
use filter_policy::Name;

/// An entry: its name, which is that of its directory of seeds too, and what it does.
pub type Entry = (&'static str, fn(&[u8]));

/// All of them.
pub const ENTRIES: &[Entry] = &[
    ("hello", hello),
    ("request", request),
    ("response", response),
    ("chunked", chunked),
    ("name", name),
    ("dns", dns),
];

/// A client's first bytes.
pub fn hello(input: &[u8]) {
    let whole = HelloReader::new().feed(input);
    for piece in pieces(input) {
        assert_eq!(feed(input, piece), whole, "in pieces of {piece}");
    }
    let Ok(Some(hello)) = whole else { return };
    if let Some(name) = &hello.server_name {
        assert_eq!(Name::parse(name.as_str()).as_ref(), Ok(name));
    }
    // What rustls takes for a hello too, it must take for the same. It ignores a name that ends in a dot.
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = Cursor::new(input);
    while acceptor.read_tls(&mut rest).is_ok_and(|read| read > 0) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let theirs = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                let ours = hello.server_name.as_ref().map(|name| name.as_str().to_owned());
                assert!(theirs == ours || theirs.is_none(), "rustls reads {theirs:?}, not {ours:?}");
                return;
            }
            Err(_) => return,
        }
    }
}

fn feed(input: &[u8], piece: usize) -> Result<Option<ClientHello>, BadHello> {
    let mut reader = HelloReader::new();
    let mut last = Ok(None);
    for piece in input.chunks(piece) {
        last = reader.feed(piece);
    }
    last
}

/// The head of a request.
pub fn request(input: &[u8]) {
    let whole = request::parse(input, 80);
    for piece in pieces(input) {
        let mut reader = RequestReader::new(80);
        let cut = ends(input, piece).find_map(|end| reader.advance(&input[..end]).transpose());
        assert_eq!(cut, whole.clone().transpose(), "in pieces of {piece}");
    }
    let Ok(Some(request)) = whole else { return };
    if let Ok(Some(name)) = &request.name {
        assert_eq!(Name::parse(name.as_str()).as_ref(), Ok(name));
    }
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut theirs = httparse::Request::new(&mut fields);
    assert_eq!(theirs.parse(input), Ok(httparse::Status::Complete(request.head_len)));
    assert_eq!(theirs.version, Some(request.version_minor));
    assert_eq!(theirs.method == Some("HEAD"), request.method == Method::Head);
    let values = |name: &str| {
        let same = theirs.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        same.map(|field| field.value.to_vec()).collect::<Vec<_>>()
    };
    let body = match request.body {
        Body::None => (vec![], vec![]),
        Body::Length(length) => (vec![length.to_string().into_bytes()], vec![]),
        Body::Chunked => (vec![], vec![b"chunked".to_vec()]),
    };
    assert_eq!((values("content-length"), values("transfer-encoding")), body);
    assert!(values("host").len() <= 1);
}

/// The head of a response. Bits of the first byte say to which request.
pub fn response(input: &[u8]) {
    let Some((asked, head)) = input.split_first() else { return };
    let request = Request {
        head_len: 0,
        name: Ok(None),
        method: if asked & 1 == 0 { Method::Other } else { Method::Head },
        body: Body::None,
        upgrade: asked & 2 != 0,
        expects_continue: false,
        keep_alive: true,
        version_minor: 1,
    };
    let whole = response::parse(head, &request);
    for piece in pieces(head) {
        let mut reader = ResponseReader::new(&request);
        let cut = ends(head, piece).find_map(|end| reader.advance(&head[..end]).transpose());
        assert_eq!(cut, whole.clone().transpose(), "in pieces of {piece}");
    }
    let Ok(Some(response)) = whole else { return };
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut theirs = httparse::Response::new(&mut fields);
    let mut config = httparse::ParserConfig::default();
    config.allow_obsolete_multiline_headers_in_responses(true);
    assert_eq!(config.parse_response(&mut theirs, head), Ok(httparse::Status::Complete(response.head_len)));
    assert_eq!((theirs.version.is_some(), theirs.code), (true, Some(response.status)));
}

/// A chunked body and what follows it.
pub fn chunked(input: &[u8]) {
    let whole = follow(input, input.len().max(1), false);
    for piece in pieces(input) {
        assert_eq!(follow(input, piece, false), whole, "in pieces of {piece}");
        assert_eq!(follow(input, piece, true), whole, "skipping, in pieces of {piece}");
    }
    let Ok((consumed, true)) = whole else { return };
    assert_eq!(decoded(&input[..consumed]), Some(()), "another reader finds another end");
}

/// Where the body ended, if it did; with `skip`, data is passed over instead of shown.
fn follow(input: &[u8], piece: usize, skip: bool) -> Result<(usize, bool), BadChunk> {
    let mut body = Chunked::new();
    let mut at = 0;
    while at < input.len() && !body.is_finished() {
        let next = &input[at..input.len().min(at + piece)];
        at += if skip && body.plain() > 0 {
            body.skip(next.len() as u64) as usize
        } else {
            body.advance(next)?.consumed
        };
    }
    Ok((at, body.is_finished()))
}

/// Reads the chunks with another parser's eyes; `None` where its end is not the input's.
fn decoded(mut body: &[u8]) -> Option<()> {
    loop {
        let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(body) else {
            return None;
        };
        body = body.get(line..)?;
        if size == 0 {
            break;
        }
        body = body.get(usize::try_from(size).ok()?..)?.strip_prefix(b"\r\n")?;
    }
    let mut fields = [httparse::EMPTY_HEADER; 16 * 1024 / 4];
    match httparse::parse_headers(body, &mut fields) {
        Ok(httparse::Status::Complete((end, _))) if end == body.len() => Some(()),
        _ => None,
    }
}

/// Bytes that stand where a name belongs.
pub fn name(input: &[u8]) {
    let named = filter_inspector::authority::parse(input, 80);
    if let Ok(name) = &named {
        let text = name.as_str();
        assert_eq!(Name::parse(text).as_ref(), Ok(name));
        assert_eq!(named, filter_inspector::authority::parse(format!("{text}.:80").as_bytes(), 80));
        assert!(text.len() <= 253 && text.bytes().all(|byte| !byte.is_ascii_uppercase()));
        assert!(text.parse::<std::net::IpAddr>().is_err());
    }
}

/// What a sandbox asks a resolver.
pub fn dns(input: &[u8]) {
    match query::parse(input) {
        Parsed::Nothing => {}
        Parsed::Rejected(header, code) => {
            let answer = answer::write_bare(&header, code).unwrap();
            assert_eq!((answer.len(), &answer[..2]), (12, &input[..2]));
        }
        Parsed::Query(query) => {
            if let Some(name) = query.host() {
                assert_eq!(Name::parse(name.as_str()), Ok(name));
            }
            for (over, room) in [(Transport::Udp, query.payload()), (Transport::Tcp, u16::MAX)] {
                let answer = answer::write(&query, answer::minimal(&query), over).unwrap();
                assert!(answer.len() <= room.into() && answer[..2] == input[..2] && answer[2] & 0x80 != 0);
            }
        }
    }
}

/// Sizes of pieces to cut an input into: the smallest, and some that depend on it.
fn pieces(input: &[u8]) -> impl Iterator<Item = usize> {
    let first = input.first().copied().map_or(2, usize::from);
    let last = input.last().copied().map_or(3, usize::from);
    [1, first.max(2), last.max(3)].into_iter()
}

/// Where the pieces end.
fn ends(input: &[u8], piece: usize) -> impl Iterator<Item = usize> {
    (piece..input.len()).step_by(piece).chain([input.len()])
}
