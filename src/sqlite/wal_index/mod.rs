//! The wal-index: SQLite's shared-memory file that says which frames of the WAL are committed and where each page is.
//!
//! The file is a row of 32 KiB segments. Each holds a list of page numbers by frame and a hash table from page number to
//! that list; the first gives up 136 bytes to two copies of the header and the checkpoint information. All integers
//! are in the machine's byte order, except the salts, which stand as in the WAL.
//!
//! [`header`] decodes the header, [`table`] is one segment's list and hash table, [`recover`] rebuilds the whole from a WAL,
//! [`stored`] reads one that nobody uses, [`retire`] keeps those away who still would; this module maps the file.

pub mod header;
pub mod recover;
pub mod retire;
pub mod stored;
pub mod table;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::RwLock;

use self::header::{HEADER_WORDS, HeaderWords, IndexHeader};
use self::table::{SEGMENT_LEN, Table, segment_of};
use super::locks::READERS;
use super::wal::Salt;

/// A read mark that no reader uses.
pub const READ_MARK_NOT_USED: u32 = 0xffff_ffff;

// Words (of 4 bytes) in the first segment, after the two copies of the header.
const WORD_BACKFILL: usize = 24;
const WORD_READ_MARKS: usize = 25;
const WORD_BACKFILL_ATTEMPTED: usize = 32;

/// What checkpointers and readers share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Frames up to this one have been written to the database file.
    pub backfill: u32,
    /// Frames up to this one may have been.
    pub backfill_attempted: u32,
    /// The snapshot of whoever holds READ`i`; [`READ_MARK_NOT_USED`] for none. Mark 0 is always 0.
    pub read_marks: [u32; READERS],
}

/// A mapped wal-index.
///
/// The mapping grows with the file and is given back when this is dropped. Whoever touches it must hold
/// [`DMS`](super::locks::DMS) shared on the same inode: only a client that holds it exclusively truncates the file, and
/// a truncated mapping faults. As a second line of defence the mount refuses to truncate a shm that is mapped (the length
/// is not asked for on every read: the header is polled, and asking is a request to our own mount).
#[derive(Debug)]
pub struct WalIndex {
    file: File,
    /// Asked for the length.
    backing: File,
    /// Segments in order. A leaf lock: held for the mapping of one segment at most.
    segments: RwLock<Vec<MmapRaw>>,
}

impl WalIndex {
    /// An index on this file; nothing is mapped or touched yet. `backing` is the same file beside the mount (on a plain directory,
    /// another descriptor of `file`): its length is theirs, and asking it is no request to our own mount.
    #[must_use]
    pub const fn new(file: File, backing: File) -> Self {
        Self { file, backing, segments: RwLock::new(Vec::new()) }
    }

