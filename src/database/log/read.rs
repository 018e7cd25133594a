//! Reading records: by TXID, and everything after a position.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, Log, MEMORY_RECORD_BYTES_MAX, SEALED_INDEXES_MAX, SealedIndex, Segment, State, legacy, segment};
use crate::database::{Record, RecordBody};
use crate::ltx::{HEADER_BYTES, Header};
use crate::{Checksum, Pos, Txid, os};

/// Where to look for a record.
enum Place {
    Found(Entry, Arc<File>),
    /// In this sealed segment, whose index is not in memory. The position its last record must lead to follows.
    Sealed(Segment, Pos),
    None,
}

impl State {
    /// The place of the record that holds `txid`.
    fn place(&self, txid: Txid) -> Place {
        if txid < self.chain_start {
            return Place::None;
        }
        // From the end: behind older segments there may be a snapshot that takes their place.
        let holds = |segment: &Segment| segment.first.min_txid <= txid;
        let Some(index) = self.segments.iter().rposition(holds) else { return Place::None };
        let Some(segment) = self.segments.get(index) else { return Place::None };
        if let Some(next) = self.segments.get(index + 1) {
            return match self.sealed.iter().find(|sealed| sealed.path == segment.path) {
                Some(sealed) => sealed.place(txid),
                None => Place::Sealed(segment.clone(), next.first.pre()),
            };
        }
        match (find(&self.active, txid), &self.active_file) {
            (Some(entry), Some(file)) => Place::Found(entry, file.clone()),
            _ => Place::None,
        }
    }
}

impl SealedIndex {
    fn place(&self, txid: Txid) -> Place {
        find(&self.entries, txid).map_or(Place::None, |entry| Place::Found(entry, self.file.clone()))
    }
}

fn find(entries: &[Entry], txid: Txid) -> Option<Entry> {
    let index = entries.partition_point(|entry| entry.max < txid);
    entries.get(index).copied().filter(|entry| entry.min <= txid)
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("log is damaged: {what}"))
}

