//! The engine of a litefs node: it turns every committed SQLite transaction into an LTX record,
//! applies records from other nodes, and recovers both after a crash.
//!
//! The engine names neither FUSE, HTTP nor Consul. What it needs of the mount is the [`kernel::Kernel`] seam; who may
//! write is told to it ([`store::Store::set_mode`]). See `docs/architecture.md`.

pub mod database;
pub mod fault;
pub mod kernel;
pub mod ltx;
pub mod maintenance;
mod metrics;
pub mod name;
mod os;
pub mod pos;
pub mod positions;
pub mod sqlite;
pub mod store;

pub use database::Database;
pub use kernel::{FileKind, Kernel, Layout, PlainDirectory, WriteGate};
pub use name::{DbName, NameError};
pub use os::start_writing_back;
pub use pos::{Checksum, Pos, Txid};
pub use store::Store;
