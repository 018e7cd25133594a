//! Capture in WAL mode: committed frames become records (DESIGN §5, ENGINE "Never miss" and "Reading the wal-index").
//!
//! The wal-index says what is committed, and it alone: frames up to its `mxFrame` are taken as they are, without asking for
//! their salts and checksums (SQLite before 3.51 leaves committed frames without them after `ROLLBACK TO`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::commit::{PageSource, TxHead};
use super::links::ShmLink;
use super::{CaptureState, Database};
use crate::os;
use crate::sqlite::page::{lock_page, page_offset};
use crate::sqlite::wal::{FRAME_HEADER_LEN, FrameHeader, Salt, WalChecksum, frame_len, frame_offset};
use crate::sqlite::wal_index::header::IndexHeader;

/// What of the WAL is captured: of the running generation and of the one before. After a restart that wrote nothing, a
/// client's recovery brings the old generation back.
#[derive(Debug, Default)]
pub(crate) struct WalProgress {
    pub(crate) current: Generation,
    pub(crate) previous: Generation,
    /// The WAL as it was when its frames were walked for commits in vain.
    pub(super) fruitless: Option<super::barrier::WalStamp>,
    /// The WAL as it was when the last client that closed removed its index: nothing else in it is committed.
    pub(super) ended: Option<super::barrier::WalFile>,
    /// Reused from transaction to transaction.
    scratch: Scratch,
}

/// How far one generation (one pair of salts) of the WAL is captured.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) salt: Salt,
    /// The last captured frame: the end of a transaction; 0 = none.
    pub(crate) frame: u32,
    /// The wal-index's checksum chain after `frame`, when it was read there.
    pub(crate) chain: Option<WalChecksum>,
    /// The header bytes of frame `frame` as they were: other bytes there mean that the WAL was cut back and written again.
    pub(crate) last_header: [u8; FRAME_HEADER_LEN],
}

impl Generation {
    /// Whether the wal-index stands where capture stopped.
    pub(super) fn ends_at(&self, header: &IndexHeader) -> bool {
        header.mx_frame == self.frame && header.salt == self.salt && self.chain == Some(header.frame_checksum)
    }
}

/// Buffers kept between transactions; given back when one was large.
#[derive(Debug, Default)]
struct Scratch {
    frames: Vec<u8>,
    pages: Vec<(u32, u32)>,
}

/// What a look at the WAL found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looked {
    /// Everything committed is captured, and was before.
    Nothing,
    /// Everything committed is captured now.
    Captured,
    /// The wal-index cannot be read at this instant (being written, recovered, or not there).
    Unreadable,
}

/// Frames read in one go; a larger transaction is read page by page.
const READ_BYTES_MAX: u64 = 4 << 20;
/// A buffer larger than this is not kept.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// Where the latest frame of a page is found.
pub(super) enum Lookup<'a> {
    /// By the shared wal-index.
    Index(&'a ShmLink),
    /// By reading frame headers: a client keeps the index in its own heap.
    Frames,
}

impl Lookup<'_> {
    /// Adds, to each of `pages` (ascending), the latest frame up to `last` that SQLite would read it from; 0: the database file.
    pub(super) fn find_all(&self, wal: &File, page_size: u32, last: u32, pages: &mut [(u32, u32)]) -> io::Result<()> {
        match self {
            Self::Index(shm) => {
                let backfill = shm.index.checkpoint_info()?.map_or(0, |info| info.backfill);
                for (pgno, frame) in pages {
                    *frame = shm.index.find(*pgno, backfill.saturating_add(1), last)?.unwrap_or(0);
                }
            }
            Self::Frames => {
                for frame in 1..=last {
                    let mut head = [0; FRAME_HEADER_LEN];
                    wal.read_exact_at(&mut head, frame_offset(frame, page_size))?;
                    let pgno = FrameHeader::parse(&head).pgno;
                    if let Ok(at) = pages.binary_search_by_key(&pgno, |page| page.0) {
                        pages[at].1 = frame;
                    }
                }
            }
        }
        Ok(())
    }
}

/// How the index's header relates to what is captured.
enum Relation {
    Same,
    Ahead,
    /// The WAL was cut back (a client's recovery lost commits), perhaps written again since.
    CutBack,
}

impl WalProgress {
    /// Makes the generation of `salt` the current one.
    fn turn_to(&mut self, salt: Salt) {
        if self.current.salt == salt {
            return;
        }
        if self.previous.salt == salt {
            std::mem::swap(&mut self.current, &mut self.previous);
        } else {
            self.previous = std::mem::replace(&mut self.current, Generation { salt, ..Generation::default() });
        }
    }

