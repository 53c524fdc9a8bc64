//! Which sandboxes there are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::time::SystemTime;

use filter_common::frame;
use filter_common::layout::MAX_SANDBOXES;
use filter_inspector::rules::Rules;
use filter_policy::Policy;

use super::templates::Template;
use crate::error::ControlError;
use crate::kernel::Lease;
use crate::protocol::{Mac, SandboxId};

/// A sandbox, from attach to detach.
pub struct Sandbox {
    /// Its name.
    pub id: SandboxId,
    /// Its interface.
    pub iface: String,
    /// The interface's index.
    pub ifindex: u32,
    /// Its addresses; empty if they are not checked.
    pub addrs: Vec<IpAddr>,
    /// Its hardware address, if it is known.
    pub mac: Option<Mac>,
    /// That of the interface itself.
    pub iface_mac: frame::Mac,
    /// Its place in the kernel's maps.
    pub slot: u32,
    /// Its number there.
    pub tenant: u32,
    /// When it was attached.
    pub created_at: SystemTime,
    /// Held for the whole of an update, so that two of the same sandbox follow one another.
    pub in_force: Mutex<InForce>,
    /// What the inspector judges by.
    pub judged_by: JudgedBy,
    /// Who may call it.
    pub public: Public,
}

/// What the inspector judges a sandbox's connections by: whichever of two the kernel has in force. There are
/// two only while one replaces the other.
#[derive(Default)]
pub struct JudgedBy(RwLock<[Option<Arc<Rules>>; 2]>);

impl JudgedBy {
    /// To be called before the kernel's word changes: from the change on these are the rules.
    pub fn prepare(&self, next: Arc<Rules>) {
        self.write()[1] = Some(next);
    }

    /// To be called after it.
    pub fn commit(&self) {
        let mut rules = self.write();
        if let Some(next) = rules[1].take() {
            rules[0] = Some(next);
        }
    }

    /// Nothing is judged any more.
    pub fn clear(&self) {
        *self.write() = [None, None];
    }

    /// Whether anything is.
    pub fn is_anything(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().any(Option::is_some)
    }

    /// Those of a generation; or, should that just be over, those that came after it.
    pub fn under(&self, generation: u32) -> Option<Arc<Rules>> {
        let rules = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let of_generation = rules.iter().flatten().find(|rules| rules.generation == generation);
        of_generation.or(rules[0].as_ref()).cloned()
    }

    fn write(&self) -> RwLockWriteGuard<'_, [Option<Arc<Rules>>; 2]> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a policy says about callers. It is fixed when a sandbox is attached.
pub struct Public {
    /// Whether anybody may call.
    pub allow_public_traffic: bool,
    /// What the sandbox sees as `Host`.
    pub mask_request_host: Option<String>,
    /// As the gateway has it, under the tokens of that number.
    known: RwLock<Option<(u64, Arc<filter_gateway::Sandbox>)>>,
}

impl Public {
    /// Of a policy.
    pub fn of(policy: &Policy) -> Self {
        Self {
            allow_public_traffic: policy.allow_public_traffic,
            mask_request_host: policy.mask_request_host.clone(),
            known: RwLock::default(),
        }
    }

    /// What the gateway knows while tokens are those of `round`; `make` says it anew, with the round that it is of.
    pub fn known(
        &self,
        round: u64,
        make: impl FnOnce() -> (u64, filter_gateway::Sandbox),
    ) -> Arc<filter_gateway::Sandbox> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, sandbox)) = &*known
            && *of == round
        {
            return sandbox.clone();
        }
        drop(known);
        let (round, sandbox) = make();
        let sandbox = Arc::new(sandbox);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some((round, sandbox.clone()));
        sandbox
    }
}

/// The policy of a sandbox.
pub struct InForce {
    /// The policy, compiled.
    pub template: Arc<Template>,
    /// The one before, for events that were still under way when it was replaced.
    pub previous: Option<(u32, Arc<Policy>)>,
    /// The number of this replacement.
    pub generation: u32,
    /// The use of its trie. `None` once the sandbox is detached.
    pub lease: Option<Lease>,
}

