//! What the tests of connections have in common: a host that is a table, a resolver's server that is another,
//! and an inspector between the two, all on loopback.
//!
//! Client, inspector and upstreams have addresses of their own in `127.0.0.0/8`, and one port for all: the
//! inspector dials the port that the client wanted.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use filter_common::{Reason, RuleWord};
use filter_policy::{Defaults, Guard, Matcher, Policy, compile};
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::oneshot,
    time,
};

use crate::{
    host::{Event, Flow, Happening, Host, Tenant},
    resolve::{self, Resolver},
    rules::Rules,
    server::{Inspector, Listeners, Settings},
    transform::{Transformer, ca::Authority},
};

/// Longer than anything takes, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where the upstreams listen.
pub(crate) const UPSTREAM: [u8; 4] = [127, 9, 0, 2];
/// Where nobody is.
pub(crate) const NOBODY: [u8; 4] = [127, 9, 0, 99];
/// A second upstream.
pub(crate) const OTHER: [u8; 4] = [127, 9, 0, 3];

/// A host that knows clients by address: that of sandbox `n` is `127.0.1.n`.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rules: Mutex<HashMap<Tenant, Arc<Rules>>>,
    events: Mutex<Vec<(Tenant, Event)>>,
    allowed: Mutex<Vec<(Tenant, RuleWord)>>,
}

impl Host for Table {
    fn tenant(&self, flow: &Flow) -> Option<Tenant> {
        match flow.source.ip() {
            IpAddr::V4(address) if address.octets()[..3] == [127, 0, 1] => Some(address.octets()[3].into()),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }

    fn rules(&self, tenant: Tenant) -> Option<Arc<Rules>> {
        self.rules.lock().unwrap().get(&tenant).cloned()
    }

    fn allowed(&self, _: &Flow, tenant: Tenant, rule: RuleWord) {
        self.allowed.lock().unwrap().push((tenant, rule));
    }

    fn tell(&self, tenant: Tenant, event: Event) {
        self.events.lock().unwrap().push((tenant, event));
    }
}

impl Table {
    /// Puts a policy in force.
    pub(crate) fn enforce(&self, tenant: Tenant, generation: u32, policy: Value) {
        let guard = Guard::new(&["127.0.0.0/8".parse().unwrap()], &["127.9.9.0/24".parse().unwrap()], &[]);
        let policy = Policy::from_value(policy, &Defaults::default()).unwrap();
        let rules = Rules {
            generation,
            names: Arc::new(Matcher::new(&policy)),
            compiled: Arc::new(compile(&policy, &guard)),
            policy: Arc::new(policy),
            guard: Arc::new(guard),
        };
        self.rules.lock().unwrap().insert(tenant, Arc::new(rules));
    }

    /// Detaches a sandbox.
    pub(crate) fn detach(&self, tenant: Tenant) {
        self.rules.lock().unwrap().remove(&tenant);
    }

    /// What was told of a sandbox so far.
    pub(crate) fn events(&self, tenant: Tenant) -> Vec<Event> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|(whose, _)| *whose == tenant).map(|(_, event)| event.clone()).collect()
    }

    /// What was told, in short.
    pub(crate) fn told(&self, tenant: Tenant) -> Vec<(Happening, Reason, Option<String>)> {
        let short = |event: Event| (event.happening, event.reason, event.server_name);
        self.events(tenant).into_iter().map(short).collect()
    }
}

/// The policy that most tests have: two names, a wildcard.
pub(crate) fn policy() -> Value {
    allow(&["allowed.test", "other.test", "*.wild.test", "nobody.test", "guarded.test", "nowhere.test"])
}

/// A policy that allows these and nothing else.
pub(crate) fn allow(entries: &[&str]) -> Value {
    json!({"allowOut": entries, "denyOut": ["0.0.0.0/0"]})
}

/// An inspector at work.
pub(crate) struct World {
    pub(crate) host: Arc<Table>,
    pub(crate) inspector: Inspector<Table>,
    pub(crate) port: u16,
    _stop: oneshot::Sender<()>,
}

impl World {
    /// One for TLS.
    pub(crate) async fn tls() -> Self {
        Self::with(|settings, port| settings.tls_ports = vec![port]).await
    }

    /// One for HTTP.
    pub(crate) async fn http() -> Self {
        Self::with(|settings, port| settings.http_ports = vec![port]).await
    }

    /// One with settings of its own.
    pub(crate) async fn with(adjust: impl FnOnce(&mut Settings, u16)) -> Self {
        let host = Arc::new(Table::default());
        host.enforce(1, 1, policy());
        let listeners = Listeners::bind(2).unwrap();
        let port = SockRef::from(&listeners.v4().unwrap()).local_addr().unwrap().as_socket().unwrap().port();
        let mut settings = Settings { http_ports: vec![], tls_ports: vec![], ..Settings::default() };
        adjust(&mut settings, port);
        let server = name_server().await;
        let asking = resolve::Settings { upstream: vec![server], ..resolve::Settings::default() };
        let resolver = Resolver::new(&asking).unwrap();
        let inspector = Inspector::new(Arc::clone(&host), resolver, transformer(), settings);
        let (stop, stopped) = oneshot::channel();
        let running = inspector.clone();
        tokio::spawn(async move {
            running
                .run(listeners, async {
                    let _ = stopped.await;
                })
                .await
        });
        Self { host, inspector, port, _stop: stop }
    }