    fn relation(&self, header: &IndexHeader, wal: &File) -> io::Result<Relation> {
        let at = &self.current;
        Ok(match header.mx_frame.cmp(&at.frame) {
            std::cmp::Ordering::Less => Relation::CutBack,
            std::cmp::Ordering::Equal if at.frame == 0 => Relation::Same,
            std::cmp::Ordering::Equal if at.chain.is_some_and(|chain| chain != header.frame_checksum) => {
                Relation::CutBack
            }
            std::cmp::Ordering::Equal => Relation::Same,
            std::cmp::Ordering::Greater if at.frame == 0 => Relation::Ahead,
            std::cmp::Ordering::Greater => {
                let mut bytes = [0; FRAME_HEADER_LEN];
                wal.read_exact_at(&mut bytes, frame_offset(at.frame, header.page_size))?;
                if bytes == at.last_header { Relation::Ahead } else { Relation::CutBack }
            }
        })
    }
}

impl Database {
    /// Captures every transaction that the wal-index calls committed.
    ///
    /// # Errors
    /// Reading the WAL, writing the log. What was captured before stays captured.
    pub(crate) fn capture_wal(&self, state: &mut CaptureState) -> io::Result<Looked> {
        let Some(shm) = self.shm() else { return Ok(Looked::Unreadable) };
        let Some(header) = shm.index.read_header()? else { return Ok(Looked::Unreadable) };
        self.capture_up_to(state, &header, &Lookup::Index(&shm))
    }

    /// Captures what `header` says is committed.
    pub(super) fn capture_up_to(
        &self,
        state: &mut CaptureState,
        header: &IndexHeader,
        lookup: &Lookup<'_>,
    ) -> io::Result<Looked> {
        if state.wal.current.ends_at(header) {
            return Ok(Looked::Nothing);
        }
        if header.mx_frame == 0 && header.salt == [0, 0] {
            // A wal-index beside an empty WAL.
            return Ok(Looked::Nothing);
        }
        state.wal.turn_to(header.salt);
        if header.mx_frame == 0 && state.wal.current.frame == 0 {
            state.wal.current.chain = Some(header.frame_checksum);
            return Ok(Looked::Nothing);
        }
        let Some(wal) = self.files.wal()? else { return Ok(Looked::Unreadable) };
        match state.wal.relation(header, &wal)? {
            Relation::Same => {
                state.wal.current.chain = Some(header.frame_checksum);
                Ok(Looked::Nothing)
            }
            Relation::Ahead => self.capture_frames(state, lookup, &wal, header).map(|()| Looked::Captured),
            Relation::CutBack => {
                tracing::warn!(
                    database = %self.name, captured = state.wal.current.frame, committed = header.mx_frame,
                    "a client's recovery cut the WAL back below what was captured; recording what SQLite shows now"
                );
                self.capture_wal_difference(state, &wal, header, lookup).map(|()| Looked::Captured)
            }
        }
    }

    /// Captures the frames after the last captured one up to `header.mx_frame`, transaction by transaction.
    fn capture_frames(
        &self,
        state: &mut CaptureState,
        lookup: &Lookup<'_>,
        wal: &File,
        header: &IndexHeader,
    ) -> io::Result<()> {
        let mut scratch = std::mem::take(&mut state.wal.scratch);
        let mut result = Ok(());
        while state.wal.current.frame < header.mx_frame && result.is_ok() {
            result = self.capture_batch(state, lookup, wal, header, &mut scratch);
        }
        if scratch.frames.capacity() > KEPT_BYTES_MAX {
            scratch.frames = Vec::new();
        }
        if scratch.pages.capacity() > KEPT_BYTES_MAX / 8 {
            scratch.pages = Vec::new();
        }
        state.wal.scratch = scratch;
        if result.is_ok() {
            state.wal.current.chain = Some(header.frame_checksum);
        }
        result
    }

