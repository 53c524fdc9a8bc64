//! Policies in the kernel: a trie and a few numbers in a slot, shared by all sandboxes with equal policies.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, LpmTrie, Map, MapData};
use filter_common::layout::{MAX_POLICIES, Policy};
use filter_common::{Class, RuleWord};
use filter_policy::{Compiled, Prefix};

use super::{KernelError, batch, map};

/// The map of all policies' tries.
type Outer = ArrayOfMaps<MapData, LpmTrie<MapData, [u8; 16], u32>>;

/// A trie, and its descriptor for what aya has no call for.
struct Trie {
    map: LpmTrie<MapData, [u8; 16], u32>,
    fd: OwnedFd,
}

impl Trie {
    fn create(entries: u32) -> Result<Self, KernelError> {
        /// `BPF_F_NO_PREALLOC`, which a trie must have.
        const NO_PREALLOC: u32 = 1;
        let object = aya_obj::Map::new_from_params(
            aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_LPM_TRIE as u32,
            size_of::<Key<[u8; 16]>>() as u32,
            size_of::<u32>() as u32,
            entries,
            NO_PREALLOC,
        );
        let data = MapData::create(object, "policy", None).map_err(map("policy"))?;
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(system)?;
        Ok(Self { map: LpmTrie::try_from(Map::LpmTrie(data)).map_err(map("policy"))?, fd })
    }

    fn fill(&self, entries: &[(Prefix, RuleWord)]) -> Result<(), KernelError> {
        let keys: Vec<Key<[u8; 16]>> =
            entries.iter().map(|(prefix, _)| Key::new(u32::from(prefix.len), prefix.addr.octets())).collect();
        let values: Vec<u32> = entries.iter().map(|(_, rule)| rule.bits()).collect();
        batch::update(self.fd.as_fd(), &keys, &values)
            .map_err(|source| KernelError::System { what: "filling a policy's trie", source })
    }
}

fn system(source: std::io::Error) -> KernelError {
    KernelError::System { what: "TRIES", source }
}

/// The slot that nobody uses. Writing it has the kernel wait until no program is still running that was
/// when the write began.
const GRACE_SLOT: u32 = MAX_POLICIES - 1;

/// What makes two policies the same to the kernel: the document's hash and the guard's.
pub type ContentHash = [u8; 32];

/// The policies that the kernel has.
pub struct Policies {
    outer: MapData,
    numbers: Mutex<Array<MapData, Policy>>,
    guard: Trie,
    slots: Arc<Mutex<Slots>>,
}

#[derive(Default)]
struct Slots {
    used: HashMap<ContentHash, Used>,
    free: Vec<u32>,
    /// Slots from here on have never been used.
    next: u32,
}

