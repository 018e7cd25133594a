//! Where a database's files lie, and the engine's own descriptors on them.
//!
//! All engine I/O on contents goes to these *backing* files, never through the mount (ENGINE "Never wait on our own
//! mount"). Only locks and the wal-index use the mount's inodes ([`super::links`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::kernel::{FileKind, Layout};
use crate::os;

/// The backing files of one database.
#[derive(Debug)]
pub(crate) struct Files {
    /// `<data>/dbs/<name>`.
    dir: PathBuf,
    layout: Layout,
    /// The database file stays open for the life of the [`super::Database`]; it is created with it.
    database: Mutex<Option<Arc<File>>>,
    /// A leaf, as `database`: opened when first needed, forgotten when the file is unlinked.
    wal: Mutex<Option<Arc<File>>>,
    /// A leaf, as `wal`.
    journal: Mutex<Option<Arc<File>>>,
}

impl Files {
    pub(crate) fn new(dir: PathBuf, layout: Layout) -> Self {
        Self { dir, layout, database: Mutex::new(None), wal: Mutex::new(None), journal: Mutex::new(None) }
    }

    /// The database's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of one of its files.
    pub(crate) fn path(&self, kind: FileKind) -> PathBuf {
        self.dir.join(self.layout.file_name(kind))
    }

    /// Whether the file exists.
    pub(crate) fn exists(&self, kind: FileKind) -> bool {
        self.path(kind).exists()
    }

    /// The inode number of a file.
    pub(crate) fn inode(&self, kind: FileKind) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path(kind))?.ino())
    }

    /// The database file, created when it is missing.
    pub(crate) fn database(&self) -> io::Result<Arc<File>> {
        let mut slot = self.database.lock();
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let file = Arc::new(os::open_or_create("database.create", &self.path(FileKind::Database))?);
        *slot = Some(file.clone());
        Ok(file)
    }

    /// The WAL when there is one.
    pub(crate) fn wal(&self) -> io::Result<Option<Arc<File>>> {
        let mut slot = self.wal.lock();
        if slot.is_none() {
            *slot = match File::options().read(true).write(true).open(self.path(FileKind::Wal)) {
                Ok(file) => Some(Arc::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        Ok(slot.clone())
    }

    /// The rollback journal. Only its creation may create it: a journal that came into being by itself would be hot.
    pub(crate) fn journal(&self, create: bool) -> io::Result<Arc<File>> {
        let mut slot = self.journal.lock();
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let path = self.path(FileKind::Journal);
        let file = if create {
            os::open_or_create("journal.create", &path)?
        } else {
            File::options().read(true).write(true).open(path)?
        };
        let file = Arc::new(file);
        *slot = Some(file.clone());
        Ok(file)
    }

    /// Unlinks a file and forgets its descriptor.
    pub(crate) fn remove(&self, kind: FileKind) -> io::Result<()> {
        let label = match kind {
            FileKind::Database => "database.unlink",
            FileKind::Journal => "journal.unlink",
            FileKind::Wal => "wal.unlink",
            FileKind::Shm => "shm.unlink",
        };
        os::remove_file(label, &self.path(kind))?;
        self.forget(kind);
        Ok(())
    }

    /// Forgets the descriptor of a file that was replaced or unlinked.
    pub(crate) fn forget(&self, kind: FileKind) {
        match kind {
            FileKind::Database => *self.database.lock() = None,
            FileKind::Wal => *self.wal.lock() = None,
            FileKind::Journal => *self.journal.lock() = None,
            FileKind::Shm => {}
        }
    }
}
