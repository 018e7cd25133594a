//! The store: every database of a data directory, and what the node may do with them.

mod directory;
mod keeper;
mod shared;
mod survivors;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::broadcast;

use crate::database::Database;
use crate::{DbName, FileKind, Kernel, Layout, Pos, WriteGate};
use directory::DataDirectory;
pub use directory::holder;
use keeper::Keeper;
pub(crate) use shared::{Notice, Shared};
use watch::Watcher;

/// How long a clean stop waits for write transactions of clients that are still there.
const CLOSE_WAIT: Duration = Duration::from_millis(500);

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

/// What happened in the store, for `GET /events` and for the stream server. Slow receivers see `Lagged` and start over.
#[derive(Debug, Clone)]
pub enum Event {
    /// A transaction was captured or applied; also a deletion (`commit == 0`).
    Tx {
        /// The database.
        db: DbName,
        /// Its position now.
        pos: Pos,
        /// Bytes per page.
        page_size: u32,
        /// Database size in pages.
        commit: u32,
        /// When the transaction was made, ms since the epoch.
        timestamp_ms: u64,
    },
}

/// Every database of a data directory. The node has one.
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    directory: DataDirectory,
    /// Deleted databases included: their logs go on when the name is used again. Never held while a database is used.
    databases: RwLock<BTreeMap<DbName, Arc<Database>>>,
    /// Joined by [`Store::close`].
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("data_dir", &self.shared.config.data_dir).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the data directory and recovers every database in it. A database that cannot be recovered is kept aside
    /// as "broken" (see [`Database::health`]); only an unusable directory is an error.
    ///
    /// # Errors
    /// The directory cannot be used, or another node uses it (waited for: a killed one's lock goes a moment later).
    pub fn open(config: StoreConfig) -> io::Result<Arc<Self>> {
        Self::open_with_layout(config, Layout::Data)
    }

    /// As [`Self::open`], with the files named as `layout` says.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_layout(config: StoreConfig, layout: Layout) -> io::Result<Arc<Self>> {
        let directory = DataDirectory::open(&config.data_dir)?;
        let shared = Arc::new(Shared::new(config, layout, directory.is_same_boot()?)?);
        let mut databases = BTreeMap::new();
        let names = directory.database_names()?;
        if layout == Layout::Data {
            let index = |name| directory.database_dir(name).join(layout.file_name(FileKind::Shm));
            survivors::keep_out(names.iter().map(index).collect());
        }
        for name in names {
            let database = Database::open(name.clone(), shared.clone(), directory.database_dir(&name));
            databases.insert(name, database);
        }
        // From now on, a wal-index below the directory is one of this boot.
        if databases.values().all(|database| !database.files.exists(FileKind::Shm))
            && let Err(error) = directory.note_boot()
        {
            tracing::warn!(%error, "note the boot; the next start will not rely on what clients leave in memory");
        }
        let store = Arc::new(Self { shared, directory, databases: RwLock::new(databases), threads: Mutex::default() });
        let (watcher, keeper) = (Watcher::new(Arc::downgrade(&store)), Keeper::new(Arc::downgrade(&store)));
        let spawn =
            |name: &str, run: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.into()).spawn(run);
        let mut threads = store.threads.lock();
        threads.push(spawn("capture", Box::new(move || watcher.run()))?);
        threads.push(spawn("checkpoint", Box::new(move || keeper.run()))?);
        drop(threads);
        Ok(store)
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &StoreConfig {
        &self.shared.config
    }

    /// This run's node ID, random at each start (COMPAT §4).
    #[must_use]
    pub fn node_id(&self) -> u64 {
        self.shared.node_id
    }

    /// `LFSC` + 16 upper-case hex digits, once known.
    #[must_use]
    pub fn cluster_id(&self) -> Option<String> {
        self.directory.cluster_id()
    }

    /// Writes `clusterid` durably.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed one; `AlreadyExists` when another one is set; writing.
    pub fn set_cluster_id(&self, id: &str) -> io::Result<()> {
        self.directory.set_cluster_id(id)
    }

    /// The mount is up: from now on the engine can lock, map and notify. Attaches to every database.
    pub fn attach_kernel(&self, kernel: Arc<dyn Kernel>) {
        *self.shared.kernel.write() = Some(kernel);
        for database in self.databases() {
            let result = database.reconcile_fence();
            database.note_outcome("attach to the mount", result.as_ref().err());
        }
    }

    /// Who is told about lock inodes. Set before [`Self::attach_kernel`].
    pub fn set_fence_keeper(&self, keeper: Arc<dyn FenceKeeper>) {
        *self.shared.fence_keeper.write() = Some(keeper);
    }

    /// Consulted by the wal's fsync, journal commits and `position_now`.
    pub fn set_write_gate(&self, gate: Arc<dyn WriteGate>) {
        *self.shared.write_gate.write() = Some(gate);
    }

    /// Opens or closes the fence on every database; blocking. Closing waits for running write transactions (each is captured),
    /// at most `wait`; then error `TimedOut` and the fence stays wanted: it closes as soon as the lock is free.
    ///
    /// # Errors
    /// `TimedOut`; opening the inodes, locking. All databases are tried; the first error is returned.
    pub fn set_mode(&self, mode: Mode, wait: Duration) -> io::Result<()> {
        let deadline = Instant::now() + wait;
        let replica = mode == Mode::Replica;
        self.shared.replica.store(replica, Ordering::Release);
        let databases = self.all_databases();
        let mut result = Ok(());
        for database in &databases {
            result = result.and(database.set_replica(replica));
        }
        if replica {
            for database in &databases {
                let fenced = database.wait_fenced(deadline);
                if fenced.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
                    self.shared.metrics.fence_timed_out();
                }
                result = result.and(fenced);
            }
        }
        result
    }

    /// What was asked for last; [`Mode::Replica`] at the start.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.shared.is_replica() { Mode::Replica } else { Mode::Primary }
    }

    /// Live databases by name (created, not dropped).
    #[must_use]
    pub fn databases(&self) -> Vec<Arc<Database>> {
        self.databases.read().values().filter(|database| database.is_live()).cloned().collect()
    }

    /// Deleted ones, too.
    pub(crate) fn all_databases(&self) -> Vec<Arc<Database>> {
        self.databases.read().values().cloned().collect()
    }

    /// A live database.
    #[must_use]
    pub fn database(&self, name: &str) -> Option<Arc<Database>> {
        self.database_or_dropped(name).filter(|database| database.is_live())
    }

    /// A database, live or dropped: the log of a dropped one still tells replicas of the deletion.
    #[must_use]
    pub fn database_or_dropped(&self, name: &str) -> Option<Arc<Database>> {
        self.databases.read().get(name).cloned()
    }

    /// A client created the database file (or the stream brings a new database). Existing: the same one.
    ///
    /// # Errors
    /// Creating its folder or file.
    pub fn create(&self, name: &DbName) -> io::Result<Arc<Database>> {
        let mut databases = self.databases.write();
        let database = match databases.get(name) {
            Some(database) => database.clone(),
            None => {
                let dir = self.directory.create_database_dir(name)?;
                let database = Database::create(name.clone(), self.shared.clone(), dir)?;
                databases.insert(name.clone(), database.clone());
                database
            }
        };
        drop(databases);
        database.bring_to_life(self.shared.is_replica())?;
        Ok(database)
    }

    /// Positions of all databases with at least one transaction, dropped ones (whose last record is the deletion) included.
    #[must_use]
    pub fn positions(&self) -> BTreeMap<DbName, Pos> {
        let databases = self.databases.read();
        databases
            .iter()
            .map(|(name, database)| (name.clone(), database.pos()))
            .filter(|(_, pos)| !pos.is_zero())
            .collect()
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Clean stop: lets no client open a database any more, captures what is left, closes lock descriptors (before unmounting!),
    /// checkpoints nothing by force, persists page checksums, syncs logs. Blocking.
    pub fn close(&self) {
        self.shared.signals.stop();
        let this_thread = std::thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // A thread that holds the last reference may be the one that closes.
            if thread.thread().id() != this_thread && thread.join().is_err() {
                tracing::error!("a background thread of the engine panicked");
            }
        }
        let deadline = Instant::now() + CLOSE_WAIT;
        self.shared.close(deadline);
        for database in self.all_databases() {
            database.close(deadline);
        }
        self.detach_kernel();
    }

    /// Whether clients of the mount may open database files.
    ///
    /// # Errors
    /// `ENOTCONN` once [`Self::close`] has begun.
    pub fn check_open(&self) -> io::Result<()> {
        self.shared.check_open()
    }

    /// Stops using the mount (closes every descriptor on it); databases stay readable for export.
    pub fn detach_kernel(&self) {
        *self.shared.kernel.write() = None;
        for database in self.all_databases() {
            database.detach(FileKind::Shm);
            database.detach(FileKind::Database);
            database.fence_lost();
        }
    }
}
