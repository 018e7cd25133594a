//! Checkpoints in the background (ENGINE "Owning checkpoints"): clients never do one in a commit's path.
//!
//! The WAL is not restarted here: when every frame is in the database file and no reader uses the WAL, the next writer
//! restarts it by itself. For that the checkpoint has to catch up with a writer that never pauses. Taking WRITE would answer it
//! with BUSY; instead the last frames are copied in an instant without any transaction, with READ1…READ4 held: SQLite
//! then tries to begin its next transaction again and again (for up to 10 s), without an error.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::Database;
use super::links::ShmLink;
use crate::kernel::FileKind;
use crate::os;
use crate::sqlite::locks::{self, LockBytes, LockGuard, LockKind, READERS};
use crate::sqlite::page::{lock_page, page_offset};
use crate::sqlite::wal::{FRAME_HEADER_LEN, frame_offset};
use crate::sqlite::wal_index::READ_MARK_NOT_USED;
use crate::sqlite::wal_index::header::IndexHeader;

/// Bytes of frames that are not in the database file yet from which on a checkpoint is worth its syncs: a writer's own syncs wait for
/// them at the disk. Four times SQLite's default of 1000 pages of 4 KiB, as here no commit waits for all of it.
const CHECKPOINT_BYTES: u32 = 16 << 20;
/// The same in frames, whatever the size of a page.
const CHECKPOINT_FRAMES: RangeInclusive<u32> = 1000..=4000;
/// How long a checkpoint waits for SHARED on the database: a client that closes or switches modes has it to itself.
const SHARED_WAIT: Duration = Duration::from_millis(20);
/// How long catching up waits for an instant without a transaction.
const GAP_WAIT: Duration = Duration::from_millis(3);
/// The same once the WAL has grown beyond [`checkpoint_frames`] because there was none.
const GAP_WAIT_LARGE: Duration = Duration::from_millis(15);
/// Transactions are kept out for the last few frames only: they wait meanwhile, and SQLite gives up after 10 s. The larger the WAL
/// has grown under writers that never pause, the longer a wait it is worth: this share of its frames, within the bounds.
const GAP_SHARE: u32 = 4;
const GAP_FRAMES_MIN: u32 = 256;
const GAP_BYTES_MAX: u32 = 64 << 20;
/// Nor on a machine where a pass (with its syncs) takes longer than this.
const PASS_TIME_MAX: Duration = Duration::from_secs(1);
/// Passes to come close enough to the writer.
const PASSES_MAX: usize = 4;
/// READ1…READ4: held by every transaction that looks at frames.
const FRAME_READERS: LockBytes = LockBytes { start: 124, len: 4 };
/// Pages written (and pushed to the kernel's cache) in one go.
const RUN_BYTES_MAX: usize = 256 << 10;

/// Whether transactions may go on during a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readers {
    /// Readers and a writer may be at work.
    Present,
    /// The caller holds READ1…READ4 on the action's descriptor, so nobody is.
    KeptOut,
}

/// How a checkpoint went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checkpointed {
    /// Every committed frame is in the database file.
    Complete,
    /// Some are; readers, or a writer that went on, keep the rest.
    Partial,
    /// Somebody is in the way, or there is no readable wal-index.
    Busy,
}

/// How many frames that are not in the database file yet make a checkpoint worth it.
pub(crate) fn checkpoint_frames(page_size: u32) -> u32 {
    (CHECKPOINT_BYTES / page_size.max(1)).clamp(*CHECKPOINT_FRAMES.start(), *CHECKPOINT_FRAMES.end())
}

impl Database {
    /// Copies committed and captured frames to the database file. Blocking; readers and writers go on.
    ///
    /// # Errors
    /// Capture, reading the WAL, writing or syncing the database file. Nothing is lost: it is done again.
    pub(crate) fn checkpoint(&self) -> io::Result<Checkpointed> {
        let _action = self.action.lock();
        for _ in 0..PASSES_MAX {
            let start = Instant::now();
            let done = self.checkpoint_once()?;
            let slow = start.elapsed() > PASS_TIME_MAX;
            let Some(shm) = self.shm() else { return Ok(done) };
            if done != Checkpointed::Partial || self.is_fenced() {
                return Ok(done);
            }
            // The next pass has less to do: only what came during this one.
            if slow || !is_near_the_end(&shm)? {
                continue;
            }
            let Some(_gap) = wait_for_gap(&shm)? else { return Ok(done) };
            if is_near_the_end(&shm)? {
                return self.checkpoint_pass(Readers::KeptOut);
            }
        }
        Ok(Checkpointed::Partial)
    }

