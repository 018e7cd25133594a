//! For the tests of this and other crates: a real Consul, and a lease in memory whose every step the test decides.

mod consul_server;
mod memory;

pub use consul_server::ConsulServer;
pub use memory::MemoryCluster;