impl Sandbox {
    /// The policy in force. Whoever holds it keeps others from replacing it.
    pub fn in_force(&self) -> MutexGuard<'_, InForce> {
        lock(&self.in_force)
    }

    /// Whether source addresses are checked.
    pub fn is_checked(&self) -> bool {
        !self.addrs.is_empty()
    }
}

/// All sandboxes, and what is being attached at the moment.
#[derive(Default)]
pub struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_id: HashMap<SandboxId, Arc<Sandbox>>,
    by_tenant: HashMap<u32, Arc<Sandbox>>,
    /// Ids, interfaces and addresses of sandboxes, and of those on their way in.
    ids: HashSet<SandboxId>,
    ifaces: HashMap<u32, SandboxId>,
    addrs: HashMap<IpAddr, SandboxId>,
    slots: HashSet<u32>,
    /// Where the search for the next free one begins.
    next_slot: u32,
    /// The last ones to leave: their last events may still be under way.
    left: VecDeque<u32>,
    next_tenant: u32,
}

/// A place taken for a sandbox that is being attached. Given back when it is dropped, unless
/// [`Registry::enter`] took it.
pub struct Reservation<'a> {
    registry: &'a Registry,
    id: SandboxId,
    ifindex: u32,
    addrs: Vec<IpAddr>,
    /// Its place in the kernel's maps.
    pub slot: u32,
    /// Its number there.
    pub tenant: u32,
    entered: bool,
}

impl Registry {
    /// Takes a place, if id, interface and addresses are free.
    ///
    /// # Errors
    /// `conflict`, or `failed` if there are as many sandboxes as there can be.
    pub fn reserve(
        &self,
        id: &SandboxId,
        iface: &str,
        ifindex: u32,
        addrs: &[IpAddr],
    ) -> Result<Reservation<'_>, ControlError> {
        let mut inner = lock(&self.inner);
        if inner.ids.contains(id) {
            return Err(ControlError::conflict(format!(
                "sandbox {id} is attached already; update it, or detach it first"
            )));
        }
        if let Some(other) = inner.ifaces.get(&ifindex) {
            return Err(ControlError::conflict(format!(
                "interface {iface} belongs to sandbox {other}; detach that first"
            )));
        }
        if let Some((addr, other)) = addrs.iter().find_map(|addr| inner.addrs.get_key_value(addr)) {
            return Err(ControlError::conflict(format!(
                "address {addr} belongs to sandbox {other}; two sandboxes cannot share one"
            )));
        }
        let slot = inner.free_slot().ok_or_else(|| {
            ControlError::failed(format!(
                "this host has {MAX_SANDBOXES} sandboxes, which is as many as it can"
            ))
        })?;
        let tenant = inner.number();
        inner.take(id, ifindex, addrs, slot);
        Ok(Reservation {
            registry: self,
            id: id.clone(),
            ifindex,
            addrs: addrs.to_vec(),
            slot,
            tenant,
            entered: false,
        })
    }

    /// Makes a sandbox known by its number alone, which is all that packets and events need.
    pub fn announce(&self, sandbox: &Arc<Sandbox>) {
        lock(&self.inner).by_tenant.insert(sandbox.tenant, sandbox.clone());
    }

    /// Takes an announcement back.
    pub fn retract(&self, sandbox: &Sandbox) {
        lock(&self.inner).by_tenant.remove(&sandbox.tenant);
    }

    /// Makes a reserved place a sandbox's.
    pub fn enter(&self, mut reservation: Reservation<'_>, sandbox: Arc<Sandbox>) {
        reservation.entered = true;
        lock(&self.inner).add(sandbox);
    }

    /// Makes a sandbox of an earlier run known.
    ///
    /// # Errors
    /// `conflict` if something of it is taken.
    pub fn adopt(&self, sandbox: Arc<Sandbox>) -> Result<(), ControlError> {
        let mut inner = lock(&self.inner);
        let taken = inner.ids.contains(&sandbox.id)
            || inner.slots.contains(&sandbox.slot)
            || inner.ifaces.contains_key(&sandbox.ifindex)
            || sandbox.addrs.iter().any(|addr| inner.addrs.contains_key(addr));
        if taken {
            return Err(ControlError::conflict(format!("sandbox {} is known already", sandbox.id)));
        }
        inner.take(&sandbox.id, sandbox.ifindex, &sandbox.addrs, sandbox.slot);
        inner.add(sandbox);
        Ok(())
    }

    /// Forgets a sandbox. Its events can still be attributed for a while.
    pub fn leave(&self, sandbox: &Sandbox) {
        /// How many of those that left are remembered.
        const REMEMBERED: usize = 1024;
        let mut inner = lock(&self.inner);
        if inner.by_id.get(&sandbox.id).is_none_or(|there| there.tenant != sandbox.tenant) {
            return;
        }
        inner.by_id.remove(&sandbox.id);
        inner.release(&sandbox.id, sandbox.ifindex, &sandbox.addrs, sandbox.slot);
        inner.left.push_back(sandbox.tenant);
        if inner.left.len() > REMEMBERED
            && let Some(oldest) = inner.left.pop_front()
        {
            inner.by_tenant.remove(&oldest);
        }
    }

    /// The sandbox called `id`.
    ///
    /// # Errors
    /// `not found`.
    pub fn get(&self, id: &SandboxId) -> Result<Arc<Sandbox>, ControlError> {
        self.find(id).ok_or_else(|| ControlError::not_found(id))
    }

    /// The sandbox called `id`, if there is one.
    pub fn find(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        lock(&self.inner).by_id.get(id).cloned()
    }

    /// The sandbox on an interface.
    pub fn on_interface(&self, ifindex: u32) -> Option<Arc<Sandbox>> {
        let inner = lock(&self.inner);
        inner.by_id.get(inner.ifaces.get(&ifindex)?).cloned()
    }

    /// The sandbox with this number, or the one that had it until a while ago.
    pub fn tenant(&self, tenant: u32) -> Option<Arc<Sandbox>> {
        lock(&self.inner).by_tenant.get(&tenant).cloned()
    }

    /// How many sandboxes there are.
    pub fn len(&self) -> usize {
        lock(&self.inner).by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All sandboxes, by id.
    pub fn all(&self) -> Vec<Arc<Sandbox>> {
        let mut all: Vec<_> = lock(&self.inner).by_id.values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }
}

