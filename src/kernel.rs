//! The seam between the engine and whoever mounts the directory.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;

use crate::name::DbName;

/// The four files of a SQLite database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// The database file itself.
    Database,
    /// The rollback journal.
    Journal,
    /// The write-ahead log.
    Wal,
    /// The shared-memory wal-index.
    Shm,
}

impl FileKind {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Database, Self::Journal, Self::Wal, Self::Shm];

    /// What SQLite appends to the database's name for this file.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Database => "",
            Self::Journal => "-journal",
            Self::Wal => "-wal",
            Self::Shm => "-shm",
        }
    }

    /// The file's name inside `<data>/dbs/<name>/` (COMPAT §2).
    #[must_use]
    pub const fn data_name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Journal => "journal",
            Self::Wal => "wal",
            Self::Shm => "shm",
        }
    }
}

/// What the engine asks of the mount. All calls may block for a moment; none may be made while holding a lock that a
/// hook of [`crate::database::Database`] takes (ENGINE "Kernel cache of the db").
pub trait Kernel: Send + Sync {
    /// Opens the very inode that clients lock and map, for the engine's own OFD locks and its mapping of the wal-index.
    ///
    /// # Errors
    /// `NotFound` when the file does not exist; whatever the open gives.
    fn open(&self, db: &DbName, kind: FileKind) -> io::Result<File>;

    /// Makes the kernel's cache of the database file show bytes just written to the backing file, growing its cached size when
    /// they end beyond it (`NOTIFY_STORE`); of many bytes that no client is there to read it may forget what it has instead. Nobody
    /// may write there meanwhile, or older bytes would cover newer ones; so never from a hook, which would have to put it off.
    ///
    /// # Errors
    /// When the kernel refuses; the caller then invalidates.
    fn store(&self, db: &DbName, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Drops cached pages and attributes of a file from `offset` on, after the engine replaced it, and after it made it longer:
    /// an answer about the length from before, still on its way to the kernel, is then not believed.
    fn invalidate(&self, db: &DbName, kind: FileKind, offset: u64);

    /// After the engine cut the database file to `len` bytes: drops what the kernel has cached behind them, and returns when the kernel
    /// takes the file to be that long.
    ///
    /// Invalidating alone leaves the kernel with the old length until somebody asks for it. A [`Self::store`] that ends before that is
    /// then no news about the length: an answer from between the cut and the store, which comes after it, is believed, clients find
    /// the file too short (`SQLITE_CORRUPT`), and what was stored behind that length is dropped, zeroed where a database page is smaller
    /// than one of the kernel's.
    fn cut(&self, db: &DbName, len: u64);

    /// Drops `len` cached bytes of the database file from `offset` on, soon: only queued, so that it may be called from a hook and
    /// with locks held. What a client writes meanwhile is not touched: the kernel reads the file again.
    fn invalidate_soon(&self, db: &DbName, offset: u64, len: u64);

    /// Forgets what the kernel knows of a name: the engine created or removed that file by itself.
    fn invalidate_entry(&self, db: &DbName, kind: FileKind);

    /// Invalidates a special file (`<db>-pos`, `.primary`, `.lag`) whose content has changed. `None`: the node's own.
    fn special_changed(&self, db: Option<&DbName>);
}

/// Says whether this node may commit at this very instant (the lease's fence, DESIGN §9).
pub trait WriteGate: Send + Sync {
    /// Whether a commit may still be acknowledged now.
    fn is_open(&self) -> bool;
}

/// How the four files of a database are named inside `<data>/dbs/<name>/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// `database`, `journal`, `wal`, `shm` (COMPAT §2): behind a mount.
    #[default]
    Data,
    /// `database`, `database-journal`, …: SQLite clients open the files where they lie, without a mount. The capture
    /// barrier is then missing; whoever uses it keeps a connection open so that no client tears the WAL down.
    Sqlite,
}

impl Layout {
    /// A file's name inside the database's directory.
    #[must_use]
    pub fn file_name(self, kind: FileKind) -> String {
        match self {
            Self::Data => kind.data_name().to_owned(),
            Self::Sqlite => format!("{}{}", FileKind::Database.data_name(), kind.suffix()),
        }
    }
}

/// A directory without a mount: clients (in tests) open the files where they lie.
#[derive(Debug, Clone)]
pub struct PlainDirectory {
    /// The directory with one folder per database, as `<data>/dbs`.
    pub dbs: PathBuf,
    /// How the files are named there.
    pub layout: Layout,
}

impl Kernel for PlainDirectory {
    fn open(&self, db: &DbName, kind: FileKind) -> io::Result<File> {
        let path = self.dbs.join(db.as_str()).join(self.layout.file_name(kind));
        OpenOptions::new().read(true).write(true).open(path)
    }

    fn store(&self, _db: &DbName, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn invalidate(&self, _db: &DbName, _kind: FileKind, _offset: u64) {}

    fn cut(&self, _db: &DbName, _len: u64) {}

    fn invalidate_soon(&self, _db: &DbName, _offset: u64, _len: u64) {}

    fn invalidate_entry(&self, _db: &DbName, _kind: FileKind) {}

    fn special_changed(&self, _db: Option<&DbName>) {}
}
