//! Tells the engine's own opens from those of clients.

use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longest wait of a client's first open for the engine to be attached.
const ATTACH_WAIT: Duration = Duration::from_secs(60);

/// The threads that open files for the engine ([`crate::opener`]). The kernel puts the thread's number into each request.
#[derive(Debug, Default, Clone)]
pub struct EngineThreads(Vec<u32>);

impl EngineThreads {
    /// These threads' opens are the engine's.
    #[must_use]
    pub fn new(threads: &[u32]) -> Self {
        Self(threads.to_vec())
    }

    /// Whether a request comes from the engine.
    #[must_use]
    pub fn contains(&self, thread: u32) -> bool {
        self.0.contains(&thread)
    }
}

/// Clients wait here until the engine is attached to the mount; afterwards it is open for good.
#[derive(Debug, Default)]
pub struct AttachGate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl AttachGate {
    /// The engine is attached (or given up): let everyone through.
    pub fn open(&self) {
        *self.open.lock() = true;
        self.opened.notify_all();
    }

    /// Waits until the gate is open; `false` when that takes too long.
    #[must_use]
    pub fn pass(&self) -> bool {
        let deadline = Instant::now() + ATTACH_WAIT;
        let mut open = self.open.lock();
        while !*open {
            if self.opened.wait_until(&mut open, deadline).timed_out() {
                return *open;
            }
        }
        true
    }
}
