//! The role machine against a lease in memory, with engines and a network that the tests control.

mod cluster;
mod failover;
mod handoff;
mod rules;
mod tenure;
