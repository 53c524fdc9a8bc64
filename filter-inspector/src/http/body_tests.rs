//! Tests of chunked bodies.

use proptest::prelude::*;

use super::*;

/// Where the body ended, if it did; with `skip`, data is passed over instead of shown.
fn follow(stream: &[u8], piece: usize, skip: bool) -> Result<(usize, bool), BadChunk> {
    let mut body = Chunked::new();
    let mut at = 0;
    while at < stream.len() && !body.is_finished() {
        let next = &stream[at..stream.len().min(at + piece)];
        at += if skip && body.plain() > 0 {
            usize::try_from(body.skip(next.len() as u64)).unwrap()
        } else {
            body.advance(next)?.consumed
        };
    }
    Ok((at, body.is_finished()))
}

fn whole(stream: &[u8]) -> Result<(usize, bool), BadChunk> {
    follow(stream, stream.len().max(1), false)
}

const GOOD: &[&str] = &[
    "0\r\n\r\n",
    "000\r\n\r\n",
    "0000000000000000\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;x\r\nhello\r\n0;y=z\r\n\r\n",
    "5; x = \"a;b, c\"\r\nhello\r\n0\r\n\r\n",
    "a\r\n0123456789\r\n0A\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n",
    "2\r\n\0\n\r\n0\r\nX-Sum: abc\r\nServer-Timing:\r\n\r\n",
];

#[test]
fn a_body_ends_where_it_says_and_nowhere_else() {
    for stream in GOOD {
        let len = stream.len();
        assert_eq!(whole(stream.as_bytes()), Ok((len, true)), "{stream:?}");
        for prefix in 0..len {
            assert_eq!(
                whole(&stream.as_bytes()[..prefix]),
                Ok((prefix, false)),
                "{stream:?}, {prefix} bytes"
            );
        }
        let pipelined = [stream.as_bytes(), b"GET / HTTP/1.1\r\n\r\n"].concat();
        for piece in 1..=pipelined.len() {
            for skip in [false, true] {
                assert_eq!(
                    follow(&pipelined, piece, skip),
                    Ok((len, true)),
                    "{stream:?} in pieces of {piece}"
                );
            }
        }
    }
}

#[test]
fn data_is_passed_over_unseen() {
    let mut body = Chunked::new();
    assert_eq!((body.plain(), body.skip(9)), (0, 0));
    assert_eq!(body.advance(b"7fffffffffffffff\r\n"), Ok(Advance { consumed: 18, finished: false }));
    assert_eq!(body.plain(), MAX_SIZE);
    assert_eq!(body.skip(MAX_SIZE - 3), MAX_SIZE - 3);
    assert_eq!(body.advance(b"ab"), Ok(Advance { consumed: 2, finished: false }));
    assert_eq!((body.plain(), body.skip(7), body.plain()), (1, 1, 0));
    assert_eq!(body.advance(b"\r\n0\r\n\r\nGET"), Ok(Advance { consumed: 7, finished: true }));
    assert_eq!(body.advance(b"GET"), Ok(Advance { consumed: 0, finished: true }));
    assert!(body.is_finished());
}

