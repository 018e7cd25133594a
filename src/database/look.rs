//! What the background threads ask of a database.

use super::barrier::Ends;
use super::wal_capture::Looked;
use super::{Database, Health};
use crate::sqlite::wal_index::header::IndexHeader;
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
        let Some(shm) = self.shm() else { return 0 };
        let (Ok(Some(header)), Ok(Some(info))) = (shm.index.read_header(), shm.index.checkpoint_info()) else {
            return 0;
        };
        let IndexHeader { mx_frame, .. } = header;
        mx_frame.saturating_sub(info.backfill)
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
