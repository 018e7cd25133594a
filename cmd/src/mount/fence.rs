//! The supervisor's hold on every database (DESIGN §9a): it takes the write locks itself when the worker cannot.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use litefs::FileKind;
use litefs::sqlite::locks::{self, LockBytes, LockKind};
use litefs_lease::{BootInstant, FenceCell};

/// One lock inode of the engine.
#[derive(Debug)]
struct Inode {
    file: File,
    /// Whether this process took the lock. Then it must give it back, unless the worker is dead.
    held: bool,
}

/// The inodes handed over by the worker, and whether they are fenced.
#[derive(Debug, Default)]
pub struct Fence {
    inodes: BTreeMap<(String, FileKind), Inode>,
    /// Wanted: whatever is attached gets locked as soon as its lock is free.
    closed: bool,
}

/// The byte that a writer of this kind of database needs.
fn write_lock(kind: FileKind) -> LockBytes {
    match kind {
        FileKind::Shm => locks::WRITE,
        _ => locks::RESERVED,
    }
}

impl Fence {
    /// The engine attached to an inode.
    pub fn attach(&mut self, db: String, kind: FileKind, fd: OwnedFd) {
        self.inodes.insert((db, kind), Inode { file: File::from(fd), held: false });
    }

    /// The inode is gone.
    pub fn detach(&mut self, db: &str, kind: FileKind) {
        self.inodes.remove(&(db.to_owned(), kind));
    }

    /// Whether the deadline ran out without the worker closing the fence by itself: then it is frozen, or late.
    pub fn is_overdue(cell: &FenceCell) -> bool {
        let deadline = cell.deadline();
        deadline != BootInstant::PAST && !cell.is_open()
    }

    /// Takes every write lock that is free; called again until none is missing. Returns how many are missing.
    pub fn close(&mut self) -> usize {
        self.closed = true;
        let mut missing = 0;
        for ((db, kind), inode) in &mut self.inodes {
            if inode.held {
                continue;
            }
            match locks::try_lock(&inode.file, write_lock(*kind), LockKind::Exclusive) {
                Ok(true) => inode.held = true,
                Ok(false) => missing += 1,
                Err(error) => {
                    missing += 1;
                    tracing::warn!(db, ?kind, %error, "fence a database");
                }
            }
        }
        missing
    }

    /// Gives back what [`Fence::close`] took: the worker runs again and rules by itself.
    pub fn open(&mut self) {
        if !std::mem::take(&mut self.closed) {
            return;
        }
        for ((db, kind), inode) in &mut self.inodes {
            if std::mem::take(&mut inode.held)
                && let Err(error) = locks::unlock(&inode.file, write_lock(*kind))
            {
                tracing::warn!(db, ?kind, %error, "give a fence lock back");
            }
        }
    }

    /// Whether the locks are wanted.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Closes every descriptor (so that the mount can go), and with them the locks.
    pub fn clear(&mut self) {
        self.inodes.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_expired_deadline_is_overdue_but_a_closed_cell_is_not() {
        let cell = FenceCell::create().expect("cell");
        assert!(!Fence::is_overdue(&cell), "closed by the worker");
        cell.set_deadline(BootInstant::now().before(Duration::from_millis(1)));
        assert!(Fence::is_overdue(&cell));
        cell.set_deadline(BootInstant::NEVER);
        assert!(!Fence::is_overdue(&cell));
    }

    #[test]
    fn closing_takes_the_lock_of_every_inode_once_it_is_free() {
        let path = tempfile::NamedTempFile::new().expect("file");
        let open = || File::options().read(true).write(true).open(path.path()).expect("open");
        let (client, other) = (open(), open());
        let mut fence = Fence::default();
        fence.attach("a".into(), FileKind::Shm, open().into());
        assert!(locks::try_lock(&client, locks::WRITE, LockKind::Exclusive).expect("lock"));
        assert_eq!(fence.close(), 1, "a writer is at work");
        locks::unlock(&client, locks::WRITE).expect("unlock");
        assert_eq!(fence.close(), 0);
        assert!(!locks::try_lock(&other, locks::WRITE, LockKind::Exclusive).expect("lock"));
        fence.open();
        assert!(locks::try_lock(&other, locks::WRITE, LockKind::Exclusive).expect("lock"));
    }
}
