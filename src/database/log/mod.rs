//! The LTX log of one database: every transaction as one LTX file image, back to back in segment files.
//!
//! Appending to a file costs a few µs where creating one costs hundreds (DESIGN §6), so a record is appended to the
//! *active* segment; full segments are *sealed* (synced, never changed again) and dropped whole by retention. A record
//! too large for memory is written to a file of its own ([`Spool`]) that then becomes a segment without being copied.
//! A snapshot record (min TXID 1) makes everything before it useless: it starts a segment, and older ones are removed
//! once it is published ([`Log::drop_superseded`]); until then it can be taken back.
//! Files of LiteFS (`ltx/<min>-<max>.ltx`) are read as segments of one record each.
//!
//! In memory are the index of the active segment, where each sealed one starts, and the newest records; the index of
//! a sealed segment is read when a stream needs it. Opening therefore reads one record header per sealed segment and
//! scans only the active one. The on-disk format is described in [`segment`].

mod append;
mod legacy;
mod open;
mod read;
mod retention;
mod segment;
mod spool;

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;

pub use open::Opened;
pub use read::{RecordReader, Records};
pub use retention::Reaped;
pub use segment::segment_images;
pub use spool::Spool;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::ltx::Header;
use crate::{Checksum, Pos, Txid};

/// A segment that has grown to this size is sealed before the next append, in bytes. (Unit tests fill many.)
pub const SEGMENT_BYTES: u64 = if cfg!(test) { 256 << 10 } else { 16 << 20 };
/// Records up to this size are read into memory (and cached); larger ones are handed out as a range of their file.
pub const MEMORY_RECORD_BYTES_MAX: u64 = 256 << 10;
/// The newest records kept in memory, together, in bytes.
const CACHE_BYTES_MAX: usize = 1 << 20;
/// Indexes of sealed segments kept in memory.
const SEALED_INDEXES_MAX: usize = 4;

/// The log of one database. All methods take `&self`; appends exclude each other, reads exclude nothing.
#[derive(Debug)]
pub struct Log {
    /// The database's directory; segments are in `log/` below it, files of LiteFS in `ltx/`.
    dir: PathBuf,
    /// Serialises appends, truncation and retention. Lock order: `appender`, `syncing`, `state`.
    appender: Mutex<Appender>,
    /// Held while syncing, so that appends need not wait for it.
    syncing: Mutex<()>,
    /// The index. Held for memory operations only, never for I/O.
    state: Mutex<State>,
    /// Why it could not be read when it was opened: it holds nothing, and nothing may be written to it.
    unreadable: Option<String>,
}

/// What only the one that appends needs.
#[derive(Debug, Default)]
struct Appender {
    /// Frame and image of a small record, so that they are written in one call.
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct State {
    /// Oldest first; the last one is the active one unless it is a file of LiteFS.
    segments: VecDeque<Segment>,
    /// Index of the last segment.
    active: Vec<Entry>,
    active_file: Option<Arc<File>>,
    /// A segment was created or renamed since the directory was last synced.
    directory_changed: bool,
    sealed: VecDeque<Arc<SealedIndex>>,
    /// The newest record.
    last: Option<Last>,
    /// Records below this TXID do not connect to the newest one.
    chain_start: Txid,
    /// Every record up to this one is durable.
    synced: Txid,
    next_sequence: u64,
    cache: Cache,
}

/// The newest record's ends.
#[derive(Debug, Clone, Copy)]
struct Last {
    header: Header,
    post: Checksum,
}

/// A file with records.
#[derive(Debug, Clone)]
struct Segment {
    path: PathBuf,
    /// Ascending; the file's name. For a file of LiteFS: 0.
    sequence: u64,
    /// Header of the first record.
    first: Header,
    /// End of the last record, in bytes.
    len: u64,
}

impl Segment {
    /// Whether it is one file of LiteFS.
    const fn is_legacy(&self) -> bool {
        self.sequence == 0
    }
}

/// Where one record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    min: Txid,
    max: Txid,
    pre: Checksum,
    post: Checksum,
    /// Of the image (behind its frame), in bytes from the start of the file.
    offset: u64,
    len: u64,
    /// CRC-64 of the image; `None` where the file does not say (LiteFS).
    crc: Option<u64>,
}

