//! What is counted for Prometheus, by the names that dashboards rely on.
//!
//! Parts of the daemon add to the counters as things happen; what the kernel counts is put in when it is asked for
//! ([`crate::daemon`] does that). Labels are out of fixed lists, so that no sandbox can make their number grow; a
//! label with its id is there only where the operator wants it.

use std::borrow::Cow;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use filter_common::{Decision, Reason};
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use crate::error::{ControlError, ErrorCode};

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Names and values of labels.
pub type Labels = Vec<(&'static str, Cow<'static, str>)>;
/// A counter for each set of labels.
pub type Counters = Family<Labels, Counter>;
/// A number that goes up and down for each set of labels.
pub type Gauges = Family<Labels, Gauge>;

/// The transport protocols that have a name in labels; whatever else there is counts as `other`.
const PROTOCOLS: [&str; 5] = ["tcp", "udp", "icmp", "icmpv6", "unknown"];

/// All metrics. Their fields are shared handles: clone those that a part needs.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Requests at the gateway, by `code`, the HTTP status.
    pub ingress_requests: Counters,
    /// Requests in which headers were changed.
    pub transforms: Counter,
    /// Events that could not be told one by one.
    pub events_dropped: Counter,
    /// From the beginning of an inspected connection to the verdict on it.
    pub inspect_seconds: Histogram,
    /// From a verdict to the connection with the destination.
    pub upstream_connect_seconds: Histogram,
    flows: Counters,
    inspections: Counters,
    policy_updates: Counters,
    policy_apply_seconds: Histogram,
    /// What is only known when it is asked for.
    pub(crate) asked: Asked,
}

/// What is put in when it is asked for.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) flows_active: Gauges,
    pub(crate) connection_limit_refused: Counters,
    pub(crate) packets: Counters,
    pub(crate) dns_queries: Counters,
    pub(crate) map_entries: Gauges,
    pub(crate) map_capacity: Gauges,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("sandbox_filter")),
            ingress_requests: Family::default(),
            transforms: Counter::default(),
            events_dropped: Counter::default(),
            inspect_seconds: seconds(),
            upstream_connect_seconds: seconds(),
            flows: Family::default(),
            inspections: Family::default(),
            policy_updates: Family::default(),
            policy_apply_seconds: seconds(),
            asked: Asked::default(),
        };
        metrics.begin();
        metrics
    }
}

impl Metrics {
    /// Adds metrics of a part's own, below the common prefix.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, metric);
    }

    /// A flow began or was refused.
    pub fn flow(&self, proto: &str, decision: &str, reason: &str) {
        let proto = PROTOCOLS.into_iter().find(|known| *known == proto).unwrap_or("other");
        if let Some(reason) =
            Reason::ALL.iter().find(|known| known.name() == reason && known.decision().name() == decision)
        {
            self.flows.get_or_create(&flow(proto, *reason)).inc();
        }
    }

    /// The inspector let a connection through, or refused it, a request or a query. `protocol`: `http`, `tls`, `dns`.
    pub fn inspection(&self, protocol: &'static str, reason: Reason) {
        self.inspections.get_or_create(&inspection(protocol, reason)).inc();
    }

    /// Runs an update, and counts what came of it.
    ///
    /// # Errors
    /// Those of the update.
    pub fn update<T>(&self, update: impl FnOnce() -> Result<T, ControlError>) -> Result<T, ControlError> {
        let begun = Instant::now();
        let updated = update();
        if updated.is_ok() {
            observe(&self.policy_apply_seconds, begun.elapsed());
        }
        let result = updated.as_ref().map_or_else(|error| result(error.code), |_| "ok");
        self.policy_updates.get_or_create(&vec![("result", result.into())]).inc();
        updated
    }

    /// All of them, as Prometheus reads them.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A string takes whatever is written to it.
        let _ =
            prometheus_text::encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        text
    }

    /// Registers all, and has those with few labels be there from the start.
    fn begin(&self) {
        let asked = &self.asked;
        self.register(
            "flows",
            "Flows that began or were refused, as far as they were told",
            self.flows.clone(),
        );
        self.register("flows_active", "Egress connections that are open", asked.flows_active.clone());
        self.register(
            "connection_limit_refused",
            "Connections that were refused over the limit of their sandbox",
            asked.connection_limit_refused.clone(),
        );
        self.register("packets", "Packets that were judged", asked.packets.clone());
        self.register(
            "policy_updates",
            "Replacements of policies that were asked for",
            self.policy_updates.clone(),
        );
        self.register(
            "policy_apply_seconds",
            "From the request to replace a policy until the new one was enforced",
            self.policy_apply_seconds.clone(),
        );
        self.register("inspections", "Verdicts of the inspector", self.inspections.clone());
        self.register(
            "inspect_seconds",
            "From the beginning of an inspected connection to the verdict on it",
            self.inspect_seconds.clone(),
        );
        self.register(
            "upstream_connect_seconds",
            "From a verdict to the connection with the destination, resolving included",
            self.upstream_connect_seconds.clone(),
        );
        self.register("dns_queries", "Queries of sandboxes that were answered", asked.dns_queries.clone());
        self.register("ingress_requests", "Requests at public URLs", self.ingress_requests.clone());
        self.register("transforms", "Requests in which headers were changed", self.transforms.clone());
        self.register("map_entries", "Entries in the kernel's maps", asked.map_entries.clone());
        self.register("map_capacity", "Room in the kernel's maps", asked.map_capacity.clone());
        self.register(
            "events_dropped",
            "Events that could not be told one by one",
            self.events_dropped.clone(),
        );
        let build = Gauges::default();
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").into())]).set(1);
        self.register("build_info", "The release", build);

        for reason in Reason::ALL {
            self.flows.get_or_create(&flow("tcp", *reason)).inc_by(0);
        }
        for protocol in ["http", "tls"] {
            for reason in [Reason::AllowedName, Reason::NameNotAllowed] {
                self.inspections.get_or_create(&inspection(protocol, reason)).inc_by(0);
            }
        }
        self.policy_updates.get_or_create(&vec![("result", "ok".into())]).inc_by(0);
        self.ingress_requests.get_or_create(&vec![("code", "200".into())]).inc_by(0);
    }
}

