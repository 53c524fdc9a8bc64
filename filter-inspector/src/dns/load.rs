//! How many queries are being answered, altogether and of each sandbox.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::host::Tenant;

/// Of all sandboxes. It bounds the memory; what the resolver asks at once is bounded there.
pub(super) const TOTAL: usize = 4096;
/// Of one sandbox, over UDP and all of its connections.
pub(super) const PER_SANDBOX: usize = 256;
/// Of these, how many may be with the resolver. The rest wait for them: names that nobody answers for keep
/// only the sandbox waiting that asks for them.
const AT_ONCE: usize = 32;
/// How long they wait, as long as a lookup may take.
const WAIT: Duration = Duration::from_secs(4);

/// The queries that are being answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Load(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_tenant: HashMap<Tenant, Share>,
}

/// What a sandbox has of it.
#[derive(Debug)]
struct Share {
    count: usize,
    turns: Arc<Semaphore>,
}

/// A place among the queries that are being answered; it is free again when this is dropped, which is once
/// the answer is sent.
#[derive(Debug)]
pub struct Place {
    load: Load,
    tenant: Tenant,
    turns: Arc<Semaphore>,
}

impl Load {
    /// `None`: the sandbox, or all of them, have as many as they may.
    pub(super) fn enter(&self, tenant: Tenant) -> Option<Place> {
        let mut counts = self.counts();
        if counts.total >= TOTAL {
            return None;
        }
        let share = counts.by_tenant.entry(tenant).or_default();
        if share.count >= PER_SANDBOX {
            return None;
        }
        share.count += 1;
        let turns = Arc::clone(&share.turns);
        counts.total += 1;
        drop(counts);
        Some(Place { load: self.clone(), tenant, turns })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Numbers are never half-way changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Share {
    fn default() -> Self {
        Self { count: 0, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Place {
    /// Waits until it is this query's turn among those of its sandbox; it lasts until what is returned is
    /// dropped. `None`: it never came.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        timeout(WAIT, Arc::clone(&self.turns).acquire_owned()).await.ok()?.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.load.counts();
        counts.total = counts.total.saturating_sub(1);
        if let Some(share) = counts.by_tenant.get_mut(&self.tenant) {
            share.count = share.count.saturating_sub(1);
            // A sandbox that is gone leaves nothing behind.
            if share.count == 0 {
                counts.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_has_its_bound_and_leaves_nothing_behind() {
        let load = Load::default();
        let places: Vec<_> = (0..PER_SANDBOX).map(|_| load.enter(1).unwrap()).collect();
        assert!(load.enter(1).is_none() && load.enter(2).is_some());
        drop(places);
        assert!(load.enter(1).is_some());
        assert!(load.counts().total == 0 && load.counts().by_tenant.is_empty());
    }

    #[test]
    fn all_together_have_theirs() {
        let load = Load::default();
        let tenants = (0..u32::MAX).flat_map(|tenant| [tenant; PER_SANDBOX]);
        let places: Vec<_> = tenants.map_while(|tenant| load.enter(tenant)).collect();
        assert_eq!(places.len(), TOTAL);
        drop(places);
        assert!(load.enter(9).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn turns_of_one_sandbox_do_not_concern_another() {
        let load = Load::default();
        let places: Vec<_> = (0..=AT_ONCE).map(|_| load.enter(1).unwrap()).collect();
        let mut turns = Vec::new();
        for place in &places[..AT_ONCE] {
            turns.push(place.turn().await.unwrap());
        }
        assert!(places[AT_ONCE].turn().await.is_none());
        assert!(load.enter(2).unwrap().turn().await.is_some());
        turns.pop();
        assert!(places[AT_ONCE].turn().await.is_some());
    }
}
