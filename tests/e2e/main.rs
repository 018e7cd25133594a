//! End-to-end tests: every one starts the real `litefs` binary.

// Helpers of tests fail as tests do.
#![allow(clippy::expect_used, clippy::panic)]

mod clients;
mod cluster;
mod commands;
mod consul;
mod failover;
mod faults;
mod halt;
mod import;
mod lifecycle;
mod model;
mod node_api;
mod outages;
mod proxy;
mod replicas;
