//! Leases as the nodes see them: one conformance suite for all kinds, and what is particular to Consul.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod conformance;
mod consul;
