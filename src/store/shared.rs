//! What every database shares with its store.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::broadcast;

use super::{Event, FenceKeeper, StoreConfig};
use crate::database::{CaptureState, Database};
use crate::kernel::FileKind;
use crate::metrics::Metrics;
use crate::{DbName, Kernel, Layout, WriteGate};

/// Events kept for a slow receiver of [`super::Store::events`].
const EVENTS_MAX: usize = 4096;

/// What the keeper thread is asked to do. Equal requests are one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Notice {
    /// The engine created or removed this file: tell the mount. (Never from a hook: see [`Kernel`].)
    Entry(DbName, FileKind),
    /// The WAL has grown: checkpoint.
    Checkpoint(DbName),
    /// `strict-verify`: there was a transaction.
    Verify(DbName),
}

/// The store's side of every database.
pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    /// How database files are named (tests use SQLite's own names).
    pub(crate) layout: Layout,
    /// Random at each start.
    pub(crate) node_id: u64,
    /// Whether the machine has run on since the directory was last opened: what the page cache held is all there.
    pub(crate) same_boot: bool,
    /// For `GET /events` and the streams.
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) metrics: Metrics,
    /// Whether the node is a replica: the fences are closed.
    pub(super) replica: AtomicBool,
    /// Set while a mount is up. A leaf, like the next two.
    pub(super) kernel: RwLock<Option<Arc<dyn Kernel>>>,
    pub(super) fence_keeper: RwLock<Option<Arc<dyn FenceKeeper>>>,
    pub(super) write_gate: RwLock<Option<Arc<dyn WriteGate>>>,
    /// A clean stop has begun: no client gets at a wal-index any more.
    closed: AtomicBool,
    /// Held for reading while a client opens a wal-index. Taken before every lock of a database.
    opening: RwLock<()>,
    pub(super) signals: Signals,
}

/// How the background threads are woken.
pub(super) struct Signals {
    /// The watcher: databases where something may have been committed. A leaf.
    woken: Mutex<HashSet<DbName>>,
    /// Readable when `woken` is not empty and the watcher dozes, or to stop.
    pub(super) wake: OwnedFd,
    /// The watcher sleeps for longer than a moment and has to be woken. Set before it looks at `woken` for the last time, so
    /// whoever enters something later sees it.
    dozing: AtomicBool,
    /// The keeper's requests: at most a few per database. A leaf.
    notices: Mutex<BTreeSet<Notice>>,
    noticed: Condvar,
    stopping: AtomicBool,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            woken: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            dozing: AtomicBool::new(false),
            notices: Mutex::default(),
            noticed: Condvar::new(),
            stopping: AtomicBool::new(false),
        })
    }

    /// The databases woken since the last call.
    pub(super) fn take_woken(&self) -> HashSet<DbName> {
        let mut count = [0; 8];
        // Nothing to read is the ordinary case.
        let _ = rustix::io::read(&self.wake, &mut count);
        std::mem::take(&mut *self.woken.lock())
    }

    /// The watcher is about to sleep, for long or for a moment only; whether it may.
    pub(super) fn may_sleep(&self, long: bool) -> bool {
        self.dozing.store(long, Ordering::SeqCst);
        !long || self.woken.lock().is_empty()
    }

    /// Requests for the keeper, after at most `wait`.
    pub(super) fn wait_notices(&self, wait: Duration) -> BTreeSet<Notice> {
        let mut notices = self.notices.lock();
        if notices.is_empty() && !self.is_stopping() {
            let _ = self.noticed.wait_for(&mut notices, wait);
        }
        std::mem::take(&mut *notices)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.ring();
        let _notices = self.notices.lock();
        self.noticed.notify_all();
    }

    fn ring(&self) {
        // It fails only when the counter is full: then it is readable anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

impl Shared {
    pub(super) fn new(config: StoreConfig, layout: Layout, same_boot: bool) -> io::Result<Self> {
        Ok(Self {
            config,
            layout,
            same_boot,
            node_id: fastrand::u64(1..),
            events: broadcast::channel(EVENTS_MAX).0,
            metrics: Metrics::default(),
            replica: AtomicBool::new(true),
            kernel: RwLock::new(None),
            fence_keeper: RwLock::new(None),
            write_gate: RwLock::new(None),
            closed: AtomicBool::new(false),
            opening: RwLock::default(),
            signals: Signals::new()?,
        })
    }

    /// The mount, when it is up.
    pub(crate) fn kernel(&self) -> Option<Arc<dyn Kernel>> {
        self.kernel.read().clone()
    }

    /// Who is told about lock inodes.
    pub(crate) fn fence_keeper(&self) -> Option<Arc<dyn FenceKeeper>> {
        self.fence_keeper.read().clone()
    }

    /// Whether a commit may be acknowledged at this instant.
    pub(crate) fn may_commit(&self) -> bool {
        self.write_gate.read().as_ref().is_none_or(|gate| gate.is_open())
    }

    /// From now on no client opens a wal-index, or makes a new one of it; those that are about to are waited for until `deadline`.
    pub(super) fn close(&self, deadline: Instant) {
        self.closed.store(true, Ordering::SeqCst);
        if self.opening.try_write_until(deadline).is_none() {
            tracing::warn!("a client is still opening a database");
        }
    }

    /// A client is about to open a wal-index; hold the guard until the engine has it, too.
    ///
    /// # Errors
    /// `ENOTCONN` once a clean stop has begun: the client would be alone with it when the engine lets go, and what it then
    /// commits nobody would see.
    pub(crate) fn opening(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        // First, so that nobody waits here for those whom a stop waits for: the engine's own opens need threads of the mount, too.
        self.check_open()?;
        let guard = self.opening.read();
        self.check_open().map(|()| guard)
    }

    /// Whether clients may begin to use a database.
    ///
    /// # Errors
    /// `ENOTCONN` once a clean stop has begun.
    pub(crate) fn check_open(&self) -> io::Result<()> {
        if self.closed.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(libc::ENOTCONN)) } else { Ok(()) }
    }

    /// Whether clients of this node may not write.
    pub(crate) fn is_replica(&self) -> bool {
        self.replica.load(Ordering::Acquire)
    }

    /// Something may have been committed: the watcher looks now.
    pub(crate) fn wake(&self, name: &DbName) {
        // While it looks at active databases it comes by in a moment: waking it would only delay the commit that we are called for.
        if self.signals.woken.lock().insert(name.clone()) && self.signals.dozing.load(Ordering::SeqCst) {
            self.signals.ring();
        }
    }

    /// Asks the keeper for something.
    pub(crate) fn notify(&self, notice: Notice) {
        if self.signals.notices.lock().insert(notice) {
            self.signals.noticed.notify_one();
        }
    }

    /// A database's position advanced. Called under its capture lock: nothing here may block or call the kernel.
    pub(crate) fn advanced(&self, database: &Database, state: &CaptureState, timestamp_ms: u64) {
        database.metrics.commits.inc();
        let event = Event::Tx {
            db: database.name.clone(),
            pos: state.pos,
            page_size: state.page_size,
            commit: state.checksums.page_count(),
            timestamp_ms,
        };
        if self.config.strict_verify {
            self.notify(Notice::Verify(database.name.clone()));
        }
        // Without a receiver there is nobody to tell.
        let _ = self.events.send(event);
    }
}
