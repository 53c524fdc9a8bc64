//! Removing everything that the filter has on this host, without a daemon.

use tokio::task::{JoinError, JoinSet};

use super::state::StateDir;
use crate::config::Config;
use crate::config::sections;
use crate::error::ControlError;
use crate::kernel::links::{links_dir, unpin};
use crate::kernel::object::{foreign_maps, maps_dir};
use crate::kernel::punts::lookup_pin;
use crate::netlink::Netlink;
use crate::protocol::SandboxId;
use crate::routing::Way;
use crate::sandboxes::{Records, provider};

/// Sandboxes that are ended at the same time.
const AT_ONCE: usize = 16;

/// Removes every program, link and map that the filter has pinned, and what it wrote down. Needs no daemon,
/// and allows none.
///
/// # Errors
/// `conflict` if a daemon runs, or sandboxes are attached and `force` is not given.
pub fn cleanup(config: &Config, force: bool) -> Result<Vec<String>, ControlError> {
    let state = StateDir::open(&config.paths.state_dir)?;
    let bpffs = &config.paths.bpffs_dir;
    state.take_proposals(|_| Ok(false))?;
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
    let mut removed = end_made(config, force)?;
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

/// Ends the sandboxes that the API made, while they are still filtered.
fn end_made(config: &Config, force: bool) -> Result<Vec<String>, ControlError> {
    let records = Records::open(&config.paths.state_dir)?;
    let made = records.load()?;
    if made.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |error: std::io::Error| ControlError::failed(format!("cannot end sandboxes: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let (netlink, _changes) = Netlink::open().map_err(failed)?;
        let provider = provider::configured(config, &netlink)?;
        let mut endings = JoinSet::new();
        let mut ended = Vec::new();
        for record in made {
            let provider = provider.clone();
            endings.spawn(async move { (record.id.clone(), provider.destroy(record.id, record.port).await) });
            // As many at once as the kernel does any faster.
            while endings.len() >= AT_ONCE
                && let Some(done) = endings.join_next().await
            {
                ended.push(settle(&records, done, force)?);
            }
        }
        while let Some(done) = endings.join_next().await {
            ended.push(settle(&records, done, force)?);
        }
        Ok(ended)
    })
}

/// Forgets a sandbox that has ended; says so.
fn settle(
    records: &Records,
    done: Result<(SandboxId, Result<(), ControlError>), JoinError>,
    force: bool,
) -> Result<String, ControlError> {
    let (id, result) =
        done.map_err(|error| ControlError::failed(format!("cannot end sandboxes: {error}")))?;
    let said = match result {
        Ok(()) => format!("what sandbox {id} was made of"),
        Err(error) if force => format!("not what sandbox {id} was made of: {error}"),
        Err(error) => return Err(error),
    };
    records.remove(&id)?;
    Ok(said)
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
