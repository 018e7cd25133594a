//! Records made before the commit: when a client syncs the database file under its journal.
//!
//! Then every page of the transaction is in the file, and what is left is the journal's end. So its record can be appended to the
//! log, and both files become durable at the same time instead of one after the other. The journal's end only publishes it.
//!
//! Until then nobody sees the record: readers of the log stop at the position. Whatever changes the database file first withdraws
//! it. A crash in between leaves a hot journal and a log ahead of the file: recovery rolls back, and brings the transaction
//! from the log. It was neither acknowledged nor taken back, so either is right.
//!
//! Not so a transaction over several databases: it is committed by its super-journal's unlink, in all or in none. Its
//! records are made there.

use std::io;

use super::phase::{JournalPhase, Looking};
use crate::Pos;
use crate::database::{CaptureState, Database};
use crate::os;
use crate::sqlite::header::{DatabaseHeader, HEADER_LEN};
use crate::sqlite::journal;

impl Database {
    /// A client syncs the database file: prepares the record of its transaction, and makes file and log durable.
    ///
    /// # Errors
    /// Making the record, syncing: SQLite rolls back.
    pub(crate) fn sync_under_journal(&self) -> io::Result<()> {
        let prepared = {
            let mut state = self.capture.lock();
            self.look_at_journal(&mut state, Looking::Writer)?;
            self.prepare_dirty_pages(&mut state)?
        };
        let file = self.files.database()?;
        if !prepared {
            return os::sync_data("database.sync", &file);
        }
        // The client waits for us, so that nothing changes meanwhile but by others than SQLite.
        let (synced, logged) = os::both(|| os::sync_data("database.sync", &file), || self.log.sync())?;
        if logged.is_err() {
            let mut state = self.capture.lock();
            self.note_outcome("sync the log", logged.as_ref().err());
            self.withdraw_prepared(&mut state)?;
        }
        synced.and(logged)
    }

    /// Appends the record of the transaction under way; whether there is one to be synced.
    fn prepare_dirty_pages(&self, state: &mut CaptureState) -> io::Result<bool> {
        if !matches!(state.rollback.journal, JournalPhase::Active { synced: true, .. })
            || state.rollback.dirty.is_empty()
            || state.rollback.prepared.is_some()
        {
            return Ok(false);
        }
        let file = self.files.database()?;
        let mut head = [0; HEADER_LEN];
        os::read_or_zero_at(&file, &mut head, 0)?;
        let Ok(header) = DatabaseHeader::parse(&head) else { return Ok(false) };
        if state.pos.is_zero() || journal::super_journal_name(&*self.files.journal(false)?)?.is_some() {
            return Ok(false);
        }
        if self.replaces_history(state, header.page_size) {
            // A snapshot takes the place of all records before it, so it cannot be withdrawn. After the commit it might be too late: a
            // log without it cannot explain a file of another page size. If SQLite does roll back, that is one more snapshot.
            return self.capture_dirty_pages(state, true).map(|_| false);
        }
        self.log.make_room();
        state.rollback.prepared = self.make_record_of_dirty_pages(state)?;
        Ok(state.rollback.prepared.is_some())
    }

    /// The transaction is committed: publishes its record, or makes it now.
    ///
    /// # Errors
    /// Making the record; `EIO` when the lease does not cover this instant. The pages stay dirty then.
    pub(super) fn commit_or_capture(&self, state: &mut CaptureState, durable: bool) -> io::Result<Option<Pos>> {
        let Some(prepared) = state.rollback.prepared.take() else { return self.capture_dirty_pages(state, durable) };
        let may_commit = self.writes_under_halt() || self.shared.may_commit();
        if !may_commit || durable && self.log.sync().is_err() {
            state.rollback.prepared = Some(prepared);
            self.withdraw_prepared(state)?;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.rollback.transaction_ended();
        Ok(Some(self.publish_prepared(state, prepared)))
    }

    /// Takes a prepared record out of the log: its transaction goes on, is rolled back, or is forgotten.
    ///
    /// # Errors
    /// Changing the log: then the record stays prepared, and nothing else may happen.
    pub(crate) fn withdraw_prepared(&self, state: &mut CaptureState) -> io::Result<()> {
        if state.rollback.prepared.is_some() {
            self.log.truncate_after(state.pos.txid)?;
            state.rollback.prepared = None;
            self.take_change_counter_back(state)?;
        }
        Ok(())
    }
}
