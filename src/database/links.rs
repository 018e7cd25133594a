//! The engine's descriptors on the inodes that clients lock: the database file and the shm, as the mount opens them.
//!
//! Each inode is opened twice. OFD locks of one descriptor never conflict with each other, and giving one back gives it back
//! for all its uses (see [`crate::sqlite::locks`]); so what the fence holds for long has its own descriptor, and actions
//! (checkpoint, apply, import) take and release theirs on the other. An action that needs EXCLUSIVE on the database while the
//! fence holds SHARED takes it on the fence's descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::Database;
use crate::kernel::{FileKind, Kernel};
use crate::os;
use crate::sqlite::locks::{self, LockKind};
use crate::sqlite::wal_index::WalIndex;
use crate::sqlite::wal_index::header::{HeaderWords, IndexHeader};

/// How long the engine waits for DMS: a client holds it exclusively only while it initialises the shm.
const DMS_WAIT: Duration = Duration::from_secs(2);
/// How long a header may be half written by whoever holds WRITE. Beyond, that is a client that wants to recover what a killed writer
/// left (SQLite built with `SQLITE_ENABLE_SETLK_TIMEOUT` does not let go of WRITE until it gives up, after 10 s).
const TORN_WAIT: Duration = Duration::from_secs(4);
/// The first segment of the wal-index; a shm at least this long never faults on its header.
const SHM_LEN_MIN: u64 = 32 * 1024;

/// Proof of being the only thread of the engine that writes this index.
pub(crate) type Writing<'a> = MutexGuard<'a, ()>;

/// One inode, opened twice.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// For locks of a single action; the caller holds [`super::Database::action`].
    pub(crate) action: Arc<File>,
    /// For the fence: WRITE on the shm; RESERVED and SHARED on the database.
    pub(crate) fence: Arc<File>,
    /// The backing file's inode number: a file unlinked and created again has another.
    backing_ino: u64,
}

/// What the engine has open on the mount. Clone out what you need; the lock is a leaf.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// The database file, once a client opened it or the engine needed it.
    pub(crate) database: Option<Arc<Link>>,
    /// The shm of the running WAL generation; `None` when no client has one.
    pub(crate) shm: Option<Arc<ShmLink>>,
}

/// The shm: locked, and mapped as wal-index.
#[derive(Debug)]
pub(crate) struct ShmLink {
    /// Its descriptors. `fence` holds DMS shared while the fence is closed ([`ShmLink::share`]).
    pub(crate) link: Link,
    /// The mapping.
    pub(crate) index: WalIndex,
    /// Whether CKPT is held on `link.action`. Changed under [`super::Database::action`] or before the link is shared.
    ckpt: AtomicBool,
    /// Held by the thread of the engine that writes the index by virtue of the fence's WRITE: to SQLite's locks all threads of the engine are one.
    /// Taken after [`super::Database::action`] and the fence's reasons, before [`super::Database::capture`]; nobody who holds it waits for a
    /// client.
    writing: Mutex<()>,
    /// A header whose copies differ while somebody holds WRITE, and since when. A leaf lock.
    torn: Mutex<Option<(HeaderWords, Instant)>>,
}

impl ShmLink {
    /// Holds DMS on the fence's descriptor, as whoever uses the shm for long does, or gives it back.
    ///
    /// Not on a primary: while others share the shm SQLite (from 3.51 on) neither leaves WAL mode nor removes the WAL at its last
    /// close. Without DMS a client can be the shm's first user and truncates it; our mapping survives that, as
    /// [`Database::shm_truncate`] keeps the file's length.
    pub(crate) fn share(&self, shared: bool) -> io::Result<()> {
        if shared {
            if locks::lock_within(&self.link.fence, locks::DMS, LockKind::Shared, DMS_WAIT)? {
                return Ok(());
            }
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "a client keeps the shared memory to itself"));
        }
        locks::unlock(&self.link.fence, locks::DMS)
    }

    /// Waits for other threads of the engine that write the index.
    pub(crate) fn write_index(&self) -> Writing<'_> {
        self.writing.lock()
    }

    /// As [`Self::write_index`], if no other is at it.
    pub(crate) fn try_write_index(&self) -> Option<Writing<'_>> {
        self.writing.try_lock()
    }

    /// Whether the engine owns CKPT.
    pub(crate) fn owns_checkpoints(&self) -> bool {
        self.ckpt.load(Ordering::Acquire)
    }

    /// Takes CKPT if it is free (ENGINE "Owning checkpoints"); whether it is held now.
    pub(crate) fn take_checkpoints(&self) -> io::Result<bool> {
        if self.owns_checkpoints() {
            return Ok(true);
        }
        let taken = locks::try_lock(&self.link.action, locks::CKPT, LockKind::Exclusive)?;
        self.ckpt.store(taken, Ordering::Release);
        Ok(taken)
    }

    /// Whether the header is unreadable until a client recovers the index, and not just at this instant: a writer that is put to
    /// sleep between the two copies of the header leaves them different for as long as it sleeps.
    pub(crate) fn needs_recovery(&self) -> io::Result<bool> {
        let Some(words) = self.index.header_words()? else { return Ok(true) };
        let writing = locks::holder(&self.link.action, locks::WRITE, LockKind::Shared)?.is_some();
        if self.index.header_words()? != Some(words) {
            return Ok(false);
        }
        // Nobody has come and gone meanwhile: if somebody is writing, these words are what they are at.
        let [first, second] = words.map(|copy| IndexHeader::decode(&copy).is_some());
        if first && second && words[0] == words[1] {
            return Ok(false);
        }
        if !writing || !(first || second) {
            return Ok(true);
        }
        let mut torn = self.torn.lock();
        match &*torn {
            Some((before, since)) if *before == words => Ok(since.elapsed() > TORN_WAIT),
            _ => {
                *torn = Some((words, Instant::now()));
                Ok(false)
            }
        }
    }

    /// Gives CKPT back: the header is invalid and a client must be able to recover it.
    pub(crate) fn release_checkpoints(&self) -> io::Result<()> {
        if self.ckpt.swap(false, Ordering::AcqRel) {
            locks::unlock(&self.link.action, locks::CKPT)?;
        }
        Ok(())
    }
}

