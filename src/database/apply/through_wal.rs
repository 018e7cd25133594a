//! Applying through the WAL: as a SQLite writer, beside readers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::incoming::{Incoming, newest_pages};
use super::rejoin::Common;
use super::{Logged, wal_writer};
use crate::Pos;
use crate::database::barrier::frame_follows;
use crate::database::checkpoint::Checkpointed;
use crate::database::links::{ShmLink, Writing};
use crate::database::wal_capture::Generation;
use crate::database::{ApplyError, CaptureState, Database, PageSource};
use crate::kernel::FileKind;
use crate::os;
use crate::sqlite::locks::{self, LockGuard, LockKind};
use crate::sqlite::wal::{FRAME_HEADER_LEN, WalHeader, frame_offset};
use crate::sqlite::wal_index::header::IndexHeader;
use crate::store::Notice;

/// So many records that wait together become one transaction of the WAL.
const JOINED_RECORDS_MIN: usize = 16;
/// A WAL of this many frames that readers never let restart is drained.
const DRAIN_FRAMES: u32 = 16_000;
/// How long applying pauses for that.
const DRAIN_WAIT: Duration = Duration::from_secs(1);
/// How often it may.
const DRAIN_INTERVAL: Duration = Duration::from_secs(10);
const DRAIN_PAUSE: Duration = Duration::from_millis(2);

/// What applying remembers between two records.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// The wal-index's header as we last wrote it: clients cannot repair a damaged one, as we hold WRITE.
    header: Option<IndexHeader>,
    /// When readers were last drained.
    drained: Option<Instant>,
    /// A record is half in the database file, and clients are kept out until the rest is.
    pub(super) half_written: bool,
    /// The file of `received`, once opened.
    pub(super) received: Option<File>,
    /// Of a resync that failed before it changed anything.
    pub(super) common: Option<Common>,
}

impl Database {
    /// Applies verified records through the WAL, each of which follows the one before. On an error those that the position has
    /// reached are applied.
    pub(super) fn apply_to_wal(
        &self,
        shm: &ShmLink,
        records: &mut [Incoming],
        logged: Logged,
    ) -> Result<Pos, ApplyError> {
        let Some(write) = LockGuard::try_new(&shm.link.fence, locks::WRITE, LockKind::Exclusive)? else {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a client is writing").into());
        };
        let result = self.apply_under_write(shm, records, logged);
        self.give_write_back(write);
        result
    }

    fn apply_under_write(&self, shm: &ShmLink, records: &mut [Incoming], logged: Logged) -> Result<Pos, ApplyError> {
        let Some(first) = records.first() else { return Ok(self.pos()) };
        self.drain_readers(shm)?;
        // A client that opens the shm may have us look at the index, too.
        let writing = shm.write_index();
        let mut state = self.capture.lock();
        let wal = self.wal_for_writing()?;
        self.repair_header(shm, &wal, &state, &writing)?;
        // A client may have committed just before the fence closed.
        self.capture_barrier(&mut state)?;
        Self::check_position(&state, first, logged)?;
        let header = shm.index.read_header()?.ok_or_else(unreadable)?;
        let header = wal_writer::restart_if_done(&shm.index, &shm.link.action, header)?;
        let written = self.write_records(shm, &wal, header, &mut state, records, logged);
        if written.is_err() {
            self.unlog(&state, logged);
        }
        written?;
        let pos = state.pos;
        drop(state);
        if self.wants_checkpoint() {
            self.shared.notify(Notice::Checkpoint(self.name.clone()));
        }
        Ok(pos)
    }

    /// Writes the records into the log and into the WAL: each as a transaction of its own or, when there are many, all of them as
    /// one, which has every page once. A position is published when readers can see what it names, and not before.
    ///
    /// The WAL then has no frame for the positions between, so a power loss must not leave it with more records than the log:
    /// the log is made durable first. For a few records that is not worth its time.
    fn write_records(
        &self,
        shm: &ShmLink,
        wal: &File,
        mut header: IndexHeader,
        state: &mut CaptureState,
        records: &mut [Incoming],
        logged: Logged,
    ) -> Result<(), ApplyError> {
        let are_joined = records.len() >= JOINED_RECORDS_MIN;
        self.log_records(records, logged, are_joined)?;
        for transaction in records.chunks(if are_joined { records.len() } else { 1 }) {
            let (after, last_header) = self.write_frames(shm, wal, &header, transaction)?;
            if state.wal.current.salt != after.salt {
                state.wal.previous = state.wal.current;
            }
            state.wal.current =
                Generation { salt: after.salt, frame: after.mx_frame, chain: Some(after.frame_checksum), last_header };
            state.applied.header = Some(after);
            self.records_applied(state, transaction);
            header = after;
        }
        Ok(())
    }

    /// The WAL, created when it is missing.
    fn wal_for_writing(&self) -> io::Result<Arc<File>> {
        if let Some(wal) = self.files.wal()? {
            return Ok(wal);
        }
        let wal = Arc::new(os::open_or_create("wal.create", &self.files.path(FileKind::Wal))?);
        self.shared.notify(Notice::Entry(self.name.clone(), FileKind::Wal));
        Ok(wal)
    }

