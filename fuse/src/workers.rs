//! Which thread runs a request: blocking ones must never keep others from being answered.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Threads that read requests from the kernel.
pub const FUSE_THREADS: usize = 8;
/// Of these, how many are kept for requests that never block (look-ups, reads, the engine's own opens).
const RESERVED_THREADS: usize = 3;
/// Most blocked requests beyond the FUSE threads; each is one waiting system call of a client.
const OVERFLOW_THREADS_MAX: usize = 2048;

thread_local! {
    static IN_HANDLER: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is answering a FUSE request, so that it must not wait for another one.
#[must_use]
pub fn in_handler() -> bool {
    IN_HANDLER.get()
}

/// Counts the requests that may block, and gives them threads of their own when the FUSE threads run short.
#[derive(Debug, Default)]
pub struct Workers {
    inline: Arc<AtomicUsize>,
    overflow: Arc<AtomicUsize>,
}

/// One counted request; counts down when dropped.
#[derive(Debug)]
pub struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn take(counter: &Arc<AtomicUsize>, max: usize) -> Option<Slot> {
    counter
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| (used < max).then_some(used + 1))
        .ok()
        .map(|_| Slot(Arc::clone(counter)))
}

impl Workers {
    /// A slot to run a blocking request on the calling FUSE thread; `None` when too many of them are taken.
    #[must_use]
    pub fn try_inline(&self) -> Option<Slot> {
        take(&self.inline, FUSE_THREADS - RESERVED_THREADS)
    }

    /// Runs a request that may block: here, or on a thread of its own when this one is needed for others.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        match self.try_inline() {
            Some(slot) => {
                guarded(job);
                drop(slot);
            }
            None => self.spawn(job),
        }
    }

    /// Runs a request on a thread of its own. When there are too many, the job is dropped: its reply answers `EIO`.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let Some(slot) = take(&self.overflow, OVERFLOW_THREADS_MAX) else {
            tracing::error!("more than {OVERFLOW_THREADS_MAX} requests are blocked; refusing another one");
            return;
        };
        let spawned = thread::Builder::new().name("fuse-overflow".into()).spawn(move || {
            guarded(job);
            drop(slot);
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "start a thread for a blocked request; the request fails with EIO");
        }
    }
}

/// Runs a handler: a panic in it fails the one request (its reply answers `EIO` when dropped), not the FUSE thread.
pub fn guarded(job: impl FnOnce()) {
    let before = IN_HANDLER.replace(true);
    // The state behind a handler is guarded by locks that do not poison; each operation leaves it usable.
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!("a FUSE request failed by a panic; this is a defect of litefs, please report it");
    }
    IN_HANDLER.set(before);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn blocked_requests_move_to_threads_of_their_own() {
        let workers = Workers::default();
        let held: Vec<_> = std::iter::from_fn(|| workers.try_inline()).collect();
        assert_eq!(held.len(), FUSE_THREADS - RESERVED_THREADS);
        let (sender, receiver) = mpsc::channel();
        let here = thread::current().id();
        workers.run(move || sender.send((thread::current().id(), in_handler())).expect("send"));
        let (id, handler) = receiver.recv().expect("the request ran");
        assert_ne!(id, here);
        assert!(handler && !in_handler());
    }

    #[test]
    fn a_panicking_request_gives_its_slot_back() {
        let workers = Workers::default();
        for _ in 0..20 {
            workers.run(|| panic!("expected by the test"));
        }
        assert!(workers.try_inline().is_some());
    }
}
