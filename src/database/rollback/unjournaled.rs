//! Transactions without a journal: `journal_mode` MEMORY and OFF, and whole files copied into the mount.
//!
//! SQLite writes the database file under EXCLUSIVE. Its commit is seen by the file's fsync, which comes when every page is
//! written (before it is let through, so that a failure fails the commit), or, with `synchronous=OFF`, by the lock's end: RESERVED free
//! and no writer at PENDING or SHARED. While we hold the capture lock no write gets through, so asking is enough.
//!
//! A copying program takes no lock. Its transaction ends with its fsync or its close, if the file is whole then.

use std::io;

use super::phase::{JournalPhase, Looking};
use crate::database::{CaptureState, Database};
use crate::os;
use crate::sqlite::header::{DatabaseHeader, HEADER_LEN};
use crate::sqlite::locks::{self, LockKind};

/// Who writes the database file without a journal.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// Nobody since the last capture.
    #[default]
    None,
    /// A SQLite client: it holds its locks.
    Sqlite,
    /// A program that knows no locks.
    Copying,
}

/// When to look for the end of a transaction without a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Now and then, and before a position is told.
    Sweep,
    /// The client syncs the database file.
    Sync,
    /// The last client closed the database file.
    Close,
}

impl Database {
    /// Before the first write without a journal: who is it?
    pub(super) fn note_unjournaled_write(&self, state: &mut CaptureState) -> io::Result<()> {
        if state.rollback.unjournaled == Writer::None {
            let writer = if self.has_sqlite_writer()? { Writer::Sqlite } else { Writer::Copying };
            state.rollback.unjournaled = writer;
        }
        Ok(())
    }

    /// Whether a client holds RESERVED, or the readers' bytes exclusively. Only asks, so the shared descriptor is not changed.
    fn has_sqlite_writer(&self) -> io::Result<bool> {
        let Some(link) = self.links.lock().database.clone() else { return Ok(false) };
        for (bytes, kind) in
            [(locks::RESERVED, LockKind::Shared), (locks::PENDING, LockKind::Shared), (locks::SHARED, LockKind::Shared)]
        {
            if locks::holder(&link.action, bytes, kind)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Captures what was written without a journal, if its transaction has ended. Cheap when there is nothing.
    pub(crate) fn capture_unjournaled(&self, state: &mut CaptureState, moment: Moment) -> io::Result<()> {
        if state.rollback.is_pending() {
            let looking = if moment == Moment::Sync { Looking::Writer } else { Looking::Bystander };
            self.look_at_journal(state, looking)?;
        }
        let pending = state.rollback.unjournaled != Writer::None && !state.rollback.dirty.is_empty();
        if !pending || state.rollback.journal != JournalPhase::Idle {
            return Ok(());
        }
        let ended = match (state.rollback.unjournaled, moment) {
            (Writer::None, _) | (Writer::Copying, Moment::Sweep) => false,
            (Writer::Sqlite, Moment::Sync) => true,
            (Writer::Sqlite, Moment::Sweep | Moment::Close) => !self.has_sqlite_writer()?,
            (Writer::Copying, Moment::Sync | Moment::Close) => self.file_is_whole()?,
        };
        if !ended {
            return Ok(());
        }
        // A client that syncs wants its commit durable; the others run with `synchronous=OFF` or are copying programs.
        self.capture_dirty_pages(state, moment == Moment::Sync)?;
        state.rollback.unjournaled = Writer::None;
        Ok(())
    }

    /// Whether the file is as long as its header says. A partly copied one is not.
    fn file_is_whole(&self) -> io::Result<bool> {
        let file = self.files.database()?;
        let len = file.metadata()?.len();
        let mut head = [0; HEADER_LEN];
        os::read_or_zero_at(&file, &mut head, 0)?;
        let Ok(header) = DatabaseHeader::parse(&head) else { return Ok(false) };
        let page_size = u64::from(header.page_size);
        Ok(len % page_size == 0 && len >= u64::from(header.page_count(len)) * page_size)
    }
}
