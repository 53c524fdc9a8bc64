//! What the kernel has of each sandbox: who it is, what it did.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use filter_common::frame::Mac;
use filter_common::layout::{Budget, Counters, MAX_SANDBOXES, Sandbox, Throttle, sandbox_place};

use super::{KernelError, map};

/// The maps that have an entry a sandbox.
pub struct Sandboxes {
    maps: Mutex<Maps>,
}

struct Maps {
    sandboxes: Array<MapData, Sandbox>,
    displaced: HashMap<MapData, u32, Sandbox>,
    budgets: Array<MapData, Budget>,
    counters: Array<MapData, Counters>,
    throttles: Array<MapData, Throttle>,
    events_lost: Array<MapData, u64>,
}

const NOBODY: Sandbox = Sandbox {
    tenant: 0,
    slot: 0,
    flags: 0,
    ifindex: 0,
    addr_count: 0,
    mac: [0; 6],
    iface_mac: [0; 6],
    addrs: [filter_common::Addr::UNSPECIFIED; filter_common::layout::MAX_ADDRS],
};

/// What a sandbox did since it was attached.
#[derive(Clone, Copy, Debug)]
pub struct Activity {
    /// Its connections.
    pub budget: Budget,
    /// Its packets by reason.
    pub counters: Counters,
    /// Denials, and beginnings and ends of connections, that were counted but not told one by one.
    pub untold: u64,
}

impl Sandboxes {
    pub(super) fn open(
        counters: MapData,
        take: &mut impl FnMut(&'static str) -> Result<MapData, KernelError>,
    ) -> Result<Self, KernelError> {
        let displaced = HashMap::try_from(Map::HashMap(take("DISPLACED")?)).map_err(map("DISPLACED"))?;
        let maps = Maps {
            displaced,
            sandboxes: array(take, "SANDBOXES")?,
            budgets: array(take, "BUDGETS")?,
            counters: Array::try_from(Map::Array(counters)).map_err(map("COUNTERS"))?,
            throttles: array(take, "THROTTLES")?,
            events_lost: array(take, "EVENTS_LOST")?,
        };
        Ok(Self { maps: Mutex::new(maps) })
    }

    /// Makes a sandbox known, with everything counted anew.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn enter(&self, sandbox: &Sandbox) -> Result<(), KernelError> {
        let mut maps = self.lock();
        maps.clear(sandbox.slot)?;
        let place = sandbox_place(sandbox.ifindex);
        let there = maps.sandboxes.get(&place, 0).map_err(map("SANDBOXES"))?;
        if there.tenant == 0 || there.ifindex == sandbox.ifindex {
            maps.sandboxes.set(place, sandbox, 0).map_err(map("SANDBOXES"))
        } else {
            maps.displaced.insert(sandbox.ifindex, sandbox, 0).map_err(map("DISPLACED"))
        }
    }

    /// Notes that an interface has another hardware address now. Nothing else of its sandbox changes.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn readdress(&self, ifindex: u32, mac: Mac) -> Result<(), KernelError> {
        let Some(there) = self.on_interface(ifindex)? else { return Ok(()) };
        if there.iface_mac == mac {
            return Ok(());
        }
        let sandbox = Sandbox { iface_mac: mac, ..there };
        let mut maps = self.lock();
        let place = sandbox_place(ifindex);
        if maps.sandboxes.get(&place, 0).map_err(map("SANDBOXES"))?.ifindex == ifindex {
            maps.sandboxes.set(place, sandbox, 0).map_err(map("SANDBOXES"))
        } else {
            maps.displaced.insert(ifindex, sandbox, 0).map_err(map("DISPLACED"))
        }
    }

    /// Takes the interface from its sandbox: from here on the programs do not know whose packets they see.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn disown(&self, ifindex: u32) -> Result<(), KernelError> {
        let mut maps = self.lock();
        let place = sandbox_place(ifindex);
        if maps.sandboxes.get(&place, 0).map_err(map("SANDBOXES"))?.ifindex == ifindex {
            maps.sandboxes.set(place, NOBODY, 0).map_err(map("SANDBOXES"))?;
        }
        match maps.displaced.remove(&ifindex) {
            Ok(()) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(map("DISPLACED")(error)),
        }
    }

    /// Forgets what was counted in a slot.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn clear(&self, slot: u32) -> Result<(), KernelError> {
        self.lock().clear(slot)
    }

    /// Who is on an interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn on_interface(&self, ifindex: u32) -> Result<Option<Sandbox>, KernelError> {
        let maps = self.lock();
        let place = maps.sandboxes.get(&sandbox_place(ifindex), 0).map_err(map("SANDBOXES"))?;
        if place.tenant != 0 && place.ifindex == ifindex {
            return Ok(Some(place));
        }
        match maps.displaced.get(&ifindex, 0) {
            Ok(sandbox) => Ok(Some(sandbox)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(map("DISPLACED")(error)),
        }
    }

    /// Everybody the kernel knows.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn all(&self) -> Result<Vec<Sandbox>, KernelError> {
        let maps = self.lock();
        let mut all = Vec::new();
        for place in 0..MAX_SANDBOXES {
            let sandbox = maps.sandboxes.get(&place, 0).map_err(map("SANDBOXES"))?;
            if sandbox.tenant != 0 {
                all.push(sandbox);
            }
        }
        for entry in maps.displaced.iter() {
            all.push(entry.map_err(map("DISPLACED"))?.1);
        }
        Ok(all)
    }

    /// What the sandbox in `slot` did.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn activity(&self, slot: u32) -> Result<Activity, KernelError> {
        let maps = self.lock();
        Ok(Activity {
            budget: maps.budgets.get(&slot, 0).map_err(map("BUDGETS"))?,
            counters: maps.counters.get(&slot, 0).map_err(map("COUNTERS"))?,
            untold: maps.throttles.get(&slot, 0).map_err(map("THROTTLES"))?.untold,
        })
    }

    /// Events that found the ring full, ever.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn events_lost(&self) -> Result<u64, KernelError> {
        self.lock().events_lost.get(&0, 0).map_err(map("EVENTS_LOST"))
    }

    /// How many lost events have become known since this was last asked, by this daemon or another.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn take_events_lost(&self) -> Result<u64, KernelError> {
        let mut maps = self.lock();
        let lost = maps.events_lost.get(&0, 0).map_err(map("EVENTS_LOST"))?;
        let told = maps.events_lost.get(&1, 0).map_err(map("EVENTS_LOST"))?;
        maps.events_lost.set(1, lost, 0).map_err(map("EVENTS_LOST"))?;
        Ok(lost.saturating_sub(told))
    }

    fn lock(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maps {
    fn clear(&mut self, slot: u32) -> Result<(), KernelError> {
        self.budgets.set(slot, Budget::default(), 0).map_err(map("BUDGETS"))?;
        self.counters.set(slot, Counters::default(), 0).map_err(map("COUNTERS"))?;
        self.throttles.set(slot, Throttle::default(), 0).map_err(map("THROTTLES"))
    }
}

fn array<T: aya::Pod>(
    take: &mut impl FnMut(&'static str) -> Result<MapData, KernelError>,
    name: &'static str,
) -> Result<Array<MapData, T>, KernelError> {
    Array::try_from(Map::Array(take(name)?)).map_err(map(name))
}

fn is_missing(error: &MapError) -> bool {
    let MapError::SyscallError(error) = error else { return matches!(error, MapError::KeyNotFound) };
    error.io_error.kind() == std::io::ErrorKind::NotFound
}