struct Used {
    slot: u32,
    users: u32,
    /// Set when the trie is whole; another sandbox may have begun to fill it a moment ago.
    ready: Arc<OnceLock<()>>,
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
        // A slot that is nobody's guards everything, should anybody still refer to it.
        let guard = Trie::create(1)?;
        guard.fill(&[(Prefix::EVERYTHING, RuleWord::new(Class::Guarded, RuleWord::MAX_NUMBER))])?;
        Ok(Self { outer: take("TRIES")?, numbers: Mutex::new(numbers), guard, slots: Arc::default() })
    }

    /// Takes over a slot that a sandbox uses already, if the kernel still has that very policy there.
    ///
    /// # Errors
    /// If the kernel's map cannot be read.
    pub fn adopt(&self, hash: ContentHash, slot: u32) -> Result<Option<Lease>, KernelError> {
        let there = lock(&self.numbers).get(&slot, 0).map_err(map("POLICIES"))?;
        if there.hash != hash || there.egress_connections == 0 || slot >= GRACE_SLOT {
            return Ok(None);
        }
        let mut slots = lock(&self.slots);
        let ready = Arc::new(OnceLock::new());
        let _ = ready.set(());
        let used = slots.used.entry(hash).or_insert(Used { slot, users: 0, ready });
        if used.slot != slot {
            return Ok(None);
        }
        used.users += 1;
        Ok(Some(Lease { hash, slot }))
    }

    /// To be called once, after all [`Self::adopt`]: what no sandbox uses is free, and what is left of
    /// other policies is removed.
    ///
    /// # Errors
    /// If the kernel's map cannot be read.
    pub fn adopted(&self) -> Result<(), KernelError> {
        let stale: Vec<u32> = {
            let numbers = lock(&self.numbers);
            let mut slots = lock(&self.slots);
            let taken: std::collections::HashSet<u32> = slots.used.values().map(|used| used.slot).collect();
            let mut stale = Vec::new();
            let mut last = 0;
            for slot in 0..GRACE_SLOT {
                let occupied = numbers.get(&slot, 0).map_err(map("POLICIES"))?.egress_connections != 0;
                if occupied || taken.contains(&slot) {
                    last = slot + 1;
                }
                if occupied && !taken.contains(&slot) {
                    stale.push(slot);
                }
            }
            slots.next = last;
            slots.free = (0..last).filter(|slot| !taken.contains(slot)).collect();
            stale
        };
        for slot in stale {
            self.clear(slot)?;
        }
        Ok(())
    }

    /// Has `compiled` in the kernel, and a use of it. Builds it only if nobody has an equal one.
    ///
    /// # Errors
    /// If all slots are taken, or the kernel refuses.
    pub fn lease(&self, hash: ContentHash, compiled: &Compiled) -> Result<Lease, KernelError> {
        let (slot, ready, build) = {
            let mut slots = lock(&self.slots);
            if let Some(used) = slots.used.get_mut(&hash) {
                used.users += 1;
                (used.slot, used.ready.clone(), false)
            } else {
                let slot = match slots.free.pop() {
                    Some(slot) => slot,
                    None if slots.next < GRACE_SLOT => {
                        slots.next += 1;
                        slots.next - 1
                    }
                    None => return Err(KernelError::Full { what: "policies", limit: GRACE_SLOT }),
                };
                let ready = Arc::new(OnceLock::new());
                slots.used.insert(hash, Used { slot, users: 1, ready: ready.clone() });
                (slot, ready, true)
            }
        };
        let lease = Lease { hash, slot };
        if !build {
            ready.wait();
            return Ok(lease);
        }
        let built = self.build(slot, hash, compiled);
        // Whoever waits must not wait for ever: if this failed, they find the slot guarding everything.
        let _ = ready.set(());
        match built {
            Ok(()) => Ok(lease),
            Err(error) => {
                self.release(lease)?;
                Err(error)
            }
        }
    }

    /// Gives a use back. The last one frees the slot; nothing may refer to it any more, and a grace period
    /// must have passed since something did.
    ///
    /// # Errors
    /// If the kernel's map cannot be written; the slot is then lost to this daemon.
    pub fn release(&self, lease: Lease) -> Result<(), KernelError> {
        {
            let mut slots = lock(&self.slots);
            let Some(used) = slots.used.get_mut(&lease.hash) else { return Ok(()) };
            used.users -= 1;
            if used.users > 0 {
                return Ok(());
            }
            slots.used.remove(&lease.hash);
        }
        self.clear(lease.slot)?;
        lock(&self.slots).free.push(lease.slot);
        Ok(())
    }

    /// Waits until every packet is done with that was being judged when this was called.
    ///
    /// # Errors
    /// If the kernel refuses the write that this waits for.
    pub fn wait_grace_period(&self) -> Result<(), KernelError> {
        self.set(GRACE_SLOT, &self.guard)
    }

    /// How many distinct policies there are.
    pub fn in_use(&self) -> usize {
        lock(&self.slots).used.len()
    }

    /// Puts a trie into the slot and fills it meanwhile: the slot is nobody's yet, and the kernel takes a
    /// grace period for the first.
    fn build(&self, slot: u32, hash: ContentHash, compiled: &Compiled) -> Result<(), KernelError> {
        let entries = u32::try_from(compiled.entries.len()).unwrap_or(u32::MAX).max(1);
        let trie = Trie::create(entries)?;
        std::thread::scope(|scope| {
            let published = scope.spawn(|| self.set(slot, &trie));
            let filled = trie.fill(&compiled.entries);
            let published = published.join().unwrap_or_else(|_| {
                Err(KernelError::System { what: "TRIES", source: std::io::Error::other("a thread failed") })
            });
            filled.and(published)
        })?;
        let numbers = Policy { egress_connections: compiled.egress_connections, zero: 0, hash };
        lock(&self.numbers).set(slot, numbers, 0).map_err(map("POLICIES"))
    }

    fn set(&self, slot: u32, trie: &Trie) -> Result<(), KernelError> {
        self.outer()?.set(slot, &trie.map, 0).map_err(map("TRIES"))
    }

    fn clear(&self, slot: u32) -> Result<(), KernelError> {
        let empty = Policy { egress_connections: 0, zero: 0, hash: [0; 32] };
        lock(&self.numbers).set(slot, empty, 0).map_err(map("POLICIES"))?;
        // There is no way to empty a slot through aya; this trie is one for all.
        self.set(slot, &self.guard)
    }

    /// A handle of this call's own, so that calls wait for the kernel side by side and not one by one.
    fn outer(&self) -> Result<Outer, KernelError> {
        let fd = self.outer.fd().as_fd().try_clone_to_owned().map_err(system)?;
        let data = MapData::from_fd(fd).map_err(map("TRIES"))?;
        ArrayOfMaps::try_from(Map::ArrayOfMaps(data)).map_err(map("TRIES"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the lock protects is replaced whole, never left half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
