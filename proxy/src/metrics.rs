//! What the proxy counts. Every counter is resolved once at start: a request touches atomics only.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What was decided about a request; each ends in exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Passthrough,
    Health,
    Local,
    Waited,
    Forwarded,
    Replayed,
    Redirected,
    AppReplayed,
    Timeout,
    NoPrimary,
    Refused,
    Unconfirmed,
    BadRequest,
    TargetDown,
    TargetFailed,
    PrimaryFailed,
}

impl Decision {
    pub const ALL: [Self; 16] = [
        Self::Passthrough,
        Self::Health,
        Self::Local,
        Self::Waited,
        Self::Forwarded,
        Self::Replayed,
        Self::Redirected,
        Self::AppReplayed,
        Self::Timeout,
        Self::NoPrimary,
        Self::Refused,
        Self::Unconfirmed,
        Self::BadRequest,
        Self::TargetDown,
        Self::TargetFailed,
        Self::PrimaryFailed,
    ];

    /// The value of the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::Health => "health",
            Self::Local => "local",
            Self::Waited => "waited",
            Self::Forwarded => "forwarded",
            Self::Replayed => "replayed",
            Self::Redirected => "redirected",
            Self::AppReplayed => "app_replayed",
            Self::Timeout => "timeout",
            Self::NoPrimary => "no_primary",
            Self::Refused => "refused",
            Self::Unconfirmed => "unconfirmed",
            Self::BadRequest => "bad_request",
            Self::TargetDown => "target_down",
            Self::TargetFailed => "target_failed",
            Self::PrimaryFailed => "primary_failed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: &'static str,
}

/// The proxy's metrics, cheap to clone.
#[derive(Debug, Clone)]
pub struct ProxyMetrics {
    decisions: [Counter; Decision::ALL.len()],
    family: Family<DecisionLabel, Counter>,
    pub(crate) waits: Histogram,
    pub(crate) upstream: Histogram,
    pub(crate) in_flight: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) upgrades: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) connection_errors: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) truncated: Counter,
    pub(crate) retries: Counter,
}

impl Default for ProxyMetrics {
    fn default() -> Self {
        let family = Family::<DecisionLabel, Counter>::default();
        let counter = |d: Decision| family.get_or_create_owned(&DecisionLabel { decision: d.name() });
        Self {
            decisions: Decision::ALL.map(counter),
            family,
            waits: Histogram::new(exponential_buckets(0.0005, 2.0, 14)),
            upstream: Histogram::new(exponential_buckets(0.0001, 2.0, 18)),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            upgrades: Gauge::default(),
            connections: Gauge::default(),
            connection_errors: Counter::default(),
            timeouts: Counter::default(),
            truncated: Counter::default(),
            retries: Counter::default(),
        }
    }
}

impl ProxyMetrics {
    /// Makes the metrics part of what a registry prints; counters with `_total` behind the names given here.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("litefs_proxy_requests", "Requests by what was decided about them", self.family.clone());
        let waits = "Seconds that requests waited for a position or a primary";
        registry.register("litefs_proxy_wait_seconds", waits, self.waits.clone());
        let upstream = "Seconds until the header of the application's or the primary's answer";
        registry.register("litefs_proxy_upstream_seconds", upstream, self.upstream.clone());
        registry.register("litefs_proxy_in_flight", "Requests being served", self.in_flight.clone());
        registry.register("litefs_proxy_waiting", "Requests waiting for a position or a primary", self.waiting.clone());
        registry.register("litefs_proxy_upgrades", "Open upgraded connections (WebSocket)", self.upgrades.clone());
        registry.register("litefs_proxy_connections", "Open client connections", self.connections.clone());
        let errors = "Client connections that ended with an error (malformed, reset)";
        registry.register("litefs_proxy_connection_errors", errors, self.connection_errors.clone());
        let timeouts = "Client connections closed because the client was too slow or idle";
        registry.register("litefs_proxy_client_timeouts", timeouts, self.timeouts.clone());
        let truncated = "Answers broken off because the upstream broke off";
        registry.register("litefs_proxy_truncated", truncated, self.truncated.clone());
        let retries = "Requests sent again on a fresh connection";
        registry.register("litefs_proxy_retries", retries, self.retries.clone());
    }

    pub(crate) fn count(&self, decision: Decision) {
        if let Some(counter) = self.decisions.get(decision as usize) {
            counter.inc();
        }
    }

    /// How many requests ended in this decision (its label), for tests and benchmarks.
    #[must_use]
    pub fn decided(&self, decision: &str) -> u64 {
        let index = Decision::ALL.iter().position(|d| d.name() == decision);
        index.and_then(|index| self.decisions.get(index)).map_or(0, Counter::get)
    }

    /// Requests that are waiting right now.
    #[must_use]
    pub fn waiting_now(&self) -> i64 {
        self.waiting.get()
    }

    /// Upgraded connections that are open right now.
    #[must_use]
    pub fn upgrades_now(&self) -> i64 {
        self.upgrades.get()
    }

    /// Requests being served right now.
    #[must_use]
    pub fn in_flight_now(&self) -> i64 {
        self.in_flight.get()
    }
}

/// A gauge that is one higher while this lives.
#[derive(Debug)]
pub(crate) struct Held(Gauge);

impl Held {
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