impl Entry {
    const fn pre(&self) -> Pos {
        Pos::new(self.min.prev(), self.pre)
    }

    const fn post(&self) -> Pos {
        Pos::new(self.max, self.post)
    }

    const fn end(&self) -> u64 {
        self.offset + self.len
    }
}

#[derive(Debug)]
struct SealedIndex {
    path: PathBuf,
    file: Arc<File>,
    entries: Vec<Entry>,
}

/// The newest small records, by ascending TXID, so that many streams share one copy.
#[derive(Debug, Default)]
struct Cache {
    records: VecDeque<(Txid, Bytes)>,
    bytes: usize,
}

impl Cache {
    fn push(&mut self, min: Txid, bytes: Bytes) {
        if bytes.len() as u64 > MEMORY_RECORD_BYTES_MAX {
            return;
        }
        self.bytes += bytes.len();
        self.records.push_back((min, bytes));
        while self.bytes > CACHE_BYTES_MAX {
            let Some((_, dropped)) = self.records.pop_front() else { break };
            self.bytes -= dropped.len();
        }
    }

    fn get(&self, min: Txid) -> Option<Bytes> {
        let at = self.records.binary_search_by_key(&min, |(txid, _)| *txid).ok()?;
        self.records.get(at).map(|(_, bytes)| bytes.clone())
    }

    fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
    }
}

/// What the log holds, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogSize {
    /// Transactions (a record of several counts as many, a snapshot as one).
    pub transactions: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Log {
    /// Refuses to change a log that could not be read: what is in it would be overwritten.
    fn check_readable(&self) -> io::Result<()> {
        match &self.unreadable {
            None => Ok(()),
            Some(reason) => Err(io::Error::other(format!("the log could not be read ({reason}); start again"))),
        }
    }

    /// The position after the newest record; [`Pos::ZERO`] for an empty log.
    #[must_use]
    pub fn last_pos(&self) -> Pos {
        self.state.lock().last.as_ref().map_or(Pos::ZERO, |last| Pos::new(last.header.max_txid, last.post))
    }

    /// The header of the newest record: where in which WAL its frames ended is what recovery continues from.
    #[must_use]
    pub fn last_header(&self) -> Option<Header> {
        self.state.lock().last.as_ref().map(|last| last.header)
    }

    /// The position the oldest record applies to ([`Pos::ZERO`] for a snapshot); `None` for an empty log.
    #[must_use]
    pub fn first_pos(&self) -> Option<Pos> {
        let state = self.state.lock();
        let first = state.segments.iter().find(|segment| segment.first.min_txid >= state.chain_start);
        match (first, state.active.iter().find(|entry| entry.min >= state.chain_start)) {
            (Some(segment), _) => Some(segment.first.pre()),
            (None, entry) => entry.map(Entry::pre),
        }
    }

    /// Every record up to this TXID survives a power loss.
    #[must_use]
    pub fn synced(&self) -> Txid {
        self.state.lock().synced
    }

    /// What it holds.
    #[must_use]
    pub fn size(&self) -> LogSize {
        let state = self.state.lock();
        let bytes = state.segments.iter().map(|segment| segment.len).sum();
        let Some(last) = &state.last else { return LogSize { transactions: 0, bytes } };
        let oldest = state.segments.front().map_or(&last.header, |segment| &segment.first);
        let first = if oldest.is_snapshot() { oldest.max_txid } else { oldest.min_txid };
        LogSize { transactions: last.header.max_txid.0.saturating_sub(first.0) + 1, bytes }
    }

    /// The directory with the segments.
    fn segments_dir(dir: &Path) -> PathBuf {
        dir.join("log")
    }

    fn segment_path(&self, sequence: u64) -> PathBuf {
        Self::segments_dir(&self.dir).join(format!("{sequence:016x}.seg"))
    }
}
