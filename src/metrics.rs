//! What the engine counts, under the names that dashboards made for LiteFS expect (COMPAT §4).

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::DbName;
use crate::database::Health;
use crate::store::Store;

type DbLabels = [(&'static str, String); 1];
type WayLabels = [(&'static str, &'static str); 1];

/// All metrics of a store. Per-database handles are taken once ([`DatabaseMetrics`]): counting is one atomic addition.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    database_writes: Family<DbLabels, Counter>,
    journal_writes: Family<DbLabels, Counter>,
    wal_writes: Family<DbLabels, Counter>,
    shm_writes: Family<DbLabels, Counter>,
    commits: Family<DbLabels, Counter>,
    reaped: Family<DbLabels, Counter>,
    capture_seconds: Histogram,
    checkpoint_seconds: Histogram,
    fence_timeouts: Counter,
    set_aside: Counter,
    resyncs: Family<WayLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            database_writes: Family::default(),
            journal_writes: Family::default(),
            wal_writes: Family::default(),
            shm_writes: Family::default(),
            commits: Family::default(),
            reaped: Family::default(),
            // 16 µs … 0.5 s
            capture_seconds: Histogram::new(exponential_buckets(16e-6, 2.0, 16)),
            // 1 ms … 32 s
            checkpoint_seconds: Histogram::new(exponential_buckets(1e-3, 2.0, 16)),
            fence_timeouts: Counter::default(),
            set_aside: Counter::default(),
            resyncs: Family::default(),
        }
    }
}

/// The metrics of one database.
#[derive(Debug)]
pub(crate) struct DatabaseMetrics {
    /// Writes of clients to the database file.
    pub(crate) database_writes: Counter,
    /// Writes of clients to the journal.
    pub(crate) journal_writes: Counter,
    /// Requests about the WAL that reach us (with passthrough: syncs).
    pub(crate) wal_writes: Counter,
    /// Requests about the shm that reach us (with passthrough: opens).
    pub(crate) shm_writes: Counter,
    /// Transactions captured or applied.
    pub(crate) commits: Counter,
    /// Log segments removed by retention.
    pub(crate) reaped: Counter,
}

impl Metrics {
    /// The handles of one database.
    pub(crate) fn database(&self, name: &DbName) -> DatabaseMetrics {
        let of = |family: &Family<DbLabels, Counter>| family.get_or_create(&[("db", name.to_string())]).clone();
        DatabaseMetrics {
            database_writes: of(&self.database_writes),
            journal_writes: of(&self.journal_writes),
            wal_writes: of(&self.wal_writes),
            shm_writes: of(&self.shm_writes),
            commits: of(&self.commits),
            reaped: of(&self.reaped),
        }
    }

    /// A capture that found something, from the wake-up to the published position.
    pub(crate) fn captured(&self, seconds: f64) {
        self.capture_seconds.observe(seconds);
    }

    /// A checkpoint.
    pub(crate) fn checkpointed(&self, seconds: f64) {
        self.checkpoint_seconds.observe(seconds);
    }

    /// A fence that did not close in time.
    pub(crate) fn fence_timed_out(&self) {
        self.fence_timeouts.inc();
    }

    /// Transactions that only this node had were copied to `lost+found`.
    pub(crate) fn set_aside(&self) {
        self.set_aside.inc();
    }

    /// A database whose history was another one is at the primary's: by one record from the last common position.
    pub(crate) fn resynced_by_record(&self) {
        self.resyncs.get_or_create(&[("by", "ltx")]).inc();
    }

    /// The same, by a snapshot.
    pub(crate) fn resynced_by_snapshot(&self) {
        self.resyncs.get_or_create(&[("by", "snapshot")]).inc();
    }

    fn register(&self, registry: &mut Registry) {
        let families = [
            ("litefs_db_database_write_count", "Writes to the database file", &self.database_writes),
            ("litefs_db_journal_write_count", "Writes to the rollback journal", &self.journal_writes),
            ("litefs_db_wal_write_count", "Requests about the WAL that reach the node", &self.wal_writes),
            ("litefs_db_shm_write_count", "Requests about the shared memory that reach the node", &self.shm_writes),
            ("litefs_db_commit_count", "Transactions captured or applied", &self.commits),
            ("litefs_db_ltx_reap_count", "Transactions removed from the log by retention", &self.reaped),
        ];
        for (name, help, family) in families {
            registry.register(name, help, family.clone());
        }
        let capture = "From the wake-up to the captured position";
        registry.register("litefs_capture_seconds", capture, self.capture_seconds.clone());
        registry.register("litefs_checkpoint_seconds", "Duration of checkpoints", self.checkpoint_seconds.clone());
        registry.register(
            "litefs_set_aside_count",
            "Times that transactions only this node had were moved to lost+found",
            self.set_aside.clone(),
        );
        let resyncs = "Databases brought from another history to the primary's";
        registry.register("litefs_resync_count", resyncs, self.resyncs.clone());
        registry.register("litefs_fence_timeout_count", "Fences that closed late", self.fence_timeouts.clone());
    }
}

/// What is asked of the store when somebody looks.
#[derive(Debug)]
struct Gauges(std::sync::Weak<Store>);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(store) = self.0.upgrade() else { return Ok(()) };
        let databases = store.databases();
        let count = ConstGauge::new(i64::try_from(databases.len()).unwrap_or(i64::MAX));
        let descriptor = encoder.encode_descriptor("litefs_db_count", "Databases", None, count.metric_type())?;
        count.encode(descriptor)?;
        let (txid, records, bytes) = (
            Family::<DbLabels, Gauge>::default(),
            Family::<DbLabels, Gauge>::default(),
            Family::<DbLabels, Gauge>::default(),
        );
        let unhealthy = Family::<DbLabels, Gauge>::default();
        for database in databases {
            let labels = [("db", database.name().to_string())];
            let size = database.log.size();
            let set = |family: &Family<DbLabels, Gauge>, value: u64| {
                family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&txid, database.pos().txid.0);
            set(&records, size.transactions);
            set(&bytes, size.bytes);
            set(&unhealthy, u64::from(database.health() != Health::Ok));
        }
        for (name, help, family) in [
            ("litefs_db_txid", "Last transaction", &txid),
            ("litefs_db_ltx_count", "Transactions in the log", &records),
            ("litefs_db_ltx_bytes", "Bytes of the log", &bytes),
            ("litefs_db_unhealthy", "1 when the database is degraded or broken", &unhealthy),
        ] {
            let descriptor = encoder.encode_descriptor(name, help, None, family.metric_type())?;
            family.encode(descriptor)?;
        }
        Ok(())
    }
}

impl Store {
    /// Adds the engine's metrics to a registry.
    pub fn register_metrics(self: &Arc<Self>, registry: &mut Registry) {
        self.shared.metrics.register(registry);
        registry.register_collector(Box::new(Gauges(Arc::downgrade(self))));
    }
}
