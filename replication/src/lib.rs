//! Replication between litefs nodes: stream, roles, HALT lock, node API.

pub mod roles;
pub mod wire;
