//! Inodes of the main mount that have a backing file, and the table of those the kernel knows.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use fuser::BackingId;
use litefs::{Database, DbName, FileKind};
use parking_lot::{Mutex, RwLock};

/// The root directory's inode number.
pub const ROOT_INO: u64 = 1;
/// The alias directory's.
pub const ALIAS_INO: u64 = 2;
/// Special files are numbered from here up, files below.
pub const SPECIAL_INO: u64 = 1 << 48;

/// How the kernel does a file's I/O. All opens of one inode at one time must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoPath {
    /// Through the kernel's page cache; writes reach us at once.
    Cached,
    /// In the kernel, straight to the backing file.
    Passthrough,
    /// Every read and write reaches us.
    Direct,
}

/// What a file is to the engine.
#[derive(Clone)]
pub enum Target {
    /// Not replicated, or no longer linked: I/O goes to the backing file and nobody is told.
    Plain,
    /// A file of this database: its hooks do the I/O.
    Db(Arc<Database>, DbName, FileKind),
}

struct Link {
    /// The name in the mount; `None` once unlinked.
    name: Option<String>,
    target: Target,
}

/// An inode with a backing file.
pub struct Node {
    /// The node ID the kernel uses.
    pub ino: u64,
    /// Open for reading and writing where the file's mode allows it to us.
    pub backing: File,
    /// See [`IoPath`]. A leaf lock.
    io: Mutex<IoPath>,
    /// The kernel's handle of the backing file, made at the first passthrough open and kept while opens use it.
    pub backing_id: Mutex<Option<BackingId>>,
    link: RwLock<Link>,
}

impl Node {
    /// What the file is to the engine now.
    #[must_use]
    pub fn target(&self) -> Target {
        self.link.read().target.clone()
    }

    /// Its name, unless it is unlinked.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        self.link.read().name.clone()
    }

    /// How its I/O is done now.
    #[must_use]
    pub fn io(&self) -> IoPath {
        *self.io.lock()
    }

    /// Whether it is a rollback journal. Then only clients change it, through the kernel.
    #[must_use]
    pub fn is_journal(&self) -> bool {
        matches!(self.link.read().target, Target::Db(_, _, FileKind::Journal))
    }

    /// A journal that is opened again (`journal_mode` PERSIST or TRUNCATE) is relayed from then on: its end may be a write, which
    /// is best seen before it happens. Only while nobody has it open.
    fn relay_if_reopened_journal(&self) {
        if self.is_journal() {
            *self.io.lock() = IoPath::Cached;
        }
    }

    /// Makes an ordinary file a database file (the inode stays the same).
    pub fn promote(&self, target: Target) {
        self.link.write().target = target;
    }

    fn unlinked(&self) {
        let mut link = self.link.write();
        link.name = None;
        link.target = Target::Plain;
    }

    fn is_backed_by(&self, path: &Path) -> bool {
        let Ok(there) = std::fs::symlink_metadata(path) else { return false };
        self.backing.metadata().is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
    }
}

struct Known {
    node: Arc<Node>,
    /// References the kernel holds; it gives them back with FORGET.
    lookups: u64,
    opens: u64,
    client_opens: u64,
}

#[derive(Default)]
struct Inner {
    by_ino: HashMap<u64, Known>,
    /// Linked files only.
    by_name: HashMap<String, Arc<Node>>,
    /// Inode numbers stay the same while a name is linked, also when the kernel forgets the inode in between.
    numbers: HashMap<String, u64>,
    last_number: u64,
}

impl Inner {
    fn unlink(&mut self, name: &str) -> Option<Arc<Node>> {
        self.numbers.remove(name);
        let node = self.by_name.remove(name)?;
        node.unlinked();
        Some(node)
    }

    fn drop_if_unused(&mut self, ino: u64) {
        let unused = self.by_ino.get(&ino).is_some_and(|known| known.lookups == 0 && known.opens == 0);
        if !unused {
            return;
        }
        if let Some(known) = self.by_ino.remove(&ino)
            && let Some(name) = known.node.name()
        {
            self.by_name.remove(&name);
        }
    }
}

/// The inodes the kernel knows. Its lock is a leaf: nothing is called while it is held but `open` and `stat` of backing
/// files.
#[derive(Default)]
pub struct NodeTable {
    inner: Mutex<Inner>,
}

/// Where a name's backing file is and what it is to the engine.
pub struct Located {
    /// The name in the mount.
    pub name: String,
    /// The backing file.
    pub path: std::path::PathBuf,
    /// See [`IoPath`].
    pub io: IoPath,
    /// See [`Target`].
    pub target: Target,
}

impl NodeTable {
    /// The inode of a linked file, with one more kernel reference; opens the backing file when the kernel does not know
    /// it yet, or when the file behind the name is another one now.
    ///
    /// # Errors
    /// `NotFound` when there is no such file; whatever opening it gives.
    pub fn look_up(&self, located: &Located) -> io::Result<Arc<Node>> {
        let mut inner = self.inner.lock();
        if let Some(node) = inner.by_name.get(&located.name).cloned() {
            if node.is_backed_by(&located.path) {
                if let Some(known) = inner.by_ino.get_mut(&node.ino) {
                    known.lookups += 1;
                }
                return Ok(node);
            }
            inner.unlink(&located.name);
        }
        let backing = open_backing(&located.path)?;
        let number = inner.numbers.get(&located.name).copied();
        let ino = number.unwrap_or_else(|| {
            inner.last_number += 1;
            ALIAS_INO + inner.last_number
        });
        inner.numbers.insert(located.name.clone(), ino);
        let node = Arc::new(Node {
            ino,
            backing,
            io: Mutex::new(located.io),
            backing_id: Mutex::new(None),
            link: RwLock::new(Link { name: Some(located.name.clone()), target: located.target.clone() }),
        });
        inner.by_name.insert(located.name.clone(), Arc::clone(&node));
        inner.by_ino.insert(ino, Known { node: Arc::clone(&node), lookups: 1, opens: 0, client_opens: 0 });
        Ok(node)
    }

