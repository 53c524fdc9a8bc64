//! The connections that are going on, to judge them again when a policy is replaced.
//!
//! A connection is registered before it is judged. What it was allowed as is noted once its upstream is
//! reached, and only then are the rules in force looked at once more. So whoever replaces the rules first and
//! looks through the register afterwards misses none: a connection that is noted too late to be found sees
//! the new rules itself.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use filter_common::{Reason, RuleWord};
use filter_policy::Name;
use tokio::{sync::Notify, task::AbortHandle};

use crate::{
    host::{Flow, Tenant},
    rules::{Rules, Target, Verdict},
};

/// What a connection was allowed as.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Going {
    /// The name that it was dialled for; `None` if the policy allows the address by itself.
    pub(crate) name: Option<Name>,
    /// The address that was dialled.
    pub(crate) resolved: IpAddr,
    /// Why it was allowed.
    pub(crate) reason: Reason,
    /// By which rule.
    pub(crate) rule: RuleWord,
    /// Of which policy.
    pub(crate) generation: u32,
}

/// Why a connection is ended from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// The policy in force does not allow it.
    Revoked {
        /// The rule that does not, if one decided.
        rule: RuleWord,
        /// Of which policy.
        generation: u32,
    },
    /// Its sandbox is gone, or the inspector ends.
    Gone,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Entry {
    id: u64,
    /// Whose it is.
    pub(crate) tenant: Tenant,
    /// Which.
    pub(crate) flow: Flow,
    /// What its sandbox has of what is scarce.
    pub(crate) share: Arc<Share>,
    /// Bytes that the upstream was given.
    pub(crate) sent: AtomicU64,
    /// Bytes that the client was given.
    pub(crate) received: AtomicU64,
    /// Told when there may be other rules.
    pub(crate) changed: Notify,
    /// How often in a row the kernel did not know it.
    unknown: AtomicU32,
    state: Mutex<State>,
}

/// How often in a row the kernel may not know a connection before it is ended. One that both ends have closed
/// is none of the kernel's any more while its last bytes may still be on their way to the upstream.
const UNKNOWN: u32 = 3;

#[derive(Debug, Default)]
struct State {
    going: Option<Going>,
    cut: Option<Cut>,
    task: Option<AbortHandle>,
}

/// What a sandbox has of what is scarce.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Bytes buffered of what is not judged yet.
    pub(crate) buffered: AtomicUsize,
    /// Pipes.
    pub(crate) pipes: AtomicUsize,
}

impl Entry {
    /// What it was allowed as, if it was.
    pub(crate) fn going(&self) -> Option<Going> {
        self.state().going.clone()
    }

    /// Notes what it was allowed as.
    pub(crate) fn set_going(&self, going: Option<Going>) {
        self.state().going = going;
    }

    /// Whether what it goes on as is what a verdict says.
    pub(crate) fn leads_to(&self, target: &Target) -> bool {
        match (&self.state().going, target) {
            (Some(Going { name: Some(name), .. }), Target::Name(target)) => name == target,
            (Some(Going { name: None, resolved, .. }), Target::Address(target)) => resolved == target,
            (Some(_) | None, _) => false,
        }
    }

    /// Why it was ended from outside, if it was.
    pub(crate) fn cut(&self) -> Option<Cut> {
        self.state().cut
    }

    /// The task that serves it, which ends it when it is cut.
    pub(crate) fn served_by(&self, task: AbortHandle) {
        let mut state = self.state();
        if state.cut.is_some() {
            task.abort();
        }
        state.task = Some(task);
    }

    /// Ends it. The task's sockets close with a reset, and whatever there is to tell is told by the
    /// connection's own end.
    fn end(state: &mut State, cut: Cut) {
        state.cut.get_or_insert(cut);
        if let Some(task) = &state.task {
            task.abort();
        }
    }

