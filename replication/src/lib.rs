//! Replication between litefs nodes: stream, roles, HALT lock, node API.

mod api;
mod halt;
mod lag;
mod metrics;
mod node;
mod peer;
mod problems;
pub mod roles;
pub mod stream;
pub mod wire;

pub use api::listen;
pub use halt::{HALT_ACQUIRE_MAX, HALT_TTL, HaltError, RemoteHalts};
pub use lag::{LAG_NEVER_MS, Lag};
pub use node::{InfoExtra, Node, NodeConfig, NodeParts};
pub use peer::PeerError;
pub use problems::Problems;
