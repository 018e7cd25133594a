//! SQLite's file formats and its lock protocol, as far as the engine speaks them.
//!
//! Sources: "Database File Format", "WAL-mode File Format" and "File Locking And Concurrency" on sqlite.org. Everything
//! here decodes bytes that a client, a crash or a disk may have damaged: no decoder panics, and none allocates by a
//! length it has not checked.

pub mod header;
pub mod journal;
pub mod locks;
pub mod page;
pub mod wal;
pub mod wal_index;