/// Each row with the answer, and the answer byte by byte must be the same.
#[test]
fn evil_bodies_are_refused() {
    use BadChunk::{Extension, ForbiddenTrailer, LineEnd, Size, TooLarge, Trailer};
    let extension = format!("5;{}\r\n", "x".repeat(1025));
    let trailers = format!("0\r\n{}", "X: abcdefgh\r\n".repeat(1300));
    let trailer_name = format!("0\r\n{}: a\r\n\r\n", "X".repeat(257));
    let endless = format!("0\r\nX: {}", "a".repeat(17_000));
    let table: &[(&str, &str, BadChunk)] = &[
        ("no size", "\r\nhello\r\n0\r\n\r\n", Size),
        ("no size but an extension", ";x\r\n", Size),
        ("space before", " 5\r\n", Size),
        ("space behind", "5 \r\n", Size),
        ("tab behind", "5\t\r\n", Size),
        ("space before an extension", "5 ;x\r\n", Size),
        ("plus", "+5\r\n", Size),
        ("minus", "-5\r\n", Size),
        ("0x", "0x5\r\n", Size),
        ("no digit", "5g\r\n", Size),
        ("underscore", "1_0\r\n", Size),
        ("seventeen digits", "00000000000000005\r\n", Size),
        ("beyond 63 bits", "8000000000000000\r\n", Size),
        ("beyond 64 bits", "10000000000000005\r\n", Size),
        ("NUL", "5\0\r\n", Size),
        ("bare LF behind the size", "5\nhello\r\n", Size),
        ("bare CR behind the size", "5\rhello\r\n", LineEnd),
        ("CR CR LF", "5\r\r\nhello\r\n", LineEnd),
        ("bare LF in an extension", "5;\nhello\r\n0\r\n\r\n", Extension),
        ("bare CR in an extension", "5;a\rb\r\n", LineEnd),
        ("NUL in an extension", "5;\0\r\n", Extension),
        ("escape in an extension", "5;\u{1b}\r\n", Extension),
        ("long extension", &extension, Extension),
        ("data longer than the size", "5\r\nhelloX\r\n", LineEnd),
        ("data shorter than the size", "5\r\nhell\r\n0\r\n\r\n", LineEnd),
        ("bare LF behind data", "5\r\nhello\n0\r\n\r\n", LineEnd),
        ("bare CR behind data", "5\r\nhello\r0\r\n\r\n", LineEnd),
        ("no end of data", "5\r\nhello0\r\n\r\n", LineEnd),
        ("bare LF at the end", "0\r\n\n", Trailer),
        ("bare CR at the end", "0\r\n\rX", LineEnd),
        ("a request where trailers belong", "0\r\nGET / HTTP/1.1\r\n", Trailer),
        ("trailer without colon", "0\r\nX\r\n\r\n", Trailer),
        ("trailer without name", "0\r\n: a\r\n\r\n", Trailer),
        ("space before the colon", "0\r\nX : a\r\n\r\n", Trailer),
        ("obs-fold", "0\r\nX: a\r\n b\r\n\r\n", Trailer),
        ("space first", "0\r\n X: a\r\n\r\n", Trailer),
        ("bare LF behind a trailer", "0\r\nX: a\n\r\n", Trailer),
        ("bare CR in a trailer", "0\r\nX: a\rb\r\n\r\n", LineEnd),
        ("NUL in a trailer", "0\r\nX: \0\r\n\r\n", Trailer),
        ("many trailers", &trailers, TooLarge),
        ("endless trailer", &endless, TooLarge),
        ("long name", &trailer_name, Trailer),
        ("Host", "0\r\nHost: evil.test\r\n\r\n", ForbiddenTrailer),
        ("Content-Length", "0\r\nX: a\r\nCONTENT-LENGTH: 5\r\n\r\n", ForbiddenTrailer),
        ("Transfer-Encoding", "0\r\nTransfer-Encoding: chunked\r\n\r\n", ForbiddenTrailer),
        ("Connection", "0\r\nConnection: close\r\n\r\n", ForbiddenTrailer),
        ("Upgrade", "0\r\nUpgrade: h2c\r\n\r\n", ForbiddenTrailer),
        ("Authorization", "0\r\nauthorization: x\r\n\r\n", ForbiddenTrailer),
        ("lookalike", "0\r\nContent_Length: 5\r\n\r\n", ForbiddenTrailer),
    ];
    for (what, stream, refusal) in table {
        assert_eq!(whole(stream.as_bytes()), Err(*refusal), "{what}: {stream:?}");
        assert_eq!(follow(stream.as_bytes(), 1, false), Err(*refusal), "{what}, byte by byte");
        assert_eq!(refusal.reason(), Reason::BadRequest);
    }
}

#[test]
fn forbidden_trailers_are_in_the_form_that_names_are_compared_in() {
    for name in NOT_IN_TRAILERS {
        assert_eq!(head::plain(name), *name);
    }
}

proptest! {
    #[test]
    fn what_was_put_in_chunks_is_found(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
        upper in any::<bool>(),
        piece in 1..60usize,
        skip in any::<bool>(),
    ) {
        let mut stream = Vec::new();
        for chunk in &chunks {
            let len = chunk.len();
            let size = if upper { format!("{len:X}\r\n") } else { format!("{len:03x};a=b\r\n") };
            stream.extend([size.as_bytes(), chunk, b"\r\n"].concat());
        }
        stream.extend(b"0\r\n\r\n");
        let len = stream.len();
        stream.extend(b"5\r\n");
        prop_assert_eq!(follow(&stream, piece, skip), Ok((len, true)));
    }

    #[test]
    fn any_bytes_are_answered_alike_however_they_are_cut(
        stream in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            "[0-9a-f;\r\n :X]{0,40}".prop_map(String::into_bytes),
            (proptest::sample::select(GOOD), any::<proptest::sample::Index>(), any::<u8>()).prop_map(
                |(good, at, byte)| {
                    let mut stream = good.as_bytes().to_vec();
                    let at = at.index(stream.len());
                    stream[at] = byte;
                    stream
                }
            ),
        ],
        piece in 1..20usize,
        skip in any::<bool>(),
    ) {
        prop_assert_eq!(follow(&stream, piece, skip), whole(&stream));
    }
}
