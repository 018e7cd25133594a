//! A consistent view of a database at one position, while writers go on: what snapshots and exports read.
//!
//! In WAL mode it is a SQLite reader: SHARED on the database and a READ lock keep the frames and pages it needs where they
//! are. In rollback mode a reader keeps writers out, so the file is copied first (a clone where the file system can) and the
//! lock given back before the first byte is sent to a slow receiver.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::links::ShmLink;
use super::wal_capture::Looked;
use super::{CaptureState, Database, Health, PageSource};
use crate::kernel::{FileKind, Kernel};
use crate::os;
use crate::sqlite::locks::{self, LockGuard, LockKind, READERS};
use crate::sqlite::page::{lock_page, page_offset};
use crate::sqlite::wal::{FRAME_HEADER_LEN, WalWalk, frame_offset};
use crate::sqlite::wal_index::READ_MARK_NOT_USED;
use crate::{Checksum, Pos};

/// Neighbouring pages of the database file are read together up to this many bytes.
const READ_BYTES_MAX: usize = 256 << 10;
/// How long to wait before looking again at a wal-index that is being written.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// Pages and position of a database at one moment. Dropped, it lets go of its locks.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) pos: Pos,
    pub(crate) page_size: u32,
    /// Pages, the lock page included; 0 for a deleted database.
    pub(crate) page_count: u32,
    /// `None` for a deleted database.
    database: Option<Arc<File>>,
    frames: Frames,
    /// `database` is a file of its own.
    is_copy: bool,
    /// Hold the view in place.
    _locks: Vec<LockGuard>,
}

/// Where the latest version of a page is.
#[derive(Debug)]
enum Frames {
    /// All in the database file.
    None,
    /// As the shared wal-index says, within these frames.
    Index { wal: Arc<File>, shm: Arc<ShmLink>, first: u32, last: u32 },
    /// As found by reading the WAL: nobody has it open.
    Map { wal: Arc<File>, frames: HashMap<u32, u32> },
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what.to_owned())
}

impl Database {
    /// Takes a view, waiting at most `wait` for writers in rollback mode and for the wal-index to be readable.
    ///
    /// # Errors
    /// `TimedOut`; `InvalidData` when the database is broken; reading; a full disk, when the file has to be copied.
    pub(crate) fn view(&self, wait: Duration) -> io::Result<View> {
        if let Health::Broken(reason) = self.health() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        if !self.is_live() {
            return self.view_of_deleted();
        }
        let deadline = Instant::now() + wait;
        let Some(kernel) = self.shared.kernel() else { return self.view_alone() };
        let link = Arc::new(kernel.open(&self.name, FileKind::Database)?);
        let held = || timed_out("a writer keeps the database locked; try again");
        let shared = LockGuard::shared_db(&link, wait)?.ok_or_else(held)?;
        loop {
            let view = match self.shm() {
                Some(shm) => self.view_by_index(&*kernel, &shm)?,
                None if self.files.exists(FileKind::Wal) => None,
                None => Some(self.view_of_file()?),
            };
            if let Some(mut view) = view {
                // A copy is independent: writers may go on.
                if !view.is_copy {
                    view._locks.push(shared);
                }
                return Ok(view);
            }
            if Instant::now() >= deadline {
                return Err(timed_out(
                    "the WAL is not readable (a client keeps it to itself, or recovers it); try again",
                ));
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    fn view_of_deleted(&self) -> io::Result<View> {
        let pos = self.capture.lock().pos;
        let Some(header) = self.log.last_header() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the database has no transaction yet"));
        };
        let (page_size, frames) = (header.page_size, Frames::None);
        Ok(View { pos, page_size, page_count: 0, database: None, frames, is_copy: true, _locks: Vec::new() })
    }

    fn view_in(&self, state: &CaptureState, frames: Frames, locks: Vec<LockGuard>) -> io::Result<View> {
        if state.page_size == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the database has no transaction yet"));
        }
        Ok(View {
            pos: state.pos,
            page_size: state.page_size,
            page_count: state.checksums.page_count(),
            database: Some(self.files.database()?),
            frames,
            is_copy: false,
            _locks: locks,
        })
    }

    /// As a reader of the WAL. `None`: the index cannot be read at this instant.
    fn view_by_index(&self, kernel: &dyn Kernel, shm: &Arc<ShmLink>) -> io::Result<Option<View>> {
        // Locks on a description of its own: the engine's others give theirs back whenever they are done.
        let link = match kernel.open(&self.name, FileKind::Shm) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => Arc::new(other?),
        };
        let mut state = self.capture.lock();
        if self.capture_wal(&mut state)? == Looked::Unreadable {
            return Ok(None);
        }
        let (Some(header), Some(info)) = (shm.index.read_header()?, shm.index.checkpoint_info()?) else {
            return Ok(None);
        };
        let captured = state.wal.current;
        if header.mx_frame != 0 && (captured.frame != header.mx_frame || captured.salt != header.salt) {
            return Ok(None);
        }
        let all_in_database = info.backfill >= header.mx_frame;
        let lock = if all_in_database {
            LockGuard::try_new(&link, locks::read(0), LockKind::Shared)?
        } else {
            lock_mark(shm, &link, header.mx_frame)?
        };
        let Some(lock) = lock else { return Ok(None) };
        // Between the look and the lock the WAL may have been restarted.
        let unchanged = shm
            .index
            .read_header()?
            .is_some_and(|now| now.salt == header.salt && (now.mx_frame == header.mx_frame || !all_in_database));
        if !unchanged {
            return Ok(None);
        }
        if all_in_database {
            return self.view_in(&state, Frames::None, vec![lock]).map(Some);
        }
        let Some(wal) = self.files.wal()? else { return Ok(None) };
        let first = shm.index.checkpoint_info()?.map_or(0, |info| info.backfill) + 1;
        let frames = Frames::Index { wal, shm: shm.clone(), first, last: header.mx_frame };
        self.view_in(&state, frames, vec![lock]).map(Some)
    }