    fn write_frames(
        &self,
        shm: &ShmLink,
        wal: &File,
        header: &IndexHeader,
        records: &[Incoming],
    ) -> io::Result<(IndexHeader, [u8; FRAME_HEADER_LEN])> {
        let Some(last) = records.last() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let (size, commit) = (last.header.page_size, last.header.commit);
        let has_pages = |record: &Incoming| record.pages.iter().any(|(pgno, _)| *pgno <= commit);
        if !records.iter().any(has_pages) {
            // A transaction that only cut the database: a WAL says so with any frame.
            let page = self.read_page1(shm, wal, header, size)?;
            let mut pages = OnePage { page, given: false };
            return wal_writer::append_transaction(wal, &shm.index, header, size, commit, &mut pages);
        }
        if records.len() > 1 {
            let mut pages = newest_pages(records);
            return wal_writer::append_transaction(wal, &shm.index, header, size, commit, &mut pages);
        }
        wal_writer::append_transaction(wal, &shm.index, header, size, commit, &mut *last.pages()?)
    }

    /// Nothing of the record is visible: takes it out of the log again, so that the stream can send it once more.
    pub(super) fn unlog(&self, state: &CaptureState, logged: Logged) {
        if logged == Logged::No
            && self.log.last_pos() != state.pos
            && let Err(error) = self.log.truncate_after(state.pos.txid)
        {
            tracing::warn!(database = %self.name, %error, "take a record out of the log; it will be applied from there");
        }
    }

    /// Writes a damaged wal-index header again from our copy, or rebuilds the index.
    fn repair_header(&self, shm: &ShmLink, wal: &File, state: &CaptureState, writing: &Writing<'_>) -> io::Result<()> {
        if shm.index.read_header()?.is_some() {
            return Ok(());
        }
        let salt = WalHeader::read(wal)?.map(|header| header.salt);
        match &state.applied.header {
            // Not if clients have written since: this node may have been the primary.
            Some(copy)
                if Some(copy.salt) == salt
                    && copy.mx_frame > 0
                    && state.wal.current.ends_at(copy)
                    && !frame_follows(wal, state)? =>
            {
                tracing::warn!(database = %self.name, "wal-index header damaged; writing it again");
                shm.index.write_header(copy)
            }
            _ => self.rebuild_if_unreadable(shm, writing),
        }
    }

    /// Page 1 as readers see it now.
    pub(super) fn page1_through(&self, shm: &ShmLink) -> io::Result<Vec<u8>> {
        let header = shm.index.read_header()?.ok_or_else(unreadable)?;
        let page_size = self.capture.lock().page_size;
        match self.files.wal()? {
            Some(wal) if header.mx_frame > 0 => self.read_page1(shm, &wal, &header, header.page_size),
            _ => {
                let mut page = vec![0; page_size as usize];
                os::read_or_zero_at(&*self.files.database()?, &mut page, 0)?;
                Ok(page)
            }
        }
    }

    fn read_page1(&self, shm: &ShmLink, wal: &File, header: &IndexHeader, page_size: u32) -> io::Result<Vec<u8>> {
        let mut page = vec![0; page_size as usize];
        let backfill = shm.index.checkpoint_info()?.map_or(0, |info| info.backfill);
        match shm.index.find(1, backfill.saturating_add(1), header.mx_frame)? {
            Some(frame) => wal.read_exact_at(&mut page, frame_offset(frame, page_size) + FRAME_HEADER_LEN as u64)?,
            None => os::read_or_zero_at(&*self.files.database()?, &mut page, 0)?,
        }
        Ok(page)
    }

    /// Readers that overlap for ever would keep the WAL growing. Now and then applying pauses for a moment: those who begin now read
    /// the last frame, older ones end, the checkpoint completes, and then new ones need no frame at all.
    fn drain_readers(&self, shm: &ShmLink) -> io::Result<()> {
        let frames = shm.index.read_header()?.map_or(0, |header| header.mx_frame);
        {
            let mut state = self.capture.lock();
            let recent = state.applied.drained.is_some_and(|at| at.elapsed() < DRAIN_INTERVAL);
            if frames < DRAIN_FRAMES || recent {
                return Ok(());
            }
            state.applied.drained = Some(Instant::now());
        }
        let start = Instant::now();
        while start.elapsed() < DRAIN_WAIT {
            let complete = self.checkpoint_once()? == Checkpointed::Complete;
            if complete && locks::holder(&shm.link.action, wal_writer::FRAME_READERS, LockKind::Exclusive)?.is_none() {
                return Ok(());
            }
            std::thread::sleep(DRAIN_PAUSE);
        }
        tracing::debug!(database = %self.name, frames, "readers keep the WAL from restarting");
        Ok(())
    }
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "wal-index header stays damaged")
}

/// Page 1 alone.
struct OnePage {
    page: Vec<u8>,
    given: bool,
}

impl PageSource for OnePage {
    fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
        let first = !std::mem::replace(&mut self.given, true);
        Ok(first.then_some((1, self.page.as_slice())))
    }
}
