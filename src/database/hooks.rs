//! Hooks: called by the mount for clients' operations, before it answers them.
//!
//! All blocking; the error's errno is SQLite's answer (`ENOSPC` → `SQLITE_FULL`, `EIO` → `SQLITE_IOERR`). They do the I/O on
//! the backing file themselves. (The journal's hooks and the dirty-page tracking are in `rollback`.)

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::commit::{PageSource, TxHead};
use super::rollback::Moment;
use super::{CaptureState, Database, Health};
use crate::kernel::FileKind;
use crate::os;
use crate::store::Notice;

/// A client may not do this now: the node is no primary. (SQLite clients see BUSY before they get here.)
fn not_writable() -> io::Error {
    io::Error::from_raw_os_error(libc::EACCES)
}

/// No pages: a deletion.
struct NoPages;

impl PageSource for NoPages {
    fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
        Ok(None)
    }
}

/// The database file.
impl Database {
    /// The first open by a client: joins with the fence's locks before it is answered.
    ///
    /// # Errors
    /// `EIO` when the database is broken; opening through the mount, locking.
    pub fn db_opened(self: &Arc<Self>) -> io::Result<()> {
        if let Health::Broken(_) = self.health() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.database_link()?;
        self.reconcile_fence()
    }

    /// A write: of a checkpoint in WAL mode (everything committed is captured first), else of a rollback transaction.
    ///
    /// # Errors
    /// `EACCES` when clients may not write; capture (then nothing is written); writing.
    pub fn db_write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.metrics.database_writes.inc();
        if self.is_fenced() {
            return Err(not_writable());
        }
        let mut state = self.capture.lock();
        if self.has_wal()? {
            self.capture_barrier(&mut state)?;
        }
        self.rollback_db_write(&mut state, offset, data)
    }

    /// A change of size.
    ///
    /// # Errors
    /// As [`Self::db_write`].
    pub fn db_truncate(&self, len: u64) -> io::Result<()> {
        if self.is_fenced() {
            return Err(not_writable());
        }
        let mut state = self.capture.lock();
        if self.has_wal()? {
            self.capture_barrier(&mut state)?;
        }
        self.rollback_db_truncate(&mut state, len)
    }

    /// `fsync` of the database file. In WAL mode it ends a client's checkpoint: the frames may be overwritten next, so the log
    /// becomes durable, too.
    ///
    /// # Errors
    /// Syncing; capturing a transaction that this completes (journal modes MEMORY and OFF).
    pub fn db_sync(&self) -> io::Result<()> {
        self.sync_under_journal()?;
        let mut state = self.capture.lock();
        self.rollback_db_sync(&mut state)?;
        if self.has_wal()? { self.sync_log() } else { Ok(()) }
    }

    /// The database file is about to be unlinked by a client: recorded as a deletion (commit = 0). Its WAL, shm and journal go
    /// with it: beside another database of that name they would corrupt it.
    ///
    /// # Errors
    /// `EACCES` on a replica; the log; unlinking.
    pub fn db_unlink(&self) -> io::Result<()> {
        if self.is_fenced() {
            return Err(not_writable());
        }
        let mut state = self.capture.lock();
        self.capture_barrier(&mut state)?;
        self.record_deletion(&mut state)?;
        self.remove_files(&mut state)
    }

    /// Makes the deletion record; nothing when there was never a transaction.
    fn record_deletion(&self, state: &mut CaptureState) -> io::Result<()> {
        if state.pos.is_zero() || state.page_size == 0 {
            return Ok(());
        }
        let head = TxHead { page_size: state.page_size, durable: true, ..TxHead::default() };
        self.commit_transaction(state, &head, &mut NoPages).map(|_| ())
    }

    /// Removes the files and what is known of their contents; the log and the position stay.
    pub(crate) fn remove_files(&self, state: &mut CaptureState) -> io::Result<()> {
        self.files.remove(FileKind::Database)?;
        self.forget_late_commits()?;
        self.live.store(false, Ordering::Release);
        self.detach(FileKind::Database);
        self.detach(FileKind::Shm);
        for kind in [FileKind::Shm, FileKind::Wal, FileKind::Journal] {
            if self.files.exists(kind) {
                self.files.remove(kind)?;
                self.shared.notify(Notice::Entry(self.name.clone(), kind));
            }
        }
        state.page_size = 0;
        state.checksums.clear();
        state.wal = super::WalProgress::default();
        self.rollback_reset(state);
        self.forget_failures();
        Ok(())
    }

    /// Last close of the database file by clients: what is pending can be captured now.
    pub fn db_closed(&self) {
        let mut state = self.capture.lock();
        let result = self.capture_unjournaled(&mut state, Moment::Close);
        self.note_outcome("capture at the last close", result.as_ref().err());
    }

    /// Whether frames may lie in a WAL. (The header's version bytes do not tell: while a client leaves WAL mode they are
    /// behind.)
    fn has_wal(&self) -> io::Result<bool> {
        Ok(match self.files.wal()? {
            Some(wal) => wal.metadata()?.len() > 0,
            None => false,
        })
    }
}