impl Inner {
    /// The next free slot, round and round: not the one that was given back last, and without going through
    /// all that are taken.
    fn free_slot(&mut self) -> Option<u32> {
        let from = self.next_slot;
        let slot = (from..MAX_SANDBOXES).chain(0..from).find(|slot| !self.slots.contains(slot))?;
        self.next_slot = (slot + 1) % MAX_SANDBOXES;
        Some(slot)
    }

    /// A number that no sandbox has had since this daemon started. It begins somewhere else each time, so
    /// that what an earlier run left in the kernel is nobody's.
    fn number(&mut self) -> u32 {
        loop {
            if self.next_tenant == 0 {
                self.next_tenant = rand::random();
            }
            let tenant = self.next_tenant;
            self.next_tenant = self.next_tenant.wrapping_add(1);
            if tenant != 0 && !self.by_tenant.contains_key(&tenant) {
                return tenant;
            }
        }
    }

    fn take(&mut self, id: &SandboxId, ifindex: u32, addrs: &[IpAddr], slot: u32) {
        self.ids.insert(id.clone());
        self.ifaces.insert(ifindex, id.clone());
        self.addrs.extend(addrs.iter().map(|addr| (*addr, id.clone())));
        self.slots.insert(slot);
    }

    fn release(&mut self, id: &SandboxId, ifindex: u32, addrs: &[IpAddr], slot: u32) {
        self.ids.remove(id);
        self.ifaces.remove(&ifindex);
        for addr in addrs {
            self.addrs.remove(addr);
        }
        self.slots.remove(&slot);
    }

    fn add(&mut self, sandbox: Arc<Sandbox>) {
        self.by_tenant.insert(sandbox.tenant, sandbox.clone());
        self.by_id.insert(sandbox.id.clone(), sandbox);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.entered {
            lock(&self.registry.inner).release(&self.id, self.ifindex, &self.addrs, self.slot);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds one of these locks panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
