//! The operations: attach, update, detach, show.
//!
//! All of them block for as long as the kernel takes; [`super::service`] runs them on threads of their own.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use filter_common::layout::{self, MAX_ADDRS, PolicyWord, sandbox_flags};
use filter_common::{Addr, Reason};
use filter_inspector::transform::Transformer;
use filter_policy::{Guard, Policy};
use serde_json::Value;
use tokio::runtime::Handle;

use super::ingress::Ingress;
use super::inspection::Inspection;
use super::registry::{InForce, JudgedBy, Public, Registry, Sandbox};
use super::state::{Record, StateDir};
use super::templates::{Template, Templates};
use super::tokens::TokenSeed;
use crate::config::Config;
use crate::config::defaults::Inbound;
use crate::error::ControlError;
use crate::kernel::{Kernel, KernelError, Lease};
use crate::netlink::{Link, Netlink};
use crate::protocol::{
    Addrs, AttachRequest, Changed, Connections, Counter, Counters, Identity, Mac, SandboxId, SandboxStats,
    Show, Stats, Summary, UpdateRequest, counters, etag,
};

/// The daemon's knowledge and its hands.
pub struct Core {
    /// The operator's configuration.
    pub config: Config,
    /// The kernel's half.
    pub kernel: Kernel,
    /// What the host knows.
    pub netlink: Netlink,
    /// What is written down.
    pub state: StateDir,
    /// Who there is.
    pub registry: Registry,
    /// What they are judged by.
    pub templates: Templates,
    /// Who judges by name.
    pub inspection: Inspection,
    /// Who lets callers in.
    pub ingress: Ingress,
    /// What sandboxes' secrets are derived from.
    pub seed: TokenSeed,
    /// What sets headers in requests.
    pub transformer: Arc<Transformer>,
    guard: RwLock<Arc<Guard>>,
    /// Held while the guard is replaced, so that two replacements follow one another.
    pub(super) guard_change: Mutex<()>,
    runtime: Handle,
}

impl From<KernelError> for ControlError {
    fn from(error: KernelError) -> Self {
        Self::failed(error.to_string())
    }
}

impl Core {
    /// Joins the parts. Must be called within the runtime that `netlink` belongs to.
    pub fn new(
        config: Config,
        kernel: Kernel,
        netlink: Netlink,
        state: StateDir,
        seed: TokenSeed,
        transformer: Arc<Transformer>,
        guard: Guard,
    ) -> Self {
        Self {
            seed,
            transformer,
            config,
            kernel,
            netlink,
            state,
            registry: Registry::default(),
            templates: Templates::default(),
            inspection: Inspection::default(),
            ingress: Ingress::default(),
            guard: RwLock::new(Arc::new(guard)),
            guard_change: Mutex::new(()),
            runtime: Handle::current(),
        }
    }

    /// The addresses that no policy reaches, as of now.
    pub fn guard(&self) -> Arc<Guard> {
        self.guard.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_guard(&self, guard: Guard) {
        *self.guard.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(guard);
    }

    /// The policy that a document means, or that a sandbox without one gets.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn policy(&self, document: Option<Value>) -> Result<Policy, ControlError> {
        let document = document.unwrap_or_else(|| self.config.defaults.policy.clone());
        Ok(Policy::from_value(document, &self.config.defaults.fields)?)
    }

