//! Capture in the rollback modes (DESIGN §5): DELETE, TRUNCATE, PERSIST, MEMORY and OFF, and files copied into the mount.
//!
//! Clients' writes to the database file and its journal come to us. A write marks pages dirty; the journal's end (unlink,
//! truncation to nothing, a zeroed header) is the commit, and has a record *before* it is let through: when that fails, so
//! does SQLite's operation, and SQLite rolls back. A rollback ends the journal as well; its pages have their old checksums
//! again, so it leaves no record. With a super-journal the commit of all its databases is the super-journal's unlink.
//!
//! Without a journal (MEMORY, OFF, `cp`) the end is seen otherwise, see [`unjournaled`].

pub(super) mod counter;
mod dirty;
mod hooks;
mod late;
mod phase;
mod prepare;
mod source;
mod unjournaled;

use std::fs::File;
use std::io;

use self::dirty::DirtyPages;
use self::phase::{JournalPhase, Looking};
pub(crate) use self::source::FilePages;
pub(crate) use self::unjournaled::Moment;
use super::{CaptureState, Database, PageSource, Prepared, TxHead};
use crate::Pos;
use crate::os;
use crate::sqlite::header::{DatabaseHeader, HEADER_LEN, VERSION_WAL};
use crate::sqlite::page::{lock_page, page_checksum};

/// Where the read version stands, by which clients choose the WAL.
const READ_VERSION_OFFSET: u64 = 19;

/// What the rollback modes have to remember between two calls.
#[derive(Debug, Default)]
pub(crate) struct RollbackState {
    /// Pages of [`CaptureState::page_size`] written since the last capture. While that size is 0 the numbers mean nothing:
    /// then the whole file is the transaction.
    dirty: DirtyPages,
    journal: JournalPhase,
    /// Who writes without a journal; decided at its first write.
    unjournaled: unjournaled::Writer,
    /// Whether page 1 of the file says WAL; `None`: not read yet.
    wal: Option<bool>,
    /// The record of the dirty pages, if it is in the log already.
    prepared: Option<Prepared>,
    /// The change counter in page 1 before the transaction; `None`: not read yet.
    counter: Option<u32>,
    /// What the engine replaced in page 1 for the record that is being made.
    advanced: Option<counter::Advanced>,
    /// The mark of [`late`] is there.
    marked_late: bool,
}

impl RollbackState {
    /// Whether a transaction is under way or waits to be captured.
    pub(crate) fn is_pending(&self) -> bool {
        !self.dirty.is_empty() || self.journal_is_hot()
    }

    /// Whether a client has a journal by which a crash now would be rolled back.
    pub(crate) fn journal_is_hot(&self) -> bool {
        self.journal != JournalPhase::Idle
    }
}

/// What the database file's hooks do while no WAL is in use.
impl Database {
    /// A client writes to the database file.
    pub(super) fn rollback_db_write(&self, state: &mut CaptureState, offset: u64, data: &[u8]) -> io::Result<()> {
        // Marked before: also a write that fails may have changed the page.
        self.look_at_journal(state, Looking::Writer)?;
        self.mark_late_commits(state)?;
        self.withdraw_prepared(state)?;
        self.note_db_write(state, offset, data)?;
        os::write_all_at("database.write", &*self.files.database()?, data, offset)
    }

    /// A client cuts or grows the database file.
    pub(super) fn rollback_db_truncate(&self, state: &mut CaptureState, len: u64) -> io::Result<()> {
        self.look_at_journal(state, Looking::Writer)?;
        self.withdraw_prepared(state)?;
        self.note_db_truncate(state, len)?;
        os::set_len("database.truncate", &*self.files.database()?, len)
    }

    /// A client synced the database file: the end of a transaction without a journal.
    pub(super) fn rollback_db_sync(&self, state: &mut CaptureState) -> io::Result<()> {
        self.capture_unjournaled(state, Moment::Sync)
    }

    /// The engine replaced, applied to, or removed the file: forgets what was pending, and how page 1 looked.
    pub(crate) fn rollback_reset(&self, state: &mut CaptureState) {
        state.rollback = RollbackState::default();
    }
}

impl Database {
    /// A client is about to write to the database file. Marks the pages, unless the write is a checkpoint's.
    fn note_db_write(&self, state: &mut CaptureState, offset: u64, data: &[u8]) -> io::Result<()> {
        let was_wal = self.page1_says_wal(state)?;
        let version = READ_VERSION_OFFSET.checked_sub(offset).and_then(|at| data.get(usize::try_from(at).ok()?));
        let is_wal = version.map_or(was_wal, |version| *version == VERSION_WAL);
        state.rollback.wal = Some(is_wal);
        // In WAL mode only checkpoints write to the file. Whoever leaves that mode writes page 1 with another version.
        if was_wal && is_wal && !state.rollback.is_pending() {
            return Ok(());
        }
        self.note_change_counter(state)?;
        if state.rollback.journal == JournalPhase::Idle {
            self.note_unjournaled_write(state)?;
        }
        let page_size = u64::from(state.page_size.max(crate::sqlite::page::PAGE_SIZE_MIN));
        let last = (offset + data.len() as u64).saturating_sub(1).max(offset);
        let page = |at: u64| u32::try_from(at / page_size + 1).unwrap_or(u32::MAX);
        state.rollback.dirty.insert(page(offset)..=page(last));
        Ok(())
    }

