//! The supervisor's hold on every database (DESIGN §9a): it takes the write locks itself when the worker cannot.
//!
//! The descriptors are the engine's own, received over a socket: one open file description in two processes. So a lock that
//! one of them takes is the other's as well, and stays when the other dies. What the engine holds already must not be
//! given back here; and when the engine closes its fence while this process holds the lock, the lock becomes the engine's.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;

use litefs::FileKind;
use litefs::sqlite::locks::{self, LockBytes, LockKind};
use litefs::sqlite::wal_index::retire::retire;
use litefs_lease::{BootInstant, FenceCell};

/// One lock inode of the engine.
#[derive(Debug)]
struct Inode {
    file: File,
    /// Whether this process took the lock: then the worker does not know of it.
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

/// What trying to take a lock came to.
enum Taken {
    Now,
    /// The engine holds it already.
    ByEngine,
    No,
}

fn take(file: &File, bytes: LockBytes) -> std::io::Result<Taken> {
    match locks::any_holder(file, bytes, LockKind::Exclusive)? {
        Some(holder) if holder.pid.is_none() => Ok(Taken::ByEngine),
        Some(_) => Ok(Taken::No),
        None if locks::try_lock(file, bytes, LockKind::Exclusive)? => Ok(Taken::Now),
        None => Ok(Taken::No),
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
        self.close_and(|_, _, _| ())
    }

    /// As [`Self::close`], when the worker is dead: keeps clients off the WALs whose lock is taken for good. They reach them by passthrough
    /// also when the mount is gone, and this process with its locks.
    pub fn close_for_good(&mut self) -> usize {
        self.close_and(|db, kind, file| {
            if kind == FileKind::Shm
                && let Err(error) = retire(file)
            {
                tracing::debug!(db, %error, "keep clients off the WAL");
            }
        })
    }

    fn close_and(&mut self, taken: impl Fn(&str, FileKind, &File)) -> usize {
        self.closed = true;
        let mut missing = 0;
        for ((db, kind), inode) in &mut self.inodes {
            let lock = if inode.held { Ok(Taken::Now) } else { take(&inode.file, write_lock(*kind)) };
            match lock {
                Ok(Taken::Now) => inode.held = true,
                Ok(Taken::ByEngine) => {}
                Ok(Taken::No) => {
                    missing += 1;
                    continue;
                }
                Err(error) => {
                    missing += 1;
                    tracing::warn!(db, ?kind, %error, "fence a database");
                    continue;
                }
            }
            taken(db, *kind, &inode.file);
        }
        missing
    }

    /// The worker has closed the fence by itself: what [`Fence::close`] took is the engine's now.
    pub fn leave_to_worker(&mut self) {
        self.closed = false;
        for inode in self.inodes.values_mut() {
            inode.held = false;
        }
    }

    /// Gives back what [`Fence::close`] took: the worker runs again and its lease is proved.
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

    /// A file, and the engine's descriptor of it.
    fn inode() -> (tempfile::NamedTempFile, File) {
        let path = tempfile::NamedTempFile::new().expect("file");
        let engine = open(&path);
        (path, engine)
    }

    fn open(path: &tempfile::NamedTempFile) -> File {
        File::options().read(true).write(true).open(path.path()).expect("open")
    }

    fn fence(engine: &File) -> Fence {
        let mut fence = Fence::default();
        // As over a socket: another descriptor of the same description.
        fence.attach("a".into(), FileKind::Shm, engine.try_clone().expect("duplicate").into());
        fence
    }

    fn is_free(path: &tempfile::NamedTempFile) -> bool {
        locks::holder(&open(path), locks::WRITE, LockKind::Exclusive).expect("ask").is_none()
    }

    #[test]
    fn closing_takes_the_lock_and_opening_gives_it_back() {
        let (path, engine) = inode();
        let mut fence = fence(&engine);
        assert_eq!(fence.close(), 0);
        assert!(!is_free(&path));
        fence.open();
        assert!(is_free(&path));
    }

    #[test]
    fn a_lock_that_the_engine_holds_is_not_given_back() {
        let (path, engine) = inode();
        let mut fence = fence(&engine);
        assert!(locks::try_lock(&engine, locks::WRITE, LockKind::Exclusive).expect("lock"));
        assert_eq!(fence.close(), 0);
        fence.open();
        assert!(!is_free(&path), "the engine's fence was opened by the supervisor");
    }

    #[test]
    fn when_the_engine_closes_its_fence_meanwhile_the_lock_becomes_its_own() {
        let (path, engine) = inode();
        let mut fence = fence(&engine);
        assert_eq!(fence.close(), 0);
        assert!(locks::try_lock(&engine, locks::WRITE, LockKind::Exclusive).expect("lock"), "the same description");
        fence.leave_to_worker();
        assert!(!is_free(&path));
        locks::unlock(&engine, locks::WRITE).expect("unlock");
        assert!(is_free(&path));
    }
}
