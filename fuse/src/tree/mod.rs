//! The main mount's namespace and file operations, without FUSE's message format: what [`crate::main_fs`] translates to.

mod create;
mod directory;
pub(crate) mod io;
mod promote;
mod remove;
mod special;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::sync::Arc;

use litefs::{Database, DbName, FileKind, Store};
use parking_lot::Mutex;

use crate::engine_threads::{AttachGate, EngineThreads};
use crate::errno::os;
use crate::info::NodeInfo;
use crate::names::{Name, mount_name};
use crate::node::{IoPath, Located, Node, NodeTable, Target};
use crate::notifications::{Notification, Notifications};

pub use create::Creator;
pub use directory::Listings;
pub use special::Specials;

/// Handle numbers: all the kernel needs to tell us back about an open file is whose it is.
pub const HANDLE_CLIENT: u64 = 1;
/// The engine's own.
pub const HANDLE_ENGINE: u64 = 2;

/// The main mount.
pub struct Tree {
    pub(crate) store: Arc<Store>,
    info: Arc<dyn NodeInfo>,
    data_dir: PathBuf,
    dbs_dir: PathBuf,
    files_dir: PathBuf,
    /// Its owner, mode and times are those of the mount's root.
    root: File,
    control_dir: PathBuf,
    passthrough: bool,
    pub(crate) nodes: NodeTable,
    pub(crate) specials: Specials,
    pub(crate) listings: Listings,
    pub(crate) engine_threads: EngineThreads,
    pub(crate) attached: AttachGate,
    notifications: Arc<Notifications>,
    /// Backing directories with entries that are not durable yet. A leaf lock.
    unsynced: Mutex<BTreeSet<PathBuf>>,
    /// Held while an ordinary file becomes a database, is renamed or is removed. Taken before the node table's lock; the
    /// engine may open inodes while it is held.
    ordinary_files: Mutex<()>,
    /// Held while the file of a name is located and the node table then asked or changed accordingly, and while a file moves: by a
    /// location from before, the file that has the name now would be taken for a replaced one, and its inode for an unlinked one.
    /// Taken after `ordinary_files`, before the store's and the node table's locks; nothing is opened on the mount while it is held.
    places: Mutex<()>,
}

/// Where a [`Tree`] finds things.
pub struct Layout {
    /// `data.dir`.
    pub data_dir: PathBuf,
    /// Where the control mount is.
    pub control_dir: PathBuf,
    /// Whether `-wal` and `-shm` are opened with passthrough.
    pub passthrough: bool,
    /// Whose opens are the engine's.
    pub engine_threads: EngineThreads,
}

/// What opening a file decides.
pub struct Opened {
    /// The inode.
    pub node: Arc<Node>,
    /// [`HANDLE_CLIENT`] or [`HANDLE_ENGINE`].
    pub handle: u64,
}