    /// A client is about to cut or grow the database file.
    fn note_db_truncate(&self, state: &mut CaptureState, len: u64) -> io::Result<()> {
        // SQLite cuts after the commit: the record has the size from page 1. To nothing it cuts only when the first transaction
        // is rolled back under its journal; otherwise this is `cp` and its O_TRUNC.
        if len > 0 {
            Self::note_cut_pages(state, len);
            return Ok(());
        }
        state.rollback.wal = Some(false);
        if state.rollback.journal == JournalPhase::Idle {
            self.note_unjournaled_write(state)?;
            state.rollback.dirty.insert(1..=1);
        }
        Ok(())
    }

    /// Marks the pages beyond the new end that the last record still has: without a journal a commit may not be recorded yet when
    /// it is cut off, and a later one that grows the file again need not write them (free pages): then they are zeros.
    fn note_cut_pages(state: &mut CaptureState, len: u64) {
        if state.page_size == 0 || state.rollback.unjournaled != unjournaled::Writer::Sqlite {
            return;
        }
        let kept = u32::try_from(len / u64::from(state.page_size)).unwrap_or(u32::MAX);
        let recorded = state.checksums.page_count();
        if kept < recorded {
            state.rollback.dirty.insert(kept.saturating_add(1)..=recorded);
        }
    }

    /// Whether page 1 of the file names WAL mode.
    fn page1_says_wal(&self, state: &mut CaptureState) -> io::Result<bool> {
        if let Some(wal) = state.rollback.wal {
            return Ok(wal);
        }
        let mut head = [0; HEADER_LEN];
        os::read_or_zero_at(&*self.files.database()?, &mut head, 0)?;
        let wal = DatabaseHeader::parse(&head).is_ok_and(|header| header.is_wal());
        state.rollback.wal = Some(wal);
        Ok(wal)
    }

    /// Makes a record of the dirty pages, as the file shows them now, and publishes it. `None`: nothing differs from the last
    /// record.
    ///
    /// On an error the pages stay dirty: SQLite will write them back and finalise again.
    fn capture_dirty_pages(&self, state: &mut CaptureState, durable: bool) -> io::Result<Option<Pos>> {
        self.withdraw_prepared(state)?;
        let Some(prepared) = self.make_record_of_dirty_pages(state)? else {
            state.rollback.transaction_ended();
            return Ok(None);
        };
        if durable {
            let synced = self.sync_prepared(state);
            self.note_outcome("sync the log", synced.as_ref().err());
            synced?;
        }
        state.rollback.transaction_ended();
        Ok(Some(self.publish_prepared(state, prepared)))
    }

    /// Appends the record of the dirty pages to the log. They stay dirty. `None`: nothing differs from the last record.
    fn make_record_of_dirty_pages(&self, state: &mut CaptureState) -> io::Result<Option<Prepared>> {
        if state.rollback.dirty.is_empty() {
            return Ok(None);
        }
        let file = self.files.database()?;
        let len = file.metadata()?.len();
        if len == 0 && state.page_size == 0 {
            // The first transaction of a new database was rolled back.
            return Ok(None);
        }
        let mut head = [0; HEADER_LEN];
        os::read_or_zero_at(&file, &mut head, 0)?;
        let header = DatabaseHeader::parse(&head).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("read the database header: {error}"))
        })?;
        let commit = header.page_count(len);
        if !self.writes_under_halt() && !self.shared.may_commit() && self.has_changes(state, &file, &header, commit)? {
            // The lease does not cover this instant: SQLite rolls back, which is let through as nothing differs then.
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.advance_change_counter(state, &file, &header, commit)?;
        // The set is taken out so that its iterator and `state` do not share a borrow.
        let dirty = std::mem::take(&mut state.rollback.dirty);
        let head = TxHead {
            page_size: header.page_size,
            commit,
            page_count_hint: dirty.len(),
            skip_unchanged: true,
            ..TxHead::default()
        };
        let pages = transaction_pages(state, &dirty, &header, commit);
        let mut source = FilePages::new(&file, header.page_size, pages);
        let result = self.prepare_transaction(state, &head, &mut source);
        drop(source);
        state.rollback.dirty = dirty;
        if !matches!(result, Ok(Some(_))) {
            self.take_change_counter_back(state)?;
        }
        result
    }

    /// Whether any dirty page, or the size, differs from the last record.
    fn has_changes(&self, state: &CaptureState, file: &File, header: &DatabaseHeader, commit: u32) -> io::Result<bool> {
        if header.page_size != state.page_size || commit != state.checksums.page_count() {
            return Ok(true);
        }
        let pages = transaction_pages(state, &state.rollback.dirty, header, commit);
        let mut source = FilePages::new(file, header.page_size, pages);
        while let Some((pgno, page)) = source.next_page()? {
            if page_checksum(pgno, page) != state.checksums.get(pgno) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The pages a record needs, ascending: the dirty ones and all between the old and the new end; every page when there was none
/// before or the page size is another. Never the lock page.
fn transaction_pages<'a>(
    state: &CaptureState,
    dirty: &'a DirtyPages,
    header: &DatabaseHeader,
    commit: u32,
) -> impl Iterator<Item = u32> + use<'a> {
    let same_size = state.page_size == header.page_size;
    let old_count = if same_size { state.checksums.page_count() } else { 0 };
    let lock = lock_page(header.page_size);
    dirty
        .iter()
        .take_while(move |pgno| *pgno <= old_count.min(commit))
        .chain(old_count.saturating_add(1)..=commit)
        .filter(move |pgno| *pgno != lock)
}