    /// Puts an interface under a policy. When this returns the policy is enforced.
    ///
    /// # Errors
    /// Nothing is attached then.
    pub fn attach(&self, request: AttachRequest) -> Result<Show, ControlError> {
        let policy = self.policy(request.policy)?;
        let public = Public::of(&policy);
        let template = self.template(policy)?;
        let link = self.link(&request.iface)?;
        let (addrs, mac) = self.identity(&link, request.addrs, request.mac)?;
        let reservation = self.registry.reserve(&request.id, &link.name, link.index, &addrs)?;
        let sandbox = Sandbox {
            id: request.id.clone(),
            iface: link.name,
            ifindex: link.index,
            addrs,
            mac,
            iface_mac: link.mac,
            slot: reservation.slot,
            tenant: reservation.tenant,
            created_at: SystemTime::now(),
            in_force: Mutex::new(InForce { template, previous: None, generation: 0, lease: None }),
            judged_by: JudgedBy::default(),
            public,
        };
        let sandbox = Arc::new(sandbox);
        // Pins that an interrupted attach left under this name may be of another interface.
        self.kernel.links.detach(sandbox.id.as_str(), "")?;
        // With its first packet the inspector may be asked what is in force.
        self.registry.announce(&sandbox);
        let attached = self.put_in_force(&sandbox, 1).and_then(|()| {
            let in_force = sandbox.in_force();
            self.state.save(&Record::of(&sandbox, in_force.generation, in_force.template.canonical.text()))
        });
        if let Err(error) = attached {
            let mut in_force = sandbox.in_force();
            if let Err(left) = self.take_out_of_force(&sandbox, &mut in_force)
                && in_force.lease.is_some()
            {
                // Its place is not free while something of it is in the kernel: it stays until a detach succeeds.
                self.registry.enter(reservation, sandbox.clone());
                return Err(ControlError::failed(format!(
                    "{error}; and what was done cannot be undone: {left}. Detach {} to try again",
                    sandbox.id
                )));
            }
            self.registry.retract(&sandbox);
            return Err(error);
        }
        self.registry.enter(reservation, sandbox.clone());
        // News of its end may have come before anybody knew it.
        if self.block_on(self.netlink.link_at(sandbox.ifindex)).map_err(host)?.is_none() {
            self.detach_sandbox(&sandbox)?;
            return Err(ControlError::failed(format!("interface {} went away", sandbox.iface)));
        }
        // The host's addresses may have changed between the compilation and the entry.
        if let Err(error) = self.refresh_if_guard_changed(&sandbox) {
            tracing::error!(sandbox = %sandbox.id, %error, "cannot follow the host's addresses");
        }
        self.show_sandbox(&sandbox, true)
    }

    /// Gives the kernel everything about a sandbox that is not in it yet, the programs last.
    pub(super) fn put_in_force(&self, sandbox: &Sandbox, generation: u32) -> Result<(), ControlError> {
        let mut in_force = sandbox.in_force();
        let lease = self.lease(&in_force.template)?;
        let word = PolicyWord::new(lease.slot(), generation);
        in_force.lease = Some(lease);
        in_force.generation = generation;
        sandbox.judged_by.prepare(in_force.template.rules(generation));
        sandbox.judged_by.commit();
        drop(in_force);
        self.kernel.sandboxes.enter(&self.entry(sandbox))?;
        self.kernel.words.store(sandbox.slot, word);
        self.kernel.links.attach(sandbox.id.as_str(), &sandbox.iface)?;
        Ok(())
    }

    /// Replaces a sandbox's policy. When this returns the new one is enforced and no packet is judged by
    /// the old one any more.
    ///
    /// # Errors
    /// The old one is in force then, unless the message says otherwise.
    pub fn update(&self, request: UpdateRequest) -> Result<Changed, ControlError> {
        let sandbox = self.registry.get(&request.id)?;
        let mut in_force = sandbox.in_force();
        let there = in_force.template.policy.clone();
        let tag = || etag(in_force.generation.into(), &in_force.template.canonical.hash().to_string());
        if request.condition.is_some_and(|condition| !condition.is_met(&tag())) {
            return Err(ControlError::precondition_failed());
        }
        let mut policy = self.policy(Some(request.change.apply(|| there.canonical())?))?;
        // These are fixed when a sandbox is attached.
        policy.allow_public_traffic = there.allow_public_traffic;
        policy.mask_request_host.clone_from(&there.mask_request_host);
        self.replace(&sandbox, &mut in_force, self.template(policy)?)?;
        let policy_hash = in_force.template.canonical.hash().to_string();
        Ok(Changed { generation: in_force.generation.into(), policy_hash })
    }