/// The WAL and its index.
impl Database {
    /// The wal file was created by a client (before the reply).
    ///
    /// # Errors
    /// None so far.
    pub fn wal_created(&self) -> io::Result<()> {
        self.files.forget(FileKind::Wal);
        self.wal_room.reset();
        self.shared.wake(&self.name);
        Ok(())
    }

    /// `fsync` of the WAL: a commit at `synchronous=FULL`, not yet in the wal-index. Fails when the lease has run out (DESIGN
    /// §9b), so that such a commit is strict.
    ///
    /// # Errors
    /// `EIO` beyond the lease; syncing.
    pub fn wal_sync(&self) -> io::Result<()> {
        self.metrics.wal_writes.inc();
        if !self.is_fenced() && !self.writes_under_halt() && !self.shared.may_commit() {
            tracing::warn!(database = %self.name, "commit refused: the lease has run out");
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let Some(wal) = self.files.wal()? else { return Ok(()) };
        self.make_wal_room(&wal);
        os::sync_data("wal.sync", &wal)?;
        self.shared.wake(&self.name);
        Ok(())
    }

    /// The WAL is about to be cut.
    ///
    /// # Errors
    /// `EACCES` on a replica; capture (then nothing is cut); cutting.
    pub fn wal_truncate(&self, len: u64) -> io::Result<()> {
        if self.is_fenced() {
            return Err(not_writable());
        }
        let Some(wal) = self.files.wal()? else { return Ok(()) };
        let mut state = self.capture.lock();
        self.capture_barrier(&mut state)?;
        self.sync_log()?;
        self.wal_room.limit(len);
        os::set_len("wal.truncate", &wal, len)
    }

    /// The WAL is about to be unlinked: by the last client that closes, or by one that leaves WAL mode.
    ///
    /// # Errors
    /// `EACCES` on a replica; capture (then nothing is unlinked); unlinking.
    pub fn wal_unlink(&self) -> io::Result<()> {
        if self.is_fenced() {
            return Err(not_writable());
        }
        let mut state = self.capture.lock();
        self.capture_barrier(&mut state)?;
        self.sync_log()?;
        self.files.remove(FileKind::Wal)?;
        // Who keeps its index to itself leaves the shm of others before it behind.
        if let Some(shm) = self.shm() {
            shm.index.invalidate()?;
            shm.release_checkpoints()?;
        }
        Ok(())
    }

    /// Before the reply to CREATE or the first LOOKUP/OPEN of the shm (ENGINE "Attaching"). Opens it through
    /// [`crate::Kernel::open`], so another thread must be there to answer that.
    ///
    /// # Errors
    /// `ENOTCONN` once a clean stop has begun; opening, locking, mapping.
    pub fn shm_opened(&self) -> io::Result<()> {
        let _opening = self.shared.opening()?;
        if !self.files.exists(FileKind::Shm) {
            return Ok(());
        }
        self.metrics.shm_writes.inc();
        self.database_link()?;
        let shm = self.attach_shm()?;
        self.check_reopened_index(&shm)?;
        self.shared.wake(&self.name);
        Ok(())
    }

    /// A change of the shm's size. A client truncates it as its first user, to make the index invalid. While it is mapped its
    /// length must stay (a shorter one faults), so the index is made invalid where it is: to SQLite it is the same.
    ///
    /// # Errors
    /// `ENOTCONN` once a clean stop has begun; changing the size, giving CKPT back.
    pub fn shm_truncate(&self, len: u64) -> io::Result<()> {
        self.shared.check_open()?;
        let file = os::open_or_create("shm.create", &self.files.path(FileKind::Shm))?;
        let before = file.metadata()?.len();
        let Some(shm) = self.shm().filter(|_| len < before) else { return os::set_len("shm.truncate", &file, len) };
        shm.index.invalidate()?;
        // The client is about to rebuild the index and needs it.
        shm.release_checkpoints()
    }

    /// The shm is about to be unlinked: by the last client that closes.
    ///
    /// # Errors
    /// `EACCES` on a replica; capture (then nothing is unlinked); unlinking.
    pub fn shm_unlink(&self) -> io::Result<()> {
        if self.is_fenced() {
            return Err(not_writable());
        }
        {
            let mut state = self.capture.lock();
            self.capture_barrier(&mut state)?;
            self.index_ends(&mut state)?;
            self.files.remove(FileKind::Shm)?;
        }
        self.detach(FileKind::Shm);
        Ok(())
    }
}
