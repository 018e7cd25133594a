//! The node's own metrics, and how a registry becomes the text that dashboards made for LiteFS expect.

use std::sync::Arc;

use litefs::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::lag::Lag;
use crate::roles::RoleHandle;
use crate::stream::Subscribers;

type FrameLabels = [(&'static str, String); 2];

/// What replication counts.
#[derive(Debug)]
pub struct Metrics {
    streams: Gauge,
    frames: Family<FrameLabels, Counter>,
    apply_latency: Histogram,
    requests: Counter,
    halts: Counter,
}

/// Counts a stream while it lives.
pub(crate) struct StreamCount(Gauge);

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Registers everything in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            streams: Gauge::default(),
            frames: Family::default(),
            apply_latency: Histogram::new([
                0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ]),
            requests: Counter::default(),
            halts: Counter::default(),
        };
        registry.register("litefs_http_stream_count", "Streams to replicas", metrics.streams.clone());
        registry.register("litefs_http_frame_send_count", "Stream frames sent", metrics.frames.clone());
        registry.register("litefs_http_request_count", "Requests to the node API", metrics.requests.clone());
        registry.register(
            "litefs_apply_latency_seconds",
            "From the commit on the primary (its clock) to being applied here",
            metrics.apply_latency.clone(),
        );
        registry.register("litefs_halt_count", "HALT locks granted to other nodes", metrics.halts.clone());
        metrics
    }

    pub(crate) fn stream_opened(&self) -> StreamCount {
        self.streams.inc();
        StreamCount(self.streams.clone())
    }

    pub(crate) fn frames_sent(&self, db: &str, kind: &str, count: u64) {
        if count > 0 {
            let labels = [("db", db.to_owned()), ("type", kind.to_owned())];
            self.frames.get_or_create(&labels).inc_by(count);
        }
    }

    pub(crate) fn applied(&self, latency_seconds: f64) {
        self.apply_latency.observe(latency_seconds);
    }

    pub(crate) fn request(&self) {
        self.requests.inc();
    }

    pub(crate) fn halted(&self) {
        self.halts.inc();
    }
}

/// What is not counted but looked up when somebody asks.
pub(crate) struct NodeState {
    pub(crate) store: Arc<Store>,
    pub(crate) role: RoleHandle,
    pub(crate) lag: Arc<Lag>,
    pub(crate) subscribers: Subscribers,
}

impl std::fmt::Debug for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeState")
    }
}

impl Collector for NodeState {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let primary = self.role.is_primary();
        let lag_seconds = if primary { 0.0 } else { self.lag.ms() as f64 / 1e3 };
        let positions = self.store.positions();
        let mut gauge = |name: &str, help: &str, value: f64| {
            let value = ConstGauge::new(value);
            value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
        };
        gauge("litefs_is_primary", "1 on the primary", f64::from(u8::from(primary)))?;
        gauge("litefs_subscriber_count", "Connected replicas", self.subscribers.count() as f64)?;
        gauge("litefs_lag_seconds", "Behind the primary", lag_seconds)?;
        let lag = ConstGauge::new(lag_seconds);
        let mut family =
            encoder.encode_descriptor("litefs_db_lag_seconds", "Behind the primary", None, lag.metric_type())?;
        for name in positions.keys() {
            lag.encode(family.encode_family(&[("db", name.as_str())])?)?;
        }
        Ok(())
    }
}

/// Counters that LiteFS does not have: these end in `_total`.
const OWN_COUNTERS: &str = "litefs_proxy_";

/// The registry in the Prometheus text format (0.0.4). The library writes OpenMetrics, where the samples of a counter end
/// in `_total`, but not its name; dashboards made for LiteFS ask for the plain names.
pub(crate) fn prometheus_text(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(plain_names(&text))
}

fn plain_names(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut counter = None;
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            counter = kind.strip_suffix(" counter");
        }
        let renamed = counter.and_then(|name| {
            if name.starts_with(OWN_COUNTERS) {
                if line.starts_with("# TYPE ") {
                    out = out.replace(&format!("# HELP {name} "), &format!("# HELP {name}_total "));
                    return Some(format!("# TYPE {name}_total counter"));
                }
                return None;
            }
            let labels_and_value = line.strip_prefix(name)?.strip_prefix("_total")?;
            Some(format!("{name}{labels_and_value}"))
        });
        out.push_str(renamed.as_deref().unwrap_or(line));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_the_names_that_dashboards_know() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.frames_sent("a.db", "ltx", 3);
        metrics.frames_sent("a.db", "ltx", 0);
        let _stream = metrics.stream_opened();
        let text = prometheus_text(&registry).expect("text");
        assert!(text.contains("\nlitefs_http_frame_send_count{db=\"a.db\",type=\"ltx\"} 3\n"), "{text}");
        assert!(text.contains("# TYPE litefs_http_frame_send_count counter\n"), "{text}");
        assert!(text.contains("litefs_http_stream_count 1\n"), "{text}");
        assert!(!text.contains("_total") && !text.contains("EOF"), "{text}");
    }

    #[test]
    fn counters_of_our_own_end_in_total() {
        let mut registry = Registry::default();
        let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
        counter.inc();
        registry.register("litefs_proxy_retries", "Again", counter);
        let text = prometheus_text(&registry).expect("text");
        let expected = "# HELP litefs_proxy_retries_total Again.\n# TYPE litefs_proxy_retries_total counter\n";
        assert_eq!(text, format!("{expected}litefs_proxy_retries_total 1\n"));
    }
}
