//! Tells the engine's own opens from those of clients.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longest wait of a client's first open for the engine to be attached.
const ATTACH_WAIT: Duration = Duration::from_secs(60);

/// The threads that are opening a file for the engine right now. The kernel puts the thread ID into each request.
#[derive(Debug, Default, Clone)]
pub struct EngineThreads(Arc<Mutex<HashMap<u32, u32>>>);

/// While it lives, requests of this thread are the engine's.
#[derive(Debug)]
pub struct Mark<'a> {
    threads: &'a EngineThreads,
    thread: u32,
}

impl EngineThreads {
    /// Marks the calling thread.
    #[must_use]
    pub fn mark(&self) -> Mark<'_> {
        let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        *self.0.lock().entry(thread).or_default() += 1;
        Mark { threads: self, thread }
    }

    /// Whether a request comes from the engine.
    #[must_use]
    pub fn contains(&self, thread: u32) -> bool {
        self.0.lock().contains_key(&thread)
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        let mut threads = self.threads.0.lock();
        if let Some(count) = threads.get_mut(&self.thread) {
            *count -= 1;
            if *count == 0 {
                threads.remove(&self.thread);
            }
        }
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
