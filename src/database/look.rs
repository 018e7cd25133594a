//! What the background threads ask of a database.

use super::barrier::Ends;
use super::checkpoint::checkpoint_frames;
use super::wal_capture::Looked;
use super::{Database, Health};
use std::io;

impl Database {
    /// Captures what is committed, without waiting for anybody; whether that was something.
    pub(crate) fn look_for_commits(&self) -> bool {
        // Behind a closed fence only the engine writes.
        if !self.is_live() || self.is_fenced() || matches!(self.health(), Health::Broken(_)) {
            return false;
        }
        // Whoever holds the lock is capturing.
        let Some(mut state) = self.capture.try_lock() else { return false };
        let before = state.pos;
        let result = self.capture_wal(&mut state).and_then(|looked| {
            if looked != Looked::Captured {
                self.capture_heap_index(&mut state, Ends::Proven)?;
                self.capture_unjournaled(&mut state, super::rollback::Moment::Sweep)?;
            }
            Ok(())
        });
        let captured = state.pos != before;
        drop(state);
        self.note_outcome("capture", result.as_ref().err());
        if captured && self.shm().is_some_and(|shm| !shm.owns_checkpoints()) {
            // At once: from their 1000th frame on clients take it by turns, and hardly let go of it under load.
            let tended = self.tend_checkpoint_lock();
            self.note_outcome("tend the checkpoint lock", tended.as_ref().err());
        }
        captured
    }

    /// Frames that are committed and not in the database file yet.
    pub(crate) fn checkpoint_backlog(&self) -> u32 {
        self.backlog().map_or(0, |(frames, _)| frames)
    }

    /// Whether that many have come together that they should be, while writers go on.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.backlog().is_some_and(|(frames, page_size)| frames >= checkpoint_frames(page_size))
    }

    /// Frames that are not in the database file, and their page size; `None` without a readable wal-index.
    fn backlog(&self) -> Option<(u32, u32)> {
        let shm = self.shm()?;
        let (header, info) = (shm.index.read_header().ok()??, shm.index.checkpoint_info().ok()??);
        Some((header.mx_frame.saturating_sub(info.backfill), header.page_size))
    }

    /// Owns CKPT unless a client has to recover the wal-index and needs it: clients that get the lock checkpoint, each in the path of
    /// its commit.
    pub(crate) fn tend_checkpoint_lock(&self) -> io::Result<()> {
        let Some(shm) = self.shm() else { return Ok(()) };
        // A checkpoint that is running owns it.
        let Some(_action) = self.action.try_lock() else { return Ok(()) };
        if shm.index.read_header()?.is_some() {
            shm.take_checkpoints().map(|_| ())
        } else if self.is_fenced() {
            // Nobody else can rebuild it while we hold WRITE.
            self.rebuild_if_unreadable(&shm, &shm.write_index())
        } else if shm.needs_recovery()? {
            shm.release_checkpoints()
        } else {
            Ok(())
        }
    }

    /// Drops old records from the log.
    pub(crate) fn retain_log(&self, before_ms: u64) {
        let result = self.log.retain(before_ms);
        if let Ok(reaped) = &result {
            self.metrics.reaped.inc_by(reaped.transactions);
        }
        self.note_outcome("retention", result.as_ref().err());
    }
}
