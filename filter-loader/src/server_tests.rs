use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream as Blocking,
    thread,
};

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::{
    client::Client,
    error::ErrorCode,
    protocol::{Stats, tests::show},
};

/// Knows one sandbox, `there`.
struct Fake {
    delay: Duration,
}

impl Control for Fake {
    async fn attach(&self, request: AttachRequest) -> Result<Show, ControlError> {
        time::sleep(self.delay).await;
        match request.id.as_str() {
            "there" => Err(ControlError::conflict("the id `there` is taken")),
            "panic" => panic!("as a defect would"),
            id => Ok(Show { policy: request.policy.unwrap_or_default(), ..show(id) }),
        }
    }

    async fn update(&self, request: UpdateRequest) -> Result<Show, ControlError> {
        filter_policy::Policy::from_value(request.policy, &Default::default())?;
        self.show(request.id).await
    }

    async fn detach(&self, id: SandboxId) -> Result<(), ControlError> {
        self.show(id).await.map(|_| ())
    }

    async fn list(&self) -> Result<Vec<Summary>, ControlError> {
        Ok(vec![show("there").into()])
    }

    async fn show(&self, id: SandboxId) -> Result<Show, ControlError> {
        if id.as_str() == "there" { Ok(show("there")) } else { Err(ControlError::not_found(id)) }
    }

    async fn stats(&self, _: Option<SandboxId>) -> Result<Stats, ControlError> {
        Ok(Stats::new(Vec::new(), 0))
    }

    async fn doctor(&self) -> Result<Value, ControlError> {
        Ok(json!({ "healthy": true }))
    }
}

/// A server on a thread of its own, stopped and waited for when it goes.
struct Server {
    directory: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(bounds: Bounds, delay: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/control.sock");
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = Listener::bind(&path).unwrap();
                ready.send(()).unwrap();
                let shutdown = async {
                    let _ = stopped.await;
                };
                serve_within(bounds, listener, Arc::new(Fake { delay }), shutdown).await;
            });
        });
        is_ready.recv().unwrap();
        Self { directory, stop: Some(stop), thread: Some(thread) }
    }

    fn new() -> Self {
        Self::start(Bounds::default(), Duration::ZERO)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("sub/control.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.path())
    }

    fn connect(&self) -> Blocking {
        Blocking::connect(self.path()).unwrap()
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.stop.is_some() {
            self.stop();
        }
    }
}

fn id(text: &str) -> SandboxId {
    text.parse().unwrap()
}

fn attach(name: &str) -> Request {
    Request::Attach(AttachRequest {
        id: id(name),
        iface: "veth0".to_owned(),
        addrs: Default::default(),
        mac: None,
        policy: None,
    })
}

fn error_line(stream: &Blocking) -> ControlError {
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line).unwrap();
    protocol::decode_response(&line).unwrap_err()
}

#[test]
fn every_request_reaches_its_method() {
    let server = Server::new();
    let client = server.client();
    assert!(matches!(client.ask(&attach("new")).unwrap(), Reply::Sandbox(show) if show.id == id("new")));
    assert_eq!(client.ask(&attach("there")).unwrap_err().code, ErrorCode::Conflict);
    let update = |name: &str, policy: Value| Request::Update(UpdateRequest { id: id(name), policy });
    assert!(matches!(client.ask(&update("there", json!({}))).unwrap(), Reply::Sandbox(_)));
    let refused = client.ask(&update("there", json!({ "denyOut": ["x", "y"] }))).unwrap_err();
    assert_eq!((refused.code, refused.problems.len()), (ErrorCode::InvalidPolicy, 2));
    assert_eq!(client.ask(&Request::Detach { id: id("there") }).unwrap(), Reply::Done);
    assert_eq!(client.ask(&Request::Show { id: id("gone") }).unwrap_err().code, ErrorCode::NotFound);
    assert!(matches!(client.ask(&Request::List).unwrap(), Reply::Sandboxes(list) if list.len() == 1));
    assert!(matches!(client.ask(&Request::Stats { id: None }).unwrap(), Reply::Stats(_)));
    assert!(matches!(client.ask(&Request::Doctor).unwrap(), Reply::Doctor(_)));
    assert!(matches!(client.ask(&Request::Ping).unwrap(), Reply::Pong { .. }));
}

