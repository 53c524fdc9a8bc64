//! What the kernel has counted, put into the metrics when somebody asks for them.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::header;
use axum::routing::get;
use filter_common::layout::{FLOW_SETS, FLOW_WAYS, MAX_POLICIES, MAX_SANDBOXES};
use filter_common::{Decision, Reason};
use filter_gateway::Counters;

use super::core::Core;
use super::service::blocking;
use crate::api::error::ApiError;
use crate::api::listen::{Bounds, Tcp};
use crate::error::ControlError;
use crate::kernel::sandboxes::Activity;
use crate::metrics::{self, Asked, CONTENT_TYPE, Labels, direction};

/// The answer to a query that a policy refuses; nobody else is answered so.
const REFUSED: &str = "refused";
/// Directions and decisions that packets have.
const KINDS: [(&str, Decision); 4] = [
    ("from_sandbox", Decision::Allow),
    ("from_sandbox", Decision::Deny),
    ("to_sandbox", Decision::Allow),
    ("to_sandbox", Decision::Deny),
];

/// What sandboxes did that are gone: totals do not forget them.
#[derive(Default)]
pub struct Departed(Mutex<Sums>);

#[derive(Clone, Copy, Default)]
struct Sums {
    packets: [u64; KINDS.len()],
    refused: u64,
    active: u64,
    inbound: u64,
}

impl Sums {
    fn of(activity: &Activity) -> Self {
        let packets = KINDS.map(|(way, decision)| {
            let reasons = Reason::ALL.iter();
            let counted =
                reasons.filter(|reason| direction(**reason) == way && reason.decision() == decision);
            counted
                .filter_map(|reason| activity.counters.by_reason.get(*reason as usize))
                .map(|one| one.packets)
                .sum()
        });
        let budget = activity.budget;
        Self {
            packets,
            refused: budget.refused,
            active: budget.active.into(),
            inbound: budget.inbound.into(),
        }
    }

    fn add(&mut self, other: &Self) {
        for (sum, more) in self.packets.iter_mut().zip(other.packets) {
            *sum += more;
        }
        self.refused += other.refused;
        self.active += other.active;
        self.inbound += other.inbound;
    }
}

impl Departed {
    /// Remembers what a sandbox did. Its own counters are cleared by now: what is counted twice for a moment would
    /// stay so, for counters only grow.
    pub(super) fn add(&self, activity: &Activity) {
        let gone = Sums { active: 0, inbound: 0, ..Sums::of(activity) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(&gone);
    }

    fn sums(&self) -> Sums {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// All metrics as of now.
    ///
    /// # Errors
    /// If the kernel's maps cannot be read.
    pub fn scrape(&self) -> Result<String, ControlError> {
        let asked = &self.metrics.asked;
        let is_each = self.config.metrics.per_sandbox;
        let mut all = self.departed.sums();
        if is_each {
            // Those that are gone go.
            asked.flows_active.clear();
            asked.connection_limit_refused.clear();
            asked.packets.clear();
        }
        for sandbox in self.registry.all() {
            let sums = Sums::of(&self.kernel.sandboxes.activity(sandbox.slot)?);
            all.add(&sums);
            if is_each {
                put(asked, &sums, Some(sandbox.id.as_str()));
            }
        }
        if !is_each {
            put(asked, &all, None);
        }
        for (rcode, count) in self.inspection.answers() {
            let decision = if rcode == REFUSED { Decision::Deny } else { Decision::Allow };
            let labels: Labels = vec![("decision", decision.name().into()), ("rcode", rcode.into())];
            Asked::count(&asked.dns_queries, labels, count);
        }
        for (code, count) in self.ingress.counters().into_iter().flat_map(Counters::by_code) {
            Asked::count(&self.metrics.ingress_requests, vec![("code", code.to_string().into())], count);
        }
        self.metrics.transforms.inner().fetch_max(self.transformer.count(), Ordering::Relaxed);
        let places = u64::from(FLOW_SETS) * FLOW_WAYS as u64;
        for (map, entries, capacity) in [
            ("sandboxes", self.registry.len() as u64, u64::from(MAX_SANDBOXES)),
            ("policies", self.kernel.policies.len() as u64, u64::from(MAX_POLICIES)),
            ("flows", all.active + all.inbound, places),
        ] {
            let labels = || -> Labels { vec![("map", map.into())] };
            asked.map_entries.get_or_create(&labels()).set(i64::try_from(entries).unwrap_or(i64::MAX));
            asked.map_capacity.get_or_create(&labels()).set(i64::try_from(capacity).unwrap_or(i64::MAX));
        }
        Ok(self.metrics.text())
    }
}

fn put(asked: &Asked, sums: &Sums, sandbox: Option<&str>) {
    let with_id = |mut labels: Labels| {
        labels.extend(sandbox.map(|id| ("sandbox", id.to_owned().into())));
        labels
    };
    let active = i64::try_from(sums.active).unwrap_or(i64::MAX);
    asked.flows_active.get_or_create(&with_id(Vec::new())).set(active);
    Asked::count(&asked.connection_limit_refused, with_id(Vec::new()), sums.refused);
    for ((way, decision), count) in KINDS.into_iter().zip(sums.packets) {
        Asked::count(&asked.packets, with_id(metrics::packets(way, decision)), count);
    }
}

/// Listens where metrics are to be had. That nobody can listen there is said and no more: what is enforced does not
/// depend on who measures it.
pub(super) fn listen(address: SocketAddr, bounds: Bounds) -> Option<Tcp> {
    match Tcp::bind(address, bounds) {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::error!(%address, %error, "no metrics: cannot listen there ([metrics].listen)");
            None
        }
    }
}

/// The one route.
pub(super) fn routes(core: Arc<Core>) -> Router {
    Router::new().route(
        "/metrics",
        get(async move || {
            let text = blocking(&core, Core::scrape).await.map_err(ApiError::from)?;
            Ok::<_, ApiError>(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
        }),
    )
}