impl Link {
    fn open(kernel: &dyn Kernel, database: &Database, kind: FileKind) -> io::Result<Self> {
        let backing_ino = database.files.inode(kind)?;
        Ok(Self {
            action: Arc::new(kernel.open(&database.name, kind)?),
            fence: Arc::new(kernel.open(&database.name, kind)?),
            backing_ino,
        })
    }
}

/// The mount is not up (or no longer).
fn no_kernel() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the mount is not up")
}

impl Database {
    /// The shm as the engine has it open now.
    pub(crate) fn shm(&self) -> Option<Arc<ShmLink>> {
        self.links.lock().shm.clone()
    }

    /// The database file on the mount, opened now if it is not yet.
    ///
    /// # Errors
    /// `NotConnected` without a mount; opening.
    pub(crate) fn database_link(&self) -> io::Result<Arc<Link>> {
        let ino = self.files.inode(FileKind::Database)?;
        if let Some(link) = self.links.lock().database.clone().filter(|link| link.backing_ino == ino) {
            return Ok(link);
        }
        let kernel = self.shared.kernel().ok_or_else(no_kernel)?;
        // Opened without any lock: the mount answers this open by itself, but from one of its own threads.
        let opened = Arc::new(Link::open(&*kernel, self, FileKind::Database)?);
        let (link, fresh) = {
            let mut links = self.links.lock();
            match links.database.clone().filter(|link| link.backing_ino == ino) {
                Some(other) => (other, false),
                None => (links.database.insert(opened).clone(), true),
            }
        };
        if fresh && let Some(keeper) = self.shared.fence_keeper() {
            keeper.attached(&self.name, FileKind::Database, link.fence.as_fd());
        }
        Ok(link)
    }

    /// Attaches to the shm that exists (ENGINE "Attaching"): opens it, takes DMS, maps it, and closes the fence on it when
    /// the fence is closed. Nothing happens when it is attached already. The caller holds no lock.
    ///
    /// # Errors
    /// `NotConnected` without a mount; opening and locking.
    pub(crate) fn attach_shm(&self) -> io::Result<Arc<ShmLink>> {
        let path = self.files.path(FileKind::Shm);
        let backing = File::options().read(true).write(true).open(&path)?;
        let metadata = backing.metadata()?;
        if let Some(shm) = self.shm().filter(|shm| shm.link.backing_ino == metadata.ino()) {
            return Ok(shm);
        }
        if let Ok(missing) = usize::try_from(SHM_LEN_MIN.saturating_sub(metadata.len()))
            && missing > 0
        {
            // Written, not just truncated to this length: on a full disk that is an error here, and not a SIGBUS in the client, which
            // only allocates what it adds to the file's length itself.
            os::write_all_at("shm.extend", &backing, &vec![0; missing], metadata.len())?;
        }
        let kernel = self.shared.kernel().ok_or_else(no_kernel)?;
        let link = Link::open(&*kernel, self, FileKind::Shm)?;
        let index = WalIndex::new(link.fence.try_clone()?, backing);
        let shm = Arc::new(ShmLink {
            link,
            index,
            ckpt: AtomicBool::new(false),
            writing: Mutex::default(),
            torn: Mutex::default(),
        });
        shm.share(true)?;
        let fresh = {
            let mut links = self.links.lock();
            match links.shm.clone().filter(|other| other.link.backing_ino == metadata.ino()) {
                Some(other) => return Ok(other),
                None => links.shm.insert(shm).clone(),
            }
        };
        if let Some(keeper) = self.shared.fence_keeper() {
            keeper.attached(&self.name, FileKind::Shm, fresh.link.fence.as_fd());
        }
        self.fence_new_shm(&fresh)?;
        if fresh.index.read_header()?.is_some() {
            fresh.take_checkpoints()?;
        }
        self.share_if_fenced(&fresh)?;
        Ok(fresh)
    }

    /// Lets go of an inode: it is unlinked, or the mount goes away. Its locks go with the last descriptor.
    pub(crate) fn detach(&self, kind: FileKind) {
        let (database, shm) = {
            let mut links = self.links.lock();
            match kind {
                FileKind::Database => (links.database.take(), None),
                FileKind::Shm => (None, links.shm.take()),
                FileKind::Journal | FileKind::Wal => (None, None),
            }
        };
        if (database.is_some() || shm.is_some())
            && let Some(keeper) = self.shared.fence_keeper()
        {
            keeper.detached(&self.name, kind);
        }
    }
}
