//! For tests: a real Consul, and a lease in memory.
