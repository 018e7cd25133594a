//! The FUSE mounts of a litefs node.
//!
//! Two file systems. The **main mount** is where the application's SQLite files are: locks stay in the kernel, `-wal` and
//! `-shm` are read, written and mapped in the kernel (passthrough), the database file and its journal are cached by the
//! kernel and every change of them goes through the hooks of [`litefs::Database`] before it is acknowledged. The
//! **control mount** holds the `<db>-lock` files, whose locks reach [`HaltLocks`].
//!
//! [`Mount`] is their life. Inside, `main_fs` translates FUSE's messages to `tree`, which has the rules of the namespace,
//! and `kernel` is the engine's way back.

#![allow(clippy::too_many_arguments)] // fuser's trait

mod attributes;
mod control;
mod engine_threads;
mod errno;
mod error;
mod info;
mod kernel;
mod main_fs;
mod mount;
mod mountpoint;
mod names;
mod node;
mod notifications;
mod opener;
mod tree;
mod workers;

pub use error::MountError;
pub use info::{HaltLocks, NodeInfo};
pub use mount::{IoMode, Mount, MountCounts, MountOptions, OnDead, Passthrough, default_control_dir};
pub use mountpoint::force_unmount;
pub use opener::Openers;
