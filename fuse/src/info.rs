//! What the mount asks of the node around it.

use std::io;

use litefs::DbName;

/// What `.primary` and `.lag` show. Called on every read of those files; must not block.
pub trait NodeInfo: Send + Sync {
    /// The primary's hostname while this node is a replica connected to it; `None` on the primary and without one.
    fn primary_hostname(&self) -> Option<String>;
    /// Milliseconds behind the primary: 0 on the primary, very large before the first sync.
    fn lag_ms(&self) -> i64;
}

/// The HALT lock of a database (COMPAT §3), as the control mount takes it for local clients.
///
/// The mount arbitrates between local clients: at most one of them holds a database's lock, `owner` tells them apart.
/// Both calls may block and are made on threads of their own.
pub trait HaltLocks: Send + Sync {
    /// Takes the lock for `owner`; without `wait` a lock held by another node is `WouldBlock` at once.
    ///
    /// # Errors
    /// The errno becomes the client's `fcntl` error.
    fn acquire(&self, db: &DbName, owner: u64, wait: bool) -> io::Result<()>;

    /// Gives the lock back; returns when the primary has everything committed under it.
    ///
    /// # Errors
    /// When the transactions committed under the lock were refused: the client sees `EIO` on unlock or `close`.
    fn release(&self, db: &DbName, owner: u64) -> io::Result<()>;
}
