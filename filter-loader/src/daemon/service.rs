//! The running daemon: starts everything in order, and stops it.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::core::Core;
use super::inspection::punt_settings;
use super::journal::Journal;
use super::state::StateDir;
use super::{cut, events, guard, inspection};
use crate::config::Config;
use crate::config::sections::{self, Attach};
use crate::error::{ControlError, ErrorCode};
use crate::kernel::links::{links_dir, unpin};
use crate::kernel::object::{Settings, foreign_maps, maps_dir};
use crate::kernel::punts::lookup_pin;
use crate::kernel::{AttachMode, Kernel};
use crate::netlink::{Change, Netlink};
use crate::protocol::{AttachRequest, SandboxId, Show, Stats, Summary, UpdateRequest};
use crate::routing::Way;
use crate::server::{Control, Listener, serve};

/// What the programs are told, from the configuration.
pub fn settings(config: &Config) -> Settings {
    let timeouts = &config.timeouts;
    Settings {
        tcp_half_open: timeouts.tcp_half_open,
        tcp_closing: timeouts.tcp_closing,
        tcp_established: timeouts.tcp_established,
        udp: timeouts.udp,
        icmp: timeouts.icmp,
        egress_ceiling: config.limits.egress_ceiling,
        attach: match config.kernel.attach {
            Attach::Auto => AttachMode::Auto,
            Attach::Tcx => AttachMode::Tcx,
            Attach::Clsact => AttachMode::Clsact,
        },
        punt: punt_settings(config),
    }
}

/// Runs the daemon until it is told to stop (SIGTERM, SIGINT). What it attached stays attached.
///
/// # Errors
/// `conflict` if another daemon has the same state; `failed` if kernel, files or socket refuse.
pub fn run(config: Config) -> Result<(), ControlError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| ControlError::failed(format!("cannot start threads: {error}")))?;
    runtime.block_on(serve_until_told(config))
}

async fn serve_until_told(config: Config) -> Result<(), ControlError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(ControlError::failed("the daemon loads programs into the kernel; run it as root"));
    }
    let state = StateDir::open(&config.paths.state_dir)?;
    mount_bpffs(&config.paths.bpffs_dir)?;
    let failed =
        |what: &'static str| move |error: std::io::Error| ControlError::failed(format!("{what}: {error}"));
    let (netlink, changes) = Netlink::open().map_err(failed("cannot ask the kernel about interfaces"))?;
    let guard =
        guard::present(&config, &netlink).await.map_err(failed("cannot read the host's addresses"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("cannot wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("cannot wait for signals"))?;

    let kernel = Kernel::load(&config.paths.bpffs_dir, &settings(&config))?;
    let rings = kernel.rings.lock().ok().and_then(|mut rings| rings.take());
    let open = |path| Journal::open(path, config.events.max_bytes, config.events.keep);
    let journal = config.events.jsonl.as_deref().map(open).transpose();
    let journal = journal.map_err(failed("cannot write [events].jsonl"))?;
    let socket = config.paths.socket.clone();
    let core = Arc::new(Core::new(config, kernel, netlink, state, guard));

    let (told, inspected) = events::inspected();
    let mut inspector = inspection::start(&core, told)?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    let (cuts, events) = rings.map(|rings| (rings.cuts, rings.events)).unzip();
    if let Some(cuts) = cuts {
        // Reconciling may cut connections already.
        threads.push(cut::start(core.clone(), cuts, stop.clone()).map_err(failed("cannot start a thread"))?);
    }
    let result = async {
        blocking(&core, |core| core.reconcile()).await?;
        if let Some(events) = events {
            // Among them those of the time without a daemon, which are somebody's only now.
            let started = events::start(core.clone(), events, inspected, journal, stop.clone());
            threads.push(started.map_err(failed("cannot start a thread"))?);
        }
        // It can judge nobody before everybody is known.
        inspector.open(&core)?;
        let listener = Listener::bind(&socket)?;
        let (stop_serving, told) = oneshot::channel::<()>();
        let shutdown = async {
            // Gone or told: both mean to stop.
            let _ = told.await;
        };
        let watching = tokio::spawn(watch_host(core.clone(), changes));
        tracing::info!(socket = %socket.display(), sandboxes = core.registry.all().len(), "ready");
        let serving = tokio::spawn(serve(listener, Arc::new(Service(core.clone())), shutdown));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; what is attached stays enforced");
        let _ = stop_serving.send(());
        let _ = serving.await;
        watching.abort();
        inspector.stop().await;
        Ok(())
    }
    .await;
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the daemon failed");
        }
    }
    result
}

/// Follows the host: interfaces that go take their sandbox along, addresses that come are guarded.
async fn watch_host(core: Arc<Core>, changes: impl Stream<Item = Change> + Send) {
    /// Addresses come in bursts; each burst is followed once.
    const QUIET: Duration = Duration::from_millis(20);
    let mut changes = pin!(changes);
    while let Some(first) = changes.next().await {
        let mut burst = vec![first];
        while let Ok(Some(more)) = tokio::time::timeout(QUIET, changes.next()).await {
            burst.push(more);
            if burst.len() >= 1024 {
                break;
            }
        }
        if burst.iter().any(|change| matches!(change, Change::LinkGone(_) | Change::Missed)) {
            detach_the_gone(&core).await;
        }
        if burst.iter().any(|change| matches!(change, Change::Rules | Change::Missed))
            && let Err(error) = blocking(&core, Core::keep_way_to_inspector).await
        {
            tracing::error!(%error, "connections by name fail");
        }
        if burst.iter().any(|change| matches!(change, Change::Link(_) | Change::Missed))
            && let Err(error) = blocking(&core, Core::follow_interfaces).await
        {
            tracing::error!(%error, "cannot follow the interfaces' hardware addresses");
        }
        if burst.iter().any(|change| matches!(change, Change::Addresses | Change::Missed))
            && let Err(error) = blocking(&core, Core::follow_host).await
        {
            tracing::error!(%error, "cannot follow the host's addresses");
        }
    }
    tracing::error!("the kernel no longer tells of changes; restart the daemon");
}

