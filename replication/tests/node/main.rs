//! Nodes in one process over loopback, with real stores on plain directories.
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests

mod api;
mod bad_peers;
mod fake_primary;
mod fan_out;
mod golden;
mod halt;
mod harness;
mod promotion;
mod rejoin;
mod streams;
