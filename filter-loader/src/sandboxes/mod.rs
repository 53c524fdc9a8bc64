//! The sandboxes that the API makes: who owns them, until when they live, and that nothing is left of them.
//!
//! ```text
//!   create ── admit ── write down ── provider makes it ── filter attaches ── provider lets it speak
//!   end    ── provider takes it away ── filter detaches ── forget
//! ```
//!
//! The filter is there before a sandbox can send anything, and goes when there is nothing left that could.
//! Whatever fails, or is interrupted by the daemon's end, is taken back by the same steps as an end. What is done
//! to one sandbox is done in turn: each has a gate.

mod create;
mod end;
mod record;
mod table;

pub mod provider;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, task::spawn_blocking};

pub use self::{
    create::{Allowance, CreateError, NewSandbox},
    record::{Owner, Port, Record, Records},
};
use self::{provider::Provider, table::Table};
use crate::{
    control::Control,
    error::ControlError,
    protocol::{Change, Changed, Condition, SandboxId, UpdateRequest},
};

/// The longest that a sandbox may live from now on.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Keeps the sandboxes that the API makes.
pub struct Sandboxes {
    control: Arc<dyn Control>,
    provider: Arc<dyn Provider>,
    records: Records,
    table: Mutex<Table>,
    /// Something about the next end has changed.
    next_end: Notify,
}

impl Sandboxes {
    /// A keeper that writes down below `state_dir` what it has.
    ///
    /// # Errors
    /// `failed` if the file system refuses.
    pub fn new(
        control: Arc<dyn Control>,
        provider: Arc<dyn Provider>,
        state_dir: &Path,
    ) -> Result<Self, ControlError> {
        Ok(Self {
            control,
            provider,
            records: Records::open(state_dir)?,
            table: Mutex::default(),
            next_end: Notify::new(),
        })
    }

    /// One of an owner's sandboxes.
    pub fn get(&self, owner: &Owner, id: &SandboxId) -> Option<Record> {
        self.table().running(id).filter(|record| record.is_of(owner)).cloned()
    }

    /// What was asked for when a sandbox was made, whose and in whatever state it is.
    pub fn record(&self, id: &SandboxId) -> Option<Record> {
        self.table().record(id).cloned()
    }

    /// All of an owner's sandboxes, in no order.
    pub fn list(&self, owner: &Owner) -> Vec<Record> {
        self.table().all_running().filter(|record| record.is_of(owner)).cloned().collect()
    }

    /// Whether this is one of those kept here, in whatever state.
    pub fn keeps(&self, id: &SandboxId) -> bool {
        self.table().knows(id)
    }

    /// Changes what a sandbox may reach; returns when that is enforced.
    ///
    /// # Errors
    /// `not found` unless it is the owner's; what the change is refused for. Nothing has changed then.
    pub async fn change_network(
        &self,
        owner: &Owner,
        id: &SandboxId,
        change: Change,
        condition: Option<Condition>,
    ) -> Result<Changed, ControlError> {
        let gate = self.gate(owner, id)?;
        let _turn = gate.lock().await;
        self.still_there(owner, id)?;
        self.control.update(UpdateRequest { id: id.clone(), change, condition }).await
    }

    /// Sets when a sandbox ends, counted from now; or only puts it off, where `shorten` is not given.
    ///
    /// # Errors
    /// `not found` unless it is the owner's; `failed` if it cannot be written down.
    pub async fn set_timeout(
        self: &Arc<Self>,
        owner: &Owner,
        id: &SandboxId,
        timeout: Duration,
        shorten: bool,
    ) -> Result<Record, ControlError> {
        let gate = self.gate(owner, id)?;
        let _turn = gate.lock().await;
        let mut record = self.still_there(owner, id)?;
        let end_at = SystemTime::now() + timeout;
        if !shorten && end_at <= record.end_at {
            return Ok(record);
        }
        record.end_at = end_at;
        self.save(record.clone()).await?;
        self.table().set_end(id, end_at);
        self.next_end.notify_one();
        Ok(record)
    }

    fn gate(&self, owner: &Owner, id: &SandboxId) -> Result<Arc<tokio::sync::Mutex<()>>, ControlError> {
        let table = self.table();
        let is_theirs = table.running(id).is_some_and(|record| record.is_of(owner));
        let gate = if is_theirs { table.gate(id) } else { None };
        gate.ok_or_else(|| ControlError::not_found(id))
    }

    /// To be asked again behind the gate.
    fn still_there(&self, owner: &Owner, id: &SandboxId) -> Result<Record, ControlError> {
        self.get(owner, id).ok_or_else(|| ControlError::not_found(id))
    }

    async fn save(self: &Arc<Self>, record: Record) -> Result<(), ControlError> {
        let keeper = self.clone();
        joined(spawn_blocking(move || keeper.records.save(&record)).await)
    }

    async fn forget(self: &Arc<Self>, id: SandboxId) -> Result<(), ControlError> {
        let keeper = self.clone();
        joined(spawn_blocking(move || keeper.records.remove(&id)).await)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No code that holds it panics half-way through a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// Whether an owner may see it. The operator may see all.
    pub fn is_of(&self, owner: &Owner) -> bool {
        *owner == Owner::Operator || self.owner == *owner
    }
}

fn joined<T>(result: Result<Result<T, ControlError>, tokio::task::JoinError>) -> Result<T, ControlError> {
    result
        .unwrap_or_else(|_| Err(ControlError::failed("the daemon failed on this request; its log says more")))
}
