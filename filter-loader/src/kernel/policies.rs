//! Policies in the kernel: a trie and a few numbers in a slot, shared by all sandboxes with equal policies.
//!
//! Every write to the map of tries waits for a grace period, some ten milliseconds. So a thread keeps empty
//! tries in slots for whoever comes next, and clears the slots that nobody uses any more, as many at once as
//! there are.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use aya::maps::{Array, Map, MapData};
use filter_common::layout::{MAX_POLICIES, Policy, policy_flags};
use filter_common::{Class, RuleWord};
use filter_policy::{Compiled, Prefix};

use super::trie::{self, Trie};
use super::{KernelError, map};

/// The slot that nobody uses. Writing it has the kernel wait until no program is still running that was
/// when the write began.
const GRACE_SLOT: u32 = MAX_POLICIES - 1;
/// Empty tries that are kept ready: a replacement that finds none waits for one grace period more.
const SPARES: usize = 128;

/// What makes two policies the same to the kernel: the document's hash and the guard's.
pub type ContentHash = [u8; 32];

/// The policies that the kernel has.
pub struct Policies {
    shared: Arc<Shared>,
    keeper: Sender<Chore>,
}

struct Shared {
    outer: MapData,
    numbers: Mutex<Array<MapData, Policy>>,
    /// What is in a slot that is nobody's: it guards everything, should anybody still refer to it.
    guard: Trie,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    used: HashMap<ContentHash, Used>,
    free: Vec<u32>,
    spares: Vec<(u32, Trie)>,
    /// Slots from here on have never been used.
    next: u32,
}

struct Used {
    slot: u32,
    users: u32,
    /// Set when the trie is whole; another sandbox may have begun to fill it a moment ago.
    ready: Arc<OnceLock<()>>,
}

/// What the keeper is asked.
enum Chore {
    /// To make more spares.
    Refill,
    /// To clear a slot that nobody refers to.
    Clear(u32),
}

/// A use of a policy's slot. Give it back with [`Policies::release`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a lease that is not released keeps its policy in the kernel"]
pub struct Lease {
    hash: ContentHash,
    slot: u32,
}

impl Lease {
    /// The policy's slot.
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// What it was leased for.
    pub const fn hash(&self) -> ContentHash {
        self.hash
    }
}