    /// One read of the WAL and the transactions in it; or one large transaction.
    fn capture_batch(
        &self,
        state: &mut CaptureState,
        lookup: &Lookup<'_>,
        wal: &File,
        header: &IndexHeader,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let first = state.wal.current.frame + 1;
        let frame_bytes = frame_len(header.page_size);
        let readable = u32::try_from(READ_BYTES_MAX / frame_bytes).unwrap_or(1).max(1);
        let count = (header.mx_frame - first + 1).min(readable);
        scratch.frames.resize(count as usize * frame_bytes as usize, 0);
        wal.read_exact_at(&mut scratch.frames, frame_offset(first, header.page_size))?;
        let mut captured_any = false;
        let mut tx = Transaction::new(lookup, wal, header, first);
        for (frame, bytes) in (first..).zip(scratch.frames.chunks_exact(frame_bytes as usize)) {
            let Some(head) = bytes.first_chunk::<FRAME_HEADER_LEN>() else { break };
            if tx.push(frame, head, &mut scratch.pages) {
                self.capture_transaction(state, &tx, &mut scratch.pages, Some((first, &scratch.frames)))?;
                captured_any = true;
                tx.begin(frame + 1, &mut scratch.pages);
            }
        }
        if captured_any {
            return Ok(());
        }
        // Not one whole transaction in the buffer: it is larger. Its headers first, then its pages one by one.
        for frame in first + count..=header.mx_frame {
            let mut head = [0; FRAME_HEADER_LEN];
            wal.read_exact_at(&mut head, frame_offset(frame, header.page_size))?;
            if tx.push(frame, &head, &mut scratch.pages) {
                return self.capture_transaction(state, &tx, &mut scratch.pages, None);
            }
        }
        scratch.pages.clear();
        let reason = format!("frames {first} to {} of the WAL hold no end of a transaction", header.mx_frame);
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }

    /// Makes a record of the frames of one transaction and moves on behind them.
    fn capture_transaction(
        &self,
        state: &mut CaptureState,
        tx: &Transaction<'_>,
        pages: &mut Vec<(u32, u32)>,
        buffer: Option<(u32, &[u8])>,
    ) -> io::Result<()> {
        let page_size = tx.header.page_size;
        tx.finish(state, pages)?;
        let head = TxHead {
            page_size,
            commit: tx.commit,
            page_count_hint: pages.len(),
            // Where sectors are larger than a frame, a commit is padded with copies of its last frame: no transactions.
            skip_unchanged: tx.is_one_frame(),
            wal_offset: frame_offset(tx.first, page_size),
            wal_size: u64::from(tx.last - tx.first + 1) * frame_len(page_size),
            wal_salts: tx.header.salt,
            durable: false,
        };
        let database = self.files.database()?;
        let mut source = WalPages::new(tx.wal, &database, page_size, pages, buffer);
        self.commit_transaction(state, &head, &mut source)?;
        let current = &mut state.wal.current;
        current.frame = tx.last;
        current.last_header = tx.last_header;
        current.chain = None;
        Ok(())
    }

    /// Records whatever differs between the last record and what SQLite shows now, as one transaction: for when the frames
    /// cannot tell (the WAL was cut back). Reads the whole database.
    fn capture_wal_difference(
        &self,
        state: &mut CaptureState,
        wal: &File,
        header: &IndexHeader,
        lookup: &Lookup<'_>,
    ) -> io::Result<()> {
        let skipped = lock_page(header.page_size);
        let mut pages: Vec<_> = (1..=header.page_count).filter(|pgno| *pgno != skipped).map(|pgno| (pgno, 0)).collect();
        lookup.find_all(wal, header.page_size, header.mx_frame, &mut pages)?;
        let mut last_header = [0; FRAME_HEADER_LEN];
        if header.mx_frame > 0 {
            wal.read_exact_at(&mut last_header, frame_offset(header.mx_frame, header.page_size))?;
        }
        let head = TxHead {
            page_size: header.page_size,
            commit: header.page_count,
            page_count_hint: pages.len(),
            skip_unchanged: true,
            ..TxHead::default()
        };
        let database = self.files.database()?;
        let mut source = WalPages::new(wal, &database, header.page_size, &pages, None);
        self.commit_transaction(state, &head, &mut source)?;
        // A restart meanwhile mixes two moments in this record. It shows as another generation, whose first
        // frames set every such page right: they are what overwrote ours.
        let frame = header.mx_frame;
        state.wal.current = Generation { salt: header.salt, frame, chain: Some(header.frame_checksum), last_header };
        Ok(())
    }
}

/// The frames of one transaction.
struct Transaction<'a> {
    lookup: &'a Lookup<'a>,
    wal: &'a File,
    header: &'a IndexHeader,
    first: u32,
    last: u32,
    /// Database size in pages, from the last frame.
    commit: u32,
    last_header: [u8; FRAME_HEADER_LEN],
}

