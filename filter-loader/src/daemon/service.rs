//! The running daemon: starts everything in order, and stops it.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::core::Core;
use super::inspection::punt_settings;
use super::journal::Journal;
use super::registry::Sandbox;
use super::serving::{keeper, serve_api};
use super::state::StateDir;
use super::tokens::TokenSeed;
use super::{cut, events, guard, ingress, inspection, supervisor, transforms};
use crate::config::Config;
use crate::config::sections::Attach;
use crate::error::{ControlError, ErrorCode};
use crate::kernel::object::Settings;
use crate::kernel::{AttachMode, Kernel};
use crate::netlink::{Change, Netlink};
use crate::sandboxes::Sandboxes;

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
    transforms::leave_no_core();
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
    let seed = TokenSeed::open(&config.paths.state_dir)?;
    let transformer = Arc::new(transforms::transformer(&config)?);
    let core = Arc::new(Core::new(config, kernel, netlink, state, seed, transformer, guard));

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
        supervisor::starting("taking over what is enforced");
        blocking(&core, |core| core.reconcile()).await?;
        if let Some(events) = events {
            // Among them those of the time without a daemon, which are somebody's only now.
            let started = events::start(core.clone(), events, inspected, journal, stop.clone());
            threads.push(started.map_err(failed("cannot start a thread"))?);
        }
        // It can judge nobody before everybody is known.
        inspector.open(&core)?;
        blocking(&core, Core::publish_authority).await?;
        let sandboxes = Arc::new(keeper(&core)?);
        sandboxes.resume().await?;
        let (stop_serving, told) = watch::channel(false);
        let gateway = ingress::start(&core, &sandboxes)?;
        let serving = serve_api(&core, &sandboxes, &told).await?;
        let watching = tokio::spawn(watch_host(core.clone(), sandboxes.clone(), changes));
        let ending = tokio::spawn(sandboxes.end_in_time());
        tracing::info!(socket = %socket.display(), sandboxes = core.registry.len(), "ready");
        let alive = supervisor::ready(&core);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; what is attached stays enforced");
        supervisor::stopping();
        if let Some(alive) = alive {
            alive.abort();
        }
        let _ = stop_serving.send(true);
        // Whoever observes would have the API wait for them.
        core.feed.close();
        ending.abort();
        let closing = async {
            if let Some(gateway) = gateway {
                gateway.stop().await;
            }
        };
        let _ = tokio::join!(serving.join_all(), closing);
        blocking(&core, Core::end_all_learning).await?;
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
async fn watch_host(core: Arc<Core>, sandboxes: Arc<Sandboxes>, changes: impl Stream<Item = Change> + Send) {
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
        if burst.contains(&Change::Missed) {
            detach_the_gone(&core, &sandboxes, core.registry.all()).await;
        } else {
            let gone = burst.iter().filter_map(Change::link_gone);
            let gone = gone.filter_map(|index| core.registry.on_interface(index));
            detach_the_gone(&core, &sandboxes, gone.collect()).await;
        }
        if burst.iter().any(|change| matches!(change, Change::Rules | Change::Missed))
            && let Err(error) = blocking(&core, Core::keep_way_to_inspector).await
        {
            tracing::error!(%error, "connections by name fail");
        }
        let changed: BTreeSet<u32> = if burst.contains(&Change::Missed) {
            core.registry.all().iter().map(|sandbox| sandbox.ifindex).collect()
        } else {
            burst.iter().filter_map(Change::link).collect()
        };
        if !changed.is_empty()
            && let Err(error) = blocking(&core, |core| core.follow_interfaces(changed)).await
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

/// Detaches those of these sandboxes whose interface the kernel no longer has.
async fn detach_the_gone(core: &Arc<Core>, sandboxes: &Arc<Sandboxes>, suspects: Vec<Arc<Sandbox>>) {
    for sandbox in suspects {
        match core.netlink.link_at(sandbox.ifindex).await {
            Ok(None) => {}
            Ok(Some(_)) => continue,
            Err(error) => {
                tracing::error!(sandbox = %sandbox.id, %error, "cannot look whether its interface is there");
                continue;
            }
        }
        let gone = sandbox.clone();
        match blocking(core, move |core| core.detach_sandbox(&gone)).await {
            Ok(()) => {
                tracing::info!(sandbox = %sandbox.id, iface = sandbox.iface, "the interface is gone; detached");
            }
            Err(error) if error.code == ErrorCode::NotFound => continue,
            Err(error) => tracing::error!(sandbox = %sandbox.id, %error, "cannot clean up"),
        }
        let (sandboxes, id) = (sandboxes.clone(), sandbox.id.clone());
        tokio::spawn(async move { sandboxes.lost(&id).await });
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    core: &Arc<Core>,
    work: impl FnOnce(&Core) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    let core = core.clone();
    spawn_blocking(move || work(&core))
        .await
        .unwrap_or_else(|_| Err(ControlError::failed("the daemon failed on this request; its log says more")))
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