    /// The swap: build, write down, flip, wait, have it on disk, cut, retire.
    pub(super) fn replace(
        &self,
        sandbox: &Sandbox,
        in_force: &mut InForce,
        template: Arc<Template>,
    ) -> Result<(), ControlError> {
        if in_force.lease.is_none() {
            return Err(ControlError::not_found(&sandbox.id));
        }
        let old_lease = self.flip(sandbox, in_force, template)?;
        let over = self.kernel.policies.wait_grace_period().map_err(ControlError::from);
        let settled = over.and_then(|()| self.settle(sandbox, old_lease)).map_err(|error| {
            ControlError::failed(format!(
                "the new policy is in force, but connections that it does not permit may last until their next \
                 packet: {}",
                error.message
            ))
        });
        settled.and(self.confirm(sandbox))
    }

    /// Has what was flipped last on disk.
    ///
    /// # Errors
    /// If the file system refuses. It is in force all the same.
    pub(super) fn confirm(&self, sandbox: &Sandbox) -> Result<(), ControlError> {
        self.state.confirm(&sandbox.id).map_err(|error| {
            ControlError::failed(format!(
                "the new policy of {} is in force, but should the host fail it may be forgotten: {}",
                sandbox.id, error.message
            ))
        })
    }

    /// Puts another policy in force, up to the store after which packets are judged by it. What was in force
    /// before is returned for [`Self::settle`], a grace period later.
    ///
    /// # Errors
    /// The old one is in force then.
    pub(super) fn flip(
        &self,
        sandbox: &Sandbox,
        in_force: &mut InForce,
        template: Arc<Template>,
    ) -> Result<Option<Lease>, ControlError> {
        let lease = self.lease(&template)?;
        let generation = in_force.generation.wrapping_add(1).max(1);
        // From the flip on this is what a next daemon goes by, and before it what is there already.
        if let Err(error) = self.state.propose(&Record::of(sandbox, generation, template.canonical.text())) {
            self.kernel.policies.release(lease);
            return Err(error);
        }
        sandbox.judged_by.prepare(template.rules(generation));
        self.kernel.words.store(sandbox.slot, PolicyWord::new(lease.slot(), generation));
        sandbox.judged_by.commit();
        let old = std::mem::replace(&mut in_force.template, template);
        in_force.previous = Some((in_force.generation, old.policy.clone()));
        in_force.generation = generation;
        Ok(in_force.lease.replace(lease))
    }

    /// Ends what the policy in force no longer permits, and gives back the one before.
    pub(super) fn settle(&self, sandbox: &Sandbox, old_lease: Option<Lease>) -> Result<(), ControlError> {
        // By the inspector first, who knows the names of what it cuts.
        self.inspection.rejudge(sandbox.tenant);
        self.cut_revoked(sandbox)?;
        if let Some(old_lease) = old_lease {
            self.kernel.policies.release(old_lease);
        }
        Ok(())
    }

    /// Ends the connections that the policy in force does not permit.
    pub(super) fn cut_revoked(&self, sandbox: &Sandbox) -> Result<(), ControlError> {
        /// How long the reader of the ring may take to make room.
        const PATIENCE: Duration = Duration::from_secs(1);
        const STEP: Duration = Duration::from_millis(1);
        // Whatever was begun under the old policy is counted by now.
        if self.kernel.sandboxes.activity(sandbox.slot)?.budget.active == 0 {
            return Ok(());
        }
        let mut waited = Duration::ZERO;
        while !self.kernel.runner.rejudge(sandbox.tenant, sandbox.slot, sandbox.ifindex)? {
            if waited >= PATIENCE {
                // Enforcement does not depend on it: the next packet of each is judged by the new policy.
                tracing::warn!(sandbox = %sandbox.id, "some connections end without a reset");
                break;
            }
            std::thread::sleep(STEP);
            waited += STEP;
        }
        Ok(())
    }

    /// Takes the programs off an interface and forgets its sandbox.
    ///
    /// # Errors
    /// If something of it cannot be removed.
    pub fn detach(&self, id: &SandboxId) -> Result<(), ControlError> {
        let sandbox = self.registry.get(id)?;
        self.detach_sandbox(&sandbox)
    }

