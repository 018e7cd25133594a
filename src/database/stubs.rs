//! STUB: what is still missing, with the agreed signatures. Move yours into your own module and delete it here.
#![allow(clippy::todo, clippy::missing_panics_doc, missing_docs, unused_variables, clippy::pedantic)]

use std::io::{self, Read, Write};
use std::path::Path;

use super::{ApplyError, Database, Next};
use crate::Pos;

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
