//! The mark of commits that are recorded late.
//!
//! With `synchronous=OFF` a header that is zeroed (`locking_mode=EXCLUSIVE`, `journal_mode=PERSIST`) is a commit of which we hear with the
//! client's next request only ([`super::phase`]). When the node is killed before, the database file has a commit that the log lacks;
//! and with EXCLUSIVE not even the change counter tells. So before the first such client writes, the empty file `late` is put
//! beside the database: then a start in the same boot of the machine, where SQLite's files are as SQLite left them, takes the
//! file for what is committed. Where the engine itself writes the file the mark must go first: half of that is no commit.

use std::io;
use std::path::PathBuf;

use super::phase::JournalPhase;
use crate::database::{CaptureState, Database, Files};
use crate::os;

fn path(files: &Files) -> PathBuf {
    files.dir().join("late")
}

impl Database {
    /// Before a client's write to the database file: makes the mark if its commit may be seen late.
    pub(super) fn mark_late_commits(&self, state: &mut CaptureState) -> io::Result<()> {
        if matches!(state.rollback.journal, JournalPhase::Active { synced: false, .. }) && !state.rollback.marked_late {
            os::open_or_create("late.create", &path(&self.files))?;
            state.rollback.marked_late = true;
        }
        Ok(())
    }

    /// Whether the last run left the mark.
    pub(crate) fn has_late_commits(&self) -> bool {
        path(&self.files).exists()
    }

    /// Removes the mark: file and log are the same, or the file is about to be written by the engine.
    ///
    /// # Errors
    /// Removing it.
    pub(crate) fn forget_late_commits(&self) -> io::Result<()> {
        if self.has_late_commits() { os::remove_file("late.remove", &path(&self.files)) } else { Ok(()) }
    }
}