    /// The inode of this number.
    #[must_use]
    pub fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.inner.lock().by_ino.get(&ino).map(|known| Arc::clone(&known.node))
    }

    /// The inode of a linked name that the kernel knows.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<Arc<Node>> {
        self.inner.lock().by_name.get(name).cloned()
    }

    /// The number a linked name has or will have, for directory listings.
    pub fn number(&self, name: &str) -> u64 {
        let mut inner = self.inner.lock();
        if let Some(number) = inner.numbers.get(name) {
            return *number;
        }
        inner.last_number += 1;
        let number = ALIAS_INO + inner.last_number;
        inner.numbers.insert(name.to_owned(), number);
        number
    }

    /// The kernel gives back references.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let mut inner = self.inner.lock();
        if let Some(known) = inner.by_ino.get_mut(&ino) {
            known.lookups = known.lookups.saturating_sub(lookups);
        }
        inner.drop_if_unused(ino);
    }

    /// One more open file of this inode, which is not new.
    pub fn opened(&self, ino: u64, by_client: bool) {
        if let Some(known) = self.inner.lock().by_ino.get_mut(&ino) {
            if known.opens == 0 {
                known.node.relay_if_reopened_journal();
            }
            known.opens += 1;
            known.client_opens += u64::from(by_client);
        }
    }

    /// A client opens a file by creating it.
    pub fn created(&self, ino: u64) {
        if let Some(known) = self.inner.lock().by_ino.get_mut(&ino) {
            known.opens += 1;
            known.client_opens += 1;
        }
    }

    /// Whether a client has this inode open.
    pub fn has_clients(&self, ino: u64) -> bool {
        self.inner.lock().by_ino.get(&ino).is_some_and(|known| known.client_opens > 0)
    }

    /// One open file less. Returns the inode when this was the last one a client had open.
    pub fn released(&self, ino: u64, by_client: bool) -> Option<Arc<Node>> {
        let mut inner = self.inner.lock();
        let known = inner.by_ino.get_mut(&ino)?;
        known.opens = known.opens.saturating_sub(1);
        known.client_opens = known.client_opens.saturating_sub(u64::from(by_client));
        let last = (by_client && known.client_opens == 0).then(|| Arc::clone(&known.node));
        inner.drop_if_unused(ino);
        last
    }

    /// The name is gone: its inode lives on, unlinked, as long as it is open.
    pub fn unlink(&self, name: &str) {
        self.inner.lock().unlink(name);
    }

    /// The file behind the name may have been removed or replaced. Returns whether the kernel's idea of it was wrong.
    pub fn recheck(&self, name: &str, path: &Path) -> bool {
        let mut inner = self.inner.lock();
        match inner.by_name.get(name) {
            Some(node) if node.is_backed_by(path) => false,
            Some(_) => {
                inner.unlink(name);
                true
            }
            None => true,
        }
    }

    /// An ordinary file has a new name; what had that name before is unlinked.
    pub fn rename(&self, from: &str, to: &str) {
        let mut inner = self.inner.lock();
        inner.unlink(to);
        if let Some(number) = inner.numbers.remove(from) {
            inner.numbers.insert(to.to_owned(), number);
        }
        if let Some(node) = inner.by_name.remove(from) {
            node.link.write().name = Some(to.to_owned());
            inner.by_name.insert(to.to_owned(), node);
        }
    }
}

fn open_backing(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let open =
        |write| File::options().read(true).write(write).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    match open(true) {
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            open(false)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn located(dir: &Path, name: &str) -> Located {
        let path: PathBuf = dir.join(name);
        Located { name: name.into(), path, io: IoPath::Cached, target: Target::Plain }
    }

    #[test]
    fn an_inode_lives_until_the_kernel_forgets_it_and_keeps_its_number() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("a"), b"1").expect("write");
        let table = NodeTable::default();
        let node = table.look_up(&located(dir.path(), "a")).expect("found");
        table.opened(node.ino, true);
        table.forget(node.ino, 1);
        assert!(table.get(node.ino).is_some(), "still open");
        assert!(table.released(node.ino, true).is_some(), "last client");
        assert!(table.get(node.ino).is_none());
        assert_eq!(table.look_up(&located(dir.path(), "a")).expect("found").ino, node.ino);
    }

    #[test]
    fn a_replaced_file_is_another_inode_and_the_old_one_is_unlinked() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("a"), b"1").expect("write");
        let table = NodeTable::default();
        let old = table.look_up(&located(dir.path(), "a")).expect("found");
        std::fs::write(dir.path().join("b"), b"2").expect("write");
        std::fs::rename(dir.path().join("b"), dir.path().join("a")).expect("rename");
        let new = table.look_up(&located(dir.path(), "a")).expect("found");
        assert_ne!(old.ino, new.ino);
        assert_eq!(old.name(), None);
        assert_eq!(new.name(), Some("a".into()));
    }

    #[test]
    fn the_last_client_is_not_the_engine() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("a"), b"1").expect("write");
        let table = NodeTable::default();
        let node = table.look_up(&located(dir.path(), "a")).expect("found");
        table.opened(node.ino, false);
        table.opened(node.ino, true);
        assert!(table.released(node.ino, true).is_some());
        assert!(table.released(node.ino, false).is_none());
    }
}