impl Policies {
    pub(super) fn open(
        take: &mut impl FnMut(&'static str) -> Result<MapData, KernelError>,
    ) -> Result<Self, KernelError> {
        let numbers = Array::try_from(Map::Array(take("POLICIES")?)).map_err(map("POLICIES"))?;
        let guard = Trie::create()?;
        guard.fill(&[(Prefix::EVERYTHING, RuleWord::new(Class::Guarded, RuleWord::MAX_NUMBER))])?;
        let shared = Arc::new(Shared {
            outer: take("TRIES")?,
            numbers: Mutex::new(numbers),
            guard,
            slots: Mutex::default(),
        });
        let (keeper, chores) = channel();
        let kept = shared.clone();
        std::thread::Builder::new()
            .name("policies".into())
            .spawn(move || keep(&kept, &chores))
            .map_err(|source| KernelError::System { what: "starting a thread", source })?;
        Ok(Self { shared, keeper })
    }

    /// Whether what was leased is still what its slot holds.
    ///
    /// # Errors
    /// If the kernel's map cannot be read.
    pub fn holds(&self, lease: &Lease) -> Result<bool, KernelError> {
        let there = lock(&self.shared.numbers).get(&lease.slot, 0).map_err(map("POLICIES"))?;
        Ok(there.hash == lease.hash)
    }

    /// How many different ones are in force.
    pub fn len(&self) -> usize {
        lock(&self.shared.slots).used.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes over a slot that a sandbox uses already, if the kernel still has that very policy there.
    ///
    /// # Errors
    /// If the kernel's map cannot be read.
    pub fn adopt(&self, hash: ContentHash, slot: u32) -> Result<Option<Lease>, KernelError> {
        if slot >= GRACE_SLOT {
            return Ok(None);
        }
        let there = lock(&self.shared.numbers).get(&slot, 0).map_err(map("POLICIES"))?;
        if there.hash != hash || there.egress_connections == 0 {
            return Ok(None);
        }
        let mut slots = lock(&self.shared.slots);
        let ready = Arc::new(OnceLock::new());
        let _ = ready.set(());
        let used = slots.used.entry(hash).or_insert(Used { slot, users: 0, ready });
        if used.slot != slot {
            return Ok(None);
        }
        used.users += 1;
        Ok(Some(Lease { hash, slot }))
    }

    /// To be called once, after all [`Self::adopt`] and before any [`Self::lease`]: what no sandbox uses is
    /// free, and what is left of other policies is removed. Slots in `live` are left alone until
    /// [`Self::retire_unused`].
    ///
    /// # Errors
    /// If the kernel's map cannot be read.
    pub fn adopted(&self, live: &HashSet<u32>) -> Result<(), KernelError> {
        let mut stale = Vec::new();
        {
            let numbers = lock(&self.shared.numbers);
            let mut slots = lock(&self.shared.slots);
            let taken: HashSet<u32> =
                slots.used.values().map(|used| used.slot).chain(live.iter().copied()).collect();
            for slot in 0..GRACE_SLOT {
                let occupied = numbers.get(&slot, 0).map_err(map("POLICIES"))?.egress_connections != 0;
                if occupied || taken.contains(&slot) {
                    slots.next = slot + 1;
                }
                if occupied && !taken.contains(&slot) {
                    stale.push(slot);
                }
            }
            slots.free =
                (0..slots.next).filter(|slot| !taken.contains(slot) && !stale.contains(slot)).collect();
        }
        for slot in stale {
            self.ask(Chore::Clear(slot));
        }
        self.ask(Chore::Refill);
        Ok(())
    }

    /// Clears those of the `live` slots that nobody turned out to use.
    pub fn retire_unused(&self, live: &HashSet<u32>) {
        let slots = lock(&self.shared.slots);
        let used: HashSet<u32> = slots.used.values().map(|used| used.slot).collect();
        for slot in live.difference(&used).filter(|slot| **slot < slots.next) {
            self.ask(Chore::Clear(*slot));
        }
    }

    /// Has `compiled` in the kernel, and a use of it. Builds it only if nobody has an equal one.
    ///
    /// # Errors
    /// If all slots are taken, or the kernel refuses.
    pub fn lease(&self, hash: ContentHash, compiled: &Compiled) -> Result<Lease, KernelError> {
        let (slot, ready, place) = {
            let mut slots = lock(&self.shared.slots);
            if let Some(used) = slots.used.get_mut(&hash) {
                used.users += 1;
                (used.slot, used.ready.clone(), None)
            } else {
                let (slot, spare) = match slots.spares.pop() {
                    Some((slot, trie)) => (slot, Some(trie)),
                    None => (slots.fresh()?, None),
                };
                let ready = Arc::new(OnceLock::new());
                slots.used.insert(hash, Used { slot, users: 1, ready: ready.clone() });
                (slot, ready, Some(spare))
            }
        };
        let lease = Lease { hash, slot };
        let Some(spare) = place else {
            ready.wait();
            return Ok(lease);
        };
        self.ask(Chore::Refill);
        let built = self.shared.build(slot, spare, hash, compiled);
        // Whoever waits must not wait for ever: if this failed, they find the slot guarding everything.
        let _ = ready.set(());
        match built {
            Ok(()) => Ok(lease),
            Err(error) => {
                self.release(lease);
                Err(error)
            }
        }
    }

    /// Gives a use back. After the last one the slot is cleared; nothing may refer to it any more, and a
    /// grace period must have passed since something did.
    pub fn release(&self, lease: Lease) {
        let mut slots = lock(&self.shared.slots);
        let Some(used) = slots.used.get_mut(&lease.hash) else { return };
        used.users -= 1;
        if used.users == 0 {
            slots.used.remove(&lease.hash);
            self.ask(Chore::Clear(lease.slot));
        }
    }

    /// Waits until every packet is done with that was being judged when this was called.
    ///
    /// # Errors
    /// If the kernel refuses the write that this waits for.
    pub fn wait_grace_period(&self) -> Result<(), KernelError> {
        trie::publish(self.shared.outer.fd().as_fd(), &[(GRACE_SLOT, &self.shared.guard)])
    }

    fn ask(&self, chore: Chore) {
        if self.keeper.send(chore).is_err() {
            tracing::error!("the thread that keeps policies is gone; slots are no longer cleared");
        }
    }
}

impl Slots {
    fn fresh(&mut self) -> Result<u32, KernelError> {
        match self.free.pop() {
            Some(slot) => Ok(slot),
            None if self.next < GRACE_SLOT => {
                self.next += 1;
                Ok(self.next - 1)
            }
            None => Err(KernelError::Full { what: "policies", limit: GRACE_SLOT }),
        }
    }
}

impl Shared {
    /// Fills a slot. Without a spare in it, a trie is put there meanwhile: the slot is nobody's yet.
    fn build(
        &self,
        slot: u32,
        spare: Option<Trie>,
        hash: ContentHash,
        compiled: &Compiled,
    ) -> Result<(), KernelError> {
        match spare {
            Some(trie) => trie.fill(&compiled.entries)?,
            None => {
                let trie = Trie::create()?;
                std::thread::scope(|scope| {
                    let published = scope.spawn(|| trie::publish(self.outer.fd().as_fd(), &[(slot, &trie)]));
                    let filled = trie.fill(&compiled.entries);
                    let failed = || KernelError::System {
                        what: "TRIES",
                        source: std::io::Error::other("a thread failed"),
                    };
                    filled.and(published.join().unwrap_or_else(|_| Err(failed())))
                })?;
            }
        }
        self.set_numbers(slot, numbers(compiled, hash))
    }

    fn set_numbers(&self, slot: u32, numbers: Policy) -> Result<(), KernelError> {
        lock(&self.numbers).set(slot, numbers, 0).map_err(map("POLICIES"))
    }
}

/// What the programs know of a policy besides its trie.
pub(super) fn numbers(compiled: &Compiled, hash: ContentHash) -> Policy {
    let flags = if compiled.watch { policy_flags::WATCHED } else { 0 };
    Policy { egress_connections: compiled.egress_connections, flags, hash }
}

/// Does chores, as many at once as have come, until nobody asks any more.
fn keep(shared: &Shared, chores: &Receiver<Chore>) {
    while let Ok(first) = chores.recv() {
        let cleared: Vec<u32> = std::iter::once(first)
            .chain(chores.try_iter())
            .filter_map(|chore| match chore {
                Chore::Clear(slot) => Some(slot),
                Chore::Refill => None,
            })
            .collect();
        if let Err(error) = clear(shared, &cleared).and_then(|()| refill(shared)) {
            // Updates go on without spares; cleared slots are lost until the next start.
            tracing::warn!(%error, "cannot prepare slots for policies");
        }
    }
}

fn clear(shared: &Shared, cleared: &[u32]) -> Result<(), KernelError> {
    if cleared.is_empty() {
        return Ok(());
    }
    for slot in cleared {
        shared.set_numbers(*slot, Policy { egress_connections: 0, flags: 0, hash: [0; 32] })?;
    }
    let guarded: Vec<(u32, &Trie)> = cleared.iter().map(|slot| (*slot, &shared.guard)).collect();
    trie::publish(shared.outer.fd().as_fd(), &guarded)?;
    lock(&shared.slots).free.extend_from_slice(cleared);
    Ok(())
}

fn refill(shared: &Shared) -> Result<(), KernelError> {
    let mut spares = Vec::new();
    {
        let mut slots = lock(&shared.slots);
        for _ in slots.spares.len()..SPARES {
            spares.push((slots.fresh()?, Trie::create()?));
        }
    }
    if spares.is_empty() {
        return Ok(());
    }
    let published: Vec<(u32, &Trie)> = spares.iter().map(|(slot, trie)| (*slot, trie)).collect();
    trie::publish(shared.outer.fd().as_fd(), &published)?;
    lock(&shared.slots).spares.extend(spares);
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the lock protects is replaced whole, never left half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