    /// One pass while readers and writers go on; the caller holds [`Self::action`].
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub(crate) fn checkpoint_once(&self) -> io::Result<Checkpointed> {
        self.checkpoint_pass(Readers::Present)
    }

    fn checkpoint_pass(&self, readers: Readers) -> io::Result<Checkpointed> {
        let Some(shm) = self.shm() else { return Ok(Checkpointed::Busy) };
        let Some(database) = self.links.lock().database.clone() else { return Ok(Checkpointed::Busy) };
        let Some(_shared) = LockGuard::shared_db(&database.action, SHARED_WAIT)? else {
            return Ok(Checkpointed::Busy);
        };
        let Some(_dms) = LockGuard::try_new(&shm.link.action, locks::DMS, LockKind::Shared)? else {
            return Ok(Checkpointed::Busy);
        };
        if shm.index.read_header()?.is_none() || !shm.take_checkpoints()? {
            return Ok(Checkpointed::Busy);
        }
        let captured = {
            let mut state = self.capture.lock();
            self.capture_wal(&mut state)?;
            state.wal.current
        };
        let Some(header) = shm.index.read_header()?.filter(|header| header.salt == captured.salt) else {
            return Ok(Checkpointed::Busy);
        };
        let Some(before) = shm.index.checkpoint_info()? else { return Ok(Checkpointed::Busy) };
        let safe = make_readers_safe(&shm, captured.frame.min(header.mx_frame), readers)?;
        if before.backfill >= safe {
            return how_far(&shm);
        }
        // Readers that use only the database file are kept out while it changes.
        let Some(_read0) = LockGuard::try_new(&shm.link.action, locks::read(0), LockKind::Exclusive)? else {
            return Ok(Checkpointed::Partial);
        };
        let unchanged = shm.index.read_header()?.is_some_and(|now| now.salt == header.salt)
            && shm.index.checkpoint_info()?.is_some_and(|now| now.backfill == before.backfill);
        if !unchanged {
            return Ok(Checkpointed::Busy);
        }
        self.backfill(&shm, &header, before.backfill, safe)?;
        how_far(&shm)
    }

    /// Writes frames `after + 1 … safe` to the database file and says so in the index. The caller holds CKPT and READ0.
    fn backfill(&self, shm: &ShmLink, header: &IndexHeader, after: u32, safe: u32) -> io::Result<()> {
        let Some(wal) = self.files.wal()? else { return Ok(()) };
        let database = self.files.database()?;
        shm.index.set_backfill_attempted(safe)?;
        // From here on recovery may need the frames that the database file is made from, and their records.
        os::sync_data("wal.sync", &wal)?;
        self.sync_log()?;
        let mut pages = Vec::with_capacity((safe - after) as usize);
        let skipped = lock_page(header.page_size);
        for frame in after + 1..=safe {
            let pgno = shm.index.page_of(frame)?;
            if pgno != 0 && pgno != skipped && pgno <= header.page_count {
                pages.push((pgno, frame));
            }
        }
        pages.sort_unstable_by_key(|(pgno, frame)| (*pgno, u32::MAX - *frame));
        pages.dedup_by_key(|(pgno, _)| *pgno);
        let before = database.metadata()?.len();
        self.write_pages(&wal, &database, header.page_size, &pages)?;
        let now = database.metadata()?.len();
        if let Some(kernel) = self.shared.kernel().filter(|_| now != before) {
            kernel.invalidate(&self.name, FileKind::Database, now);
        }
        // Only while nobody has committed behind us: a later transaction may have grown the database again.
        let size = u64::from(header.page_count) * u64::from(header.page_size);
        if shm.index.read_header()?.is_some_and(|now| now == *header)
            && safe == header.mx_frame
            && database.metadata()?.len() > size
        {
            os::set_len("database.truncate", &database, size)?;
            if let Some(kernel) = self.shared.kernel() {
                kernel.cut(&self.name, size);
            }
        }
        os::sync_data("database.sync", &database)?;
        shm.index.set_backfill(safe)
    }