    /// In rollback mode, under SHARED: a copy of the file; without room for one the file itself, and writers wait.
    fn view_of_file(&self) -> io::Result<View> {
        // What was committed without a journal is captured only when somebody looks.
        self.position_now()?;
        let mut view = {
            let state = self.capture.lock();
            self.view_in(&state, Frames::None, Vec::new())?
        };
        match self.copy_of_file() {
            Ok(copy) => {
                view.database = Some(Arc::new(copy));
                view.is_copy = true;
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                tracing::warn!(database = %self.name, %error, "no room for a copy; writers wait until it is sent");
            }
            Err(error) => return Err(error),
        }
        Ok(view)
    }

    /// A private copy of the database file, without a name.
    fn copy_of_file(&self) -> io::Result<File> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // In the log's directory, where a left-over with this ending is removed.
        let path = self.files.dir().join("log").join(format!("{}-view-{number}.spool", std::process::id()));
        let copy = os::open_or_create("view.copy", &path)?;
        fs::remove_file(&path)?;
        os::copy_file("view.copy", &File::open(self.files.path(FileKind::Database))?, &copy)?;
        Ok(copy)
    }

    /// Without a mount: no client can write.
    fn view_alone(&self) -> io::Result<View> {
        let state = self.capture.lock();
        let captured = state.wal.current;
        let frames = match self.files.wal()? {
            Some(wal) if captured.frame > 0 => {
                let frames = frames_up_to(&wal, captured.frame)?;
                Frames::Map { wal, frames }
            }
            _ => Frames::None,
        };
        self.view_in(&state, frames, Vec::new())
    }
}

/// Takes a READ lock whose mark keeps every frame up to `last` readable: no checkpoint goes beyond it, no restart happens.
fn lock_mark(shm: &ShmLink, link: &Arc<File>, last: u32) -> io::Result<Option<LockGuard>> {
    let marks = |mark: usize| -> io::Result<u32> {
        Ok(shm.index.checkpoint_info()?.map_or(READ_MARK_NOT_USED, |info| info.read_marks[mark]))
    };
    for mark in 1..READERS {
        if marks(mark)? == last
            && let Some(lock) = LockGuard::try_new(link, locks::read(mark), LockKind::Shared)?
            && marks(mark)? == last
        {
            return Ok(Some(lock));
        }
    }
    for mark in 1..READERS {
        if let Some(lock) = LockGuard::try_new(link, locks::read(mark), LockKind::Exclusive)? {
            shm.index.set_read_mark(mark, last)?;
            locks::try_lock(link, locks::read(mark), LockKind::Shared)?;
            return Ok(Some(lock));
        }
    }
    // All are in use by readers of older snapshots: the highest of them protects ours as well.
    for mark in 1..READERS {
        if let Some(lock) = LockGuard::try_new(link, locks::read(mark), LockKind::Shared)?
            && marks(mark)? <= last
        {
            return Ok(Some(lock));
        }
    }
    Ok(None)
}

