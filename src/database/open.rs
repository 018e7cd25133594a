//! A database's life: opening at start, creation, deletion, clean stop.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::fence::Fence;
use super::log::Log;
use super::wal_room::WalRoom;
use super::{Database, Files, Health};
use crate::kernel::FileKind;
use crate::positions::Positions;
use crate::sqlite::locks::{self, LockKind};
use crate::sqlite::wal_index::retire::retire;
use crate::store::{Notice, Shared};
use crate::{DbName, Layout, Pos};

impl Database {
    /// Opens a new database in `dir`.
    ///
    /// # Errors
    /// The log's folder; the file.
    pub(crate) fn create(name: DbName, shared: Arc<Shared>, dir: PathBuf) -> io::Result<Arc<Self>> {
        let (log, opened) = Log::open(&dir)?;
        let database = Self::with_log(name, shared, dir, log);
        database.recover(&opened)?;
        Ok(Arc::new(database))
    }

    /// Opens what lies in `dir` and recovers it. Whatever is wrong with it is its health: the other databases are served.
    pub(crate) fn open(name: DbName, shared: Arc<Shared>, dir: PathBuf) -> Arc<Self> {
        let (log, opened) = match Log::open(&dir) {
            Ok((log, opened)) => {
                tracing::debug!(database = %name, ?opened, pos = %log.last_pos(), "log opened");
                (log, Ok(opened))
            }
            Err(error) => (Log::unreadable(&dir, &error), Err(error)),
        };
        let database = Self::with_log(name, shared, dir, log);
        if let Err(error) = opened.and_then(|opened| database.recover(&opened)) {
            // Known to exist, so that it is reported.
            database.live.store(database.files.exists(FileKind::Database), Ordering::Release);
            database.set_broken(format!("recovery: {error}; repair the disk under data.dir and start again"));
        }
        Arc::new(database)
    }

    fn with_log(name: DbName, shared: Arc<Shared>, dir: PathBuf, log: Log) -> Self {
        let files = Files::new(dir, shared.layout);
        Self {
            metrics: shared.metrics.database(&name),
            name,
            shared,
            files,
            log: Arc::new(log),
            own_commit: Mutex::default(),
            action: Mutex::default(),
            positions: Positions::new(Pos::ZERO),
            capture: Mutex::default(),
            links: Mutex::default(),
            fence: Fence::default(),
            wal_room: WalRoom::default(),
            health: Mutex::new(Health::Ok),
            live: AtomicBool::new(false),
        }
    }

    /// The database file exists from now on (empty, if it did not).
    ///
    /// # Errors
    /// Creating it; closing the fence on it.
    pub(crate) fn bring_to_life(self: &Arc<Self>, replica: bool) -> io::Result<()> {
        if self.is_live() {
            return Ok(());
        }
        self.files.database()?;
        self.live.store(true, Ordering::Release);
        // The mount answers its client only after this; the fence itself joins at the first open.
        self.note_replica(replica);
        // The kernel may remember that there is no such file.
        self.shared.notify(Notice::Entry(self.name.clone(), FileKind::Database));
        Ok(())
    }

    /// Removes the database as the primary did (a deletion record is an ordinary LTX file with commit = 0; this is frame
    /// type 4, which names no position: the log is forgotten as well).
    ///
    /// # Errors
    /// Removing files.
    pub fn drop_local(&self) -> io::Result<()> {
        let _action = self.action.lock();
        {
            let mut state = self.capture.lock();
            self.remove_files(&mut state)?;
            self.log.truncate_after(crate::Txid::ZERO)?;
            state.pos = Pos::ZERO;
            self.publish(&state, super::now_ms());
        }
        if let Some(kernel) = self.shared.kernel() {
            kernel.invalidate(&self.name, FileKind::Database, 0);
            kernel.invalidate_entry(&self.name, FileKind::Database);
        }
        Ok(())
    }

    /// Clean stop: nobody writes to the WAL any more; captures what is left, makes the log durable and keeps the page checksums
    /// for the next start. Waits for running write transactions until `deadline`.
    pub(crate) fn close(&self, deadline: Instant) {
        if let Err(error) = self.retire_index(deadline) {
            tracing::warn!(database = %self.name, %error, "a client may still write to this database after the stop; the next start keeps it out");
        }
        let result = self.capture_everything().and_then(|_| self.save_page_checksums());
        if let Err(error) = result {
            tracing::error!(database = %self.name, %error, "capture before the stop; the next start does it");
        }
    }

    /// Keeps clients that outlive the mount off the WAL ([`retire`]). The lock stays taken until the descriptors are closed.
    fn retire_index(&self, deadline: Instant) -> io::Result<()> {
        let Some(shm) = self.shm().filter(|_| self.shared.layout == Layout::Data) else { return Ok(()) };
        let wait = deadline.saturating_duration_since(Instant::now());
        if !locks::lock_within(&shm.link.fence, locks::WRITE, LockKind::Exclusive, wait)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a write transaction is still running"));
        }
        self.capture_everything()?;
        let backing = File::options().read(true).write(true).open(self.files.path(FileKind::Shm))?;
        retire(&backing).map(drop)
    }
}
