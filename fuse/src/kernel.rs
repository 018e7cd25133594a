//! The engine's view of the mount: opening clients' inodes, and keeping the kernel's cache true.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;

use fuser::{INodeNo, Notifier};
use litefs::{DbName, FileKind, Kernel};
use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::names::{ALIAS_DIRECTORY, mount_name};
use crate::node::ROOT_INO;
use crate::notifications::{Notification, Notifications};
use crate::opener::Openers;
use crate::tree::Tree;
use crate::workers::in_handler;

/// Most bytes in one message to the kernel.
const STORE_BYTES_MAX: usize = 128 * 1024;
/// So many neighbouring bytes of a file that no client has open are not put into the kernel's cache: bulk data, which would take
/// the memory (and the time to make it) twice, for a client that may never come.
const UNREAD_BYTES_MIN: usize = 64 * 1024;

/// Sends queued notifications until the mount stops. They take the directory's and the pages' locks in the kernel, which
/// clients hold while they wait for us; this thread holds nothing that a handler needs.
pub fn run_notifier(notifier: Notifier, queue: Arc<Notifications>) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("fuse-notifier".into()).spawn(move || {
        while let Some(notification) = queue.next() {
            let sent = match &notification {
                Notification::Entry(name) => notifier.inval_entry(INodeNo(ROOT_INO), name.as_ref()),
                Notification::Inode { ino, offset, len } => {
                    notifier.inval_inode(INodeNo(*ino), signed(*offset), signed(*len))
                }
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "notify the kernel (the mount may be going away)");
            }
        }
    })
}

fn signed(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

fn store(notifier: &Notifier, ino: u64, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut at = offset;
    for chunk in data.chunks(STORE_BYTES_MAX) {
        notifier.store(INodeNo(ino), at, chunk)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

/// Instead of storing: the kernel learns of a new end by one byte, never by invalidating, and reads the file when somebody wants it.
fn drop_stored(notifier: &Notifier, ino: u64, offset: u64, data: &[u8]) -> io::Result<()> {
    let Some((last, before)) = data.split_last() else { return Ok(()) };
    notifier.store(INodeNo(ino), offset + before.len() as u64, std::slice::from_ref(last))?;
    notifier.inval_inode(INodeNo(ino), signed(offset), signed(data.len() as u64))
}

/// [`Kernel`] over the main mount.
pub struct MountKernel {
    tree: Arc<Tree>,
    notifier: Notifier,
    /// Opens through the directory itself: a walk through the root would wait for whoever creates a file there.
    alias: Mutex<Option<Arc<OwnedFd>>>,
    queue: Arc<Notifications>,
    openers: Openers,
}

impl MountKernel {
    /// The seam of the mount at `dir`, which `openers` open files of.
    ///
    /// # Errors
    /// When the mount does not answer the engine's first request.
    pub fn new(
        dir: &Path,
        tree: Arc<Tree>,
        notifier: Notifier,
        queue: Arc<Notifications>,
        openers: Openers,
    ) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let alias = OwnedFd::from(openers.open(None, &dir.join(ALIAS_DIRECTORY), flags)?);
        Ok(Self { tree, notifier, alias: Mutex::new(Some(Arc::new(alias))), queue, openers })
    }

    /// See [`Openers::waiting`].
    pub fn opens_waiting(&self) -> Arc<AtomicUsize> {
        self.openers.waiting()
    }

    /// Lets go of the mount, so that it can be unmounted.
    pub fn close(&self) {
        self.alias.lock().take();
    }

    /// The number of a file's inode, if the kernel knows it: otherwise it has nothing cached. Whoever changes a database file has it open
    /// through the mount, so the kernel knows that one: it refuses answers to look-ups that were under way as it does all others from
    /// before a change, which it would not for an inode that is new to it.
    fn known(&self, db: &DbName, kind: FileKind) -> Option<u64> {
        self.tree.nodes.by_name(&mount_name(db, kind)).map(|node| node.ino)
    }
}

impl Kernel for MountKernel {
    fn open(&self, db: &DbName, kind: FileKind) -> io::Result<File> {
        let alias = self.alias.lock().clone().ok_or(ErrorKind::NotConnected)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        self.openers.open(Some(alias.as_fd()), Path::new(&mount_name(db, kind)), flags)
    }

    fn store(&self, db: &DbName, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(ino) = self.known(db, FileKind::Database) else { return Ok(()) };
        if in_handler() {
            // The client behind this request may hold the very page locked, and put off this would cover what is written later.
            return Err(ErrorKind::WouldBlock.into());
        }
        // A client that comes between finds in the file what is written there already.
        let is_unread = data.len() >= UNREAD_BYTES_MIN && !self.tree.nodes.has_clients(ino);
        let tell = if is_unread { drop_stored } else { store };
        tell(&self.notifier, ino, offset, data)
    }

    fn invalidate(&self, db: &DbName, kind: FileKind, offset: u64) {
        let Some(ino) = self.known(db, kind) else { return };
        if in_handler() {
            self.queue.send(Notification::Inode { ino, offset, len: 0 });
            return;
        }
        if let Err(error) = self.notifier.inval_inode(INodeNo(ino), signed(offset), 0) {
            tracing::debug!(%db, %error, "invalidate the kernel's cache (the mount may be going away)");
        }
    }

    fn cut(&self, db: &DbName, len: u64) {
        self.invalidate(db, FileKind::Database, len);
        if in_handler() {
            return;
        }
        // An open through the alias directory always looks the file up: the answer brings the length, and the kernel has dropped
        // what is behind it before the open goes on.
        if let Err(error) = self.open(db, FileKind::Database) {
            tracing::debug!(%db, %error, "tell the kernel a database's new length (the mount may be going away)");
        }
    }

    fn invalidate_soon(&self, db: &DbName, offset: u64, len: u64) {
        if let Some(ino) = self.known(db, FileKind::Database) {
            self.queue.send(Notification::Inode { ino, offset, len });
        }
    }

    fn invalidate_entry(&self, db: &DbName, kind: FileKind) {
        self.tree.recheck(db, kind);
    }

    fn special_changed(&self, _db: Option<&DbName>) {
        // Special files are neither cached nor are their names: every look-up and read of them reaches us.
    }
}
