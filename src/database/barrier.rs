//! The capture barrier (ENGINE "Never miss a transaction"): before a client's operation can make a committed frame vanish,
//! everything committed is captured. And clients that keep their wal-index to themselves.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::links::ShmLink;
use super::wal_capture::{Generation, Looked, Lookup};
use super::{CaptureState, Database};
use crate::Pos;
use crate::kernel::FileKind;
use crate::os;
use crate::sqlite::locks::{self, LockGuard, LockKind};
use crate::sqlite::wal::{FRAME_HEADER_LEN, FrameHeader, Salt, WalHeader, WalWalk, frame_offset};
use crate::sqlite::wal_index::header::IndexHeader;

/// How long the barrier waits for a wal-index that is being written. Only a writer in its last instant, or a recovery,
/// makes it unreadable; neither waits for us.
const UNREADABLE_WAIT: Duration = Duration::from_millis(200);
/// A WAL that was not written for so long has no frame under way.
const SETTLED: Duration = Duration::from_secs(1);
/// File times may be this coarse (a tick of the kernel is 4 to 10 ms).
const TIMESTAMP_GRAIN: Duration = Duration::from_millis(50);
const UNREADABLE_PAUSE: Duration = Duration::from_micros(50);

/// Which ends of transactions count where only the frames themselves tell: SQLite before 3.51 may leave them without a checksum
/// for ever, or for the moment until it comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// All: the client that writes the WAL waits for us.
    All,
    /// Only those that are [proven](WalWalk::only_proven): it may be writing at this instant.
    Proven,
}

impl Database {
    /// Captures every committed frame, whoever keeps the wal-index. Afterwards the WAL may be overwritten, cut or unlinked.
    /// In a hook: the client that does it waits.
    ///
    /// # Errors
    /// Reading the WAL, writing the log: then the operation must not be let through.
    pub(crate) fn capture_barrier(&self, state: &mut CaptureState) -> io::Result<()> {
        self.capture_committed(state, Ends::All)
    }

    /// As [`Self::capture_barrier`], for anybody at any time.
    ///
    /// # Errors
    /// As there.
    pub(super) fn capture_committed(&self, state: &mut CaptureState, ends: Ends) -> io::Result<()> {
        let start = Instant::now();
        while self.capture_wal(state)? == Looked::Unreadable {
            let wait = self.shm().is_some() && !self.heap_client()?;
            if !wait {
                // Nobody shares an index: what SQLite's recovery would find is what is committed.
                return self.capture_by_walking(state, ends);
            }
            if start.elapsed() > UNREADABLE_WAIT {
                return self.capture_by_newest_copy(state, ends);
            }
            std::thread::sleep(UNREADABLE_PAUSE);
        }
        self.capture_heap_index(state, ends).map(|_| ())
    }

    /// The wal-index's header stays half written: its writer sleeps, or was killed, between the two copies. SQLite writes the
    /// second one first, when all frames and their entries are there; so the newest valid copy says what is committed, whichever
    /// way that writer ends.
    fn capture_by_newest_copy(&self, state: &mut CaptureState, ends: Ends) -> io::Result<()> {
        let Some(shm) = self.shm() else { return self.capture_by_walking(state, ends) };
        let copies = shm.index.header_words()?.unwrap_or_default();
        let [first, second] = copies.map(|copy| IndexHeader::decode(&copy));
        let newest = match (first, second) {
            // Of two generations the second copy's is the one that begins.
            (Some(first), Some(second)) if first.salt == second.salt && first.mx_frame > second.mx_frame => Some(first),
            (first, second) => second.or(first),
        };
        match newest {
            Some(header) => self.capture_up_to(state, &header, &Lookup::Index(&shm)).map(|_| ()),
            None => self.capture_by_walking(state, ends),
        }
    }

