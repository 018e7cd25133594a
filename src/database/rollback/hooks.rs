//! The journal's hooks: called by the mount for clients' operations, before it answers them. They do the I/O on the backing
//! file themselves.

use std::io;

use super::RollbackState;
use super::phase::{JournalPhase, Looking};
use crate::database::{CaptureState, Database};
use crate::kernel::FileKind;
use crate::os;
use crate::sqlite::journal;

impl RollbackState {
    pub(super) fn journal_ended(&mut self) {
        self.journal = JournalPhase::Idle;
        self.unjournaled = super::unjournaled::Writer::None;
    }
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
        self.look_at_journal(&mut state, Looking::Writer)?;
        if journal::is_zeroed(data) {
            return self.finish_journal(&mut state, || os::write_all_at("journal.zero", &file, data, 0));
        }
        os::write_all_at("journal.write", &file, data, 0)?;
        self.look_at_journal(&mut state, Looking::Writer)
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

    /// A client syncs the journal. What it wrote to it before may have been its commit.
    ///
    /// # Errors
    /// The sync, or the capture: SQLite then rolls back.
    pub fn journal_sync(&self) -> io::Result<()> {
        let file = self.files.journal(false)?;
        self.look_at_synced_journal(&mut self.capture.lock(), &file)?;
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
        self.look_at_journal(&mut state, Looking::Writer)?;
        let JournalPhase::Active { synced, .. } = state.rollback.journal else { return Ok(()) };
        let file = self.files.journal(false)?;
        let Some(named) = journal::super_journal_name(&file)? else { return Ok(()) };
        if named.rsplit('/').next() == Some(name) {
            self.commit_or_capture(&mut state, synced)?;
        }
        Ok(())
    }

    /// Captures the transaction that the journal's end commits, then ends it.
    fn finish_journal(&self, state: &mut CaptureState, end: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.look_at_journal(state, Looking::Writer)?;
        let durable = state.rollback.is_durable();
        self.commit_or_capture(state, durable)?;
        end()?;
        // Only now: when the end fails, SQLite rolls back under the same journal.
        state.rollback.journal_ended();
        Ok(())
    }
}