/// The latest frame of each page up to `last`.
fn frames_up_to(wal: &File, last: u32) -> io::Result<HashMap<u32, u32>> {
    let mut frames = HashMap::new();
    let Some(mut walk) = WalWalk::start(wal)? else { return Ok(frames) };
    while let Some((frame, head, _)) = walk.next_frame()? {
        if frame > last {
            break;
        }
        frames.insert(head.pgno, frame);
    }
    Ok(frames)
}

impl Frames {
    fn find(&self, pgno: u32) -> io::Result<Option<u32>> {
        match self {
            Self::None => Ok(None),
            Self::Index { shm, first, last, .. } => shm.index.find(pgno, *first, *last),
            Self::Map { frames, .. } => Ok(frames.get(&pgno).copied()),
        }
    }

    fn wal(&self) -> Option<&File> {
        match self {
            Self::None => None,
            Self::Index { wal, .. } | Self::Map { wal, .. } => Some(wal),
        }
    }
}

impl View {
    /// Its pages in order, without the lock page.
    pub(crate) fn pages(&self) -> ViewPages<'_> {
        ViewPages { view: self, next: 1, buffer: Vec::new(), first: 0, held: 0 }
    }

    /// Reads one page into `page`, which has the size of one.
    pub(crate) fn read_page(&self, pgno: u32, page: &mut [u8]) -> io::Result<()> {
        if let (Some(frame), Some(wal)) = (self.frames.find(pgno)?, self.frames.wal()) {
            return wal.read_exact_at(page, frame_offset(frame, self.page_size) + FRAME_HEADER_LEN as u64);
        }
        match &self.database {
            Some(database) => os::read_or_zero_at(database, page, page_offset(pgno, self.page_size)),
            None => Ok(()),
        }
    }

    /// The error for a view that turned out not to be what its position says.
    pub(crate) fn wrong_checksum(&self, actual: Checksum) -> io::Error {
        let reason = format!("the pages read have checksum {actual}, not that of position {}; try again", self.pos);
        io::Error::new(io::ErrorKind::InvalidData, reason)
    }
}

/// See [`View::pages`].
pub(crate) struct ViewPages<'a> {
    view: &'a View,
    next: u32,
    /// A run of pages out of the database file: its first page, and how many it holds.
    buffer: Vec<u8>,
    first: u32,
    held: u32,
}

impl ViewPages<'_> {
    /// Reads the page, and the ones behind it as long as they are in the database file too.
    fn read(&mut self, pgno: u32) -> io::Result<()> {
        let View { page_size, page_count, frames, database, .. } = self.view;
        let size = *page_size as usize;
        self.first = pgno;
        self.held = 1;
        if let (Some(frame), Some(wal)) = (frames.find(pgno)?, frames.wal()) {
            self.buffer.resize(size, 0);
            return wal.read_exact_at(&mut self.buffer, frame_offset(frame, *page_size) + FRAME_HEADER_LEN as u64);
        }
        let most = u32::try_from(READ_BYTES_MAX / size).unwrap_or(1).min(page_count - pgno + 1);
        while self.held < most && frames.find(pgno + self.held)?.is_none() {
            self.held += 1;
        }
        self.buffer.resize(self.held as usize * size, 0);
        match database {
            Some(database) => os::read_or_zero_at(database, &mut self.buffer, page_offset(pgno, *page_size)),
            None => Ok(()),
        }
    }
}

impl PageSource for ViewPages<'_> {
    fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
        if self.next == lock_page(self.view.page_size) {
            self.next += 1;
        }
        if self.next > self.view.page_count {
            return Ok(None);
        }
        let pgno = self.next;
        self.next += 1;
        if pgno < self.first || pgno >= self.first + self.held {
            self.read(pgno)?;
        }
        let size = self.view.page_size as usize;
        let at = (pgno - self.first) as usize * size;
        Ok(Some((pgno, &self.buffer[at..at + size])))
    }
}