    /// The position, if it can be told at once that everything committed is captured: WAL mode, and the wal-index stands where
    /// capture stopped. Never waits for a lock; a few reads from the page cache. `None`: ask [`Self::position_now`].
    #[must_use]
    pub fn position_if_current(&self) -> Option<Pos> {
        if !self.is_live() || (!self.shared.is_replica() && !self.shared.may_commit()) {
            return None;
        }
        let state = self.capture.try_lock()?;
        let header = self.shm()?.index.read_header().ok()??;
        let wal = self.files.wal().ok()??;
        let is_current =
            state.wal.current.ends_at(&header) && !state.rollback.is_pending() && !frame_follows(&wal, &state).ok()?;
        is_current.then_some(state.pos)
    }

    /// Captures what a client with `locking_mode=EXCLUSIVE` committed: it keeps the wal-index in its heap, and an index in
    /// the shm, if there is one, is stale.
    ///
    /// # Errors
    /// As [`Self::capture_wal`].
    pub(super) fn capture_heap_index(&self, state: &mut CaptureState, ends: Ends) -> io::Result<Looked> {
        let Some(wal) = self.files.wal()? else { return Ok(Looked::Nothing) };
        if !frame_follows(&wal, state)? || !self.heap_client()? {
            return Ok(Looked::Nothing);
        }
        let before = state.pos;
        self.capture_by_walking(state, ends)?;
        if state.pos == before {
            return Ok(Looked::Nothing);
        }
        if let Some(shm) = self.shm() {
            invalidate_stale(&shm)?;
        }
        Ok(Looked::Captured)
    }

    /// A client opens a shm that we have attached already. If it is the first one to use it, SQLite's protocol would have it
    /// rebuild the index; with our hold on DMS it cannot know that it is first. So an index that does not describe the WAL
    /// (an exclusive client went on without it) is made invalid for it. But where the index only lacks the last frames, it is
    /// continued: SQLite before 3.51 leaves frames that the index alone vouches for, and a client's recovery would stop there
    /// and lose every commit behind.
    ///
    /// # Errors
    /// Asking for locks, reading the WAL.
    pub(crate) fn check_reopened_index(&self, shm: &ShmLink) -> io::Result<()> {
        if self.is_fenced() || locks::holder(&shm.link.fence, locks::DMS, LockKind::Exclusive)?.is_some() {
            return Ok(());
        }
        if self.relation_to_wal(shm)? == IndexRelation::Describes {
            return Ok(());
        }
        let Some(kernel) = self.shared.kernel() else { return Ok(()) };
        // A descriptor of its own: this is a hook, the other two belong to actions and the fence.
        let file = Arc::new(kernel.open(&self.name, FileKind::Shm)?);
        if os::known_ino(&file)? != os::known_ino(&shm.link.fence)? {
            return Ok(());
        }
        // Somebody who writes now has seen to it; and what was read while somebody wrote need not fit together.
        let Some(_write) = LockGuard::try_new(&file, locks::WRITE, LockKind::Exclusive)? else { return Ok(()) };
        match (self.relation_to_wal(shm)?, self.files.wal()?) {
            (IndexRelation::Describes, _) => Ok(()),
            (IndexRelation::Behind, Some(wal)) => self.continue_index(shm, &wal),
            _ => invalidate_stale(shm),
        }
    }

    /// What the index knows of the WAL; an unreadable one is its next user's business.
    fn relation_to_wal(&self, shm: &ShmLink) -> io::Result<IndexRelation> {
        let Some(header) = shm.index.read_header()? else { return Ok(IndexRelation::Describes) };
        let Some(wal) = self.files.wal()? else {
            return Ok(if header.mx_frame == 0 { IndexRelation::Describes } else { IndexRelation::Stale });
        };
        match index_relation(&header, &wal)? {
            IndexRelation::Restarted if !frame_follows(&wal, &self.capture.lock())? => Ok(IndexRelation::Describes),
            relation => Ok(relation),
        }
    }