impl Asked {
    /// Sets a counter to what somebody else has counted; one that has been larger stays as it was, for it only grows.
    pub(crate) fn count(counters: &Counters, labels: Labels, count: u64) {
        counters.get_or_create(&labels).inner().fetch_max(count, Ordering::Relaxed);
    }
}

/// Adds a duration to a histogram.
pub fn observe(histogram: &Histogram, time: Duration) {
    histogram.observe(time.as_secs_f64());
}

fn flow(proto: &'static str, reason: Reason) -> Labels {
    vec![
        ("proto", proto.into()),
        ("decision", reason.decision().name().into()),
        ("reason", reason.name().into()),
    ]
}

fn inspection(protocol: &'static str, reason: Reason) -> Labels {
    vec![
        ("protocol", protocol.into()),
        ("decision", reason.decision().name().into()),
        ("reason", reason.name().into()),
    ]
}

/// Which way the packets go that are counted for a reason: what a sandbox sends, or what is sent to it. `reply` is
/// given to both; by far the most of those packets are answers to a sandbox.
pub const fn direction(reason: Reason) -> &'static str {
    match reason {
        Reason::Reply | Reason::Inbound => "to_sandbox",
        Reason::AllowedCidr
        | Reason::AllowedName
        | Reason::Dns
        | Reason::Default
        | Reason::Neighbour
        | Reason::Malformed
        | Reason::Spoofed
        | Reason::NeighbourClaim
        | Reason::Guarded
        | Reason::Protocol
        | Reason::Fragment
        | Reason::DeniedCidr
        | Reason::ConnectionLimit
        | Reason::Capacity
        | Reason::NoName
        | Reason::BadName
        | Reason::NameNotAllowed
        | Reason::Unresolved
        | Reason::PeekTimeout
        | Reason::BadRequest
        | Reason::DnsRefused
        | Reason::Revoked
        | Reason::InspectorDown
        | Reason::UpstreamTls
        | Reason::NoSecret => "from_sandbox",
    }
}

/// The labels of packets.
pub(crate) fn packets(direction: &'static str, decision: Decision) -> Labels {
    vec![("direction", direction.into()), ("decision", decision.name().into())]
}

const fn result(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Failed | ErrorCode::Unreachable => "failed",
        ErrorCode::Usage | ErrorCode::InvalidPolicy => "invalid",
        ErrorCode::NotFound => "not_found",
        ErrorCode::Conflict => "conflict",
        ErrorCode::PreconditionFailed => "precondition_failed",
    }
}

/// From a tenth of a millisecond to some thirteen seconds.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 18))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_there_from_the_start_under_their_names() {
        let text = Metrics::default().text();
        for name in [
            "flows_total{proto=\"tcp\",decision=\"deny\",reason=\"denied_cidr\"} 0",
            "policy_updates_total{result=\"ok\"} 0",
            "policy_apply_seconds_count 0",
            "inspections_total{protocol=\"tls\",decision=\"allow\",reason=\"allowed_name\"} 0",
            "inspect_seconds_bucket{le=\"+Inf\"} 0",
            "upstream_connect_seconds_sum 0",
            "ingress_requests_total{code=\"200\"} 0",
            "transforms_total 0",
            "events_dropped_total 0",
            "build_info{version=\"",
        ] {
            assert!(text.contains(&format!("\nsandbox_filter_{name}")), "{name}:\n{text}");
        }
    }

    #[test]
    fn labels_do_not_grow_with_what_sandboxes_send() {
        let metrics = Metrics::default();
        for number in 0..200 {
            metrics.flow(&number.to_string(), "deny", "protocol");
            metrics.flow("tcp", "deny", &number.to_string());
        }
        let text = metrics.text();
        assert!(
            text.contains("flows_total{proto=\"other\",decision=\"deny\",reason=\"protocol\"} 200\n"),
            "{text}"
        );
        assert_eq!(text.matches("sandbox_filter_flows_total{").count(), Reason::COUNT + 1);
    }

    #[test]
    fn updates_are_counted_by_what_came_of_them() {
        let metrics = Metrics::default();
        assert!(metrics.update(|| Ok(())).is_ok());
        assert!(metrics.update(|| Err::<(), _>(ControlError::not_found("a"))).is_err());
        let text = metrics.text();
        for line in
            ["policy_updates_total{result=\"ok\"} 1", "{result=\"not_found\"} 1", "apply_seconds_count 1"]
        {
            assert!(text.contains(line), "{line}:\n{text}");
        }
    }

    #[test]
    fn a_count_of_somebody_elses_never_goes_back() {
        let counters = Counters::default();
        for count in [5, 3, 4] {
            Asked::count(&counters, Vec::new(), count);
        }
        assert_eq!(counters.get_or_create(&Vec::new()).get(), 5);
    }
}
