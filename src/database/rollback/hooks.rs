//! The journal's hooks: called by the mount for clients' operations, before it answers them. They do the I/O on the backing
//! file themselves.

use std::io;

use super::{JournalPhase, RollbackState};
use crate::database::{CaptureState, Database};
use crate::kernel::FileKind;
use crate::os;
use crate::sqlite::journal;

impl RollbackState {
    fn journal_header_written(&mut self) {
        if self.journal == JournalPhase::Idle {
            self.journal = JournalPhase::Active { synced: false };
        }
    }

    fn journal_synced(&mut self) {
        if let JournalPhase::Active { synced } = &mut self.journal {
            *synced = true;
        }
    }
}

/// Whether a write at the journal's beginning ends it: SQLite zeroes the header's fields. (A journal begun with `synchronous`
/// on has a zero magic at first, too, but its sizes are set.)
fn zeroes_header(data: &[u8]) -> bool {
    data.get(..journal::HEADER_LEN).is_some_and(|fields| fields.iter().all(|byte| *byte == 0))
}

impl Database {
    /// A client creates the journal.
    ///
    /// # Errors
    /// Creating the file.
    pub fn journal_created(&self) -> io::Result<()> {
        self.files.journal(true).map(drop)
    }

    /// A client writes to the journal. Zeroing its header is a commit (`journal_mode=PERSIST`, `locking_mode=EXCLUSIVE`).
    ///
    /// # Errors
    /// The write, or the capture of the transaction it commits: SQLite then rolls back.
    pub fn journal_write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.metrics.journal_writes.inc();
        let file = self.files.journal(false)?;
        if offset > 0 {
            return os::write_all_at("journal.write", &file, data, offset);
        }
        let mut state = self.capture.lock();
        if zeroes_header(data) {
            return self.finish_journal(&mut state, || os::write_all_at("journal.zero", &file, data, 0));
        }
        state.rollback.journal_header_written();
        os::write_all_at("journal.write", &file, data, 0)
    }

    /// A client cuts the journal. Cutting it to nothing is a commit (`journal_mode=TRUNCATE`).
    ///
    /// # Errors
    /// The truncation, or the capture of the transaction it commits: SQLite then rolls back.
    pub fn journal_truncate(&self, len: u64) -> io::Result<()> {
        let file = self.files.journal(false)?;
        if len > 0 {
            return os::set_len("journal.truncate", &file, len);
        }
        let mut state = self.capture.lock();
        self.finish_journal(&mut state, || os::set_len("journal.truncate", &file, 0))
    }

    /// A client syncs the journal.
    ///
    /// # Errors
    /// The sync.
    pub fn journal_sync(&self) -> io::Result<()> {
        self.capture.lock().rollback.journal_synced();
        let file = self.files.journal(false)?;
        os::sync_data("journal.sync", &file)
    }

    /// A client removes the journal: a commit (`journal_mode=DELETE`).
    ///
    /// # Errors
    /// The unlink, or the capture of the transaction it commits: SQLite then rolls back.
    pub fn journal_unlink(&self) -> io::Result<()> {
        let mut state = self.capture.lock();
        self.finish_journal(&mut state, || self.files.remove(FileKind::Journal))
    }

    /// A super-journal `name` (an ordinary file of the mount) is about to be unlinked: the commit point of a multi-database
    /// transaction. Does nothing unless this database's journal names it. SQLite ignores errors of what follows, the
    /// journals' ends, so the capture must be now.
    ///
    /// # Errors
    /// The capture: SQLite then rolls back in every database.
    pub fn super_journal_unlink(&self, name: &str) -> io::Result<()> {
        let mut state = self.capture.lock();
        let JournalPhase::Active { synced } = state.rollback.journal else { return Ok(()) };
        let file = self.files.journal(false)?;
        let Some(named) = journal::super_journal_name(&file)? else { return Ok(()) };
        if named.rsplit('/').next() == Some(name) {
            self.capture_dirty_pages(&mut state, synced)?;
        }
        Ok(())
    }

    /// Captures the transaction that the journal's end commits, then ends it.
    fn finish_journal(&self, state: &mut CaptureState, end: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let durable = state.rollback.journal == JournalPhase::Active { synced: true };
        self.capture_dirty_pages(state, durable)?;
        end()?;
        // Only now: when the end fails, SQLite rolls back under the same journal.
        state.rollback.journal = JournalPhase::Idle;
        state.rollback.unjournaled = super::unjournaled::Writer::None;
        Ok(())
    }
}
