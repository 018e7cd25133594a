//! Opening the log: find the segments, scan the active one, cut a torn tail.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::segment::{self, Scan};
use super::{Appender, Cache, Entry, Last, Log, Segment, State, legacy};
use crate::{Pos, Txid, os};

/// What opening the log found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opened {
    /// Bytes behind the last whole record that were cut off.
    pub torn_bytes: u64,
    /// A damaged record was left out: the newest records start after it; before it the log ended here.
    pub gap_after: Option<Pos>,
    /// Files that are not part of the log (damaged, not connected).
    pub ignored_files: usize,
}

impl Log {
    /// Opens (or creates) the log of the database in `dir`.
    ///
    /// A torn record at the end is cut. Records behind a damaged one are kept: [`Opened::gap_after`] says where the run
    /// before it ended, for a recovery that cannot use the newer run ([`Log::truncate_after`]).
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn open(dir: &Path) -> io::Result<(Self, Opened)> {
        let segments_dir = Self::segments_dir(dir);
        if !segments_dir.exists() {
            fs::create_dir_all(&segments_dir)?;
            tidy(&segments_dir, os::sync_dir("log.sync_dir", dir));
        }
        Self::open_as(dir, Access::Write)
    }

    /// Opens the log to look at it: nothing is changed, not even a torn tail. It must not be written to.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn open_read_only(dir: &Path) -> io::Result<(Self, Opened)> {
        Self::open_as(dir, Access::Read)
    }

    /// Stands for a log that cannot be read: empty, and never written to.
    #[must_use]
    pub fn unreadable(dir: &Path, reason: &io::Error) -> Self {
        Self {
            dir: dir.to_owned(),
            appender: Mutex::default(),
            syncing: Mutex::default(),
            state: Mutex::new(State::empty(1)),
            unreadable: Some(reason.to_string()),
        }
    }

    fn open_as(dir: &Path, access: Access) -> io::Result<(Self, Opened)> {
        let mut opened = Opened::default();
        let mut found = segment_files(&Self::segments_dir(dir), access)?;
        let next_sequence = found.last().map_or(1, |(sequence, _)| sequence + 1);
        let active = open_active(&mut found, &mut opened, access)?;
        let mut state = State::empty(next_sequence);
        for (sequence, path) in found {
            match first_record(&path, sequence)? {
                Some((first, len)) => state.segments.push_back(Segment { path, sequence, first, len }),
                None => {
                    // Nothing before a segment that cannot be read connects to the newest record.
                    opened.ignored_files += 1 + state.segments.len();
                    state.segments.clear();
                }
            }
        }
        let log = Self {
            dir: dir.to_owned(),
            appender: Mutex::new(Appender::default()),
            syncing: Mutex::new(()),
            state: Mutex::new(state),
            unreadable: None,
        };
        log.take_over(active, &mut opened, access)?;
        Ok((log, opened))
    }

    /// Puts active segment and files of LiteFS into the state, and drops what lies before a snapshot.
    fn take_over(&self, active: Option<Active>, opened: &mut Opened, access: Access) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Some(active) = active {
            let Active { segment, file, scan } = active;
            if let Some(gap) = scan.gap_before {
                opened.gap_after = scan.entries.get(gap.wrapping_sub(1)).map(Entry::post);
                state.chain_start = scan.entries.get(gap).map_or(Txid::ZERO, |entry| entry.min);
            }
            state.last = scan.last.zip(scan.entries.last()).map(|(header, entry)| Last { header, post: entry.post });
            state.segments.push_back(segment);
            state.active = scan.entries;
            state.active_file = Some(file);
        }
        let (files, left_out) = legacy::read_dir(&self.dir.join("ltx"))?;
        opened.ignored_files += left_out;
        let connects = match (state.segments.front(), files.last()) {
            (Some(segment), Some((_, entry))) => segment.first.pre() == entry.post(),
            _ => true,
        };
        if !connects {
            opened.ignored_files += files.len();
        } else if state.segments.is_empty() {
            if let Some((segment, entry)) = files.last() {
                state.last = Some(Last { header: segment.first, post: entry.post });
                state.active = vec![*entry];
                state.active_file = Some(Arc::new(File::open(&segment.path)?));
            }
            state.segments = files.into_iter().map(|(segment, _)| segment).collect();
        } else {
            for (segment, _) in files.into_iter().rev() {
                state.segments.push_front(segment);
            }
        }
        let start = state.segments.iter().rposition(|segment| segment.first.is_snapshot()).unwrap_or(0);
        let useless: Vec<PathBuf> = state.segments.drain(..start).map(|segment| segment.path).collect();
        drop(state);
        if access == Access::Write {
            for path in useless {
                tidy(&path, os::remove_file("log.remove", &path));
            }
        }
        Ok(())
    }
}

impl State {
    fn empty(next_sequence: u64) -> Self {
        Self {
            segments: VecDeque::new(),
            active: Vec::new(),
            active_file: None,
            directory_changed: false,
            sealed: VecDeque::new(),
            last: None,
            chain_start: Txid::ZERO,
            synced: Txid::ZERO,
            next_sequence,
            cache: Cache::default(),
        }
    }
}

/// Whether opening may tidy up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Write,
    Read,
}

/// What could not be tidied up is in nobody's way: it is not part of the log, and overwritten or removed later.
fn tidy(path: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(path = %path.display(), %error, "tidy up the log");
    }
}

/// The last segment with a whole record in it.
struct Active {
    segment: Segment,
    file: Arc<File>,
    scan: Scan,
}

/// Segment files by ascending number. Left-over temporary files are removed.
fn segment_files(dir: &Path, access: Access) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && access == Access::Read => return Ok(found),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(super::spool::SUFFIX) {
            if access == Access::Write {
                tidy(&path, os::remove_file("log.remove", &path));
            }
        } else if let Some(sequence) = name.strip_suffix(".seg").and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            found.push((sequence, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Takes segments from the end of the list until one has a whole record; cuts its torn tail.
fn open_active(found: &mut Vec<(u64, PathBuf)>, opened: &mut Opened, access: Access) -> io::Result<Option<Active>> {
    while let Some((sequence, path)) = found.pop() {
        let file = File::options().read(true).write(access == Access::Write).open(&path)?;
        let len = file.metadata()?.len();
        let scan = if segment::is_segment(&file, sequence)? { segment::scan(&file, true)? } else { Scan::default() };
        let Some(first) = scan.first else {
            // Made, but nothing whole reached it before the crash.
            opened.torn_bytes += len.saturating_sub(segment::SEGMENT_HEADER_BYTES);
            if access == Access::Write {
                tidy(&path, os::remove_file("log.remove", &path));
            }
            continue;
        };
        if len > scan.end {
            if !segment::is_room(&file, scan.end, len)? {
                opened.torn_bytes += len - scan.end;
            }
            if access == Access::Write {
                tidy(&path, os::set_len("log.truncate", &file, scan.end));
            }
        }
        let segment = Segment { path, sequence, first, len: scan.end };
        return Ok(Some(Active { segment, file: Arc::new(file), scan }));
    }
    Ok(None)
}

/// The first record of a sealed segment and the file's length.
fn first_record(path: &Path, sequence: u64) -> io::Result<Option<(crate::ltx::Header, u64)>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if !segment::is_segment(&file, sequence)? {
        return Ok(None);
    }
    let first = segment::read_frame(&file, segment::SEGMENT_HEADER_BYTES, len)?;
    Ok(first.map(|(header, _)| (header, len)))
}
