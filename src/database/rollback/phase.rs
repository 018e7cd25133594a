//! Where the running transaction's journal is, told by the journal file itself.
//!
//! With FUSE passthrough a client's writes to the journal do not come to us. Its unlink and its truncation do; but a header that
//! is zeroed (`journal_mode=PERSIST`, `locking_mode=EXCLUSIVE`), which commits as well, is only found by looking:
//!
//! * At `synchronous` NORMAL and above SQLite syncs the journal right after, and that is where the transaction is published,
//!   or refused: then the header is put back, so that the journal is hot and SQLite rolls back. Its record has been in the log
//!   since the sync of the database file ([`super::prepare`]), so a crash before that loses nothing and invents nothing.
//! * At OFF nothing follows. The commit is found by the next request of a writer, which waits until it is captured, or by the
//!   sweep, as in the modes without a journal.
//!
//! A header belongs to one transaction by its nonce, which SQLite draws for each.

use std::fs::File;
use std::io;

use super::RollbackState;
use crate::database::{CaptureState, Database};
use crate::os;
use crate::sqlite::journal::{self, HEADER_LEN};

/// The fields of the journal's first header.
type Head = [u8; HEADER_LEN];

/// Where the running transaction's journal is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum JournalPhase {
    /// None, or finalised.
    #[default]
    Idle,
    /// A header with its magic was written: a crash now would be rolled back by it.
    Active {
        /// The client synced it since: it runs with `synchronous` of at least NORMAL.
        synced: bool,
        /// As last seen.
        head: Head,
    },
}

/// Who looks at the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looking {
    /// A request of the client that writes: what it wrote before is whole.
    Writer,
    /// Anybody, while the client may be writing the header: only one that is zero is believed.
    Bystander,
}

impl RollbackState {
    pub(super) fn journal_synced(&mut self) {
        if let JournalPhase::Active { synced, .. } = &mut self.journal {
            *synced = true;
        }
    }

    /// Whether the client makes its commits durable.
    pub(super) fn is_durable(&self) -> bool {
        matches!(self.journal, JournalPhase::Active { synced: true, .. })
    }
}

impl Database {
    /// Looks at the journal: notes that a transaction has begun, captures one whose end was not seen.
    ///
    /// # Errors
    /// Reading; the capture.
    pub(super) fn look_at_journal(&self, state: &mut CaptureState, looking: Looking) -> io::Result<()> {
        let head = self.journal_head()?;
        let is_zero = journal::is_zeroed(&head);
        if let JournalPhase::Active { head: before, .. } = &state.rollback.journal {
            let same = journal::nonce(before) == journal::nonce(&head);
            if is_zero || (looking == Looking::Writer && !same) {
                self.end_transaction(state)?;
            }
        }
        // No page of the database is written before the header has its magic, which it gets with the sync. One without it that is here by then is
        // of a writer that was killed: nobody rolls it back, and who needs no journal leaves it there.
        if is_zero || looking == Looking::Bystander || !head.starts_with(&journal::MAGIC) {
            return Ok(());
        }
        match &mut state.rollback.journal {
            JournalPhase::Active { head: before, .. } => *before = head,
            phase @ JournalPhase::Idle => *phase = JournalPhase::Active { synced: false, head },
        }
        Ok(())
    }

    /// The first header's fields; zeros without a journal.
    fn journal_head(&self) -> io::Result<Head> {
        let mut head = [0; HEADER_LEN];
        match self.files.journal(false) {
            Ok(file) => os::read_or_zero_at(&file, &mut head, 0)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(head)
    }

    /// A client syncs its journal: after it zeroed the header this is the first we hear of its commit.
    ///
    /// When the commit must be refused the header is put back: the journal is hot again, and as the client still has the
    /// database to itself, nobody has seen the transaction.
    pub(super) fn look_at_synced_journal(&self, state: &mut CaptureState, file: &File) -> io::Result<()> {
        let before = state.rollback.journal;
        let looked = self.look_at_journal(state, Looking::Writer);
        if let (Err(_), JournalPhase::Active { head, .. }) = (&looked, before)
            && journal::is_zeroed(&self.journal_head()?)
        {
            os::write_all_at("journal.restore", file, &head, 0)?;
        }
        looked?;
        state.rollback.journal_synced();
        Ok(())
    }

    /// Captures the transaction whose journal has ended.
    pub(super) fn end_transaction(&self, state: &mut CaptureState) -> io::Result<()> {
        let durable = state.rollback.is_durable();
        self.commit_or_capture(state, durable)?;
        state.rollback.journal_ended();
        Ok(())
    }
}
