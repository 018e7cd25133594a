//! Appending records, sealing segments, making them durable.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::segment::{self, FRAME_BYTES, SEGMENT_HEADER_BYTES};
use super::{Appender, Entry, Last, Log, MEMORY_RECORD_BYTES_MAX, SEGMENT_BYTES, Segment, Spool, State};
use crate::ltx::{HEADER_BYTES, Header, Image};
use crate::{Checksum, Pos, Txid, os};

/// Zeros written behind the end of the active segment in one go, in bytes: see [`Log::make_room`].
const ROOM_BYTES: usize = if cfg!(test) { 8 << 10 } else { 128 << 10 };
/// With less room than this, more is made.
const ROOM_BYTES_MIN: u64 = ROOM_BYTES as u64 / 8;

/// Where the next record goes.
struct Target {
    file: Arc<File>,
    /// Of its frame, in bytes.
    offset: u64,
    /// Number and path when the segment is new, and not part of the log before its first record is written.
    created: Option<(u64, PathBuf)>,
}

impl Log {
    /// Appends a record with one write. It is visible to readers at once and durable after [`Log::sync`].
    ///
    /// # Errors
    /// `InvalidInput` when it does not continue the log; else writing failed (`ENOSPC`, …) and the log is as before.
    pub fn append(&self, image: &Image) -> io::Result<()> {
        self.append_one(&mut self.appender.lock(), image)
    }

    /// Appends records, each of which follows the one before; small ones with one write, and all of them or none.
    ///
    /// # Errors
    /// As [`Log::append`]. Of large records the first ones may have been appended.
    pub fn append_all(&self, images: &[Image]) -> io::Result<()> {
        let mut appender = self.appender.lock();
        let are_small = images.iter().all(|image| image.bytes.len() as u64 <= MEMORY_RECORD_BYTES_MAX);
        if images.len() > 1 && are_small && !images.iter().any(|image| image.header.is_snapshot()) {
            return self.append_together(&mut appender, images);
        }
        images.iter().try_for_each(|image| self.append_one(&mut appender, image))
    }

