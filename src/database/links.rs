//! The engine's descriptors on the inodes that clients lock: the database file and the shm, as the mount opens them.
//!
//! Each inode is opened twice. OFD locks of one descriptor never conflict with each other, and giving one back gives it back
//! for all its uses (see [`crate::sqlite::locks`]); so what the fence holds for long has its own descriptor, and actions
//! (checkpoint, apply, import) take and release theirs on the other. An action that needs EXCLUSIVE on the database while the
//! fence holds SHARED takes it on the fence's descriptor.

use std::fs::File;
use std::sync::Arc;

/// One inode, opened twice.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// For locks of a single action; the caller holds [`super::Database::action`].
    pub(crate) action: Arc<File>,
    /// For the fence: WRITE on the shm; RESERVED and SHARED on the database.
    pub(crate) fence: Arc<File>,
}

/// What the engine has open on the mount. Clone out what you need; the lock is a leaf.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// The database file, once a client opened it or the engine needed it.
    pub(crate) database: Option<Link>,
    /// The shm of the running WAL generation; `None` when no client has one.
    pub(crate) shm: Option<Arc<ShmLink>>,
}

/// The shm: locked, and mapped as wal-index.
#[derive(Debug)]
pub(crate) struct ShmLink {
    /// Its descriptors. `fence` holds DMS shared for as long as the link lives.
    #[allow(dead_code)] // used by the capture to come
    pub(crate) link: Link,
}
