//! The HTTP proxy of a litefs node: writes go to the primary, and no client is shown older data than it has written.
//!
//! # The life of a request
//!
//! ```text
//!  client ──▶ receive ──▶ route ──┬─▶ answer ourselves   health, fly-replay, redirect, errors
//!             connection  route   │
//!             request             ├─▶ wait ──▶ local ──▶ capture ──▶ gate ──▶ client
//!                                 │   wait     local     capture     local
//!                                 │     │ too long       "which transaction does this answer stand for?"
//!                                 └─────┴──▶ forward ──▶ the primary's proxy ──▶ client
//!                                            forward
//! ```
//!
//! | phase | module | what happens |
//! |---|---|---|
//! | receive | [`connection`], [`client`], [`request`] | HTTP/1.1 or HTTP/2; time and size limits; malformed requests end here |
//! | route | [`route`] | one decision from path, method, token and role; no I/O |
//! | wait | [`wait`] | a read sleeps until its position is applied here; a write until a primary is known |
//! | send | [`h1`], [`upstream`], [`local`], [`forward`] | pooled connections to the application and to the primary's proxy |
//! | capture, gate | [`capture`], [`local`] | the engine catches up; the answer to a write leaves only under a valid lease |
//! | answer | [`headers`], [`body`], [`tunnel`] | headers of an intermediary, streamed bodies, upgraded connections |
//!
//! Nothing here knows FUSE, Consul or the stream between the nodes: what the proxy needs of the node is the pair of
//! traits in [`node`].

mod answer;
mod body;
mod capture;
mod client;
mod clock;
mod config;
mod connection;
pub mod fly_replay;
mod forward;
mod forwarded;
pub mod h1;
mod handler;
mod headers;
mod local;
mod metrics;
mod node;
mod outgoing;
mod path_globs;
mod request;
mod route;
mod seldom;
mod server;
mod socket;
pub mod token;
mod trusted;
mod tunnel;
mod upstream;
mod wait;

pub use config::{ConfigError, ForwardMode, ProxyConfig, ProxySettings};
pub use metrics::ProxyMetrics;
pub use node::{Cluster, Positions, Primary, Role, WaitFuture};
pub use server::{BindError, Proxy};
