//! What the kernel has of each sandbox: who it is, what it did.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use filter_common::layout::{Budget, Counters, MAX_SANDBOXES, Sandbox, Throttle};

use super::{KernelError, map};

/// The maps that have an entry a sandbox.
pub struct Sandboxes {
    maps: Mutex<Maps>,
}

struct Maps {
    interfaces: HashMap<MapData, u32, u32>,
    sandboxes: Array<MapData, Sandbox>,
    budgets: Array<MapData, Budget>,
    counters: Array<MapData, Counters>,
    throttles: Array<MapData, Throttle>,
    events_lost: Array<MapData, u64>,
}

const NOBODY: Sandbox = Sandbox {
    tenant: 0,
    flags: 0,
    ifindex: 0,
    addr_count: 0,
    mac: [0; 6],
    zero: [0; 2],
    addrs: [filter_common::Addr::UNSPECIFIED; filter_common::layout::MAX_ADDRS],
};

/// What a sandbox did since it was attached.
#[derive(Clone, Copy, Debug)]
pub struct Activity {
    /// Its connections.
    pub budget: Budget,
    /// Its packets by reason.
    pub counters: Counters,
    /// Denials that were counted but not told one by one.
    pub untold: u64,
}

impl Sandboxes {
    pub(super) fn open(
        take: &mut impl FnMut(&'static str) -> Result<MapData, KernelError>,
    ) -> Result<Self, KernelError> {
        let interfaces = HashMap::try_from(Map::HashMap(take("INTERFACES")?)).map_err(map("INTERFACES"))?;
        let maps = Maps {
            interfaces,
            sandboxes: array(take, "SANDBOXES")?,
            budgets: array(take, "BUDGETS")?,
            counters: array(take, "COUNTERS")?,
            throttles: array(take, "THROTTLES")?,
            events_lost: array(take, "EVENTS_LOST")?,
        };
        Ok(Self { maps: Mutex::new(maps) })
    }

    /// Writes a sandbox into its slot, with everything counted anew, and then gives it its interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn enter(&self, slot: u32, sandbox: &Sandbox) -> Result<(), KernelError> {
        let mut maps = self.lock();
        maps.clear(slot)?;
        maps.sandboxes.set(slot, sandbox, 0).map_err(map("SANDBOXES"))?;
        maps.interfaces.insert(sandbox.ifindex, slot, 0).map_err(map("INTERFACES"))
    }

    /// Takes the interface from a sandbox: from here on the programs do not know whose packets they see.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn disown(&self, ifindex: u32) -> Result<(), KernelError> {
        match self.lock().interfaces.remove(&ifindex) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(error) => Err(map("INTERFACES")(error)),
        }
    }

    /// Empties a slot.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn leave(&self, slot: u32) -> Result<(), KernelError> {
        let mut maps = self.lock();
        maps.sandboxes.set(slot, NOBODY, 0).map_err(map("SANDBOXES"))?;
        maps.clear(slot)
    }

    /// Who is in a slot.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn occupant(&self, slot: u32) -> Result<Option<Sandbox>, KernelError> {
        let sandbox = self.lock().sandboxes.get(&slot, 0).map_err(map("SANDBOXES"))?;
        Ok((sandbox.tenant != 0).then_some(sandbox))
    }

    /// All occupied slots, and all interfaces that lead to one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn survey(&self) -> Result<(Vec<(u32, Sandbox)>, Vec<(u32, u32)>), KernelError> {
        let maps = self.lock();
        let mut occupied = Vec::new();
        for slot in 0..MAX_SANDBOXES {
            let sandbox = maps.sandboxes.get(&slot, 0).map_err(map("SANDBOXES"))?;
            if sandbox.tenant != 0 {
                occupied.push((slot, sandbox));
            }
        }
        let interfaces: Result<Vec<_>, _> = maps.interfaces.iter().collect();
        Ok((occupied, interfaces.map_err(map("INTERFACES"))?))
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
