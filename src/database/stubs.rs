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
    /// Replaces the whole database by this file, in one transaction; `NotADatabase`-like input → `InvalidData`, nothing changed. Keeps the journal mode.
    pub fn import(&self, file: &Path) -> io::Result<Pos> {
        todo!()
    }
}