    /// Enters the whole transactions that lie behind the index's last frame, as their writer was about to do when it was killed.
    /// The caller holds WRITE.
    fn continue_index(&self, shm: &ShmLink, wal: &File) -> io::Result<()> {
        let (Some(index), Some(header)) = (shm.index.read_header()?, WalHeader::read(wal)?) else { return Ok(()) };
        if header.salt != index.salt {
            return Ok(());
        }
        let chain = if index.mx_frame == 0 { header.checksum } else { index.frame_checksum };
        let mut walk = WalWalk::resume(wal, header, index.mx_frame, chain);
        let mut pages = Vec::new();
        while let Some((frame, head, _)) = walk.next_frame()? {
            pages.push(head.pgno);
            if head.commit == 0 {
                continue;
            }
            let first = frame + 1 - u32::try_from(pages.len()).unwrap_or(frame);
            for (frame, pgno) in (first..).zip(pages.drain(..)) {
                shm.index.append(frame, pgno)?;
            }
            let change = shm.index.read_header()?.map_or(index.change, |header| header.change).wrapping_add(1);
            let (page_size, page_count) = (header.page_size, head.commit);
            let continued =
                IndexHeader { change, page_size, mx_frame: frame, page_count, frame_checksum: head.checksum, ..index };
            shm.index.write_header(&continued)?;
            tracing::debug!(database = %self.name, frame, "continued the wal-index of a killed writer");
        }
        Ok(())
    }

    /// Whether somebody has the database to itself.
    fn exclusive_client(&self) -> io::Result<bool> {
        let Some(link) = self.links.lock().database.clone() else { return Ok(false) };
        let holder = locks::holder(&link.action, locks::SHARED, LockKind::Shared)?;
        Ok(holder.is_some_and(|holder| holder.kind == LockKind::Exclusive))
    }

    /// Whether a client keeps the wal-index in its heap: it has the database to itself, and nobody has the shm open. (The last one to
    /// close takes EXCLUSIVE as well, but its index is in the shm; frames that this does not know are of a writer that was killed.)
    fn heap_client(&self) -> io::Result<bool> {
        if !self.exclusive_client()? {
            return Ok(false);
        }
        // Whoever has the shm open holds DMS.
        let Some(shm) = self.shm() else { return Ok(true) };
        Ok(locks::holder(&shm.link.fence, locks::DMS, LockKind::Exclusive)?.is_none())
    }

    /// The shm is about to be unlinked by the last client that closes, and everything that it knows of is captured: whatever else is in the
    /// WAL, which goes next, is not committed.
    pub(super) fn index_ends(&self, state: &mut CaptureState) -> io::Result<()> {
        state.wal.ended = match self.files.wal()? {
            Some(wal) => Some(WalFile::of(&wal.metadata()?)?),
            None => None,
        };
        Ok(())
    }

    /// Captures along the WAL's checksum chain, from the last captured frame on; for a client with its index in its heap also what lies
    /// behind gaps in it.
    fn capture_by_walking(&self, state: &mut CaptureState, ends: Ends) -> io::Result<()> {
        let Some(wal) = self.files.wal()? else { return Ok(()) };
        let Some(header) = WalHeader::read(&wal)? else { return Ok(()) };
        let metadata = wal.metadata()?;
        let at = generation(state, &header).copied().unwrap_or_default();
        let stamp = WalStamp::take(&metadata, &at)?;
        let is_fruitless = stamp.is_some() && stamp == state.wal.fruitless;
        if is_fruitless || state.wal.ended == Some(WalFile::of(&metadata)?) {
            return Ok(());
        }
        let walk = if at.frame == 0 || !is_unchanged(&wal, &header, &at)? {
            WalWalk::resume(&wal, header, 0, header.checksum)
        } else {
            let chain = at.chain.unwrap_or_else(|| FrameHeader::parse(&at.last_header).checksum);
            WalWalk::resume(&wal, header, at.frame, chain)
        };
        // The client's own index knows these frames, whatever its version forgot to write into them.
        let mut walk = if self.heap_client()? { walk.crossing_gaps() } else { walk };
        let all = ends == Ends::All || age(&metadata)? > SETTLED;
        if !all {
            walk = walk.only_proven();
        }
        let prefix = walk.valid_prefix()?;
        if prefix.mx_frame == 0 {
            state.wal.fruitless = stamp.filter(|_| all);
            return Ok(());
        }
        let index = IndexHeader {
            change: 0,
            big_endian_checksums: header.big_endian_checksums,
            page_size: header.page_size,
            mx_frame: prefix.mx_frame,
            page_count: prefix.page_count,
            frame_checksum: prefix.checksum,
            salt: header.salt,
        };
        self.capture_up_to(state, &index, &Lookup::Frames).map(|_| ())
    }
}

