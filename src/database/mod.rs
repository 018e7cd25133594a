//! One replicated database.
//!
//! # Who does what
//! [`Database`] holds everything the parts share; each part is an `impl Database` block in its own module:
//! `hooks` (clients' operations, as the mount reports them), `wal_capture` and `rollback` (what SQLite committed becomes
//! a record), `commit` (the one place where a record is made and the position advances), `checkpoint`, `apply`, `recover`,
//! `snapshot`, `import`, `fence`.
//!
//! # Locks, in the order in which they may be taken
//! 1. [`Database::action`]: one engine action at a time (checkpoint, apply, import, fence). Never taken by a hook, so
//!    calls into the [`Kernel`](crate::Kernel) are allowed under it.
//! 2. [`links::ShmLink::write_index`]: by which of the engine's threads the wal-index is written behind the fence (SQLite's WRITE does not tell
//!    them apart). Taken by a hook, too, so never held while waiting for a client.
//! 3. [`Database::capture`]: what is captured, and the log. Hooks take it: never call the kernel under it, and never wait
//!    for a SQLite lock under it (who holds that lock may be waiting in a hook).
//! 4. Leaves: [`Database::links`], [`Database::health`], positions, the descriptors in [`files::Files`].

mod apply;
mod barrier;
mod checkpoint;
pub(crate) mod checksums;
mod commit;
mod fence;
pub(crate) mod files;
mod health;
mod hooks;
pub(crate) mod links;
pub mod log;
mod look;
mod open;
mod recover;
mod rollback;
mod set_aside;
mod snapshot;
mod strict;
mod tail;
mod view;
mod wal_capture;
mod wal_room;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

pub use apply::Incoming;
pub(crate) use checkpoint::Checkpointed;
pub(crate) use checksums::PageChecksums;
pub(crate) use commit::{PageSource, Prepared, TxHead, now_ms};
pub(crate) use files::Files;
pub(crate) use links::Links;
pub use recover::Inspection;
pub(crate) use recover::inspect;
pub use tail::{TAIL_PAGES_MAX, TAIL_STEPS_MAX, Tail, TailStep};
pub(crate) use wal_capture::WalProgress;

use crate::metrics::DatabaseMetrics;
use crate::positions::Positions;
use crate::store::Shared;
use crate::{DbName, Pos, Txid};

/// Whether a database can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Ok,
    /// Serving, but something failed and is being retried (full disk, ...); the text names cause and remedy.
    Degraded {
        /// What failed; its next success ends this.
        failed: &'static str,
        /// What failed, why, and what to do about it.
        cause: String,
    },
    /// Not served: recovery could not make the checksum equal the position; needs a primary or `litefs repair`.
    Broken(String),
}

/// Why a record was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The record does not follow our position: the sender must send a snapshot (or we diverged).
    #[error("record starts after {expected}, database is at {actual}")]
    WrongPosition {
        /// Where the record goes.
        expected: Pos,
        /// Where we are.
        actual: Pos,
    },
    /// The bytes are no valid LTX file.
    #[error("record is damaged: {0}")]
    Damaged(String),
    /// Setting the diverged tail aside failed or would exceed `lost_and_found_bytes_max`.
    #[error("set diverged transactions aside: {0}")]
    SetAside(String),
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Everything a stream to one replica needs next.
pub enum Next {
    /// The replica is at our position.
    UpToDate,
    /// Records follow: one whole LTX file image each, in order.
    Records(Box<dyn Iterator<Item = io::Result<Record>> + Send>),
    /// The replica cannot continue from its position: send [`Database::snapshot`].
    SnapshotNeeded,
}

/// One LTX file image of the log. `bytes` is shared between all streams that send it.
#[derive(Debug, Clone)]
pub struct Record {
    /// First transaction of the record.
    pub min_txid: Txid,
    /// Last transaction of the record.
    pub max_txid: Txid,
    /// The position after it.
    pub post: Pos,
    /// The node that made it.
    pub node_id: u64,
    /// When it was made, ms since the epoch.
    pub timestamp_ms: u64,
    /// A large record is a range of a file rather than memory.
    pub body: RecordBody,
}

/// The LTX file image of a [`Record`].
#[derive(Debug, Clone)]
pub enum RecordBody {
    /// The image itself.
    Memory(bytes::Bytes),
    /// Where it lies.
    File {
        /// The log segment.
        file: Arc<File>,
        /// Where the image begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
}

/// One database of the store. See the module's documentation for the order of its locks.
pub struct Database {
    pub(crate) name: DbName,
    /// The store's side: configuration, kernel, events, metrics, mode.
    pub(crate) shared: Arc<Shared>,
    pub(crate) files: Files,
    pub(crate) metrics: DatabaseMetrics,
    /// Every record. It has its own locks, below all of ours; only the holder of `capture` appends.
    pub(crate) log: Arc<log::Log>,
    /// Lock 0: held by a commit that is made here without a client (an import, a record of the HALT lock's holder), from checking
    /// the role to the end; so that closing the fence can wait for it.
    pub(crate) own_commit: Mutex<()>,
    /// Lock 1: held through one engine action (checkpoint, apply, import, fence). No hook takes it.
    pub(crate) action: Mutex<()>,
    /// Lock 2: what is captured. Hooks take it.
    pub(crate) capture: Mutex<CaptureState>,
    /// Lock 3, a leaf: descriptors on the mount's inodes.
    pub(crate) links: Mutex<Links>,
    /// Whether clients may write. Its lock is a leaf that may be taken under `action`.
    pub(crate) fence: fence::Fence,
    /// The position as published; only [`Database::publish`] advances it.
    pub(crate) positions: Positions,
    /// Lock 3, a leaf.
    pub(crate) health: Mutex<Health>,
    /// How long the WAL may be made ahead of a writer.
    pub(crate) wal_room: wal_room::WalRoom,
    /// False before creation and after deletion. The object stays: its log goes on when the name is used again.
    pub(crate) live: AtomicBool,
}

/// What is captured of the database: the state of the last record, and what to look at for the next one.
///
/// Invariant between calls: `checksums` are those of the pages at `pos`, and `pos` is the last record of the log.
#[derive(Debug, Default)]
pub(crate) struct CaptureState {
    /// The position of the last record.
    pub(crate) pos: Pos,
    /// Bytes per page; 0 before the first transaction and after a deletion.
    pub(crate) page_size: u32,
    /// Per page; its length is the database's size in pages.
    pub(crate) checksums: PageChecksums,
    /// How far the WAL is captured.
    pub(crate) wal: WalProgress,
    /// Reused from transaction to transaction.
    pub(crate) buffers: commit::CommitBuffers,
    /// What the rollback modes have to remember.
    pub(crate) rollback: rollback::RollbackState,
    /// What applying has to remember.
    pub(crate) applied: apply::Applied,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("name", &self.name).field("pos", &self.pos()).finish_non_exhaustive()
    }
}

/// For replication, the node API and the proxy.
impl Database {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &DbName {
        &self.name
    }

    /// Whether it can be served.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.lock().clone()
    }

    /// Whether the file exists (created, not deleted).
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// Position as published; never blocks.
    #[must_use]
    pub fn pos(&self) -> Pos {
        self.positions.get()
    }

    /// Sleeps until the position reaches `txid` (woken by the advance itself). Cancel-safe.
    pub async fn wait(&self, txid: Txid) -> Pos {
        self.positions.wait(txid).await
    }

    /// Bytes per page; 0 when empty.
    #[must_use]
    pub fn page_size(&self) -> u32 {
        self.capture.lock().page_size
    }
}
