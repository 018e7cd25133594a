//! The store: every database of a data directory, and what the node may do with them.
//!
//! STUB: signatures agreed between the crates; the engine's owner replaces the bodies.
#![allow(clippy::todo, clippy::missing_panics_doc, missing_docs, unused_variables, clippy::pedantic)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::broadcast;

use crate::database::{CaptureState, Database};
use crate::{DbName, FileKind, Kernel, Layout, Pos, WriteGate};

/// How the store behaves; from `litefs.yml`.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `data.dir`: holds `clusterid`, `dbs/`, `lost+found/`.
    pub data_dir: PathBuf,
    /// `data.compress`: LZ4 the page blocks of records.
    pub compress: bool,
    /// `data.retention`: how long records are kept at least.
    pub retention: Duration,
    /// `data.retention-monitor-interval`.
    pub retention_interval: Duration,
    /// `strict-verify`: check the whole database checksum after every transaction.
    pub strict_verify: bool,
    /// Most bytes kept under `lost+found/`; when full, diverged data is not given up: the database stays as it is and is reported.
    pub lost_and_found_bytes_max: u64,
}

/// Whether clients of the mount may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Fence closed: the engine holds WRITE/RESERVED of every database.
    Replica,
    /// Fence open.
    Primary,
}

/// Told about every lock inode the engine uses, so that a supervisor can fence when the worker is dead (DESIGN §9a).
pub trait FenceKeeper: Send + Sync {
    /// The engine attached to an inode; `fd` may be duplicated and kept. `kind` is `Shm` (WRITE lock) or `Database` (RESERVED).
    fn attached(&self, db: &DbName, kind: FileKind, fd: BorrowedFd<'_>);
    /// The inode is gone or replaced.
    fn detached(&self, db: &DbName, kind: FileKind);
}

/// What every database shares with its store.
#[allow(dead_code)] // until the store is in
pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    /// How database files are named (tests use SQLite's own names).
    pub(crate) layout: Layout,
    /// Random at each start.
    pub(crate) node_id: u64,
    /// For `GET /events` and the streams.
    pub(crate) events: broadcast::Sender<Event>,
    /// Set while a mount is up. A leaf.
    pub(crate) kernel: RwLock<Option<Arc<dyn Kernel>>>,
    /// A leaf.
    pub(crate) fence_keeper: RwLock<Option<Arc<dyn FenceKeeper>>>,
    /// A leaf.
    pub(crate) write_gate: RwLock<Option<Arc<dyn WriteGate>>>,
}

#[allow(dead_code)] // until the store is in
impl Shared {
    /// The mount, when it is up.
    pub(crate) fn kernel(&self) -> Option<Arc<dyn Kernel>> {
        self.kernel.read().clone()
    }

    /// Whether a commit may be acknowledged at this instant.
    pub(crate) fn may_commit(&self) -> bool {
        self.write_gate.read().as_ref().is_none_or(|gate| gate.is_open())
    }

    /// A database's position advanced. Called under its capture lock: nothing here may block or call the kernel.
    pub(crate) fn advanced(&self, database: &Database, state: &CaptureState, timestamp_ms: u64) {
        let event = Event::Tx {
            db: database.name.clone(),
            pos: state.pos,
            page_size: state.page_size,
            commit: state.checksums.page_count(),
            timestamp_ms,
        };
        // Without a receiver there is nobody to tell.
        let _ = self.events.send(event);
    }
}

/// What happened in the store, for `GET /events` and for the stream server. Slow receivers see `Lagged` and start over.
#[derive(Debug, Clone)]
pub enum Event {
    /// A transaction was captured or applied; also a deletion (`commit == 0`).
    Tx { db: DbName, pos: Pos, page_size: u32, commit: u32, timestamp_ms: u64 },
}

#[derive(Debug)]
pub struct Store {}

impl Store {
    /// Opens the data directory and recovers every database in it. A database that cannot be recovered is kept aside
    /// as "broken" (see [`Database::health`]); only an unusable directory is an error.
    pub fn open(config: StoreConfig) -> io::Result<Arc<Self>> {
        todo!()
    }
    pub fn config(&self) -> &StoreConfig {
        todo!()
    }
    /// This run's node ID, random at each start (COMPAT §4).
    pub fn node_id(&self) -> u64 {
        todo!()
    }
    /// `LFSC` + 16 upper-case hex digits, once known.
    pub fn cluster_id(&self) -> Option<String> {
        todo!()
    }
    /// Writes `clusterid` durably. Errors when another one is already set.
    pub fn set_cluster_id(&self, id: &str) -> io::Result<()> {
        todo!()
    }
    /// The mount is up: from now on the engine can lock, map and notify. Attaches to every database.
    pub fn attach_kernel(&self, kernel: Arc<dyn Kernel>) {
        todo!()
    }
    pub fn set_fence_keeper(&self, keeper: Arc<dyn FenceKeeper>) {
        todo!()
    }
    /// Consulted by the wal's fsync, journal commits and `position_now`.
    pub fn set_write_gate(&self, gate: Arc<dyn WriteGate>) {
        todo!()
    }
    /// Opens or closes the fence on every database; blocking. Closing waits for running write transactions (each is captured),
    /// at most `wait`; then error `TimedOut` and the fence stays wanted: it closes as soon as the lock is free.
    pub fn set_mode(&self, mode: Mode, wait: Duration) -> io::Result<()> {
        todo!()
    }
    pub fn mode(&self) -> Mode {
        todo!()
    }
    /// Live databases by name (created, not dropped).
    pub fn databases(&self) -> Vec<Arc<Database>> {
        todo!()
    }
    pub fn database(&self, name: &str) -> Option<Arc<Database>> {
        todo!()
    }
    /// A client created the database file (or the stream brings a new database). Existing: the same one.
    pub fn create(&self, name: &DbName) -> io::Result<Arc<Database>> {
        todo!()
    }
    /// Positions of all databases with at least one transaction, dropped ones (whose last record is the deletion) included.
    pub fn positions(&self) -> BTreeMap<DbName, Pos> {
        todo!()
    }
    pub fn events(&self) -> broadcast::Receiver<Event> {
        todo!()
    }
    /// Clean stop: captures what is left, closes lock descriptors (before unmounting!), checkpoints nothing by force,
    /// persists page checksums, syncs logs. Blocking.
    pub fn close(&self) {
        todo!()
    }
    /// Stops using the mount (closes every descriptor on it); databases stay readable for export.
    pub fn detach_kernel(&self) {
        todo!()
    }
}
