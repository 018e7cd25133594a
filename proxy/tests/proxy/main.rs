//! The proxy on real sockets: hand-made applications behind it, clients nobody here wrote in front of it.

// Helpers outside of `#[test]` functions may fail a test, too.
#![allow(clippy::expect_used, clippy::panic)]

mod compat;
mod consistency;
mod exchange;
mod faults;
mod forwarding;
mod http2;
mod intermediary;
mod reuse;
mod support;
mod tokens;
mod upgrades;
