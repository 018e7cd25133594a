//! Replication streams: a primary answers `POST /stream` with every transaction from the replica's position on.
//!
//! ```text
//! primary                                             replica
//! Store events ─► Sender (one task per replica)        Receiver (one task)
//!                   │ blocking thread: next_after,       │ decoder, bounded memory
//!                   │ snapshot                           ▼
//!                   ▼                                  Lanes (threads; one database is always in the same)
//!                 bounded body ──── HTTP/2 ────────►     └► Database::apply
//! ```

pub(crate) mod lanes;
pub(crate) mod patience;
pub(crate) mod producer;
pub(crate) mod receiver;
mod rejoin;
pub(crate) mod sender;
pub(crate) mod subscribers;

use std::time::Duration;

pub use subscribers::{ReplicaInfo, Subscribers};

/// How often an idle primary says that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence after which a replica takes the stream for dead (at first: [`patience`]).
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a replica may take nothing before its stream is given up.
pub const STALL_MAX: Duration = Duration::from_secs(60);

/// Milliseconds since the epoch by this node's clock, as LTX headers and heartbeats carry.
pub(crate) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
