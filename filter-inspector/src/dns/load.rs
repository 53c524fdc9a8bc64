//! How many queries are being answered, altogether and of each sandbox.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{host::Tenant, resolve::MAX_LOOKUPS};

/// Of one sandbox, over UDP and all of its connections.
pub(super) const PER_SANDBOX: usize = 128;
/// Of all. What may wait for a server is more, so that the dialler finds room when sandboxes ask for all
/// that they may.
pub(super) const TOTAL: usize = MAX_LOOKUPS / 4 * 3;

/// The queries that are being answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Load(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_tenant: HashMap<Tenant, usize>,
}

/// A place among the queries that are being answered; it is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    load: Load,
    tenant: Tenant,
}

impl Load {
    /// `None`: the sandbox, or all of them, have as many as they may.
    pub(super) fn enter(&self, tenant: Tenant) -> Option<Place> {
        let mut counts = self.counts();
        let own = counts.by_tenant.get(&tenant).copied().unwrap_or(0);
        if own >= PER_SANDBOX || counts.total >= TOTAL {
            return None;
        }
        counts.total += 1;
        counts.by_tenant.insert(tenant, own + 1);
        drop(counts);
        Some(Place { load: self.clone(), tenant })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Numbers are never half-way changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.load.counts();
        counts.total = counts.total.saturating_sub(1);
        match counts.by_tenant.get(&self.tenant).copied() {
            Some(own) if own > 1 => counts.by_tenant.insert(self.tenant, own - 1),
            // A sandbox that is gone leaves nothing behind.
            _ => counts.by_tenant.remove(&self.tenant),
        };
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
}