impl Tree {
    /// Prepares the data directory for a mount.
    ///
    /// # Errors
    /// When the directory of ordinary files cannot be made.
    pub fn new(
        layout: Layout,
        store: Arc<Store>,
        info: Arc<dyn NodeInfo>,
        notifications: Arc<Notifications>,
    ) -> Result<Self> {
        let files_dir = layout.data_dir.join("files");
        if !files_dir.exists() {
            std::fs::create_dir_all(&files_dir)?;
            // As the original's mount: whoever may use the mount at all may create databases in it.
            std::fs::set_permissions(&files_dir, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        }
        let root = File::open(&files_dir)?;
        Ok(Self {
            store,
            info,
            dbs_dir: layout.data_dir.join("dbs"),
            data_dir: layout.data_dir,
            files_dir,
            root,
            control_dir: layout.control_dir,
            passthrough: layout.passthrough,
            nodes: NodeTable::default(),
            specials: Specials::default(),
            listings: Listings::default(),
            engine_threads: layout.engine_threads,
            attached: AttachGate::default(),
            notifications,
            unsynced: Mutex::default(),
            ordinary_files: Mutex::default(),
            places: Mutex::default(),
        })
    }

    /// The backing file of a database's file.
    pub(crate) fn database_path(&self, db: &DbName, kind: FileKind) -> PathBuf {
        self.dbs_dir.join(db.as_str()).join(kind.data_name())
    }

    fn file_path(&self, name: &str) -> PathBuf {
        self.files_dir.join(name)
    }

    fn database_file(&self, database: Arc<Database>, db: &DbName, kind: FileKind) -> Located {
        let io = match kind {
            FileKind::Database | FileKind::Journal => IoPath::Cached,
            FileKind::Wal | FileKind::Shm if self.passthrough => IoPath::Passthrough,
            // Without passthrough the engine appends to the WAL behind the kernel's back, so the kernel must not cache
            // it; the wal-index must be cached, because only a cached file can be mapped shared.
            FileKind::Wal => IoPath::Direct,
            FileKind::Shm => IoPath::Cached,
        };
        Located {
            name: mount_name(db, kind),
            path: self.database_path(db, kind),
            io,
            target: Target::Db(database, db.clone(), kind),
        }
    }

    fn ordinary_file(&self, name: String) -> Located {
        Located { path: self.file_path(&name), name, io: IoPath::Cached, target: Target::Plain }
    }

    /// Where the file of this name is or would be; `None` for names that have no backing file.
    fn locate(&self, name: &Name) -> Option<Located> {
        match name {
            Name::Candidate(db) => {
                if let Some(database) = self.store.database(db.as_str()) {
                    let located = self.database_file(database, db, FileKind::Database);
                    if located.path.exists() {
                        return Some(located);
                    }
                }
                Some(self.ordinary_file(db.as_str().to_owned()))
            }
            Name::Attached(db, kind) => match self.store.database(db.as_str()) {
                Some(database) => Some(self.database_file(database, db, *kind)),
                None => Some(self.ordinary_file(mount_name(db, *kind))),
            },
            Name::Ordinary(name) => Some(self.ordinary_file(name.clone())),
            Name::Special(_) | Name::Alias => None,
        }
    }

    /// Looks up a file with a backing file.
    pub(crate) fn look_up(&self, name: &Name) -> Result<Arc<Node>> {
        let _places = self.places.lock();
        let located = self.locate(name).ok_or(ErrorKind::NotFound)?;
        self.nodes.look_up(&located)
    }

    /// The inode of this number.
    pub(crate) fn node(&self, ino: u64) -> Result<Arc<Node>> {
        self.nodes.get(ino).ok_or_else(|| os(libc::ESTALE))
    }

    /// Opens an inode; the engine is told about the first opens of clients, and attaches, before this returns.
    pub(crate) fn open(&self, ino: u64, thread: u32) -> Result<Opened> {
        let node = self.node(ino)?;
        let handle = if self.engine_threads.contains(thread) { HANDLE_ENGINE } else { HANDLE_CLIENT };
        if handle == HANDLE_CLIENT {
            self.before_client_open(&node)?;
        }
        self.nodes.opened(ino, handle == HANDLE_CLIENT);
        Ok(Opened { node, handle })
    }

    fn before_client_open(&self, node: &Node) -> Result<()> {
        if !self.attached.pass() {
            return Err(Error::other("the engine is not attached to the mount"));
        }
        let Target::Db(database, _, kind) = node.target() else { return Ok(()) };
        self.store.check_open()?;
        match kind {
            FileKind::Database => database.db_opened(),
            FileKind::Shm => database.shm_opened(),
            FileKind::Journal | FileKind::Wal => Ok(()),
        }
    }

    /// An open file is gone.
    pub(crate) fn release(&self, ino: u64, handle: u64) {
        if let Some(node) = self.nodes.released(ino, handle == HANDLE_CLIENT)
            && let Target::Db(database, _, FileKind::Database) = node.target()
        {
            database.db_closed();
        }
    }

    /// Tells the kernel, soon, that a name of the mount may stand for something else now. Never blocks.
    fn forget_name(&self, name: String) {
        self.notifications.send(Notification::Entry(name));
    }

    /// The engine created or removed a database's file by itself. It may tell so late: the database may be gone by now, and an
    /// ordinary file have its name.
    pub(crate) fn recheck(&self, db: &DbName, kind: FileKind) {
        let name = mount_name(db, kind);
        {
            let _places = self.places.lock();
            if let Some(located) = self.locate(&Name::of(db.clone(), kind)) {
                self.nodes.recheck(&name, &located.path);
            }
        }
        self.forget_name(name);
    }

    fn mark_unsynced(&self, located: &Located) {
        if let Some(parent) = located.path.parent() {
            self.unsynced.lock().insert(parent.to_owned());
        }
    }
}