    fn rejudge(&self, rules: &Rules) -> Judged {
        let mut state = self.state();
        let Some(going) = state.going.as_mut() else {
            self.changed.notify_waiters();
            return Judged::NotYet;
        };
        match again(rules, going) {
            Ok((reason, rule)) => {
                (going.reason, going.rule, going.generation) = (reason, rule, rules.generation);
                Judged::Allowed(rule)
            }
            Err(rule) => {
                Self::end(&mut state, Cut::Revoked { rule, generation: rules.generation });
                Judged::Cut
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Judged {
    NotYet,
    Allowed(RuleWord),
    Cut,
}

/// The verdict of other rules on a connection that is going on: why and by which rule it may, or which rule is
/// against it.
pub(crate) fn again(rules: &Rules, going: &Going) -> Result<(Reason, RuleWord), RuleWord> {
    let verdict = rules.judge(&Ok(going.name.clone()), going.resolved);
    let permitted = rules.permits(going.name.as_ref(), going.resolved);
    match verdict {
        Verdict::Allow { reason, rule, .. } if permitted => Ok((reason, rule)),
        Verdict::Allow { .. } => Err(RuleWord::UNMATCHED),
        Verdict::Deny { rule, .. } => Err(rule),
    }
}

/// All connections, by sandbox.
#[derive(Debug)]
pub(crate) struct Register {
    inner: Mutex<Inner>,
    limit: usize,
}

#[derive(Debug, Default)]
struct Inner {
    tenants: HashMap<Tenant, Connections>,
    total: usize,
    next: u64,
}

#[derive(Debug, Default)]
struct Connections {
    share: Arc<Share>,
    entries: HashMap<u64, Arc<Entry>>,
}

impl Register {
    /// A register with room for so many connections.
    pub(crate) fn new(limit: usize) -> Self {
        Self { inner: Mutex::default(), limit }
    }

    /// Takes a connection in; `None` if its sandbox has as many as are left for all the others. So one sandbox
    /// can have half of the room and never all of it, and two a third each.
    pub(crate) fn enter(&self, tenant: Tenant, flow: Flow) -> Option<Arc<Entry>> {
        let mut inner = self.inner();
        let free = self.limit.saturating_sub(inner.total);
        let own = inner.tenants.get(&tenant).map_or(0, |connections| connections.entries.len());
        if own >= free {
            return None;
        }
        inner.total += 1;
        inner.next += 1;
        let id = inner.next;
        let connections = inner.tenants.entry(tenant).or_default();
        let entry = Arc::new(Entry {
            id,
            tenant,
            flow,
            share: Arc::clone(&connections.share),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            changed: Notify::new(),
            unknown: AtomicU32::new(0),
            state: Mutex::default(),
        });
        connections.entries.insert(id, Arc::clone(&entry));
        Some(entry)
    }

    /// Strikes a connection out.
    pub(crate) fn leave(&self, entry: &Entry) {
        let mut inner = self.inner();
        let Some(connections) = inner.tenants.get_mut(&entry.tenant) else { return };
        if connections.entries.remove(&entry.id).is_none() {
            return;
        }
        if connections.entries.is_empty() {
            inner.tenants.remove(&entry.tenant);
        }
        inner.total -= 1;
    }

    /// Judges the connections of a sandbox again and ends those that are no longer allowed; says how many.
    /// `allowed` hears of the others.
    pub(crate) fn rejudge(&self, tenant: Tenant, rules: &Rules, allowed: impl Fn(&Flow, RuleWord)) -> usize {
        let mut cut = 0;
        for entry in self.of(tenant) {
            match entry.rejudge(rules) {
                Judged::Cut => cut += 1,
                Judged::Allowed(rule) => allowed(&entry.flow, rule),
                Judged::NotYet => {}
            }
        }
        cut
    }

    /// Ends the connections that the kernel no longer follows, and no longer counts: a sandbox can have it forget
    /// one with a reset that this host's stack does not believe. To be called every now and then.
    pub(crate) fn sweep(&self, is_known: impl Fn(&Entry) -> bool) {
        let entries: Vec<_> = self
            .inner()
            .tenants
            .values()
            .flat_map(|connections| connections.entries.values().cloned())
            .collect();
        for entry in entries {
            if is_known(&entry) {
                entry.unknown.store(0, Ordering::Relaxed);
            } else if entry.unknown.fetch_add(1, Ordering::Relaxed) + 1 >= UNKNOWN {
                Entry::end(&mut entry.state(), Cut::Gone);
            }
        }
    }

    /// Ends all connections of a sandbox.
    pub(crate) fn forget(&self, tenant: Tenant) {
        for entry in self.of(tenant) {
            Entry::end(&mut entry.state(), Cut::Gone);
        }
    }

    /// Ends all connections.
    pub(crate) fn end_all(&self) {
        let tenants: Vec<_> = self.inner().tenants.keys().copied().collect();
        for tenant in tenants {
            self.forget(tenant);
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.inner().total
    }

    fn of(&self, tenant: Tenant) -> Vec<Arc<Entry>> {
        let inner = self.inner();
        inner.tenants.get(&tenant).map_or_else(Vec::new, |there| there.entries.values().cloned().collect())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
