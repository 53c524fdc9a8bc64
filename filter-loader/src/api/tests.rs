use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::{
    api::listen::{Bounds, ControlSocket, Tcp, serve},
    client::Client,
    config::Config,
    daemon::tokens::Seed,
    error::ErrorCode,
    protocol::{AttachRequest, SandboxId},
    sandboxes::tests::{FakeControl, FakeProvider},
};

const KEYS: &str = "
[[api_keys]]
key = 'key-a'
concurrent_sandboxes = 3
create_rate = { requests = 100, per = '1s' }
[[api_keys]]
key = 'key-b'
tier = 'hobby'
[limits]
management_api = { requests = 40, per = '60s' }
";

/// The API without a kernel, on a thread of its own.
struct Server {
    directory: TempDir,
    address: SocketAddr,
    provider: Arc<FakeProvider>,
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

impl Server {
    fn new() -> Self {
        Self::with(KEYS, Bounds::default())
    }

    fn with(config: &str, bounds: Bounds) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (path, state) = (directory.path().join("sub/control.sock"), directory.path().to_owned());
        let config = Config::parse(Path::new("test"), config).unwrap();
        let provider = Arc::new(FakeProvider::default());
        let (stop, stopped) = watch::channel(false);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let made_by = provider.clone();
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let control = Arc::new(FakeControl::default());
                let sandboxes = Arc::new(Sandboxes::new(control.clone(), made_by, &state).unwrap());
                let domain = "sandbox.test".to_owned();
                let api = Arc::new(Api { control, sandboxes, host: Allowance::default(), domain });
                let keys = Arc::new(Keys::new(&config, &Seed::of_owners(&state).unwrap()));
                let socket = ControlSocket::bind(&path).unwrap();
                let tcp = Tcp::bind("127.0.0.1:0".parse().unwrap(), bounds).unwrap();
                ready.send(tcp.address().unwrap()).unwrap();
                let told = || {
                    let mut stopped = stopped.clone();
                    async move {
                        let _ = stopped.wait_for(|stopped| *stopped).await;
                    }
                };
                tokio::join!(
                    serve(bounds, socket, for_operator(api.clone()), told()),
                    serve(bounds, tcp, for_keys(api, keys), told())
                );
            });
        });
        let address = is_ready.recv().unwrap();
        Self { directory, address, provider, stop, thread: Some(thread) }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("sub/control.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.path())
    }

    /// Asks over TCP.
    fn ask(&self, key: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.ask_with(&format!("X-API-Key: {key}\r\n"), method, path, body.map(|body| body.to_string()))
    }

    fn ask_with(&self, headers: &str, method: &str, path: &str, body: Option<String>) -> Answer {
        let body = body.unwrap_or_default();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        exchange(TcpStream::connect(self.address).unwrap(), request.as_bytes())
    }

    /// Asks on the control socket.
    fn operate(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        exchange(UnixStream::connect(self.path()).unwrap(), request.as_bytes())
    }

    fn create(&self, key: &str, body: Value) -> String {
        let made = self.ask(key, "POST", "/sandboxes", Some(body));
        assert_eq!(made.status, 201, "{made:?}");
        made.body["sandboxID"].as_str().unwrap().to_owned()
    }

    fn stop(&mut self) {
        self.stop.send(true).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
    }
}

fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Answer {
    // A server that refuses early may close before everything is written.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() };
    Answer { status, head: head.to_owned(), body }
}

fn attach(name: &str) -> AttachRequest {
    AttachRequest {
        id: name.parse().unwrap(),
        iface: "veth0".to_owned(),
        addrs: Default::default(),
        mac: None,
        policy: None,
    }
}

fn id(text: &str) -> SandboxId {
    text.parse().unwrap()
}

