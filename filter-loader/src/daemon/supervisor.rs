//! What the service manager is told (systemd, sd_notify(3)). Where there is none, nobody is told anything.
//!
//! The watchdog is fed only while the daemon answers. It asks itself as a client would, so that everything that an
//! answer takes has to work: the socket, the runtime, a thread for the operation, the table of sandboxes.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time;

use super::core::Core;
use crate::client::Client;
use crate::error::ErrorCode;
use crate::protocol::SandboxId;

/// The sandbox that the watchdog asks for. That there is none of this name is an answer.
const ASKED_FOR: &str = "watchdog";

/// Says what the daemon is about, before it serves.
pub(super) fn starting(what: &str) {
    tell(&[NotifyState::Status(what)]);
}

/// Says that the daemon serves and, if that is wanted, goes on saying so while it does.
pub(super) fn ready(core: &Arc<Core>) -> Option<JoinHandle<()>> {
    tell(&[NotifyState::Ready, NotifyState::Status(&status(core))]);
    let period = sd_notify::watchdog_enabled()?;
    Some(tokio::spawn(feed_watchdog(core.clone(), period)))
}

/// Says that the daemon stops.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping; what is attached stays enforced")]);
}

/// Never ends. Whoever is not heard from within `period` is taken for dead.
async fn feed_watchdog(core: Arc<Core>, period: Duration) {
    let Ok(id) = ASKED_FOR.parse::<SandboxId>() else { return };
    // Often enough that one answer may be late.
    let mut ticks = time::interval(period / 3);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let client = Client::new(&core.config.paths.socket).with_patience(period / 2);
    loop {
        ticks.tick().await;
        let (client, id) = (client.clone(), id.clone());
        let asked = spawn_blocking(move || match client.show(&id, false) {
            Err(error) if error.code != ErrorCode::NotFound => Err(error),
            Ok(_) | Err(_) => Ok(()),
        });
        match asked.await {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog, NotifyState::Status(&status(&core))]),
            Ok(Err(error)) => tracing::error!(%error, "the daemon does not answer itself"),
            Err(error) => tracing::error!(%error, "the daemon cannot ask itself"),
        }
    }
}

fn status(core: &Core) -> String {
    match core.registry.len() {
        1 => "1 sandbox".to_owned(),
        count => format!("{count} sandboxes"),
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