impl Log {
    /// The entry of the record that holds `txid`.
    fn entry(&self, txid: Txid) -> io::Result<Option<(Entry, Arc<File>)>> {
        let (segment, end) = match self.state.lock().place(txid) {
            Place::Found(entry, file) => return Ok(Some((entry, file))),
            Place::None => return Ok(None),
            Place::Sealed(segment, end) => (segment, end),
        };
        let sealed = match load(&segment, end) {
            // Retention has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let found = find(&sealed.entries, txid).map(|entry| (entry, sealed.file.clone()));
        let mut state = self.state.lock();
        if state.sealed.len() >= SEALED_INDEXES_MAX {
            state.sealed.pop_front();
        }
        state.sealed.push_back(Arc::new(sealed));
        Ok(found)
    }

    /// The record that holds `txid` (as its first, last or one in between); `None` when the log has it no more, or not yet.
    ///
    /// # Errors
    /// Reading failed, or `InvalidData`: the record is damaged.
    pub fn read(&self, txid: Txid) -> io::Result<Option<Record>> {
        let Some((entry, file)) = self.entry(txid)? else { return Ok(None) };
        let cached = self.state.lock().cache.get(entry.min);
        let body = match cached {
            Some(bytes) => RecordBody::Memory(bytes),
            None if entry.len <= MEMORY_RECORD_BYTES_MAX => RecordBody::Memory(read_image(&file, &entry)?),
            None => RecordBody::File { file: file.clone(), offset: entry.offset, len: entry.len },
        };
        let mut header = [0; HEADER_BYTES];
        match &body {
            RecordBody::Memory(bytes) => header.copy_from_slice(&bytes[..HEADER_BYTES]),
            RecordBody::File { .. } => os::read_or_zero_at(&file, &mut header, entry.offset)?,
        }
        let header = Header::parse(&header).map_err(damaged)?;
        Ok(Some(Record {
            min_txid: entry.min,
            max_txid: entry.max,
            post: entry.post(),
            node_id: header.node_id,
            timestamp_ms: header.timestamp_ms,
            body,
        }))
    }

    /// Whether a record ends (or the oldest begins) exactly at this position: then everything after it is in the log.
    ///
    /// # Errors
    /// An index cannot be read.
    pub fn contains(&self, pos: Pos) -> io::Result<bool> {
        if self.first_pos() == Some(pos) {
            return Ok(true);
        }
        self.ends_at(pos)
    }

    /// Whether a record ends exactly at this position: then the log can be cut after it.
    ///
    /// # Errors
    /// An index cannot be read.
    pub fn ends_at(&self, pos: Pos) -> io::Result<bool> {
        Ok(self.entry(pos.txid)?.is_some_and(|(entry, _)| entry.post() == pos))
    }

    /// The newest position in the log with this checksum, before the newest of all.
    ///
    /// # Errors
    /// An index cannot be read, or `InvalidData`.
    pub fn find_checksum(&self, checksum: Checksum) -> io::Result<Option<Pos>> {
        let mut at = self.last_pos().txid;
        while let Some((entry, _)) = self.entry(at)? {
            if entry.pre == checksum && checksum.is_valid() {
                return Ok(Some(entry.pre()));
            }
            at = entry.min.prev();
        }
        Ok(None)
    }

    /// The records after `pos` up to the newest at this moment, oldest first; `None` when the log does not contain `pos`.
    ///
    /// # Errors
    /// An index cannot be read.
    pub fn after(self: &Arc<Self>, pos: Pos) -> io::Result<Option<Records>> {
        let end = self.last_pos();
        if end == pos || self.contains(pos)? {
            return Ok(Some(Records { log: self.clone(), at: pos, end: end.txid }));
        }
        Ok(None)
    }
}

/// Reads the index of a segment that is not the active one; it must lead to where the next one starts.
fn load(segment: &Segment, end: Pos) -> io::Result<SealedIndex> {
    let file = Arc::new(File::open(&segment.path)?);
    let entries = if segment.is_legacy() {
        legacy::read_entry(&segment.path)?.map(|(_, entry)| entry).into_iter().collect()
    } else {
        let scan = segment::scan(&file, false)?;
        if scan.gap_before.is_some() {
            return Err(damaged(format_args!("records of {} do not connect", segment.path.display())));
        }
        scan.entries
    };
    let complete = entries.first().is_some_and(|entry| entry.pre() == segment.first.pre())
        && entries.last().is_some_and(|entry| entry.post() == end);
    if !complete {
        return Err(damaged(format_args!("records of {} are missing", segment.path.display())));
    }
    Ok(SealedIndex { path: segment.path.clone(), file, entries })
}

fn read_image(file: &File, entry: &Entry) -> io::Result<Bytes> {
    let len = usize::try_from(entry.len).map_err(damaged)?;
    let mut bytes = vec![0; len];
    os::read_or_zero_at(file, &mut bytes, entry.offset)?;
    if entry.crc.is_some_and(|crc| crc != segment::crc(&bytes)) {
        return Err(damaged(format_args!("record {}-{}", entry.min, entry.max)));
    }
    Ok(Bytes::from(bytes))
}

impl RecordBody {
    /// Length of the image in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Whether there is nothing, which no LTX file is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the image from its beginning. Buffer it.
    #[must_use]
    pub fn reader(&self) -> RecordReader<'_> {
        RecordReader { body: self, at: 0 }
    }
}

/// Reads a record's image; see [`RecordBody::reader`].
#[derive(Debug)]
pub struct RecordReader<'a> {
    body: &'a RecordBody,
    at: u64,
}

impl io::Read for RecordReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.body.len() - self.at;
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = match self.body {
            RecordBody::Memory(bytes) => {
                // The image is in memory, so its length fits.
                let start = usize::try_from(self.at).unwrap_or(bytes.len());
                buffer[..count].copy_from_slice(&bytes[start..start + count]);
                count
            }
            RecordBody::File { file, offset, .. } => file.read_at(&mut buffer[..count], offset + self.at)?,
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// Records of a log, in order; see [`Log::after`].
#[derive(Debug)]
pub struct Records {
    log: Arc<Log>,
    at: Pos,
    end: Txid,
}

impl Records {
    /// Ends with `txid` at the latest.
    #[must_use]
    pub fn until(mut self, txid: Txid) -> Self {
        self.end = self.end.min(txid);
        self
    }
}

impl Iterator for Records {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at.txid >= self.end {
            return None;
        }
        let record = match self.log.read(self.at.txid.next()) {
            Ok(Some(record)) => record,
            Ok(None) => {
                self.at.txid = self.end;
                return Some(Err(io::Error::new(io::ErrorKind::NotFound, "the record is no longer in the log")));
            }
            Err(error) => {
                self.at.txid = self.end;
                return Some(Err(error));
            }
        };
        self.at = record.post;
        Some(Ok(record))
    }
}
