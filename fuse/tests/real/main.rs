//! Real mounts, real clients: rusqlite, the system's `sqlite3`, Python's sqlite3, plain file calls.
//!
//! They need root, `/dev/fuse`, `sqlite3` and `python3`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // helpers of tests

mod client;
mod halt;
mod harness;
mod killed_in_own_mount;
mod killed_node;
mod lifecycle;
mod namespace;
mod processes;
mod replica;
mod replicated;
mod soak;
mod sqlite;
