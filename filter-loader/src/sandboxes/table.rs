//! Who there is, by id, by owner, and by the time of the end. No operation goes through all of them but the
//! listing.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use super::record::{Owner, Port, Record};
use crate::protocol::SandboxId;

/// What is done to one sandbox is done in turn.
pub(super) type Gate = Arc<tokio::sync::Mutex<()>>;

/// Where a sandbox is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Nobody has been told of it.
    Coming,
    Running,
    /// It is to end, and nobody may use it any more.
    Leaving,
}

struct Entry {
    record: Record,
    /// When it comes up in `ends`, if it is there.
    comes_up: Option<SystemTime>,
    phase: Phase,
    gate: Gate,
}

/// All sandboxes.
#[derive(Default)]
pub(super) struct Table {
    entries: HashMap<SandboxId, Entry>,
    counts: HashMap<Owner, u32>,
    /// Whose which interface is.
    ifaces: HashMap<String, SandboxId>,
    ends: BTreeSet<(SystemTime, SandboxId)>,
}

impl Table {
    /// How many an owner has, those on their way in and out included.
    pub(super) fn count(&self, owner: &Owner) -> u32 {
        self.counts.get(owner).copied().unwrap_or(0)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn knows(&self, id: &SandboxId) -> bool {
        self.entries.contains_key(id)
    }

    /// What was asked for, in whatever state it is.
    pub(super) fn record(&self, id: &SandboxId) -> Option<&Record> {
        self.entries.get(id).map(|entry| &entry.record)
    }

    /// Takes a place for a sandbox that is to be made.
    pub(super) fn admit(&mut self, mut record: Record) -> Gate {
        *self.counts.entry(record.owner.clone()).or_default() += 1;
        let (id, port) = (record.id.clone(), record.port.take());
        let gate = Gate::default();
        let entry = Entry { record, comes_up: None, phase: Phase::Coming, gate: gate.clone() };
        self.entries.insert(id.clone(), entry);
        if let Some(port) = port {
            self.set_port(&id, port);
        }
        gate
    }

    /// Makes a port a sandbox's, if its interface is not another's; says whether it is.
    pub(super) fn set_port(&mut self, id: &SandboxId, port: Port) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        if self.ifaces.get(&port.iface).is_some_and(|whose| whose != id) {
            return false;
        }
        self.ifaces.insert(port.iface.clone(), id.clone());
        if let Some(before) = entry.record.port.replace(port.clone())
            && before.iface != port.iface
        {
            self.ifaces.remove(&before.iface);
        }
        true
    }

    /// It may be used from now on.
    pub(super) fn run(&mut self, id: &SandboxId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.phase = Phase::Running;
            let end_at = entry.record.end_at;
            self.postpone(id, end_at);
        }
    }

    /// It may not be used any more; `again` is when its end is tried again, should it fail.
    pub(super) fn leave(&mut self, id: &SandboxId, again: SystemTime) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.phase = Phase::Leaving;
            self.postpone(id, again);
        }
    }

    /// Gives it another end.
    pub(super) fn set_end(&mut self, id: &SandboxId, end_at: SystemTime) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.record.end_at = end_at;
            self.postpone(id, end_at);
        }
    }

    /// Has it come up at another time.
    pub(super) fn postpone(&mut self, id: &SandboxId, to: SystemTime) {
        if let Some(entry) = self.entries.get_mut(id) {
            if let Some(before) = entry.comes_up.replace(to) {
                self.ends.remove(&(before, id.clone()));
            }
            self.ends.insert((to, id.clone()));
        }
    }

    /// Whether its time is over, or its end is to be tried again.
    pub(super) fn is_due(&self, id: &SandboxId, now: SystemTime) -> bool {
        self.entries.get(id).is_some_and(|entry| match entry.phase {
            Phase::Coming => false,
            Phase::Running => entry.record.end_at <= now,
            Phase::Leaving => true,
        })
    }

    /// Nothing is left of it.
    pub(super) fn forget(&mut self, id: &SandboxId) {
        let Some(Entry { record, comes_up, .. }) = self.entries.remove(id) else { return };
        if let Some(at) = comes_up {
            self.ends.remove(&(at, id.clone()));
        }
        if let Some(port) = &record.port {
            self.ifaces.remove(&port.iface);
        }
        if let Some(count) = self.counts.get_mut(&record.owner) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&record.owner);
            }
        }
    }

    pub(super) fn running(&self, id: &SandboxId) -> Option<&Record> {
        self.entries.get(id).filter(|entry| entry.phase == Phase::Running).map(|entry| &entry.record)
    }

    pub(super) fn all_running(&self) -> impl Iterator<Item = &Record> {
        self.entries.values().filter(|entry| entry.phase == Phase::Running).map(|entry| &entry.record)
    }

    /// It, in whatever state.
    pub(super) fn any(&self, id: &SandboxId) -> Option<&Record> {
        self.entries.get(id).map(|entry| &entry.record)
    }

    pub(super) fn gate(&self, id: &SandboxId) -> Option<Gate> {
        self.entries.get(id).map(|entry| entry.gate.clone())
    }

    /// How many interfaces are somebody's.
    #[cfg(test)]
    pub(super) fn claimed(&self) -> usize {
        self.ifaces.len()
    }

    /// The next end, and whose.
    pub(super) fn next_end(&self) -> Option<&(SystemTime, SandboxId)> {
        self.ends.first()
    }
}
