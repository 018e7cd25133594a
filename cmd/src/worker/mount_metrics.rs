//! What of the mount waits for the kernel, for `GET /metrics`.

use litefs_fuse::MountCounts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// See [`MountCounts`].
#[derive(Debug)]
pub struct MountMetrics(pub MountCounts);

impl Collector for MountMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (waiting, merged) = self.0.notifications();
        let waiting = ConstGauge::new(i64::try_from(waiting).unwrap_or(i64::MAX));
        let help = "Messages about cached pages and names that wait for the kernel";
        let kind = waiting.metric_type();
        waiting.encode(encoder.encode_descriptor("litefs_fuse_notifications_waiting", help, None, kind)?)?;
        let merged = ConstCounter::new(merged);
        let help = "Messages that were merged because too many waited";
        let kind = merged.metric_type();
        merged.encode(encoder.encode_descriptor("litefs_fuse_notifications_merged", help, None, kind)?)?;
        let opens = ConstGauge::new(i64::try_from(self.0.opens_waiting()).unwrap_or(i64::MAX));
        let help = "The node's own opens of files of the mount that wait for others of them to end";
        let kind = opens.metric_type();
        opens.encode(encoder.encode_descriptor("litefs_fuse_opens_waiting", help, None, kind)?)
    }
}