impl<'a> Transaction<'a> {
    fn new(lookup: &'a Lookup<'a>, wal: &'a File, header: &'a IndexHeader, first: u32) -> Self {
        Self { lookup, wal, header, first, last: 0, commit: 0, last_header: [0; FRAME_HEADER_LEN] }
    }

    fn begin(&mut self, first: u32, pages: &mut Vec<(u32, u32)>) {
        pages.clear();
        self.first = first;
    }

    /// Adds a frame; whether it ends the transaction.
    fn push(&mut self, frame: u32, head: &[u8; FRAME_HEADER_LEN], pages: &mut Vec<(u32, u32)>) -> bool {
        let parsed = FrameHeader::parse(head);
        if frame == self.first {
            pages.clear();
        }
        pages.push((parsed.pgno, frame));
        if parsed.commit == 0 {
            return false;
        }
        self.last = frame;
        self.commit = parsed.commit;
        self.last_header = *head;
        true
    }

    fn is_one_frame(&self) -> bool {
        self.first == self.last
    }

    /// Leaves the last version of each page, in order, and adds the pages by which the database grew without writing them
    /// (see [`PageSource`]): frame 0 stands for "in the database file".
    fn finish(&self, state: &CaptureState, pages: &mut Vec<(u32, u32)>) -> io::Result<()> {
        let skipped = lock_page(self.header.page_size);
        // Spilled frames may hold pages that the transaction cut off in the end.
        pages.retain(|(pgno, _)| *pgno != skipped && *pgno != 0 && *pgno <= self.commit);
        pages.sort_unstable_by_key(|(pgno, frame)| (*pgno, u32::MAX - *frame));
        pages.dedup_by_key(|(pgno, _)| *pgno);
        let old_end = if state.page_size == self.header.page_size { state.checksums.page_count() } else { 0 };
        let written = pages.iter().rev().take_while(|(pgno, _)| *pgno > old_end).count();
        let grown = self.commit.saturating_sub(old_end) as usize;
        let grown = grown - usize::from(skipped > old_end && skipped <= self.commit);
        if written >= grown {
            return Ok(());
        }
        let mut have = pages[pages.len() - written..].iter().map(|(pgno, _)| *pgno).peekable();
        let mut missing: Vec<_> = (old_end + 1..=self.commit)
            .filter(|pgno| have.next_if_eq(pgno).is_none() && *pgno != skipped)
            .map(|pgno| (pgno, 0))
            .collect();
        self.lookup.find_all(self.wal, self.header.page_size, self.last, &mut missing)?;
        pages.append(&mut missing);
        pages.sort_unstable_by_key(|(pgno, _)| *pgno);
        Ok(())
    }
}

/// Pages out of frames, or out of the database file (frame 0).
pub(super) struct WalPages<'a> {
    wal: &'a File,
    database: &'a File,
    page_size: u32,
    pages: std::slice::Iter<'a, (u32, u32)>,
    /// Frames in memory: the first one's number, and the bytes.
    buffer: Option<(u32, &'a [u8])>,
    page: Vec<u8>,
}

impl<'a> WalPages<'a> {
    pub(super) fn new(
        wal: &'a File,
        database: &'a File,
        page_size: u32,
        pages: &'a [(u32, u32)],
        buffer: Option<(u32, &'a [u8])>,
    ) -> Self {
        Self { wal, database, page_size, pages: pages.iter(), buffer, page: Vec::new() }
    }

    /// The frame's page in the buffer, if it is there.
    fn buffered(&self, frame: u32) -> Option<&'a [u8]> {
        let (first, bytes) = self.buffer?;
        let stride = frame_len(self.page_size) as usize;
        let start = frame.checked_sub(first)? as usize * stride;
        bytes.get(start + FRAME_HEADER_LEN..start + stride)
    }
}

impl PageSource for WalPages<'_> {
    fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
        let Some((pgno, frame)) = self.pages.next().copied() else { return Ok(None) };
        if frame > 0
            && let Some(page) = self.buffered(frame)
        {
            return Ok(Some((pgno, page)));
        }
        self.page.resize(self.page_size as usize, 0);
        if frame > 0 {
            self.wal.read_exact_at(&mut self.page, frame_offset(frame, self.page_size) + FRAME_HEADER_LEN as u64)?;
        } else {
            os::read_or_zero_at(self.database, &mut self.page, page_offset(pgno, self.page_size))?;
        }
        Ok(Some((pgno, &self.page)))
    }
}
