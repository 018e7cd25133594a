//! A clock for limits of whole seconds: cheap to read, and a few milliseconds late.

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since some moment before this process began.
pub(crate) fn coarse_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let parts = u64::try_from(now.tv_sec).ok().zip(u64::try_from(now.tv_nsec).ok());
    parts.map_or(0, |(seconds, nanoseconds)| seconds * 1000 + nanoseconds / 1_000_000)
}