    fn append_together(&self, appender: &mut Appender, images: &[Image]) -> io::Result<()> {
        let [first, others @ ..] = images else { return Ok(()) };
        self.check_continues(&first.header)?;
        let follow = images.windows(2).all(|pair| pair[0].post() == pair[1].header.pre());
        if !follow {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "records to append do not follow each other"));
        }
        let target = self.target(&first.header)?;
        let mut offset = target.offset;
        let mut entries = Vec::with_capacity(images.len());
        appender.buffer.clear();
        for image in images {
            let entry = entry_at(offset, image);
            put_record(&mut appender.buffer, &entry, &image.bytes);
            offset = entry.end();
            entries.push(entry);
        }
        if let Err(error) = os::write_all_at("log.append", &target.file, &appender.buffer, target.offset) {
            let _ = os::set_len("log.truncate", &target.file, target.offset);
            return Err(error);
        }
        appender.give_back();
        self.add(target, first, entries[0]);
        for (image, entry) in others.iter().zip(&entries[1..]) {
            let mut state = self.state.lock();
            state.extend(*entry);
            state.append(image, entry);
        }
        Ok(())
    }

    fn append_one(&self, appender: &mut Appender, image: &Image) -> io::Result<()> {
        self.check_continues(&image.header)?;
        let target = self.target(&image.header)?;
        let entry = entry_at(target.offset, image);
        if let Err(error) = write_record(&mut appender.buffer, &target, &entry, &image.bytes) {
            // What is there is no record; that it also looks like the end of the file is for the eye only.
            let _ = os::set_len("log.truncate", &target.file, target.offset);
            return Err(error);
        }
        self.add(target, image, entry);
        Ok(())
    }

    /// A record has been written: it is part of the log.
    fn add(&self, target: Target, image: &Image, entry: Entry) {
        match target.created {
            Some((sequence, path)) => self.activate(sequence, path, target.file, image.header, entry),
            None => self.state.lock().extend(entry),
        }
        self.state.lock().append(image, &entry);
    }

    /// Makes a record that was written to a spool part of the log, without copying it. The spool must hold a valid LTX
    /// file: the caller has written or verified it.
    ///
    /// # Errors
    /// As [`Log::append`]; also `InvalidInput` when the spool has no whole header and trailer.
    pub fn adopt(&self, mut spool: Spool) -> io::Result<Pos> {
        let _appender = self.appender.lock();
        spool.flush()?;
        let (header, post) = spool.ends()?;
        self.check_continues(&header)?;
        self.give_room_back()?;
        self.sync()?;
        let sequence = self.state.lock().next_sequence;
        let path = self.segment_path(sequence);
        let (file, entry) = spool.into_segment(sequence, &header, post, &path)?;
        self.activate(sequence, path, file, header, entry);
        {
            let mut state = self.state.lock();
            if header.is_snapshot() {
                state.cache.clear();
            }
            state.last = Some(Last { header, post });
        }
        Ok(Pos::new(header.max_txid, post))
    }

    /// Writes zeros where the next records go, for a caller that syncs every record: a record that overwrites them is durable
    /// in half the time, as the file's length stays. Best effort; a scan takes zeros for the segment's end.
    pub fn make_room(&self) {
        let _appender = self.appender.lock();
        let (file, end) = {
            let state = self.state.lock();
            match (state.segments.back(), &state.active_file) {
                (Some(segment), Some(file)) if !segment.is_legacy() && segment.len < SEGMENT_BYTES => {
                    (file.clone(), segment.len)
                }
                _ => return,
            }
        };
        let made = file.metadata().and_then(|metadata| {
            let len = metadata.len();
            if len >= end + ROOM_BYTES_MIN {
                return Ok(());
            }
            os::write_all_at("log.room", &file, &vec![0; ROOM_BYTES], len)
                .inspect_err(|_| _ = os::set_len("log.truncate", &file, len))
        });
        if let Err(error) = made {
            tracing::debug!(dir = %self.dir.display(), %error, "make room in the log; syncs take longer");
        }
    }

    /// Makes every record appended so far durable. Appends go on meanwhile.
    ///
    /// # Errors
    /// `fdatasync` failed. The records stay readable, but are not counted as durable until a later sync succeeds.
    pub fn sync(&self) -> io::Result<()> {
        let _syncing = self.syncing.lock();
        let (file, last, directory_changed) = {
            let state = self.state.lock();
            let last = state.last.as_ref().map_or(Txid::ZERO, |last| last.header.max_txid);
            if last == state.synced {
                return Ok(());
            }
            (state.active_file.clone(), last, state.directory_changed)
        };
        // Segments before the active one were synced when it was started.
        if let Some(file) = file {
            os::sync_data("log.sync", &file)?;
        }
        if directory_changed {
            self.state.lock().directory_changed = false;
            if let Err(error) = os::sync_dir("log.sync_dir", &Self::segments_dir(&self.dir)) {
                self.state.lock().directory_changed = true;
                return Err(error);
            }
        }
        self.state.lock().synced = last;
        Ok(())
    }

    /// Cuts what [`Self::make_room`] wrote off the active segment, which is about to be sealed.
    fn give_room_back(&self) -> io::Result<()> {
        let (file, end) = {
            let state = self.state.lock();
            match (state.segments.back(), &state.active_file) {
                (Some(segment), Some(file)) if !segment.is_legacy() => (file.clone(), segment.len),
                _ => return Ok(()),
            }
        };
        if file.metadata()?.len() > end { os::set_len("log.truncate", &file, end) } else { Ok(()) }
    }

    fn check_continues(&self, header: &Header) -> io::Result<()> {
        self.check_readable()?;
        let last = self.last_pos();
        if header.is_snapshot() || last.is_zero() || header.pre() == last {
            return Ok(());
        }
        let problem = format!("record {} follows {}, the log ends at {last}", header.file_name(), header.pre());
        Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
    }

    /// The end of the active segment; a new segment when that is full or missing, or a snapshot comes. The old one is
    /// made durable first: only the last segment is checked for torn records when the log is opened.
    fn target(&self, header: &Header) -> io::Result<Target> {
        if !header.is_snapshot() {
            let state = self.state.lock();
            if let (Some(segment), Some(file)) = (state.segments.back(), &state.active_file)
                && segment.len < SEGMENT_BYTES
                && !segment.is_legacy()
            {
                return Ok(Target { file: file.clone(), offset: segment.len, created: None });
            }
        }
        self.give_room_back()?;
        self.sync()?;
        let sequence = self.state.lock().next_sequence;
        let path = self.segment_path(sequence);
        let file = os::open_or_create("log.create", &path)?;
        // An attempt that failed may have left something in it.
        os::set_len("log.truncate", &file, 0)?;
        os::write_all_at("log.append", &file, &segment::segment_header(sequence), 0)?;
        Ok(Target { file: Arc::new(file), offset: SEGMENT_HEADER_BYTES, created: Some((sequence, path)) })
    }

    /// A new last segment with its first record.
    fn activate(&self, sequence: u64, path: PathBuf, file: Arc<File>, first: Header, entry: Entry) {
        let mut state = self.state.lock();
        state.segments.push_back(Segment { path, sequence, first, len: entry.end() });
        state.active = vec![entry];
        state.active_file = Some(file);
        state.directory_changed = true;
        state.next_sequence = sequence + 1;
    }

    /// Removes what lies before the newest snapshot record, which takes its place, and makes that durable first. Called when the
    /// record has become the database's position: until then it may be taken back. When this fails, opening the log does it.
    pub fn drop_superseded(&self) {
        let _appender = self.appender.lock();
        let useless: Vec<Segment> = {
            let mut state = self.state.lock();
            let Some(at) = state.segments.iter().rposition(|segment| segment.first.is_snapshot()) else { return };
            state.chain_start = Txid::ZERO;
            state.sealed.clear();
            state.segments.drain(..at).collect()
        };
        if useless.is_empty() {
            return;
        }
        let removed = self
            .sync()
            .and_then(|()| useless.iter().try_for_each(|segment| os::remove_file("log.remove", &segment.path)));
        if let Err(error) = removed {
            tracing::warn!(dir = %self.dir.display(), %error, "remove log segments superseded by a snapshot; the next start does it");
        }
    }
}

