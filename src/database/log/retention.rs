//! Taking records out of the log: old ones by age, new ones when they did not happen.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::segment::{self, SEGMENT_HEADER_BYTES};
use super::{Entry, Last, Log, Segment, State, legacy};
use crate::{Pos, Txid, os};

/// What retention has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reaped {
    /// Transactions.
    pub transactions: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Log {
    /// Drops whole segments all of whose records are older than `before_ms` (ms since the epoch), never the newest one.
    ///
    /// # Errors
    /// Syncing what stays (then nothing is dropped); a file cannot be removed: it is out of the index already, and goes at the next call or start.
    pub fn retain(&self, before_ms: u64) -> io::Result<Reaped> {
        let _appender = self.appender.lock();
        let mut reaped = Reaped::default();
        if self.state.lock().droppable(before_ms) {
            // What stays must outlive a power loss: it is all that says where the database is.
            self.sync()?;
        }
        loop {
            let path = {
                let mut state = self.state.lock();
                if !state.droppable(before_ms) {
                    break;
                }
                let (Some(oldest), Some(next)) = (state.segments.front(), state.segments.get(1)) else { break };
                reaped.bytes += oldest.len;
                reaped.transactions += next.first.min_txid.0.saturating_sub(oldest.first.min_txid.0);
                let path = oldest.path.clone();
                state.segments.pop_front();
                state.sealed.retain(|sealed| sealed.path != path);
                path
            };
            os::remove_file("log.remove", &path)?;
        }
        Ok(reaped)
    }

    /// Removes every record after `txid`, which must be the last TXID of a record (or one below all: everything goes).
    /// Durable when it returns.
    ///
    /// # Errors
    /// `InvalidInput` when `txid` lies inside a record; reading or removing failed.
    pub fn truncate_after(&self, txid: Txid) -> io::Result<Pos> {
        self.check_readable()?;
        let _appender = self.appender.lock();
        let _syncing = self.syncing.lock();
        let (removed, kept) = {
            let state = self.state.lock();
            let stays = |segment: &Segment| match segment.first.is_snapshot() {
                true => segment.first.max_txid <= txid,
                false => segment.first.min_txid <= txid,
            };
            let keep = state.segments.iter().rposition(stays).map_or(0, |last| last + 1);
            let snapshot = state.segments.front().filter(|segment| segment.first.is_snapshot());
            if keep == 0 && snapshot.is_some() && txid > Txid::ZERO {
                return Err(inside(txid));
            }
            let removed: Vec<PathBuf> = state.segments.iter().skip(keep).map(|segment| segment.path.clone()).collect();
            (removed, keep.checked_sub(1).and_then(|last| state.segments.get(last).cloned()))
        };
        let cut = kept.as_ref().map(|segment| Cut::plan(segment, txid)).transpose()?;
        // Newest first: whatever is left after a crash is connected.
        for path in removed.iter().rev() {
            os::remove_file("log.remove", path)?;
        }
        if let Some(cut) = &cut {
            cut.make_durable()?;
        }
        os::sync_dir("log.sync_dir", &Self::segments_dir(&self.dir))?;
        let mut state = self.state.lock();
        state.directory_changed = false;
        let kept_segments = state.segments.len() - removed.len();
        state.segments.truncate(kept_segments);
        state.sealed.clear();
        state.cache.clear();
        if txid < state.chain_start {
            state.chain_start = Txid::ZERO;
        }
        match cut {
            Some(cut) => {
                if let Some(segment) = state.segments.back_mut() {
                    segment.len = cut.entries.last().map_or(SEGMENT_HEADER_BYTES, Entry::end);
                }
                state.active = cut.entries;
                state.active_file = Some(cut.file);
                state.last = cut.last;
            }
            None => {
                state.active = Vec::new();
                state.active_file = None;
                state.last = None;
            }
        }
        let pos = state.last.as_ref().map_or(Pos::ZERO, |last| Pos::new(last.header.max_txid, last.post));
        state.synced = pos.txid;
        Ok(pos)
    }
}

impl State {
    /// Whether all records of the oldest segment are older: the next one's first is younger than all of them.
    fn droppable(&self, before_ms: u64) -> bool {
        self.segments.get(1).is_some_and(|next| next.first.timestamp_ms < before_ms)
    }
}

fn inside(txid: Txid) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("TXID {txid} lies inside a record of the log"))
}

/// What becomes of the segment that holds the last record kept.
struct Cut {
    entries: Vec<Entry>,
    file: Arc<File>,
    last: Option<Last>,
    /// A file of LiteFS is not written to.
    writable: bool,
}

impl Cut {
    fn plan(segment: &Segment, txid: Txid) -> io::Result<Self> {
        let inside = || inside(txid);
        if segment.is_legacy() {
            let (header, entry) = legacy::read_entry(&segment.path)?.ok_or_else(inside)?;
            if entry.max != txid {
                return Err(inside());
            }
            let last = Some(Last { header, post: entry.post });
            let file = Arc::new(File::open(&segment.path)?);
            return Ok(Self { entries: vec![entry], file, last, writable: false });
        }
        let file = File::options().read(true).write(true).open(&segment.path)?;
        let mut entries = segment::scan(&file, false)?.entries;
        entries.retain(|entry| entry.max <= txid);
        let Some(entry) = entries.last().filter(|entry| entry.max == txid) else { return Err(inside()) };
        let frame = entry.offset - segment::FRAME_BYTES as u64;
        let last =
            segment::read_frame(&file, frame, entry.end())?.map(|(header, entry)| Last { header, post: entry.post });
        Ok(Self { entries, file: Arc::new(file), last, writable: true })
    }

    fn make_durable(&self) -> io::Result<()> {
        let Some(entry) = self.entries.last().filter(|_| self.writable) else { return Ok(()) };
        os::set_len("log.truncate", &self.file, entry.end())?;
        os::sync_data("log.sync", &self.file)
    }
}