/// Detaches every sandbox whose interface the kernel no longer has.
async fn detach_the_gone(core: &Arc<Core>) {
    let links = match core.netlink.links().await {
        Ok(links) => links,
        Err(error) => {
            tracing::error!(%error, "cannot look which interfaces there are");
            return;
        }
    };
    for sandbox in core.registry.all() {
        if links.iter().any(|link| link.index == sandbox.ifindex) {
            continue;
        }
        tracing::info!(sandbox = %sandbox.id, iface = sandbox.iface, "the interface is gone; detaching");
        let gone = sandbox.clone();
        match blocking(core, move |core| core.detach_sandbox(&gone)).await {
            Ok(()) => {}
            Err(error) if error.code == ErrorCode::NotFound => {}
            Err(error) => tracing::error!(sandbox = %sandbox.id, %error, "cannot clean up"),
        }
    }
}

async fn blocking<T: Send + 'static>(
    core: &Arc<Core>,
    work: impl FnOnce(&Core) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    let core = core.clone();
    spawn_blocking(move || work(&core))
        .await
        .unwrap_or_else(|_| Err(ControlError::failed("the daemon failed on this request; its log says more")))
}

/// The operations, for the socket's server.
struct Service(Arc<Core>);

impl Control for Service {
    async fn attach(&self, request: AttachRequest) -> Result<Show, ControlError> {
        blocking(&self.0, |core| core.attach(request)).await
    }

    async fn update(&self, request: UpdateRequest) -> Result<Show, ControlError> {
        blocking(&self.0, |core| core.update(request)).await
    }

    async fn detach(&self, id: SandboxId) -> Result<(), ControlError> {
        blocking(&self.0, move |core| core.detach(&id)).await
    }

    async fn list(&self) -> Result<Vec<Summary>, ControlError> {
        blocking(&self.0, Core::list).await
    }

    async fn show(&self, id: SandboxId) -> Result<Show, ControlError> {
        blocking(&self.0, move |core| core.show(&id)).await
    }

    async fn stats(&self, id: Option<SandboxId>) -> Result<Stats, ControlError> {
        blocking(&self.0, move |core| core.stats(id.as_ref())).await
    }

    async fn doctor(&self) -> Result<Value, ControlError> {
        blocking(&self.0, crate::doctor::of_daemon).await
    }
}

/// Makes sure that pins have a file system to be on.
fn mount_bpffs(dir: &Path) -> Result<(), ControlError> {
    use nix::mount::{MsFlags, mount};
    use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
    let root = Path::new("/sys/fs/bpf");
    if statfs(root).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) || !dir.starts_with(root) {
        return Ok(());
    }
    mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(|errno| {
        ControlError::failed(format!("cannot mount a BPF file system at {}: {errno}", root.display()))
    })
}

/// Removes the routing rules that lead to the inspector.
fn close_way(config: &sections::Inspector) -> Result<usize, ControlError> {
    let failed = |error: std::io::Error| {
        ControlError::failed(format!("cannot remove the routing rules of the inspector: {error}"))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let (netlink, _changes) = Netlink::open().map_err(failed)?;
        Way::new(config).close(&netlink).await.map_err(failed)
    })
}

/// Removes every program, link and map that the filter has pinned, and what it wrote down. Needs no daemon,
/// and allows none.
///
/// # Errors
/// `conflict` if a daemon runs, or sandboxes are attached and `force` is not given.
pub fn cleanup(config: &Config, force: bool) -> Result<Vec<String>, ControlError> {
    let state = StateDir::open(&config.paths.state_dir)?;
    let bpffs = &config.paths.bpffs_dir;
    let records = state.load();
    let attached = match &records {
        Ok(records) => records.len(),
        Err(_) if force => 0,
        Err(error) => return Err(error.clone()),
    };
    if attached > 0 && !force {
        return Err(ControlError::conflict(format!(
            "{attached} sandboxes are attached and would be unfiltered; detach them, or say --force"
        )));
    }
    let mut removed = Vec::new();
    for record in records.unwrap_or_default() {
        crate::kernel::links::detach_filters(&record.iface);
        state.remove(&record.id)?;
        removed.push(format!("sandbox {}", record.id));
    }
    let mut dirs = vec![maps_dir(bpffs)];
    if let Some((foreign, _)) = foreign_maps(bpffs)? {
        dirs.push(foreign);
    }
    let links = links_dir(bpffs);
    if links.exists() {
        for entry in std::fs::read_dir(&links).map_err(crate::kernel::pins(&links))? {
            let path = entry.map_err(crate::kernel::pins(&links))?.path();
            unpin(&path)?;
            removed.push(path.display().to_string());
        }
        dirs.insert(0, links);
    }
    // Behind the programs on the interfaces: what these punt must not go anywhere else.
    let pin = lookup_pin(bpffs);
    if pin.exists() {
        std::fs::remove_file(&pin).map_err(crate::kernel::pins(&pin))?;
        removed.push(pin.display().to_string());
    }
    match close_way(&config.inspector)? {
        0 => {}
        count => removed.push(format!("{count} routing rules and routes")),
    }
    dirs.push(bpffs.clone());
    for dir in dirs {
        if dir.exists() {
            unpin(&dir)?;
            removed.push(dir.display().to_string());
        }
    }
    Ok(removed)
}
