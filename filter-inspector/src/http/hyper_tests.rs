//! hyper's reading of the requests that are accepted here.

use std::cell::Cell;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::hyper::{body::Incoming, server::conn::http1, service::service_fn};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::http::body::Chunked;

/// What hyper makes of a request.
#[derive(Debug, PartialEq, Eq)]
struct Theirs {
    method: String,
    hosts: Vec<Vec<u8>>,
    authority: Option<String>,
    http10: bool,
    /// Bytes of its body, `None` if it does not end.
    body: Option<usize>,
}

/// Has a hyper server read `stream`, which ends there; gives every request that it found.
fn hyper_reads(stream: &[u8]) -> Vec<Theirs> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn({
        let found = Arc::clone(&found);
        move |request: ::hyper::Request<Incoming>| {
            let found = Arc::clone(&found);
            async move {
                let (parts, body) = request.into_parts();
                let hosts = parts.headers.get_all("host").iter().map(|host| host.as_bytes().to_vec());
                let theirs = Theirs {
                    method: parts.method.to_string(),
                    hosts: hosts.collect(),
                    authority: parts.uri.authority().map(ToString::to_string),
                    http10: parts.version == ::hyper::Version::HTTP_10,
                    body: body.collect().await.ok().map(|body| body.to_bytes().len()),
                };
                found.lock().unwrap().push(theirs);
                Ok::<_, Infallible>(::hyper::Response::new(Empty::<&[u8]>::new()))
            }
        }
    });
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connection =
            http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service);
        client.write_all(stream).await.unwrap();
        client.shutdown().await.unwrap();
        let drain = async {
            let mut answers = Vec::new();
            client.read_to_end(&mut answers).await
        };
        let both = async { tokio::join!(connection, drain) };
        // An error is an answer, too: then there are fewer requests than were sent.
        _ = tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    });
    Arc::into_inner(found).unwrap().into_inner().unwrap()
}

/// A body of the kind that the head announces, and its length as data; `None` for more than is sent here.
fn a_body(body: Body) -> Option<(Vec<u8>, usize)> {
    match body {
        Body::None => Some((vec![], 0)),
        Body::Length(len) => {
            let len = usize::try_from(len).ok().filter(|len| *len < 1000)?;
            Some((vec![b'x'; len], len))
        }
        Body::Chunked => {
            let body = b"3\r\nabc\r\n0A;x=\"y\"\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n".to_vec();
            assert!(Chunked::new().advance(&body).unwrap().finished);
            Some((body, 13))
        }
    }
}

/// Whether hyper read the request and its body as they are read here, and found the next request behind it.
/// hyper may refuse more than is refused here.
fn check(head: &[u8]) -> bool {
    let Ok(Some(request)) = whole(head) else { return false };
    let Some((body, len)) = a_body(request.body) else { return false };
    let next = "NEXT / HTTP/1.1\r\nHost: next.test\r\n\r\n";
    let stream = [&head[..request.head_len], &body, next.as_bytes()].concat();
    let theirs = hyper_reads(&stream);
    let Some(first) = theirs.first() else { return false };
    let method = head.split(|byte| *byte == b' ').next().unwrap();
    let shown = head.escape_ascii();
    assert_eq!(first.method.as_bytes(), method, "{shown}");
    assert_eq!(first.body, Some(len), "{shown}");
    assert_eq!(first.http10, request.version_minor == 0, "{shown}");
    let name = |host: &[u8]| authority::parse(host, 80);
    match &request.name {
        Ok(None) => assert!(first.hosts.is_empty(), "{shown}"),
        Ok(Some(ours)) => {
            assert_eq!(first.hosts.len(), 1, "{shown}");
            assert_eq!(name(&first.hosts[0]).as_ref(), Ok(ours), "{shown}");
            if let Some(authority) = &first.authority {
                assert_eq!(name(authority.as_bytes()).as_ref(), Ok(ours), "{shown}");
            }
        }
        Err(_) => assert_eq!(first.hosts.len(), 1, "{shown}"),
    }
    // Whether it reads on is its own affair; what it reads then is the next request.
    if let Some(second) = theirs.get(1) {
        assert_eq!((second.method.as_str(), theirs.len()), ("NEXT", 2), "{shown}");
        assert!(request.keep_alive, "{shown}");
    }
    true
}

#[test]
fn real_requests_are_read_alike() {
    let mut count = 0;
    for (file, stream) in seeds() {
        let Ok(Some(request)) = whole(&stream) else { continue };
        assert!(check(&stream[..request.head_len]), "{file}");
        count += 1;
    }
    assert!(count > 10);
}

#[test]
fn whatever_is_accepted_hyper_reads_alike() {
    let cases = Config::default().cases.max(512);
    let read = Cell::new(0);
    let mut runner = TestRunner::new(Config::with_cases(cases));
    runner
        .run(&tricky(), |head| {
            read.set(read.get() + u32::from(check(&head)));
            Ok(())
        })
        .unwrap();
    assert!(read.get() > cases / 20, "of {cases} requests only {} were accepted and read", read.get());
}
