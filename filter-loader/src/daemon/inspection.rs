//! The inspector, as the daemon runs it: what it asks is answered from registry and kernel, what it tells is
//! counted and written down.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::available_parallelism;

use filter_common::ip::{Kind, protocol};
use filter_common::layout::{Ends, FlowKey, MAX_INSPECTED_PORTS, PuntKey, socket};
use filter_common::tcp::Side;
use filter_common::{Addr, Class, RuleWord};
use filter_inspector::dns;
use filter_inspector::host::{Event, Flow, Happening, Host, Tenant, Transport};
use filter_inspector::resolve::{self, Resolver};
use filter_inspector::rules::Rules;
use filter_inspector::server::{self, Inspector, Listeners};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::core::Core;
use super::events::Inspected;
use crate::config::Config;
use crate::doctor::{Finding, Status};
use crate::error::ControlError;
use crate::kernel::object::PuntSettings;
use crate::routing::Way;

/// The inspector, once it runs, and the way to it.
#[derive(Default)]
pub struct Inspection {
    inspector: OnceLock<Inspector<Hosted>>,
    /// Whether packets can reach it. Held while the way is made.
    is_open: Mutex<bool>,
}

impl Inspection {
    /// Judges the sandbox's open connections by the rules in force, and cuts those that these do not permit.
    pub fn rejudge(&self, tenant: Tenant) {
        if let Some(inspector) = self.inspector.get() {
            inspector.rejudge(tenant);
        }
    }

    /// Cuts everything of a sandbox that leaves.
    pub fn forget(&self, tenant: Tenant) {
        if let Some(inspector) = self.inspector.get() {
            inspector.forget(tenant);
        }
    }
}

/// The running inspector.
pub struct Running {
    tell: oneshot::Sender<()>,
    task: JoinHandle<()>,
    sockets: Vec<(u32, OwnedFd)>,
}

impl Running {
    /// Shows its sockets to the kernel: from here on it gets connections. Before that the kernel refuses them.
    ///
    /// # Errors
    /// If the kernel refuses the sockets.
    pub fn open(&mut self, core: &Core) -> Result<(), ControlError> {
        for (place, socket) in self.sockets.drain(..) {
            core.kernel.punts.serve(place, socket)?;
        }
        Ok(())
    }

    /// Ends it, and every connection that it has.
    pub async fn stop(self) {
        // Gone or told: both mean to stop.
        let _ = self.tell.send(());
        let _ = self.task.await;
    }
}

/// Starts the inspector. Must be called within the runtime.
///
/// # Errors
/// If the kernel has no sockets for it.
pub fn start(core: &Arc<Core>, told: Inspected) -> Result<Running, ControlError> {
    let failed = |what: &'static str| {
        move |error: std::io::Error| {
            ControlError::failed(format!("cannot start the inspector: {what}: {error}"))
        }
    };
    raise_descriptor_limit();
    let config = &core.config.inspector;
    let settings = server::Settings {
        http_ports: config.ports.http.clone(),
        tls_ports: config.ports.tls.clone(),
        peek_timeout: config.peek_timeout,
        dial_timeout: config.dial_timeout,
        upstream_mark: config.marks.upstream,
        ..server::Settings::default()
    };
    let resolver = resolver(core)?;
    let hosted = Arc::new(Hosted { core: Arc::downgrade(core), told });
    let inspector = Inspector::new(hosted.clone(), resolver, core.transformer.clone(), settings);
    let forwarder = inspector.forwarder().clone();

    let workers = available_parallelism().map_or(1, NonZero::get);
    let listeners = Listeners::bind(workers).map_err(failed("its sockets"))?;
    let mark = config.marks.upstream;
    for listener in listeners.all() {
        // Whatever the inspector says to a sandbox carries the mark too: it is not the host's own.
        setsockopt(&listener, sockopt::Mark, &mark)
            .map_err(|errno| failed("marking its sockets")(errno.into()))?;
    }
    let queries = dns::udp::Listener::bind().map_err(failed("its sockets for DNS"))?;
    queries.mark(mark).map_err(failed("marking its sockets"))?;
    let places = [
        (socket::TCP_V4, listeners.v4()),
        (socket::TCP_V6, listeners.v6()),
        (socket::UDP_V4, Some(queries.v4())),
        (socket::UDP_V6, queries.v6()),
    ];
    let mut sockets = Vec::new();
    for (place, there) in places {
        if let Some(there) = there {
            sockets.push((place, there.try_clone_to_owned().map_err(failed("its sockets"))?));
        }
    }
    core.inspection.inspector.get_or_init(|| inspector.clone());
    let (tell, told) = oneshot::channel();
    let task = tokio::spawn(async move {
        let stop = async {
            let _ = told.await;
        };
        tokio::select! {
            () = queries.serve(hosted, forwarder) => {}
            ended = inspector.run(listeners, stop) => if let Err(error) = ended {
                tracing::error!(%error, "the inspector does not run; connections by name are refused");
            }
        }
    });
    Ok(Running { tell, task, sockets })
}

fn resolver(core: &Core) -> Result<Resolver, ControlError> {
    /// Whom the C library asks too where no server is named (resolv.conf(5)).
    const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
    let usual = resolve::Settings::default();
    let settings = |upstream| resolve::Settings {
        upstream,
        mark: core.config.inspector.marks.upstream,
        // A query is forgotten when it is idle for so long, and then there is no way for an answer.
        timeout: usual.timeout.min(core.config.timeouts.udp.mul_f32(0.75)),
        ..usual.clone()
    };
    Resolver::new(&settings(core.config.dns.upstream.clone()))
        .or_else(|error| {
            tracing::warn!(%error, "asking {LOCAL}; name DNS servers in [dns].upstream");
            Resolver::new(&settings(vec![LOCAL]))
        })
        .map_err(|error| ControlError::failed(error.to_string()))
}