#[test]
fn only_the_owner_may_open_the_socket_and_it_goes_with_the_server() {
    let mut server = Server::new();
    assert_eq!(fs::metadata(server.path()).unwrap().permissions().mode() & 0o777, 0o600);
    server.stop();
    assert!(!server.path().exists());
    let error = server.client().ask(&Request::Ping).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    assert!(error.message.contains("control.sock") && error.message.contains("sandbox-filter run"));
}

#[test]
fn garbage_is_answered_and_the_connection_goes_on() {
    let server = Server::new();
    let mut stream = server.connect();
    stream.write_all(b"\xff\xfe nonsense\n\n{\"version\":9,\"request\":\"list\"}\n").unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut next = || {
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).unwrap();
        protocol::decode_response(&line)
    };
    assert_eq!(next().unwrap_err().code, ErrorCode::Usage);
    assert_eq!(next().unwrap_err().code, ErrorCode::Usage);
    assert!(next().unwrap_err().message.contains("speaks version 1"));
    stream.write_all(&protocol::encode_request(&Request::List).unwrap()).unwrap();
    assert!(matches!(next().unwrap(), Reply::Sandboxes(_)));
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(lines.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_line_that_is_too_long_is_refused_however_it_comes() {
    let bounds = Bounds { line: 1000, ..Bounds::default() };
    let server = Server::start(bounds, Duration::ZERO);
    let mut stream = server.connect();
    stream.write_all(&[b'x'; 1001]).unwrap();
    assert!(error_line(&stream).message.contains("1000 bytes"));
    // The client learns the reason even though its write fails half-way.
    let policy = json!({ "denyOut": vec!["10.0.0.0/8"; 200_000] });
    let update = Request::Update(UpdateRequest { id: id("there"), policy });
    assert!(server.client().ask(&update).unwrap_err().message.contains("1000 bytes"));
    let exact = [&[b'x'; 1000][..], b"\n"].concat();
    let mut stream = server.connect();
    stream.write_all(&exact).unwrap();
    assert!(error_line(&stream).message.contains("no request"));
}

#[test]
fn a_policy_with_a_million_prefixes_fits() {
    let server = Server::new();
    let nets: Vec<String> = (0..1_000_000_u32)
        .map(|n| format!("2001:db8:1111:2222:3333:4444:{:04x}:{:04x}/128", n >> 16, n & 0xffff))
        .collect();
    let request = Request::Attach(AttachRequest {
        id: id("big"),
        iface: "veth0".to_owned(),
        addrs: Default::default(),
        mac: None,
        policy: Some(json!({ "denyOut": nets })),
    });
    let Reply::Sandbox(show) = server.client().ask(&request).unwrap() else { panic!("another reply") };
    assert_eq!(show.policy["denyOut"].as_array().unwrap().len(), 1_000_000);
}

#[test]
fn slow_clients_are_sent_away_and_others_served_meanwhile() {
    let bounds = Bounds { patience: Duration::from_millis(200), ..Bounds::default() };
    let server = Server::start(bounds, Duration::ZERO);
    let mut slow = server.connect();
    slow.write_all(b"{\"version\":1,").unwrap();
    assert!(server.client().ask(&Request::Ping).is_ok());
    assert!(error_line(&slow).message.contains("no whole request"));
    assert_eq!(slow.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let server = Server::start(Bounds { connections: 4, ..Bounds::default() }, Duration::from_millis(20));
    thread::scope(|scope| {
        for n in 0..40 {
            let client = server.client();
            scope.spawn(move || assert!(client.ask(&attach(&format!("a{n}"))).is_ok()));
        }
    });
}

#[test]
fn a_panic_costs_one_connection_and_no_more() {
    let server = Server::new();
    assert_eq!(server.client().ask(&attach("panic")).unwrap_err().code, ErrorCode::Failed);
    assert!(server.client().ask(&Request::Ping).is_ok());
}

#[test]
fn requests_under_way_are_answered_at_shutdown_and_idle_clients_are_not_waited_for() {
    let mut server = Server::start(Bounds::default(), Duration::from_millis(300));
    let _idle = server.connect();
    let client = server.client();
    let asked = thread::spawn(move || client.ask(&attach("late")));
    thread::sleep(Duration::from_millis(100));
    let begun = std::time::Instant::now();
    server.stop();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(asked.join().unwrap().is_ok());
}

#[tokio::test]
async fn only_a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(Listener::bind(&path).unwrap_err().code, ErrorCode::Conflict);
    drop(listener);
    fs::write(&path, "precious").unwrap();
    assert_eq!(Listener::bind(&path).unwrap_err().code, ErrorCode::Failed);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}