    /// A listener at one of the upstreams' addresses.
    pub(crate) async fn upstream(&self, address: [u8; 4]) -> TcpListener {
        TcpListener::bind((Ipv4Addr::from(address), self.port)).await.unwrap()
    }

    /// A client of sandbox 1.
    pub(crate) async fn client(&self) -> TcpStream {
        self.client_of(1).await
    }

    /// A client of a sandbox.
    pub(crate) async fn client_of(&self, tenant: u8) -> TcpStream {
        self.try_client_of(tenant).await.unwrap()
    }

    /// A client of a sandbox, unless it is reset before it knows that it is connected.
    pub(crate) async fn try_client_of(&self, tenant: u8) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 1, tenant], 0))).unwrap();
        soon(socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))).await
    }

    /// Waits until no connection is open.
    pub(crate) async fn quiet(&self) {
        until(|| self.inspector.connections() == 0).await;
    }
}

/// One that nothing depends on.
fn transformer() -> Arc<Transformer> {
    let path = std::env::temp_dir().join(format!("inspector-ca-{}.pem", std::process::id()));
    static MADE: std::sync::OnceLock<Arc<Transformer>> = std::sync::OnceLock::new();
    let make = || Arc::new(Transformer::new(Authority::renew(&path).unwrap(), None, None).unwrap());
    Arc::clone(MADE.get_or_init(make))
}

/// Waits until something is so.
pub(crate) async fn until(so: impl Fn() -> bool) {
    soon(async {
        while !so() {
            time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// The result of what must not hang.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    time::timeout(PATIENCE, what).await.expect("it hangs")
}

/// Everything until the end.
pub(crate) async fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    soon(stream.read_to_end(&mut all)).await?;
    Ok(all)
}

/// So many bytes.
pub(crate) async fn read_some(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut some = vec![0; count];
    soon(stream.read_exact(&mut some)).await.unwrap();
    some
}

/// Writes all.
pub(crate) async fn write(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    soon(stream.write_all(bytes.as_ref())).await.unwrap();
}

/// The next connection of a listener.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    soon(listener.accept()).await.unwrap().0
}

/// A ClientHello for a name, in one record.
pub(crate) fn hello(name: Option<&str>) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(name) = name {
        let mut list = vec![0];
        push(&mut list, 2, name.as_bytes());
        let mut extension = Vec::new();
        push(&mut extension, 2, &list);
        extensions.extend([0, 0]);
        push(&mut extensions, 2, &extension);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    push(&mut body, 1, &[]);
    push(&mut body, 2, &[0x13, 0x01]);
    push(&mut body, 1, &[0]);
    push(&mut body, 2, &extensions);
    let mut message = vec![1];
    push(&mut message, 3, &body);
    let mut record = vec![22, 3, 1];
    push(&mut record, 2, &message);
    record
}

/// Appends bytes behind their length.
fn push(to: &mut Vec<u8>, width: usize, bytes: &[u8]) {
    to.extend(&bytes.len().to_be_bytes()[size_of::<usize>() - width..]);
    to.extend(bytes);
}

/// A name server that knows the names of the tests, and no IPv6 address.
async fn name_server() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut query = [0; 1500];
        loop {
            let Ok((count, who)) = socket.recv_from(&mut query).await else { return };
            let _ = socket.send_to(&answer(&query[..count]), who).await;
        }
    });
    address
}

fn answer(query: &[u8]) -> Vec<u8> {
    const A: u8 = 1;
    let mut name = String::new();
    let mut at = 12;
    while query[at] != 0 {
        let len = usize::from(query[at]);
        name += &String::from_utf8_lossy(&query[at + 1..at + 1 + len]).to_lowercase();
        name.push('.');
        at += 1 + len;
    }
    let question = &query[12..at + 5];
    let addresses: &[[u8; 4]] = match name.as_str() {
        "allowed.test." => &[NOBODY, UPSTREAM],
        "other.test." => &[OTHER],
        "nobody.test." => &[NOBODY],
        "guarded.test." => &[[169, 254, 169, 254], [127, 9, 9, 1]],
        name if name.ends_with(".wild.test.") => &[UPSTREAM],
        _ => &[],
    };
    let addresses = if query[at + 2] == A { addresses } else { &[] };
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    answer.extend(question);
    for address in addresses {
        answer.extend([0xc0, 12, 0, A, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
    }
    answer
}

/// Bytes without a pattern.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[7]
    };
    (0..count).map(|_| next()).collect()
}
