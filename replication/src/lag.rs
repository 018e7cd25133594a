//! How far this node is behind its primary (`.lag`, health, metrics).

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::watch;

use crate::stream::now_ms;

/// What a replica reports that has never been in sync.
pub const LAG_NEVER_MS: i64 = 1_000_000_000;

/// By the primary's clock: the moment up to which everything has been applied here. It is the timestamp of the last
/// transaction or heartbeat that was applied after the stream was `ready`, so it says nothing before the first catch-up.
#[derive(Debug)]
pub struct Lag {
    /// ms since the epoch; `i64::MIN` before the first sync.
    in_sync_at: AtomicI64,
    /// Whether it ever was.
    synced: watch::Sender<bool>,
    /// Whether everything here belongs to the history of the primary that was last connected: not since this node has been
    /// a primary itself, and not between the start of a stream and its `ready`.
    is_shared: watch::Sender<bool>,
}

impl Default for Lag {
    fn default() -> Self {
        Self {
            in_sync_at: AtomicI64::new(i64::MIN),
            synced: watch::Sender::new(false),
            is_shared: watch::Sender::new(false),
        }
    }
}

impl Lag {
    /// Everything up to `timestamp_ms` (the primary's clock) has been applied.
    pub fn in_sync_at(&self, timestamp_ms: i64) {
        // A primary whose clock was ahead for a while must not hide what comes later.
        self.in_sync_at.fetch_max(timestamp_ms.min(now_ms()), Ordering::Relaxed);
        self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        self.is_shared.send_if_modified(|shared| !std::mem::replace(shared, true));
    }

    /// What is here may not be what the (next) primary has, until the next [`Self::in_sync_at`].
    pub fn history_may_differ(&self) {
        self.is_shared.send_replace(false);
    }

    /// Whether everything here belongs to the history of the last primary.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        *self.is_shared.borrow()
    }

    /// Waits until [`Self::is_shared`].
    pub async fn shared(&self) {
        // The sender is ours, so the channel stays open.
        let _ = self.is_shared.subscribe().wait_for(|shared| *shared).await;
    }

    /// Waits for the first sync.
    pub async fn synced(&self) {
        // The sender is ours, so the channel stays open.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Milliseconds behind the primary, [`LAG_NEVER_MS`] (and never more) before the first sync. Clocks that differ
    /// between the nodes shift it; it is never negative.
    #[must_use]
    pub fn ms(&self) -> i64 {
        match self.in_sync_at.load(Ordering::Relaxed) {
            i64::MIN => LAG_NEVER_MS,
            at => now_ms().saturating_sub(at).clamp(0, LAG_NEVER_MS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_huge_before_the_first_sync_and_never_negative() {
        let lag = Lag::default();
        assert_eq!(lag.ms(), LAG_NEVER_MS);
        lag.in_sync_at(now_ms() - 60_000);
        let ms = lag.ms();
        assert!((60_000..LAG_NEVER_MS).contains(&ms));
        lag.in_sync_at(now_ms() + 3_600_000);
        assert!(lag.ms() < ms, "never negative");
        assert!(lag.in_sync_at.load(Ordering::Relaxed) <= now_ms(), "a clock that is ahead counts as now");
        lag.in_sync_at(1);
        assert!(lag.ms() < ms, "an older timestamp does not take it back");
    }
}
