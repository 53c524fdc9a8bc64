//! The end of a sandbox: because somebody says so, because its time is over, because it went by itself, or because
//! it never came to be.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use tokio::time::{sleep, timeout};

use super::{
    Sandboxes,
    record::{Owner, Record},
};
use crate::{
    error::{ControlError, ErrorCode},
    protocol::SandboxId,
};

/// After how long an end that failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How many of those that an earlier run has left are taken away at the same time.
const AT_ONCE: usize = 16;
/// How long the API is not served meanwhile; what takes longer goes on behind it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The clock may be set meanwhile; ends are looked at this often at least.
const LOOK: Duration = Duration::from_secs(1);

impl Sandboxes {
    /// Ends a sandbox; returns when nothing of it is left.
    ///
    /// # Errors
    /// `not found` unless it is the owner's; `failed` if it cannot be taken away, and then it goes on as it is.
    pub async fn kill(self: &Arc<Self>, owner: &Owner, id: &SandboxId) -> Result<(), ControlError> {
        let gate = self.gate(owner, id)?;
        let _turn = gate.lock().await;
        let record = self.still_there(owner, id)?;
        self.take_away(record).await
    }

    /// A sandbox's interface has gone: whatever else there is of it goes too.
    pub async fn lost(self: &Arc<Self>, id: &SandboxId) {
        let Some(gate) = self.table().gate(id) else { return };
        let _turn = gate.lock().await;
        let there = self.table().running(id).cloned();
        if let Some(record) = there {
            tracing::info!(sandbox = %id, "its interface went away; it ends");
            self.take_back(&record.id).await;
        }
    }

    /// Ends sandboxes when their time is over, for as long as it is polled.
    pub async fn end_in_time(self: Arc<Self>) {
        loop {
            let now = SystemTime::now();
            let due = {
                let mut table = self.table();
                let due = table.next_end().filter(|(end_at, _)| *end_at <= now).map(|(_, id)| id.clone());
                if let Some(id) = &due {
                    // Should it fail, or take long, it comes up again.
                    table.postpone(id, now + AGAIN);
                }
                due
            };
            if let Some(id) = due {
                let keeper = self.clone();
                tokio::spawn(async move { keeper.end(&id).await });
                continue;
            }
            let next = self.table().next_end().map(|(end_at, _)| *end_at);
            let wait = next.and_then(|end_at| end_at.duration_since(now).ok()).unwrap_or(LOOK).min(LOOK);
            tokio::select! {
                () = sleep(wait) => {}
                () = self.next_end.notified() => {}
            }
        }
    }

    /// Takes over what an earlier run has left: what still runs goes on, anything else is taken away. Nobody can use
    /// the latter any more when this returns, but taking it away may go on.
    ///
    /// # Errors
    /// If it cannot be told what there was.
    pub async fn resume(self: &Arc<Self>) -> Result<(), ControlError> {
        let attached: HashSet<SandboxId> =
            self.control.list().await?.into_iter().map(|summary| summary.id).collect();
        let mut broken = Vec::new();
        for record in self.records.load()? {
            let id = record.id.clone();
            if let Some(port) = &record.port {
                self.provider.adopt(port);
            }
            self.table().admit(record.clone());
            let runs = match record.port {
                // It may have been interrupted before it could speak; letting it twice does no harm.
                Some(port) => attached.contains(&id) && self.provider.start(port).await.is_ok(),
                None => false,
            };
            if runs {
                self.table().run(&id);
            } else {
                broken.push(id);
            }
        }
        let keeper = self.clone();
        let ending = tokio::spawn(stream::iter(broken).for_each_concurrent(AT_ONCE, move |id| {
            let keeper = keeper.clone();
            async move {
                tracing::info!(sandbox = %id, "was not finished, or has lost its interface; it ends");
                keeper.take_back(&id).await;
            }
        }));
        if timeout(PATIENCE, ending).await.is_err() {
            tracing::warn!("some sandboxes of the last run take long to end; that goes on");
        }
        Ok(())
    }

    /// Its time is over.
    pub(super) async fn end(self: Arc<Self>, id: &SandboxId) {
        let Some(gate) = self.table().gate(id) else { return };
        let _turn = gate.lock().await;
        // It may have been given more time while this waited.
        let due = self.table().is_due(id, SystemTime::now());
        if due {
            tracing::debug!(sandbox = %id, "its time is over");
            self.take_back(id).await;
        }
    }

    /// Takes away whatever there is. Where that fails, nobody can use it any more, and it is tried again later.
    pub(super) async fn take_back(self: &Arc<Self>, id: &SandboxId) {
        self.table().leave(id, SystemTime::now() + AGAIN);
        let there = self.table().any(id).cloned();
        let Some(record) = there else { return };
        if let Err(error) = self.take_away(record).await {
            tracing::error!(sandbox = %id, %error, "cannot be taken away; trying again");
        }
        self.next_end.notify_one();
    }

    /// The provider first: as long as there is something that could send, it is filtered.
    async fn take_away(self: &Arc<Self>, record: Record) -> Result<(), ControlError> {
        let id = record.id;
        self.provider.destroy(id.clone(), record.port.clone()).await?;
        match self.control.detach(id.clone()).await {
            Err(error) if error.code != ErrorCode::NotFound => return Err(error),
            _ => {}
        }
        self.forget(id.clone()).await?;
        self.table().forget(&id);
        if let Some(port) = record.port {
            self.provider.release(&port);
        }
        Ok(())
    }
}
