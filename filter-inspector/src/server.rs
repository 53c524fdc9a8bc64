//! Accepts punted connections and has each served by who speaks its protocol.

use std::{
    fs::File,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use filter_common::{Reason, RuleWord};
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};
use tracing::warn;

use crate::{
    connection::{Connection, reset_on_close},
    dial::Addresses,
    dns::{self, Forwarder},
    host::{Event, Flow, Happening, Host, Tenant, Transport},
    http::proxy,
    listen::Pair,
    open::Register,
    pipe::{self, Pipes},
    resolve::{self, Resolver},
    stream::Stream,
    tls,
    transform::Transformer,
    workers::Workers,
};

pub use crate::listen::Listeners;

/// The pause after the kernel could not give a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// Descriptors that a connection has: its two sockets. Pipes are few, and counted for themselves.
const DESCRIPTORS: u64 = 2;
/// Descriptors that are left to the rest of the process: pipes, lookups with a few sockets each, and all that has
/// nothing to do with connections.
const RESERVED: u64 = 2 * pipe::TOTAL as u64 + 4 * resolve::LOOKUPS as u64 + 512;

/// How connections are served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Ports of destinations that speak HTTP.
    pub http_ports: Vec<u16>,
    /// Ports of destinations that speak TLS.
    pub tls_ports: Vec<u16>,
    /// How long a client has to say whom it wants to speak to.
    pub peek_timeout: Duration,
    /// How long the head of an HTTP request may take once its first byte came.
    pub head_timeout: Duration,
    /// How long resolving and connecting may take together.
    pub dial_timeout: Duration,
    /// How long an HTTP connection may wait for the next request.
    pub idle_timeout: Duration,
    /// The mark (`SO_MARK`) of sockets to upstreams, 0 for none. The kernel side lets packets that bear it go
    /// on without looking at them.
    pub upstream_mark: u32,
    /// Bytes that a sandbox may have buffered while the name is not known.
    pub peek_memory: usize,
    /// Connections of all sandboxes together. One sandbox can have as many as it leaves to the others.
    pub max_connections: usize,
}

impl Default for Settings {
    /// The defaults of the configuration. `max_connections` is what the process's limit of open files allows
    /// at this moment, so raise that first.
    fn default() -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let connections = descriptors.saturating_sub(RESERVED.min(descriptors / 2)) / DESCRIPTORS;
        Self {
            http_ports: vec![80],
            tls_ports: vec![443],
            peek_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            dial_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            upstream_mark: 0,
            peek_memory: 4 << 20,
            max_connections: usize::try_from(connections).unwrap_or(usize::MAX).min(1 << 20),
        }
    }
}

/// Serves punted connections. Clones are the same inspector.
#[derive(Debug)]
pub struct Inspector<H: Host> {
    shared: Arc<Shared<H>>,
}

impl<H: Host> Clone for Inspector<H> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared<H> {
    pub(crate) host: Arc<H>,
    pub(crate) addresses: Addresses,
    pub(crate) forwarder: Forwarder,
    pub(crate) settings: Settings,
    pub(crate) register: Register,
    pub(crate) pipes: Pipes,
    pub(crate) transformer: Arc<Transformer>,
}

/// What the other end of a connection would speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocols {
    Tls,
    Http,
    Dns,
}

impl<H: Host> Inspector<H> {
    /// An inspector that serves nobody yet.
    pub fn new(host: Arc<H>, resolver: Resolver, transformer: Arc<Transformer>, settings: Settings) -> Self {
        let register = Register::new(settings.max_connections);
        let forwarder = Forwarder::new(resolver.clone());
        let (addresses, pipes) = (Addresses::new(resolver), Pipes::default());
        let shared = Shared { host, addresses, forwarder, settings, register, pipes, transformer };
        Self { shared: Arc::new(shared) }
    }

    /// Serves until `shutdown` is ready, each pair of listeners on a thread of its own. Then whatever is open is
    /// reset. Dropped, it ends all the same.
    ///
    /// # Errors
    /// That there can be no more threads, or that the listeners cannot be registered. Nothing else ends it.
    pub async fn run(&self, listeners: Listeners, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let workers = Workers::start(listeners, |pair| self.clone().serve(pair))?;
        tokio::select! {
            () = shutdown => {}
            () = self.sweep() => {}
        }
        // The ends of their connections are told before this returns.
        self.shared.register.end_all();
        workers.stop().await;
        Ok(())
    }

    /// Judges the open connections of a sandbox again, by the rules that are in force now, and resets those
    /// that are no longer allowed; says how many. Belongs after every replacement of the rules.
    pub fn rejudge(&self, tenant: Tenant) -> usize {
        let Some(rules) = self.shared.host.rules(tenant) else {
            self.forget(tenant);
            return 0;
        };
        let allowed = |flow: &Flow, rule: RuleWord| self.shared.host.allowed(flow, tenant, rule);
        self.shared.register.rejudge(tenant, &rules, allowed)
    }

    /// Resets the connections of a sandbox that is detached.
    pub fn forget(&self, tenant: Tenant) {
        self.shared.register.forget(tenant);
    }