impl State {
    /// One more record in the active segment.
    fn extend(&mut self, entry: Entry) {
        self.active.push(entry);
        if let Some(segment) = self.segments.back_mut() {
            segment.len = entry.end();
        }
    }

    /// The newest record.
    fn append(&mut self, image: &Image, entry: &Entry) {
        if image.header.is_snapshot() {
            self.cache.clear();
        }
        self.cache.push(entry.min, image.bytes.clone());
        self.last = Some(Last { header: image.header, post: entry.post });
    }
}

impl Appender {
    /// Keeps no more than an ordinary record needs.
    fn give_back(&mut self) {
        if self.buffer.capacity() as u64 > MEMORY_RECORD_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }
}

fn write_record(buffer: &mut Vec<u8>, target: &Target, entry: &Entry, image: &[u8]) -> io::Result<()> {
    if entry.len > MEMORY_RECORD_BYTES_MAX {
        // The frame last: without it the record does not exist.
        os::write_all_at("log.append", &target.file, image, entry.offset)?;
        // The segment will soon be full, and synced.
        os::start_writing_back(&target.file, entry.offset, entry.len);
        return os::write_all_at("log.append", &target.file, &frame_of(entry, image), target.offset);
    }
    buffer.clear();
    put_record(buffer, entry, image);
    os::write_all_at("log.append", &target.file, buffer, target.offset)
}

fn put_record(buffer: &mut Vec<u8>, entry: &Entry, image: &[u8]) {
    buffer.extend_from_slice(&frame_of(entry, image));
    buffer.extend_from_slice(image);
}

fn frame_of(entry: &Entry, image: &[u8]) -> [u8; FRAME_BYTES] {
    segment::frame(entry.len, entry.post, entry.crc.unwrap_or(0), &image[..HEADER_BYTES])
}

/// The entry of a record whose frame will be at `offset`.
fn entry_at(offset: u64, image: &Image) -> Entry {
    Entry {
        min: image.header.min_txid,
        max: image.header.max_txid,
        pre: image.header.pre_apply,
        post: image.trailer.post_apply,
        offset: offset + FRAME_BYTES as u64,
        len: image.bytes.len() as u64,
        crc: Some(segment::crc(&image.bytes)),
    }
}

/// The entry of a record that has a segment for itself.
pub(super) fn entry_of(header: &Header, post: Checksum, len: u64, crc: u64) -> Entry {
    Entry {
        min: header.min_txid,
        max: header.max_txid,
        pre: header.pre_apply,
        post,
        offset: SEGMENT_HEADER_BYTES + FRAME_BYTES as u64,
        len,
        crc: Some(crc),
    }
}
