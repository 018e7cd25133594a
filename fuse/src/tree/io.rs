//! Reading, writing, truncating and syncing: through the engine's hooks for files of a database.

use std::io::{ErrorKind, Result};
use std::os::unix::fs::FileExt;

use fuser::{FileAttr, FileType};
use litefs::FileKind;

use super::Tree;
use crate::attributes::{Changes, from_metadata};
use crate::node::{Node, ROOT_INO, Target};

/// Most bytes one read of an ordinary reply holds.
pub const READ_BYTES_MAX: usize = 1 << 20;

impl Tree {
    /// Reads from the backing file into `buffer`; short only at the end of the file. Takes no lock of the engine: the
    /// kernel holds the page locked meanwhile, and the engine may be waiting for it.
    pub(crate) fn read(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match node.backing.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Writes a client's bytes; everything is told to the engine before this returns.
    pub(crate) fn write(&self, node: &Node, offset: u64, data: &[u8]) -> Result<()> {
        if matches!(node.target(), Target::Plain) {
            self.promote_by_content(node, offset, data)?;
        }
        match node.target() {
            Target::Db(database, _, FileKind::Database) => database.db_write(offset, data),
            Target::Db(database, _, FileKind::Journal) => database.journal_write(offset, data),
            // Only without passthrough; the engine watches the backing WAL, and maps the wal-index like any client.
            Target::Db(..) | Target::Plain => node.backing.write_all_at(data, offset),
        }
    }

    /// Changes a file's length.
    pub(crate) fn truncate(&self, node: &Node, len: u64) -> Result<()> {
        match node.target() {
            Target::Db(database, _, FileKind::Database) => database.db_truncate(len),
            Target::Db(database, _, FileKind::Journal) => database.journal_truncate(len),
            Target::Db(database, _, FileKind::Wal) => database.wal_truncate(len),
            Target::Db(database, _, FileKind::Shm) => database.shm_truncate(len),
            Target::Plain => node.backing.set_len(len),
        }
    }

    /// Makes a file durable.
    pub(crate) fn sync(&self, node: &Node, data_only: bool) -> Result<()> {
        match node.target() {
            Target::Db(database, _, FileKind::Database) => database.db_sync(),
            Target::Db(database, _, FileKind::Journal) => database.journal_sync(),
            Target::Db(database, _, FileKind::Wal) => database.wal_sync(),
            // The wal-index is rebuilt after a crash.
            Target::Db(_, _, FileKind::Shm) => Ok(()),
            Target::Plain if data_only => node.backing.sync_data(),
            Target::Plain => node.backing.sync_all(),
        }
    }

    /// Makes the directory durable: every backing directory in which names changed.
    pub(crate) fn sync_directory(&self) -> Result<()> {
        let directories = std::mem::take(&mut *self.unsynced.lock());
        for directory in &directories {
            let synced = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
            match synced {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    self.unsynced.lock().extend(directories);
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The attributes of a file.
    pub(crate) fn attributes(&self, node: &Node) -> Result<FileAttr> {
        Ok(from_metadata(node.ino, FileType::RegularFile, &node.backing.metadata()?))
    }

    /// The root directory's attributes.
    pub(crate) fn root_attributes(&self) -> Result<FileAttr> {
        Ok(from_metadata(ROOT_INO, FileType::Directory, &self.root.metadata()?))
    }

    /// Changes owner, mode or times of the root directory.
    pub(crate) fn change_root(&self, changes: &Changes) -> Result<()> {
        changes.apply(&self.root)
    }

    /// Room and sizes of the file system that holds the data directory.
    pub(crate) fn statistics(&self) -> Result<rustix::fs::StatVfs> {
        Ok(rustix::fs::statvfs(&self.data_dir)?)
    }
}
