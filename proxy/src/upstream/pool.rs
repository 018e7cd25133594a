//! Idle connections to one address.

use parking_lot::Mutex;

use super::connection::Connection;
use crate::clock::coarse_ms;

/// Most idle connections that are kept.
const IDLE_MAX: usize = 256;
/// How long an idle one is kept, in milliseconds: shorter than the keep-alive of common servers would be better still, but a connection
/// that the peer has closed is noticed when it is taken out.
const IDLE_TIMEOUT_MS: u64 = 30_000;

#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: Box<Connection>,
    since_ms: u64,
}

impl Pool {
    /// The connection used last. It may have died meanwhile: whoever sends on it notices before anything is sent.
    pub fn check_out(&self) -> Option<Box<Connection>> {
        self.idle.lock().pop().map(|idle| idle.connection)
    }

    pub fn check_in(&self, mut connection: Box<Connection>) {
        connection.shrink();
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { connection, since_ms: coarse_ms() });
        }
    }

    pub fn close_idle(&self) {
        // Pushed at the end and popped from it: the oldest are in front.
        let now_ms = coarse_ms();
        let is_stale = |idle: &&Idle| now_ms.saturating_sub(idle.since_ms) > IDLE_TIMEOUT_MS;
        let mut idle = self.idle.lock();
        let stale = idle.iter().take_while(is_stale).count();
        let stale: Vec<_> = idle.drain(..stale).collect();
        drop(idle);
        drop(stale);
    }
}