    /// As [`Self::detach`], for whoever has it already. In one piece: an update, another detach, or an
    /// attach under the same name come before it or after it.
    pub(super) fn detach_sandbox(&self, sandbox: &Sandbox) -> Result<(), ControlError> {
        let mut in_force = sandbox.in_force();
        if in_force.lease.is_none() {
            return Err(ControlError::not_found(&sandbox.id));
        }
        // Written down first: should the rest be interrupted, the next daemon finishes it.
        self.state.remove(&sandbox.id)?;
        self.take_out_of_force(sandbox, &mut in_force)?;
        self.registry.leave(sandbox);
        Ok(())
    }

    /// The entry in the kernel goes last: by it a next daemon finds what is left, should this be interrupted.
    fn take_out_of_force(&self, sandbox: &Sandbox, in_force: &mut InForce) -> Result<(), ControlError> {
        self.kernel.links.detach(sandbox.id.as_str(), &sandbox.iface)?;
        sandbox.judged_by.clear();
        self.inspection.forget(sandbox.tenant);
        // Packets that were under way may still have begun connections.
        self.kernel.policies.wait_grace_period()?;
        self.kernel.runner.forget(sandbox.tenant, sandbox.slot)?;
        // What came to the inspector in between.
        self.inspection.forget(sandbox.tenant);
        self.ingress.forget(sandbox.tenant);
        self.kernel.words.store(sandbox.slot, PolicyWord::default());
        self.kernel.sandboxes.clear(sandbox.slot)?;
        self.kernel.sandboxes.disown(sandbox.ifindex)?;
        if let Some(lease) = in_force.lease.take() {
            self.kernel.policies.release(lease);
        }
        Ok(())
    }

    /// Everything about one sandbox.
    ///
    /// # Errors
    /// `not found`.
    pub fn show(&self, id: &SandboxId, with_tokens: bool) -> Result<Show, ControlError> {
        self.show_sandbox(&*self.registry.get(id)?, with_tokens)
    }

    fn show_sandbox(&self, sandbox: &Sandbox, with_tokens: bool) -> Result<Show, ControlError> {
        let (template, generation) = {
            let in_force = sandbox.in_force();
            (in_force.template.clone(), in_force.generation)
        };
        let word = self.kernel.words.load(sandbox.slot);
        let enforced = word.generation() == generation
            && self.kernel.links.are_attached(sandbox.id.as_str(), &sandbox.iface);
        let (connections, counters) = self.activity(sandbox, &template.policy)?;
        Ok(Show {
            id: sandbox.id.clone(),
            iface: sandbox.iface.clone(),
            ifindex: sandbox.ifindex,
            addrs: sandbox.addrs.clone(),
            mac: sandbox.mac,
            identity: if sandbox.is_checked() { Identity::Checked } else { Identity::Any },
            policy: template.policy.redacted(),
            generation: generation.into(),
            policy_hash: template.canonical.hash().to_string(),
            enforced,
            connections,
            counters,
            created_at: sandbox.created_at,
            tokens: with_tokens.then(|| self.seed.tokens(&sandbox.id, sandbox.tenant)),
        })
    }

    fn activity(&self, sandbox: &Sandbox, policy: &Policy) -> Result<(Connections, Counters), ControlError> {
        let activity = self.kernel.sandboxes.activity(sandbox.slot)?;
        let connections = Connections {
            active: activity.budget.active,
            limit: policy.limits.egress_connections.min(self.config.limits.egress_ceiling),
            peak: activity.budget.peak,
            refused: activity.budget.refused,
        };
        let by_reason = |reason: Reason| {
            let count = activity.counters.by_reason[reason as usize];
            Counter { packets: count.packets, bytes: count.bytes }
        };
        Ok((connections, counters(by_reason)))
    }

    /// One line about each sandbox.
    ///
    /// # Errors
    /// If the kernel's maps cannot be read.
    pub fn list(&self) -> Result<Vec<Summary>, ControlError> {
        self.registry
            .all()
            .iter()
            .map(|sandbox| Ok(Summary::from(self.show_sandbox(sandbox, false)?)))
            .collect()
    }

    /// What sandboxes did: all of them, or one.
    ///
    /// # Errors
    /// `not found`.
    pub fn stats(&self, id: Option<&SandboxId>) -> Result<Stats, ControlError> {
        let sandboxes = match id {
            Some(id) => vec![self.registry.get(id)?],
            None => self.registry.all(),
        };
        let mut stats = Vec::new();
        for sandbox in sandboxes {
            let policy = sandbox.in_force().template.policy.clone();
            let (connections, counters) = self.activity(&sandbox, &policy)?;
            stats.push(SandboxStats { id: sandbox.id.clone(), connections, counters });
        }
        Ok(Stats::new(stats, self.kernel.sandboxes.events_lost()?))
    }