    /// Copies pages out of their frames, neighbouring pages in one write.
    fn write_pages(&self, wal: &File, database: &File, page_size: u32, pages: &[(u32, u32)]) -> io::Result<()> {
        let kernel = self.shared.kernel();
        let page_bytes = page_size as usize;
        let run_pages_max = (RUN_BYTES_MAX / page_bytes).max(1);
        let mut buffer = Vec::new();
        let mut rest = pages;
        while let Some(&(first, _)) = rest.first() {
            let run = rest.iter().zip(first..).take_while(|((pgno, _), next)| pgno == next).count().min(run_pages_max);
            let (now, later) = rest.split_at(run);
            buffer.resize(run * page_bytes, 0);
            for ((_, frame), page) in now.iter().zip(buffer.chunks_exact_mut(page_bytes)) {
                wal.read_exact_at(page, frame_offset(*frame, page_size) + FRAME_HEADER_LEN as u64)?;
            }
            let offset = page_offset(first, page_size);
            os::write_all_at("database.write", database, &buffer, offset)?;
            if buffer.len() == RUN_BYTES_MAX {
                // There may be more like it: the sync at the end waits for less.
                os::start_writing_back(database, offset, buffer.len() as u64);
            }
            self.push_to_cache(kernel.as_deref(), offset, &buffer);
            rest = later;
        }
        Ok(())
    }

    /// Makes the kernel's cache of the database file show what was just written to the backing file.
    pub(crate) fn push_to_cache(&self, kernel: Option<&dyn crate::Kernel>, offset: u64, data: &[u8]) {
        let Some(kernel) = kernel else { return };
        if let Err(error) = kernel.store(&self.name, offset, data) {
            tracing::debug!(database = %self.name, %error, "push pages to the kernel's cache; invalidating instead");
            kernel.invalidate(&self.name, FileKind::Database, offset);
        }
    }
}

/// Frames that are committed and not in the database file at this instant; as good as infinite when that cannot be told.
fn how_many_left(shm: &ShmLink) -> io::Result<u32> {
    let (header, info) = (shm.index.read_header()?, shm.index.checkpoint_info()?);
    Ok(header.zip(info).map_or(u32::MAX, |(header, info)| header.mx_frame.saturating_sub(info.backfill)))
}

/// Whether so little is left that transactions may be kept out for it.
fn is_near_the_end(shm: &ShmLink) -> io::Result<bool> {
    let Some(header) = shm.index.read_header()? else { return Ok(false) };
    let most = (GAP_BYTES_MAX / header.page_size.max(1)).max(GAP_FRAMES_MIN);
    Ok(how_many_left(shm)? <= (header.mx_frame / GAP_SHARE).clamp(GAP_FRAMES_MIN, most))
}

/// Whether the checkpoint has caught up with the writers of this instant.
fn how_far(shm: &ShmLink) -> io::Result<Checkpointed> {
    Ok(if how_many_left(shm)? == 0 { Checkpointed::Complete } else { Checkpointed::Partial })
}

/// Catches an instant without any transaction, and keeps new ones from beginning while the guard lives.
fn wait_for_gap(shm: &ShmLink) -> io::Result<Option<LockGuard>> {
    let large =
        shm.index.read_header()?.is_some_and(|header| header.mx_frame / 3 * 2 > checkpoint_frames(header.page_size));
    let (start, wait) = (Instant::now(), if large { GAP_WAIT_LARGE } else { GAP_WAIT });
    while start.elapsed() < wait {
        if let Some(gap) = LockGuard::try_new(&shm.link.action, FRAME_READERS, LockKind::Exclusive)? {
            return Ok(Some(gap));
        }
        // Gaps last microseconds: whoever yields misses them.
        std::hint::spin_loop();
    }
    Ok(None)
}

/// How many of the frames up to `frame` no reader can still need from the database file's older state; moves the marks of
/// readers that are not there.
fn make_readers_safe(shm: &ShmLink, frame: u32, readers: Readers) -> io::Result<u32> {
    if readers == Readers::KeptOut {
        shm.index.set_read_mark(1, frame)?;
        (2..READERS).try_for_each(|mark| shm.index.set_read_mark(mark, READ_MARK_NOT_USED))?;
        return Ok(frame);
    }
    let mut safe = frame;
    let Some(info) = shm.index.checkpoint_info()? else { return Ok(0) };
    for mark in 1..READERS {
        if info.read_marks[mark] >= safe {
            continue;
        }
        match LockGuard::try_new(&shm.link.action, locks::read(mark), LockKind::Exclusive)? {
            Some(_held) => {
                let value = if mark == 1 { safe } else { READ_MARK_NOT_USED };
                shm.index.set_read_mark(mark, value)?;
            }
            None => safe = info.read_marks[mark],
        }
    }
    Ok(safe)
}