    /// What answers queries over TCP, for whoever serves those over UDP: a sandbox's bounds are for both.
    pub fn forwarder(&self) -> &Forwarder {
        &self.shared.forwarder
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.shared.register.len()
    }

    /// Ends what the kernel no longer follows, as long as it is polled.
    async fn sweep(&self) {
        const INTERVAL: Duration = Duration::from_secs(1);
        loop {
            time::sleep(INTERVAL).await;
            self.shared.register.sweep(|entry| self.shared.host.tenant(&entry.flow) == Some(entry.tenant));
        }
    }

    /// Accepts at both listeners, for as long as it is polled.
    fn serve(self, pair: Pair) -> io::Result<impl Future<Output = ()>> {
        let v4 = self.clone().accept(TcpListener::from_std(pair.v4)?);
        let v6 = pair.v6.map(TcpListener::from_std).transpose()?.map(|listener| self.accept(listener));
        Ok(async {
            match v6 {
                Some(v6) => _ = tokio::join!(v4, v6),
                None => v4.await,
            }
        })
    }

    async fn accept(self, listener: TcpListener) {
        let mut spare = spare();
        let mut said = false;
        loop {
            match listener.accept().await {
                Ok((client, source)) => {
                    said = false;
                    self.admit(client, source);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if !said {
                        warn!(%error, "cannot accept connections");
                        said = true;
                    }
                    // Nobody shall hang in the queue: the spare descriptor serves to refuse.
                    if spare.take().is_some()
                        && let Ok(Ok((client, source))) = time::timeout(PAUSE, listener.accept()).await
                    {
                        self.refuse(&client, source);
                        drop(client);
                    } else {
                        time::sleep(PAUSE).await;
                    }
                    spare = self::spare();
                }
            }
        }
    }

    fn refuse(&self, client: &TcpStream, source: SocketAddr) {
        if let Some((tenant, flow)) = self.whose(client, source) {
            self.refuse_for_capacity(client, tenant, flow);
        }
    }

    /// Whose it is; `None` if it was not punted, but somebody on the host connected to the listener.
    fn whose(&self, client: &TcpStream, source: SocketAddr) -> Option<(Tenant, Flow)> {
        let destination = client.local_addr().ok()?;
        let flow = Flow { transport: Transport::Tcp, source, destination };
        Some((self.shared.host.tenant(&flow)?, flow))
    }

    fn refuse_for_capacity(&self, client: &TcpStream, tenant: Tenant, flow: Flow) {
        reset_on_close(client);
        let generation = self.shared.host.rules(tenant).map_or(0, |rules| rules.generation);
        self.shared.host.tell(
            tenant,
            Event {
                happening: Happening::Deny,
                reason: Reason::Capacity,
                rule: RuleWord::UNMATCHED,
                generation,
                flow,
                server_name: None,
                resolved: None,
                bytes_out: 0,
                bytes_in: 0,
                duration: Duration::ZERO,
            },
        );
    }

    fn admit(&self, client: TcpStream, source: SocketAddr) {
        let Some((tenant, flow)) = self.whose(&client, source) else { return };
        let Some(protocol) = self.shared.settings.protocol(flow.destination.port()) else { return };
        let Some(entry) = self.shared.register.enter(tenant, flow) else {
            return self.refuse_for_capacity(&client, tenant, flow);
        };
        let connection = Connection::new(Arc::clone(&self.shared), Arc::clone(&entry), client);
        let task = match protocol {
            Protocols::Tls => tokio::spawn(tls::serve(connection)),
            Protocols::Http => tokio::spawn(proxy::serve(connection)),
            Protocols::Dns => tokio::spawn(serve_dns(connection)),
        };
        entry.served_by(task.abort_handle());
    }
}

impl Settings {
    fn protocol(&self, port: u16) -> Option<Protocols> {
        const DNS: u16 = 53;
        if port == DNS {
            Some(Protocols::Dns)
        } else if self.tls_ports.contains(&port) {
            Some(Protocols::Tls)
        } else if self.http_ports.contains(&port) {
            Some(Protocols::Http)
        } else {
            None
        }
    }
}

async fn serve_dns<H: Host>(connection: Connection<H>) {
    let (flow, tenant) = (*connection.flow(), connection.tenant());
    let (host, forwarder) = (Arc::clone(&connection.shared.host), connection.shared.forwarder.clone());
    // Whatever became of the connection, it is over.
    let client = Stream::new(Arc::clone(&connection.client));
    let _ = dns::tcp::serve(client, flow, tenant, host, forwarder).await;
}

/// A descriptor to give up when there is no other.
fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Whether an error of `accept` is about the connection that was to be accepted: it is gone already, and the
/// next one may be fine (see accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    use nix::libc::{
        EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EOPNOTSUPP, EPROTO,
    };
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
        || matches!(
            error.raw_os_error(),
            Some(
                EPROTO
                    | ENOPROTOOPT
                    | EHOSTDOWN
                    | ENONET
                    | EHOSTUNREACH
                    | EOPNOTSUPP
                    | ENETUNREACH
                    | ENETDOWN
            )
        )
}