#[test]
fn the_command_lines_requests_reach_their_operations() {
    let server = Server::new();
    let client = server.client();
    let attached = client.attach(&attach("one")).unwrap();
    assert_eq!(attached.id, id("one"));
    assert_eq!(attached.tokens.unwrap().traffic_access_token, "traffic");
    assert_eq!(client.attach(&attach("one")).unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(client.update(&id("one"), &json!({ "denyOut": ["1.1.1.1"] })).unwrap().generation, 2);
    let refused = client.update(&id("one"), &json!({ "denyOut": ["x", "y"] })).unwrap_err();
    assert_eq!((refused.code, refused.problems.len()), (ErrorCode::InvalidPolicy, 2));
    assert_eq!(refused.pointer.as_deref(), Some("/denyOut/0"));
    assert_eq!(client.show(&id("one"), false).unwrap().tokens, None);
    assert!(client.show(&id("one"), true).unwrap().tokens.is_some());
    assert_eq!(client.show(&id("gone"), false).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(client.list().unwrap().len(), 1);
    assert!(client.stats(None).is_ok() && client.stats(Some(&id("one"))).is_ok());
    assert!(client.doctor().is_ok());
    client.detach(&id("one")).unwrap();
    assert_eq!(client.detach(&id("one")).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(client.attach(&attach("panic")).unwrap_err().code, ErrorCode::Failed);
    assert!(client.list().is_ok(), "a panic costs one request and no more");
}

#[test]
fn only_the_owner_may_open_the_socket_and_it_goes_with_the_server() {
    let mut server = Server::new();
    assert_eq!(fs::metadata(server.path()).unwrap().permissions().mode() & 0o777, 0o600);
    server.stop();
    assert!(!server.path().exists());
    let error = server.client().list().unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    assert!(error.message.contains("control.sock") && error.message.contains("sandbox-filter run"));
}

#[test]
fn e2bs_routes_have_e2bs_shapes() {
    let server = Server::new();
    let made = server.ask(
        "key-a",
        "POST",
        "/v2/sandboxes",
        Some(json!({
            "templateID": "base", "timeout": 60, "metadata": { "app": "x" }, "envVars": {}, "autoPause": false,
            "autoPauseMemory": true, "autoResume": { "enabled": false }, "mcp": null, "iam": {}, "volumeMounts": [],
            "allow_internet_access": false,
            "network": { "allowOut": ["1.1.1.1"], "allowPublicTraffic": null, "rules": {} },
        })),
    );
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.body["sandboxID"].as_str().unwrap();
    let expected = json!({
        "templateID": "base", "sandboxID": id, "clientID": "sandbox-filter", "envdVersion": "0.5.13",
        "envdAccessToken": "envd", "trafficAccessToken": "traffic", "domain": "sandbox.test",
    });
    assert_eq!(made.body, expected);

    let detail = server.ask("key-a", "GET", &format!("/sandboxes/{id}"), None);
    assert_eq!(detail.status, 200);
    for (field, value) in [
        ("sandboxID", json!(id)),
        ("state", json!("running")),
        ("allowInternetAccess", json!(false)),
        ("metadata", json!({ "app": "x" })),
        ("lifecycle", json!({ "autoResume": false, "onTimeout": "kill" })),
        ("generation", json!(1)),
        ("enforced", json!(true)),
    ] {
        assert_eq!(detail.body[field], value, "{field}");
    }
    assert_eq!(detail.body["network"]["allowOut"], json!(["1.1.1.1"]));
    assert!(detail.body["network"].get("allowInternetAccess").is_none());

    let connected =
        server.ask("key-a", "POST", &format!("/v2/sandboxes/{id}/connect"), Some(json!({ "timeout": 1 })));
    assert_eq!((connected.status, &connected.body), (200, &expected));
    for path in
        ["/sandboxes", "/v2/sandboxes", "/v2/sandboxes?metadata=app%3Dx&state=running,paused&limit=100"]
    {
        let list = server.ask("key-a", "GET", path, None);
        assert_eq!((list.status, &list.body[0]["sandboxID"]), (200, &json!(id)), "{path}");
    }
    for path in ["/v2/sandboxes?metadata=app%3Dy", "/v2/sandboxes?state=paused", "/v2/sandboxes?template=t"] {
        assert_eq!(server.ask("key-a", "GET", path, None).body, json!([]), "{path}");
    }
    let timeout =
        server.ask("key-a", "POST", &format!("/sandboxes/{id}/timeout"), Some(json!({ "timeout": 9 })));
    assert_eq!((timeout.status, timeout.body), (204, Value::Null));
    let killed = server.ask("key-a", "DELETE", &format!("/sandboxes/{id}"), None);
    assert_eq!((killed.status, killed.body), (204, Value::Null));
    let gone = server.ask("key-a", "DELETE", &format!("/sandboxes/{id}"), None);
    let message = format!("Sandbox \"{id}\" doesn't exist or you don't have access to it");
    assert_eq!((gone.status, gone.body), (404, json!({ "code": 404, "message": message })));
}

#[test]
fn a_list_comes_in_pages() {
    let server = Server::new();
    let ids: Vec<_> = (0..3).map(|_| server.create("key-a", json!({ "templateID": "t" }))).collect();
    let (mut seen, mut next) = (Vec::new(), String::new());
    for _ in 0..3 {
        let page = server.ask("key-a", "GET", &format!("/v2/sandboxes?limit=1{next}"), None);
        seen.push(page.body[0]["sandboxID"].as_str().unwrap().to_owned());
        next = page.header("x-next-token").map(|token| format!("&nextToken={token}")).unwrap_or_default();
    }
    assert_eq!(next, "", "the last page says that it is the last");
    assert_eq!(seen, ids.iter().rev().cloned().collect::<Vec<_>>());
    let ascending = server.ask("key-a", "GET", "/v2/sandboxes?order=asc", None);
    assert_eq!(ascending.body[0]["sandboxID"], json!(ids[0]));
    for bad in ["limit=0", "limit=101", "limit=x", "nextToken=x", "order=up", "startedAfter=noon"] {
        assert_eq!(server.ask("key-a", "GET", &format!("/v2/sandboxes?{bad}"), None).status, 400, "{bad}");
    }
}

#[test]
fn the_network_is_replaced_as_a_whole_and_merged_in_part() {
    let server = Server::new();
    let made = json!({ "templateID": "t", "network": {
        "allowOut": ["1.1.1.1"], "denyOut": ["0.0.0.0/0"], "allowPublicTraffic": true,
    } });
    let path = format!("/sandboxes/{}/network", server.create("key-a", made));
    let network = || server.ask("key-a", "GET", &path, None);
    let first = network();
    let tag = first.header("etag").unwrap().to_owned();
    assert_eq!(first.body["network"]["denyOut"], json!(["0.0.0.0/0"]));

    // A part.
    let merged = server.ask("key-a", "PATCH", &path, Some(json!({ "allow_out": ["2.2.2.2"] })));
    assert_eq!((merged.status, merged.body), (204, Value::Null));
    assert_eq!(network().body["network"]["allowOut"], json!(["2.2.2.2"]));
    assert_eq!(network().body["network"]["denyOut"], json!(["0.0.0.0/0"]));

    // Somebody else was faster.
    let stale = format!("X-API-Key: key-a\r\nIf-Match: {tag}\r\n");
    assert_eq!(server.ask_with(&stale, "PUT", &path, Some("{}".to_owned())).status, 412);
    let now = network().header("etag").unwrap().to_owned();
    let current = format!("X-API-Key: key-a\r\nIf-None-Match: {now}\r\n");
    assert_eq!(server.ask_with(&current, "GET", &path, None).status, 304);
    let fresh = format!("X-API-Key: key-a\r\nIf-Match: {now}\r\n");
    assert_eq!(server.ask_with(&fresh, "PUT", &path, Some("{}".to_owned())).status, 204);
    assert_eq!(network().body["network"]["denyOut"], json!([]));
    assert_eq!(network().body["allowInternetAccess"], json!(true));

    let off = server.ask("key-a", "PUT", &path, Some(json!({ "allow_internet_access": false })));
    assert_eq!(off.status, 204);
    assert_eq!(network().body["allowInternetAccess"], json!(false));

    // What is refused changes nothing.
    let before = network().body;
    for (body, message) in [
        (json!({ "denyOut": ["example.com"] }), "invalid denied CIDR example.com"),
        (json!({ "allowOut": ["0.0.0.0"] }), "invalid allowed address 0.0.0.0"),
        (
            json!({ "allowOut": ["example.com"] }),
            "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block \
             all other traffic.",
        ),
        (json!({ "alowOut": [] }), "unknown field `alowOut`"),
        (json!({ "egressProxy": { "address": "x" } }), "egressProxy is not supported; leave it out"),
    ] {
        let refused = server.ask("key-a", "PUT", &path, Some(body.clone()));
        assert_eq!((refused.status, &refused.body["code"]), (400, &json!(400)), "{body}");
        assert_eq!(refused.body["message"], json!(message));
    }
    assert_eq!(network().body, before);
}

#[test]
fn what_is_said_twice_is_refused() {
    let server = Server::new();
    let made = json!({ "templateID": "t", "network": { "denyOut": ["0.0.0.0/0"] } });
    let path = format!("/sandboxes/{}/network", server.create("key-a", made));
    let before = server.ask("key-a", "GET", &path, None).body;
    for body in [
        json!({ "allowOut": ["1.1.1.1"], "allow_out": ["2.2.2.2"] }),
        json!({ "allow_internet_access": false, "allowInternetAccess": true }),
        json!({ "dnsServers": ["1.1.1.1"], "dns_servers": ["2.2.2.2"] }),
        json!({ "dnsServers": ["1.1.1.1"], "dns": { "servers": ["2.2.2.2"] } }),
        json!({ "dns": { "servers": ["2.2.2.2"] }, "dnsServers": ["1.1.1.1"] }),
        json!({ "limits": { "egressConnections": 1, "egress_connections": 2 } }),
    ] {
        for method in ["PUT", "PATCH"] {
            assert_eq!(server.ask("key-a", method, &path, Some(body.clone())).status, 400, "{method} {body}");
        }
    }
    assert_eq!(
        server.ask("key-a", "PATCH", &path, Some(json!({ "dns": null, "dnsServers": [] }))).status,
        400
    );
    assert_eq!(server.ask("key-a", "GET", &path, None).body, before);
    for body in [
        json!({ "allow_internet_access": true, "network": { "allowInternetAccess": false } }),
        json!({ "allow_internet_access": true, "network": { "allow_internet_access": false } }),
        json!({ "allow_internet_access": true, "allowInternetAccess": false }),
    ] {
        let mut new = json!({ "templateID": "t" });
        new.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        assert_eq!(server.ask("key-a", "POST", "/sandboxes", Some(new)).status, 400, "{body}");
    }
}

#[test]
fn keys_are_asked_for_and_sandboxes_are_their_holders() {
    let server = Server::new();
    for headers in ["", "X-API-Key: \r\n", "X-API-Key: key-c\r\n", "Authorization: Bearer key-a\r\n"] {
        let refused = server.ask_with(headers, "GET", "/sandboxes", None);
        assert_eq!((refused.status, &refused.body["code"]), (401, &json!(401)), "{headers}");
    }
    let id = server.create("key-a", json!({ "templateID": "t" }));
    for (method, path, body) in [
        ("GET", format!("/sandboxes/{id}"), None),
        ("GET", format!("/sandboxes/{id}/network"), None),
        ("PUT", format!("/sandboxes/{id}/network"), Some(json!({}))),
        ("PATCH", format!("/sandboxes/{id}/network"), Some(json!({}))),
        ("POST", format!("/sandboxes/{id}/timeout"), Some(json!({ "timeout": 1 }))),
        ("POST", format!("/sandboxes/{id}/connect"), Some(json!({ "timeout": 1 }))),
        ("DELETE", format!("/sandboxes/{id}"), None),
    ] {
        assert_eq!(server.ask("key-b", method, &path, body).status, 404, "{method} {path}");
    }
    assert_eq!(server.ask("key-b", "GET", "/sandboxes", None).body, json!([]));
    // The operator sees all, and has routes of their own that keys do not open.
    assert_eq!(server.operate("GET", "/sandboxes", None).body[0]["sandboxID"], json!(id));
    assert_eq!(server.operate("GET", "/v1/attachments", None).body[0]["id"], json!(id));
    assert_eq!(server.ask("key-a", "GET", "/v1/attachments", None).status, 404);
    let refused = server.operate("DELETE", &format!("/v1/attachments/{id}"), None);
    assert_eq!((refused.status, &refused.body["error"]["code"]), (409, &json!("conflict")));
}

#[test]
fn limits_say_how_one_stands() {
    let server = Server::new();
    let new = json!({ "templateID": "t" });
    let made = server.ask("key-b", "POST", "/sandboxes", Some(new.clone()));
    assert_eq!((made.status, made.header("ratelimit-limit")), (201, Some("40")));
    assert_eq!(made.header("ratelimit-remaining"), Some("39"));
    let fast = server.ask("key-b", "POST", "/sandboxes", Some(new.clone()));
    assert_eq!((fast.status, &fast.body), (429, &json!({ "code": 429, "message": "Rate limit exceeded" })));
    assert_eq!((fast.header("retry-after"), fast.header("ratelimit-limit")), (Some("1"), Some("1")));
    assert_eq!(fast.header("ratelimit-remaining"), Some("0"));
    for _ in 0..3 {
        server.create("key-a", new.clone());
    }
    let many = server.ask("key-a", "POST", "/sandboxes", Some(new));
    assert_eq!((many.status, many.header("ratelimit-limit")), (429, Some("3")));
    // The other's requests are used up, and these are not.
    for _ in 0..38 {
        assert_eq!(server.ask("key-b", "GET", "/sandboxes", None).status, 200);
    }
    let refused = server.ask("key-b", "GET", "/sandboxes", None);
    assert_eq!((refused.status, refused.header("ratelimit-remaining")), (429, Some("0")));
    assert!(refused.header("retry-after").is_some() && refused.header("ratelimit-reset").is_some());
    assert_eq!(server.ask("key-a", "GET", "/sandboxes", None).status, 200);
}

#[test]
fn bodies_come_in_any_transfer_and_garbage_is_named() {
    let server = Server::new();
    let chunked = "POST /sandboxes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: key-a\r\n\
        Transfer-Encoding: chunked\r\n\r\n8\r\n{\"templa\r\nb\r\nteID\": \"t\"}\r\n0\r\n\r\n";
    let made = exchange(TcpStream::connect(server.address).unwrap(), chunked.as_bytes());
    assert_eq!(made.status, 201, "{made:?}");
    for (body, word) in [
        ("", "JSON"),
        ("nonsense", "JSON"),
        ("[]", "no JSON object"),
        ("{}", "templateID"),
        (r#"{"templateID": 1}"#, "templateID"),
        (r#"{"templateID": ""}"#, "templateID"),
        (r#"{"templateID": "t", "templateID": "u"}"#, "stands twice"),
        (r#"{"templateID": "a\u0000b"}"#, "templateID"),
        (r#"{"templateID": "t", "timeout": -1}"#, "timeout"),
        (r#"{"templateID": "t", "timeout": 86401}"#, "Timeout cannot be greater than 24 hours"),
        (r#"{"templateID": "t", "metadata": {"a": 1}}"#, "metadata.a"),
        (r#"{"templateID": "t", "network": {"denyOut": ["x"]}}"#, "invalid denied CIDR x"),
        (r#"{"templateID": "t", "network": {"nonsense": 1}}"#, "nonsense"),
    ] {
        let refused = server.ask_with("X-API-Key: key-a\r\n", "POST", "/sandboxes", Some(body.to_owned()));
        assert_eq!(refused.status, 400, "{body}: {refused:?}");
        assert!(refused.body["message"].as_str().unwrap().contains(word), "{body}: {refused:?}");
    }
    for (method, path, status) in [
        ("GET", "/nowhere", 404),
        ("PUT", "/sandboxes", 405),
        ("GET", "/sandboxes/..%2f..%2fetc", 404),
        ("GET", "/sandboxes/%ff", 404),
    ] {
        let refused = server.ask("key-a", method, path, None);
        assert_eq!((refused.status, &refused.body["code"]), (status, &json!(status)), "{path}");
    }
    assert_eq!(server.provider.made.load(Ordering::Relaxed), 1);
}

#[test]
fn slow_clients_are_sent_away_and_others_served_meanwhile() {
    let bounds = Bounds { patience: Duration::from_millis(300), ..Bounds::default() };
    let server = Server::with(KEYS, bounds);
    let mut slow = UnixStream::connect(server.path()).unwrap();
    slow.write_all(b"GET /v1/version HTTP/1.1\r\nHost:").unwrap();
    assert!(server.client().list().is_ok());
    let begun = Instant::now();
    let _ = slow.read_to_end(&mut Vec::new());
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn clients_that_say_nothing_or_do_not_listen_make_room_for_others() {
    let bounds = Bounds { connections: 4, patience: Duration::from_millis(300), ..Bounds::default() };
    let server = Server::with(KEYS, bounds);
    for beginning in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let held: Vec<_> = (0..4)
            .map(|_| {
                let mut stream = TcpStream::connect(server.address).unwrap();
                stream.write_all(beginning.as_bytes()).unwrap();
                stream
            })
            .collect();
        let begun = Instant::now();
        assert_eq!(server.ask_with("", "GET", "/health", None).status, 204);
        assert!(begun.elapsed() < Duration::from_secs(5), "{beginning}");
        drop(held);
    }
    // More answers than the connection's buffers hold, none of which is read.
    let requests = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2_000);
    let held: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = stream.write_all(requests.as_bytes());
            stream
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(server.ask_with("", "GET", "/health", None).status, 204);
    assert!(begun.elapsed() < Duration::from_secs(10));
    drop(held);
}

#[test]
fn what_a_key_sends_at_once_is_bounded() {
    let server = Server::new();
    let long = json!({ "templateID": "t", "envVars": { "a": "x".repeat(5 << 20) } });
    assert_eq!(server.ask("key-a", "POST", "/sandboxes", Some(long)).status, 413);
    // Two that have sent nearly everything leave no room for a third, whoever else has a key.
    let sent = "x".repeat(3 << 20);
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            let head = format!(
                "POST /sandboxes HTTP/1.1\r\nHost: x\r\nX-API-Key: key-a\r\nContent-Length: {}\r\n\r\n",
                sent.len() + 1
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(sent.as_bytes()).unwrap();
            stream
        })
        .collect();
    let third = json!({ "templateID": "t", "envVars": { "a": sent } });
    let begun = Instant::now();
    while server.ask("key-a", "PATCH", "/sandboxes/none/network", Some(json!({ "x": sent }))).status != 429 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(server.ask("key-b", "POST", "/sandboxes", Some(third.clone())).status, 201);
    drop(held);
    while server.ask("key-a", "PATCH", "/sandboxes/none/network", Some(json!({ "x": sent }))).status == 429 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(600));
    }
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let server = Server::with(KEYS, Bounds { connections: 4, ..Bounds::default() });
    server.provider.slow.store(true, Ordering::Relaxed);
    thread::scope(|scope| {
        for n in 0..40 {
            let client = server.client();
            scope.spawn(move || assert!(client.attach(&attach(&format!("a{n}"))).is_ok()));
        }
    });
}

#[test]
fn requests_under_way_are_answered_at_shutdown_and_idle_clients_are_not_waited_for() {
    let mut server = Server::new();
    server.provider.slow.store(true, Ordering::Relaxed);
    let mut idle = UnixStream::connect(server.path()).unwrap();
    idle.write_all(b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let address = server.address;
    let asked = thread::spawn(move || {
        let body = r#"{"templateID": "t"}"#;
        let length = body.len();
        let request = format!(
            "POST /sandboxes HTTP/1.1\r\nHost: x\r\nX-API-Key: key-a\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        exchange(TcpStream::connect(address).unwrap(), request.as_bytes())
    });
    while server.provider.made.load(Ordering::Relaxed) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(asked.join().unwrap().status, 201);
}

#[test]
fn a_policy_with_a_million_prefixes_fits() {
    let server = Server::new();
    let nets: Vec<String> = (0..1_000_000_u32)
        .map(|n| format!("2001:db8:1111:2222:3333:4444:{:04x}:{:04x}/128", n >> 16, n & 0xffff))
        .collect();
    let request = AttachRequest { policy: Some(json!({ "denyOut": nets })), ..attach("big") };
    let show = server.client().attach(&request).unwrap();
    assert_eq!(show.policy["denyOut"].as_array().unwrap().len(), 1_000_000);
}

#[test]
fn the_description_says_what_there_is() {
    let server = Server::new();
    let of = |answer: Answer| -> Vec<String> {
        assert_eq!((answer.status, &answer.body["openapi"]), (200, &json!("3.1.0")));
        answer.body["paths"].as_object().unwrap().keys().cloned().collect()
    };
    let operators = of(server.operate("GET", "/openapi.json", None));
    let keyed = of(server.ask_with("", "GET", "/openapi.json", None));
    for path in
        ["/sandboxes", "/v2/sandboxes", "/sandboxes/{sandboxID}/network", "/v2/sandboxes/{sandboxID}/connect"]
    {
        assert!(
            operators.iter().any(|known| known == path) && keyed.iter().any(|known| known == path),
            "{path}"
        );
    }
    assert!(operators.iter().any(|path| path == "/v1/attachments/{id}/policy"));
    assert!(!keyed.iter().any(|path| path.starts_with("/v1/")));
    assert_eq!(server.ask_with("", "GET", "/health", None).status, 204);
}

#[test]
fn the_described_policy_is_the_policy() {
    let description = serde_json::to_value(openapi::routes(true).1).unwrap();
    let described = description.pointer("/components/schemas/PolicyDocument/properties").unwrap();
    let described: Vec<_> = described.as_object().unwrap().keys().cloned().collect();
    let mask = json!({ "maskRequestHost": "localhost" });
    let policy = filter_policy::Policy::from_value(mask, &Default::default()).unwrap().canonical();
    let real: Vec<_> = policy.as_object().unwrap().keys().cloned().collect();
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    assert_eq!(sorted(described), sorted(real));
}

#[tokio::test]
async fn only_a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = ControlSocket::bind(&path).unwrap();
    assert_eq!(ControlSocket::bind(&path).unwrap_err().code, ErrorCode::Conflict);
    drop(listener);
    fs::write(&path, "precious").unwrap();
    assert_eq!(ControlSocket::bind(&path).unwrap_err().code, ErrorCode::Failed);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}
