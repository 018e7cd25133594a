//! What end-to-end tests need: real nodes in temporary folders, foreign SQLite clients, and waiting on conditions.

// A failing harness is a failing test.
#![allow(clippy::expect_used, clippy::panic)]

pub mod history;
pub mod http;
#[cfg(test)]
mod log_lines;
pub mod network;
pub mod node;
pub mod sqlite;
pub mod wait;

pub use node::{Node, NodeConfig};
pub use wait::{eventually, wait_until};