/// A WAL's file, to see whether it was written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalFile {
    ino: u64,
    len: u64,
    modified: SystemTime,
}

impl WalFile {
    fn of(metadata: &Metadata) -> io::Result<Self> {
        Ok(Self { ino: metadata.ino(), len: metadata.len(), modified: metadata.modified()? })
    }
}

/// By which a WAL that was walked in vain is known again: what a large transaction left that was not committed need not be read
/// for every page that a client moves to the database file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalStamp {
    file: WalFile,
    salt: Salt,
    captured: u32,
}

impl WalStamp {
    /// `None` when the last write was so short ago that another one may leave the same time.
    fn take(wal: &Metadata, captured: &Generation) -> io::Result<Option<Self>> {
        let stamp = Self { file: WalFile::of(wal)?, salt: captured.salt, captured: captured.frame };
        Ok((age(wal)? > TIMESTAMP_GRAIN).then_some(stamp))
    }
}

/// How long ago the file was written; 0 when the clock was set back since.
fn age(metadata: &Metadata) -> io::Result<Duration> {
    Ok(SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default())
}

/// Nobody uses this index, and it is out of date: the next client shall rebuild it.
fn invalidate_stale(shm: &ShmLink) -> io::Result<()> {
    shm.index.invalidate()?;
    shm.release_checkpoints()
}

/// What an index knows of a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IndexRelation {
    /// It is the index of this WAL, which has no whole transaction behind the index's last frame.
    Describes,
    /// It is, but there are whole transactions behind.
    Behind,
    /// It begins the generation after the one in the WAL, and nothing of that is written yet.
    Restarted,
    /// It is another WAL's.
    Stale,
}

fn index_relation(index: &IndexHeader, wal: &File) -> io::Result<IndexRelation> {
    let Some(header) = WalHeader::read(wal)? else {
        return Ok(if index.mx_frame == 0 { IndexRelation::Describes } else { IndexRelation::Stale });
    };
    if header.salt != index.salt {
        let restarted = index.mx_frame == 0 && index.salt[0] == header.salt[0].wrapping_add(1);
        return Ok(if restarted { IndexRelation::Restarted } else { IndexRelation::Stale });
    }
    let chain = if index.mx_frame == 0 { header.checksum } else { index.frame_checksum };
    let behind = WalWalk::resume(wal, header, index.mx_frame, chain).valid_prefix()?;
    Ok(if behind.mx_frame <= index.mx_frame { IndexRelation::Describes } else { IndexRelation::Behind })
}

fn generation<'a>(state: &'a CaptureState, header: &WalHeader) -> Option<&'a Generation> {
    [&state.wal.current, &state.wal.previous].into_iter().find(|generation| generation.salt == header.salt)
}

/// Whether the last captured frame is still the one that was captured.
fn is_unchanged(wal: &File, header: &WalHeader, at: &Generation) -> io::Result<bool> {
    let mut bytes = [0; FRAME_HEADER_LEN];
    match wal.read_exact_at(&mut bytes, frame_offset(at.frame, header.page_size)) {
        Ok(()) => Ok(bytes == at.last_header),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a frame of the WAL's generation lies behind the last captured one. A cheap "no" for the ordinary case.
pub(super) fn frame_follows(wal: &File, state: &CaptureState) -> io::Result<bool> {
    let Some(header) = WalHeader::read(wal)? else { return Ok(false) };
    let captured = generation(state, &header).map_or(0, |generation| generation.frame);
    let mut bytes = [0; FRAME_HEADER_LEN];
    match wal.read_exact_at(&mut bytes, frame_offset(captured.saturating_add(1), header.page_size)) {
        Ok(()) => {
            let head = FrameHeader::parse(&bytes);
            Ok(head.salt == header.salt || head.is_unsealed())
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