    fn link(&self, iface: &str) -> Result<Link, ControlError> {
        let found = self.block_on(self.netlink.link(iface)).map_err(host)?;
        let link = found.ok_or_else(|| {
            ControlError::failed(format!(
                "there is no interface {iface} here; `ip link` shows those there are"
            ))
        })?;
        if !link.ethernet {
            return Err(ControlError::failed(format!(
                "interface {iface} has no Ethernet headers; attach to a tap or veth, not a tun"
            )));
        }
        Ok(link)
    }

    /// Whose packets the interface may send.
    fn identity(
        &self,
        link: &Link,
        asked: Addrs,
        mac: Option<Mac>,
    ) -> Result<(Vec<IpAddr>, Option<Mac>), ControlError> {
        // Who is known in full need not be looked up among all routes and neighbours of the host.
        if let (Addrs::List(addrs), Some(mac)) = (&asked, mac) {
            return Ok((addrs.clone(), Some(mac)));
        }
        let peers = self.block_on(self.netlink.peers(link.index)).map_err(host)?;
        // One hardware address is an identity; several are not.
        let learned = if peers.macs.len() == 1 { peers.macs.first().copied().map(Mac::from) } else { None };
        let mac = mac.or(learned);
        let addrs: Vec<IpAddr> = match asked {
            Addrs::Any => return Ok((Vec::new(), mac)),
            Addrs::List(addrs) => addrs,
            Addrs::Learn => peers.addrs.into_iter().collect(),
        };
        if addrs.is_empty() {
            return Err(ControlError::failed(format!(
                "no route or neighbour says which addresses are behind {}; name them with --addr, or switch the \
                 check off with --addr any",
                link.name
            )));
        }
        if addrs.len() > MAX_ADDRS {
            return Err(ControlError::failed(format!(
                "{} addresses are behind {}; a sandbox can have {MAX_ADDRS}. Name them with --addr",
                addrs.len(),
                link.name
            )));
        }
        Ok((addrs, mac))
    }

    fn entry(&self, sandbox: &Sandbox) -> layout::Sandbox {
        let mut flags = 0;
        if sandbox.mac.is_some() {
            flags |= sandbox_flags::KNOWN_MAC;
        }
        if !sandbox.is_checked() {
            flags |= sandbox_flags::ANY_ADDR;
        }
        if self.config.defaults.inbound == Inbound::Any {
            flags |= sandbox_flags::INBOUND_ANY;
        }
        let mut addrs = [Addr::UNSPECIFIED; MAX_ADDRS];
        for (place, addr) in addrs.iter_mut().zip(&sandbox.addrs) {
            *place = (*addr).into();
        }
        layout::Sandbox {
            tenant: sandbox.tenant,
            slot: sandbox.slot,
            flags,
            ifindex: sandbox.ifindex,
            addr_count: u32::try_from(sandbox.addrs.len().min(MAX_ADDRS)).unwrap_or(0),
            mac: sandbox.mac.map(Mac::octets).unwrap_or_default(),
            iface_mac: sandbox.iface_mac,
            addrs,
        }
    }

    /// A policy compiled for this host as it is now; the way to the inspector is open if that is needed.
    pub(super) fn template(&self, policy: impl Into<Arc<Policy>>) -> Result<Arc<Template>, ControlError> {
        let template = self.templates.of(&policy.into(), &self.guard());
        if template.compiled.inspect || template.compiled.watch {
            self.open_way_to_inspector()?;
        }
        Ok(template)
    }

    pub(super) fn lease(&self, template: &Template) -> Result<Lease, ControlError> {
        Ok(self.kernel.policies.lease(template.hash, &template.compiled)?)
    }

    pub(super) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

fn host(error: std::io::Error) -> ControlError {
    ControlError::failed(format!("the host does not say what its interfaces are: {error}"))
}