    /// The file behind the mapping.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// The segment, if the file is long enough.
    fn segment(&self, number: usize) -> io::Result<Option<Table<'_>>> {
        let mapped = self.segments.read().get(number).map(MmapRaw::as_mut_ptr);
        if let Some(base) = mapped {
            return Ok(Some(self.table(base, number)));
        }
        let mut segments = self.segments.write();
        let len = self.backing.metadata()?.len();
        while segments.len() <= number {
            let offset = segments.len() as u64 * SEGMENT_LEN as u64;
            if len < offset + SEGMENT_LEN as u64 {
                return Ok(None);
            }
            segments.push(MmapOptions::new().offset(offset).len(SEGMENT_LEN).map_raw(&self.file)?);
        }
        Ok(segments.get(number).map(MmapRaw::as_mut_ptr).map(|base| self.table(base, number)))
    }

    /// A view of the segment mapped at `base`, for as long as `self` is borrowed.
    fn table(&self, base: *mut u8, number: usize) -> Table<'_> {
        // SAFETY: `base` is one of `segments`: its mapping is `SEGMENT_LEN` bytes long, page-aligned, readable and writable, and all access goes through
        // atomics. `segments` only grows and `MmapRaw` does not move its memory when the vector does, so the memory
        // stays mapped for as long as `self` is borrowed. That no one truncates the file underneath is the caller's duty
        // (DMS), stated on the type.
        unsafe { Table::from_raw(base.cast::<AtomicU32>(), number) }
    }

    /// The segment, growing the file by zeroes when it is too short. Written rather than truncated, so that a full disk is an
    /// error here and not a fault later.
    fn segment_or_grow(&self, number: usize) -> io::Result<Table<'_>> {
        if let Some(table) = self.segment(number)? {
            return Ok(table);
        }
        let wanted = (number as u64 + 1) * SEGMENT_LEN as u64;
        let mut at = self.backing.metadata()?.len();
        let zeroes = [0_u8; SEGMENT_LEN];
        while at < wanted {
            let len = usize::try_from(wanted - at).unwrap_or(SEGMENT_LEN).min(SEGMENT_LEN);
            self.file.write_all_at(&zeroes[..len], at)?;
            at += len as u64;
        }
        self.segment(number)?.ok_or_else(|| io::Error::other("wal-index did not grow"))
    }

    fn segment_for(&self, frame: u32) -> io::Result<Table<'_>> {
        let missing =
            || io::Error::new(io::ErrorKind::InvalidData, format!("wal-index has no segment for frame {frame}"));
        self.segment(segment_of(frame))?.ok_or_else(missing)
    }

    fn first(&self) -> io::Result<Option<Table<'_>>> {
        self.segment(0)
    }

    fn first_or_grow(&self) -> io::Result<Table<'_>> {
        self.segment_or_grow(0)
    }

    /// The header, when both copies are equal, initialised and right. `None`: try again later, or it needs recovery.
    ///
    /// # Errors
    /// Mapping the file.
    pub fn read_header(&self) -> io::Result<Option<IndexHeader>> {
        let Some([copy0, copy1]) = self.header_words()? else { return Ok(None) };
        if copy0 != copy1 {
            return Ok(None);
        }
        Ok(IndexHeader::decode(&copy0))
    }

    /// Both copies of the header, right or not; `None` while the file has no first segment.
    ///
    /// # Errors
    /// Mapping the file.
    pub fn header_words(&self) -> io::Result<Option<HeaderWords>> {
        let Some(first) = self.first()? else { return Ok(None) };
        let words = first.words();
        let copy = |from: usize| {
            let mut header = [0; HEADER_WORDS];
            for (value, word) in header.iter_mut().zip(&words[from..]) {
                *value = word.load(Ordering::Relaxed);
            }
            header
        };
        let copy0 = copy(0);
        fence(Ordering::SeqCst);
        let copy1 = copy(HEADER_WORDS);
        fence(Ordering::SeqCst);
        Ok(Some([copy0, copy1]))
    }

    /// Publishes a header as a writer does: copy 1, fence, copy 0. The caller holds WRITE.
    ///
    /// # Errors
    /// Growing or mapping the file.
    pub fn write_header(&self, header: &IndexHeader) -> io::Result<()> {
        let first = self.first_or_grow()?;
        let words = first.words();
        let encoded = header.encode();
        fence(Ordering::SeqCst);
        for (word, value) in words[HEADER_WORDS..].iter().zip(encoded) {
            word.store(value, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        for (word, value) in words.iter().zip(encoded) {
            word.store(value, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Makes the header invalid, so that the next client rebuilds the index, as if it had found a new one. The caller knows that
    /// no client uses the index.
    ///
    /// # Errors
    /// Mapping the file.
    pub fn invalidate(&self) -> io::Result<()> {
        let Some(first) = self.first()? else { return Ok(()) };
        for word in &first.words()[..2 * HEADER_WORDS] {
            word.store(0, Ordering::SeqCst);
        }
        // As in a new one: the next WAL need not be the one of which frames are in the database file.
        self.set_backfill(0)?;
        self.set_backfill_attempted(0)
    }

    /// What checkpointers and readers share; `None` while the file has no first segment.
    ///
    /// # Errors
    /// Mapping the file.
    pub fn checkpoint_info(&self) -> io::Result<Option<CheckpointInfo>> {
        let Some(first) = self.first()? else { return Ok(None) };
        let load = |word: usize| first.words()[word].load(Ordering::Acquire);
        Ok(Some(CheckpointInfo {
            backfill: load(WORD_BACKFILL),
            backfill_attempted: load(WORD_BACKFILL_ATTEMPTED),
            read_marks: std::array::from_fn(|mark| load(WORD_READ_MARKS + mark)),
        }))
    }

    /// Publishes how many frames are in the database file. The caller holds CKPT.
    ///
    /// # Errors
    /// Growing or mapping the file.
    pub fn set_backfill(&self, frame: u32) -> io::Result<()> {
        self.set_word(WORD_BACKFILL, frame)
    }

    /// Announces a checkpoint up to `frame` before its first write. The caller holds CKPT.
    ///
    /// # Errors
    /// Growing or mapping the file.
    pub fn set_backfill_attempted(&self, frame: u32) -> io::Result<()> {
        self.set_word(WORD_BACKFILL_ATTEMPTED, frame)
    }

    /// Sets read mark `mark` (below [`READERS`], else nothing happens). The caller holds READ`mark` exclusively.
    ///
    /// # Errors
    /// Growing or mapping the file.
    pub fn set_read_mark(&self, mark: usize, frame: u32) -> io::Result<()> {
        if mark < READERS { self.set_word(WORD_READ_MARKS + mark, frame) } else { Ok(()) }
    }

    fn set_word(&self, word: usize, value: u32) -> io::Result<()> {
        self.first_or_grow()?.words()[word].store(value, Ordering::Release);
        Ok(())
    }

    /// The latest frame within `frame_min…frame_max` that holds page `pgno`; `None`: the page is in the database file.
    ///
    /// # Errors
    /// `InvalidData` when the index is damaged or too short; mapping the file.
    pub fn find(&self, pgno: u32, frame_min: u32, frame_max: u32) -> io::Result<Option<u32>> {
        if frame_max == 0 || frame_min > frame_max {
            return Ok(None);
        }
        for segment in (segment_of(frame_min.max(1))..=segment_of(frame_max)).rev() {
            let Some(table) = self.segment(segment)? else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("wal-index lacks segment {segment}")));
            };
            if let Some(frame) = table.find(pgno, frame_min, frame_max)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// The page that `frame` (from 1) holds, by the index.
    ///
    /// # Errors
    /// `InvalidData` when the file is too short; mapping it.
    pub fn page_of(&self, frame: u32) -> io::Result<u32> {
        Ok(self.segment_for(frame)?.page_of(frame))
    }

    /// Enters `frame` holding `pgno`, as a writer does after it wrote the frame. Frames are entered in order. Readers do not
    /// see it before [`Self::write_header`]. The caller holds WRITE.
    ///
    /// # Errors
    /// `InvalidData` when the hash table is damaged; growing or mapping the file.
    pub fn append(&self, frame: u32, pgno: u32) -> io::Result<()> {
        self.segment_or_grow(segment_of(frame))?.append(frame, pgno)
    }

    /// Starts a new WAL generation, so that the next frame is frame 1: new salts, no frames, no backfill. The caller
    /// holds WRITE and READ1…READ4 exclusively, and every frame is in the database file.
    ///
    /// # Errors
    /// Growing or mapping the file.
    pub fn restart(&self, header: &IndexHeader, salt2: u32) -> io::Result<IndexHeader> {
        let salt: Salt = [header.salt[0].wrapping_add(1), salt2];
        let restarted = IndexHeader { mx_frame: 0, salt, ..*header };
        self.write_header(&restarted)?;
        self.set_backfill(0)?;
        self.set_backfill_attempted(0)?;
        self.set_read_mark(1, 0)?;
        for mark in 2..READERS {
            self.set_read_mark(mark, READ_MARK_NOT_USED)?;
        }
        Ok(restarted)
    }
}

#[cfg(test)]
mod tests;
