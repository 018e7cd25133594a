//! An operator's decision about a broken database: what its files hold is the truth from now on. `litefs repair`.

use std::io;

use super::journal;
use crate::Pos;
use crate::database::{Database, Health};
use crate::kernel::FileKind;

impl Database {
    /// Starts history again with what the files of a broken database hold: the next TXID, as a snapshot, so that every
    /// replica takes it. The files as they were are kept under `lost+found/`. A database that is not broken is left alone.
    /// Without a mount only: nobody may have the files open.
    ///
    /// # Errors
    /// `ResourceBusy` with a mount; `InvalidData`: the file is not a SQLite database; reading, writing.
    pub fn repair(&self) -> io::Result<Pos> {
        if self.shared.kernel().is_some() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "stop the node first"));
        }
        if !matches!(self.health(), Health::Broken(_)) {
            return Ok(self.pos());
        }
        let folder = self.keep_files_aside()?;
        tracing::info!(database = %self.name, folder = %folder.display(), "kept the files as they were");
        let mut state = self.capture.lock();
        journal::roll_back(self)?;
        journal::finish(self)?;
        let found = self.examine(None)?;
        if found.base.page_size == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not a SQLite database: import one"));
        }
        if let Some(wal) = &found.wal {
            wal.checkpoint(&*self.files.database()?, 0, &found.commits[found.last()])?;
        }
        self.files.remove(FileKind::Wal)?;
        state.pos = self.log.last_pos();
        state.checksums.clear();
        // No page size at all: another one than before makes the record a snapshot under the next TXID.
        state.page_size = u32::from(!state.pos.is_zero());
        self.set_healthy();
        let recorded = self.record_file(&mut state, found.base.page_size, false);
        if state.page_size != found.base.page_size {
            self.set_broken("what its files hold could not be recorded; free disk space and repair again".into());
            return Err(io::Error::new(io::ErrorKind::StorageFull, "record what the files hold"));
        }
        recorded.map(|()| state.pos)
    }
}
