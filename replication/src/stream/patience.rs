//! How long a primary may be silent.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::SILENCE_MAX;

/// Streams that ended in silence count up to here, each for twice the time: 48 s.
const SILENT_STREAMS_MAX: u32 = 4;

/// LiteFS sends no heartbeats while it verifies a file before it sends it; with a large one that takes longer than [`SILENCE_MAX`],
/// each time that it is asked for. So after a silent stream the next one is given more time, until one is in sync.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    silent_streams: AtomicU32,
}

impl Patience {
    /// Silence after which a stream that begins now is dead.
    pub(super) fn silence_max(&self) -> Duration {
        SILENCE_MAX * (1 << self.silent_streams.load(Ordering::Relaxed))
    }

    /// A stream ended in silence.
    pub(super) fn was_silent(&self) {
        let silent = self.silent_streams.load(Ordering::Relaxed);
        self.silent_streams.store((silent + 1).min(SILENT_STREAMS_MAX), Ordering::Relaxed);
    }

    /// A stream has brought everything.
    pub(super) fn is_in_sync(&self) {
        self.silent_streams.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_its_bound_and_starts_over_in_sync() {
        let patience = Patience::default();
        let seconds: Vec<_> = (0..7)
            .map(|_| {
                let now = patience.silence_max().as_secs();
                patience.was_silent();
                now
            })
            .collect();
        assert_eq!(seconds, [3, 6, 12, 24, 48, 48, 48]);
        patience.is_in_sync();
        assert_eq!(patience.silence_max(), SILENCE_MAX);
    }
}
