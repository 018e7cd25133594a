//! Room in the WAL ahead of a writer that syncs its commits.
//!
//! An `fdatasync` of a file that has grown commits the file system's journal; of one that was only overwritten it does not,
//! which takes less than half the time. So where clients sync, zeros are appended to the WAL ahead of them: written ones,
//! because what is only allocated (`fallocate`) changes the file's metadata when it is first written. To whoever reads the WAL,
//! SQLite or ourselves, a frame of zeros is no frame: its page number is 0, its salts and checksum are wrong.
//!
//! The zeros go behind the file's end as it is at that instant, in one step of the kernel (`RWF_APPEND`); so they never cover a
//! frame that is being written meanwhile, and no lock is needed.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Database;
use crate::os;
use crate::sqlite::wal::frame_offset;

/// A WAL with fewer bytes of frames is left alone: a database that is seldom written shall not take more room.
const USED_BYTES_MIN: u64 = 32 << 10;
/// Less room than this behind the last commit is extended. (The commit that is being synced is not in the index yet, so its own
/// frames count as room.)
const ROOM_BYTES_MIN: u64 = 256 << 10;
/// Bytes appended at once: as many as the WAL's frames take, within these bounds.
const EXTENSION_BYTES: std::ops::RangeInclusive<u64> = 2 * ROOM_BYTES_MIN..=1 << 20;
/// Nothing is appended where less than this is free: the last bytes of a disk are for data.
const FREE_BYTES_MIN: u64 = if cfg!(test) { 1 } else { 256 << 20 };

/// How long the WAL may be made.
#[derive(Debug)]
pub(crate) struct WalRoom {
    /// In bytes; less than everything once a client cut the WAL (`journal_size_limit`), or the disk was full.
    limit: AtomicU64,
}

impl Default for WalRoom {
    fn default() -> Self {
        Self { limit: AtomicU64::new(u64::MAX) }
    }
}

impl WalRoom {
    /// A new WAL.
    pub(crate) fn reset(&self) {
        self.limit.store(u64::MAX, Ordering::Relaxed);
    }

    /// The WAL shall not be extended beyond `len` again.
    pub(crate) fn limit(&self, len: u64) {
        // To 0 it is cut by checkpoints; that says nothing of the length that is wanted.
        if len > 0 {
            self.limit.fetch_min(len, Ordering::Relaxed);
        }
    }
}

impl Database {
    /// Appends zeros when the writer, whose commit is about to be synced, comes near the end of the file. Best effort: it only
    /// makes later commits faster.
    pub(super) fn make_wal_room(&self, wal: &File) {
        if let Err(error) = self.try_make_wal_room(wal) {
            tracing::debug!(database = %self.name, %error, "extend the WAL; it grows by each commit instead");
            self.wal_room.limit(1);
        }
    }

    fn try_make_wal_room(&self, wal: &File) -> io::Result<()> {
        let limit = self.wal_room.limit.load(Ordering::Relaxed);
        let Some(shm) = self.shm() else { return Ok(()) };
        let Some(header) = shm.index.read_header()? else { return Ok(()) };
        let used = frame_offset(header.mx_frame.saturating_add(1), header.page_size);
        let len = wal.metadata()?.len();
        if used < USED_BYTES_MIN || used > len || len - used >= ROOM_BYTES_MIN {
            return Ok(());
        }
        let extension = used.clamp(*EXTENSION_BYTES.start(), *EXTENSION_BYTES.end());
        if len.saturating_add(extension) > limit || os::free_bytes(wal)? < FREE_BYTES_MIN {
            return Ok(());
        }
        os::append("wal.extend", wal, &vec![0; usize::try_from(extension).unwrap_or(0)])
    }
}
