//! STUB: what is still missing, with the agreed signatures. Move yours into your own module and delete it here.
#![allow(clippy::todo, clippy::missing_panics_doc, missing_docs, unused_variables, clippy::pedantic)]

use std::io::{self, Read, Write};
use std::path::Path;

use super::{ApplyError, Database, Next};
use crate::Pos;

// core: hooks.rs
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
    /// Captures what is committed already, then answers. Blocking (microseconds when nothing is new).
    pub fn position_now(&self) -> io::Result<Pos> {
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
    /// Removes the database as the primary did (a deletion record is an ordinary LTX file with commit = 0; this is frame type 4).
    pub fn drop_local(&self) -> io::Result<()> {
        todo!()
    }
}

// sqlite: apply/
impl Database {
    /// Applies one LTX file from the primary (spooled and verified off-lock from `input`), durable as DESIGN §8. A snapshot replaces
    /// everything; when our history is not a prefix of it, our own tail is set aside first. Blocking.
    pub fn apply(&self, input: &mut dyn Read) -> Result<Pos, ApplyError> {
        todo!()
    }
}

// formats: snapshot.rs, import.rs, log/, recover/
impl Database {
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
    /// Copies our transactions after `from` to `lost+found/<db>/` as LTX files and forgets them: the position goes back to unknown, the next
    /// stream sends a snapshot. Returns the folder.
    pub fn set_aside_after(&self, from: Pos) -> io::Result<std::path::PathBuf> {
        todo!()
    }
}
