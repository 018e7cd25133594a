//! One replicated database.
//!
//! STUB: signatures agreed between the crates; the engine's owner replaces the bodies.
#![allow(clippy::todo, clippy::missing_panics_doc, missing_docs, unused_variables, clippy::pedantic)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::{DbName, Pos, Txid};

/// Whether a database can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Ok,
    /// Serving, but something failed and is being retried (full disk, ...); the text names cause and remedy.
    Degraded(String),
    /// Not served: recovery could not make the checksum equal the position; needs a primary or `litefs repair`.
    Broken(String),
}

#[derive(Debug)]
pub struct Database {}

/// Why a record was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The record does not follow our position: the sender must send a snapshot (or we diverged).
    #[error("record starts after {expected}, database is at {actual}")]
    WrongPosition { expected: Pos, actual: Pos },
    #[error("record is damaged: {0}")]
    Damaged(String),
    /// Setting the diverged tail aside failed or would exceed `lost_and_found_bytes_max`.
    #[error("set diverged transactions aside: {0}")]
    SetAside(String),
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
    pub min_txid: Txid,
    pub max_txid: Txid,
    pub post: Pos,
    pub node_id: u64,
    pub timestamp_ms: u64,
    /// A large record is a range of a file rather than memory.
    pub body: RecordBody,
}

#[derive(Debug, Clone)]
pub enum RecordBody {
    Memory(bytes::Bytes),
    File { file: std::sync::Arc<File>, offset: u64, len: u64 },
}

/// Hooks: called by the mount for clients' operations. All blocking; the error's errno is SQLite's answer
/// (`ENOSPC` → SQLITE_FULL, `EIO` → SQLITE_IOERR). They do the I/O on the backing file themselves.
impl Database {
    pub fn db_write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        todo!()
    }
    pub fn db_truncate(&self, len: u64) -> io::Result<()> {
        todo!()
    }
    pub fn db_sync(&self) -> io::Result<()> {
        todo!()
    }
    /// The database file is about to be unlinked by a client: captured as a deletion (commit = 0); refused on a replica (`EROFS`→ use `EACCES`).
    pub fn db_unlink(&self) -> io::Result<()> {
        todo!()
    }
    /// Last close of the database file by clients.
    pub fn db_closed(&self) {
        todo!()
    }
    pub fn journal_created(&self) -> io::Result<()> {
        todo!()
    }
    pub fn journal_write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        todo!()
    }
    pub fn journal_truncate(&self, len: u64) -> io::Result<()> {
        todo!()
    }
    pub fn journal_sync(&self) -> io::Result<()> {
        todo!()
    }
    pub fn journal_unlink(&self) -> io::Result<()> {
        todo!()
    }
    /// A super-journal `name` (an ordinary file of the mount) is about to be unlinked: commit point of a multi-database transaction.
    pub fn super_journal_unlink(&self, name: &str) -> io::Result<()> {
        todo!()
    }
    /// The wal file was created by a client (before the reply).
    pub fn wal_created(&self) -> io::Result<()> {
        todo!()
    }
    pub fn wal_sync(&self) -> io::Result<()> {
        todo!()
    }
    pub fn wal_truncate(&self, len: u64) -> io::Result<()> {
        todo!()
    }
    pub fn wal_unlink(&self) -> io::Result<()> {
        todo!()
    }
    /// Before the reply to CREATE or the first LOOKUP/OPEN of the shm (ENGINE "Attaching"). Opens it through [`crate::Kernel::open`].
    pub fn shm_opened(&self) -> io::Result<()> {
        todo!()
    }
    pub fn shm_truncate(&self, len: u64) -> io::Result<()> {
        todo!()
    }
    pub fn shm_unlink(&self) -> io::Result<()> {
        todo!()
    }
    /// Same for the database file: the first open by a client.
    pub fn db_opened(&self) -> io::Result<()> {
        todo!()
    }
}

/// For replication, the node API and the proxy.
impl Database {
    pub fn name(&self) -> &DbName {
        todo!()
    }
    pub fn health(&self) -> Health {
        todo!()
    }
    /// Position as published; never blocks.
    pub fn pos(&self) -> Pos {
        todo!()
    }
    /// Captures what is committed already, then answers. Blocking (microseconds when nothing is new).
    pub fn position_now(&self) -> io::Result<Pos> {
        todo!()
    }
    /// Sleeps until the position reaches `txid` (woken by the advance itself). Cancel-safe.
    pub async fn wait(&self, txid: Txid) -> Pos {
        todo!()
    }
    /// Page size and page count, 0 when empty.
    pub fn page_size(&self) -> u32 {
        todo!()
    }
    /// What a replica at `from` needs (COMPAT §4 "Primary's rule"). Blocking file reads.
    pub fn next_after(&self, from: Pos) -> io::Result<Next> {
        todo!()
    }
    /// Writes an LTX snapshot (min TXID 1 … our TXID) of a consistent view while writers go on; constant memory. Returns its position.
    pub fn snapshot(&self, out: &mut dyn Write) -> io::Result<Pos> {
        todo!()
    }
    /// Writes a consistent database file.
    pub fn export(&self, out: &mut dyn Write) -> io::Result<Pos> {
        todo!()
    }
    /// Replaces the whole database by this file, in one transaction; `NotADatabase`-like input → `InvalidData`, nothing changed. Keeps the journal mode.
    pub fn import(&self, file: &Path) -> io::Result<Pos> {
        todo!()
    }
    /// Applies one LTX file from the primary (spooled and verified off-lock from `input`), durable as DESIGN §8. A snapshot replaces
    /// everything; when our history is not a prefix of it, our own tail is set aside first. Blocking.
    pub fn apply(&self, input: &mut dyn Read) -> Result<Pos, ApplyError> {
        todo!()
    }
    /// Removes the database as the primary did (a deletion record is an ordinary LTX file with commit = 0; this is frame type 4).
    pub fn drop_local(&self) -> io::Result<()> {
        todo!()
    }
    /// Primary: nobody writes here until [`Database::unhalt`] (a remote node holds the HALT lock). Waits at most `wait` for writers.
    pub fn halt(&self, wait: std::time::Duration) -> io::Result<Pos> {
        todo!()
    }
    pub fn unhalt(&self) {
        todo!()
    }
    /// Replica holding the primary's HALT lock: lets local clients write although the mode is `Replica`;
    /// `false` closes it again and returns when everything written is captured.
    pub fn set_local_writes(&self, allowed: bool) -> io::Result<Pos> {
        todo!()
    }
    /// Copies our transactions after `from` to `lost+found/<db>/` as LTX files and forgets them: the position goes back to unknown, the next
    /// stream sends a snapshot. Returns the folder.
    pub fn set_aside_after(&self, from: Pos) -> io::Result<std::path::PathBuf> {
        todo!()
    }
}