/// Each connection by name takes a few descriptors, and the usual soft limit is for programs that use
/// `select`.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot have more open files");
    }
}

/// What the programs are told of it.
pub fn punt_settings(config: &Config) -> PuntSettings {
    let inspector = &config.inspector;
    let mut ports = [0; MAX_INSPECTED_PORTS];
    for (place, port) in ports.iter_mut().zip(inspector.ports.http.iter().chain(&inspector.ports.tls)) {
        *place = *port;
    }
    let marks = inspector.marks;
    PuntSettings { ports, mask: marks.mask, punted: marks.punted }
}

impl Core {
    /// Has packets for the inspector reach it, from now on and until the filter is cleaned up: with or without
    /// a daemon nothing else may get them.
    ///
    /// # Errors
    /// If routing or the kernel refuses. Such packets are then refused or dropped.
    pub(super) fn open_way_to_inspector(&self) -> Result<(), ControlError> {
        let mut is_open = self.inspection.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_open {
            return Ok(());
        }
        self.kernel.punts.attach()?;
        self.open_routes()?;
        *is_open = true;
        Ok(())
    }

    /// Makes routing rules again that somebody removed, if they are needed.
    ///
    /// # Errors
    /// If the kernel refuses. Until they are there again, connections by name fail.
    pub fn keep_way_to_inspector(&self) -> Result<(), ControlError> {
        let is_open = self.inspection.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_open { self.open_routes() } else { Ok(()) }
    }

    /// How the way to the inspector stands, if any policy needs it.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn way_to_inspector(&self) -> Result<Option<Finding>, ControlError> {
        const CHECK: &str = "inspector";
        if !*self.inspection.is_open.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(None);
        }
        let way = Way::new(&self.config.inspector);
        let is_open = self.block_on(way.is_open(&self.netlink)).map_err(|error| {
            ControlError::failed(format!("the host does not say what its routing rules are: {error}"))
        })?;
        Ok(Some(if is_open && self.kernel.punts.is_attached()? {
            Finding::new(CHECK, Status::Ok, "connections by name reach it")
        } else {
            Finding::new(
                CHECK,
                Status::Failed,
                "somebody removed its routing rule or program, and connections by name fail; restart the daemon",
            )
        }))
    }

    fn open_routes(&self) -> Result<(), ControlError> {
        let way = Way::new(&self.config.inspector);
        self.block_on(way.open(&self.netlink)).map_err(|error| {
            ControlError::failed(format!("cannot route connections by name to the inspector: {error}"))
        })
    }
}

/// What the inspector knows of the daemon.
pub struct Hosted {
    core: Weak<Core>,
    told: Inspected,
}

impl Hosted {
    fn sandbox(&self, tenant: Tenant) -> Option<(Arc<Core>, Arc<super::registry::Sandbox>)> {
        let core = self.core.upgrade()?;
        let sandbox = core.registry.tenant(tenant)?;
        Some((core, sandbox))
    }
}

impl Host for Hosted {
    fn tenant(&self, flow: &Flow) -> Option<Tenant> {
        let number = match flow.transport {
            Transport::Tcp => protocol::TCP,
            Transport::Udp => protocol::UDP,
        };
        let ports = [flow.source.port().to_be(), flow.destination.port().to_be()];
        let key = PuntKey::new(addr(flow.source), addr(flow.destination), ports, number);
        self.core.upgrade()?.kernel.punts.tenant(&key)
    }

    fn rules(&self, tenant: Tenant) -> Option<Arc<Rules>> {
        let (core, sandbox) = self.sandbox(tenant)?;
        sandbox.judged_by.under(core.kernel.words.load(sandbox.slot).generation())
    }

    fn allowed(&self, flow: &Flow, tenant: Tenant, rule: RuleWord) {
        // The kernel counts by names only. What an address allows stays with the inspector all the same.
        if !matches!(rule.class(), Class::Named) {
            return;
        }
        let (kind, number) = match flow.transport {
            Transport::Tcp => (Kind::Tcp, protocol::TCP),
            Transport::Udp => (Kind::Udp, protocol::UDP),
        };
        let ends = Ends {
            src: addr(flow.source),
            dst: addr(flow.destination),
            kind,
            protocol: number,
            src_port: flow.source.port().to_be(),
            dst_port: flow.destination.port().to_be(),
        };
        if let Some(core) = self.core.upgrade()
            && let Some(key) = FlowKey::between(tenant, &ends, Side::Sandbox)
        {
            core.kernel.punts.settle(&key, rule);
        }
    }

    fn tell(&self, tenant: Tenant, event: Event) {
        let Some((core, sandbox)) = self.sandbox(tenant) else { return };
        // The slot of one that left may be another's by now.
        if let Happening::Deny = event.happening
            && sandbox.judged_by.is_anything()
        {
            core.kernel.tally.count(sandbox.slot, event.reason, event.bytes_out);
        }
        self.told.send(tenant, event);
    }
}

fn addr(end: SocketAddr) -> Addr {
    Addr::from(end.ip().to_canonical())
}
