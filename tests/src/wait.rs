//! Waiting on conditions, never on time alone.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a test waits for anything: long enough for a loaded machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `condition` gives a value.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(POLL);
    }
}

/// Waits until `look` gives `wanted`.
///
/// # Panics
/// When it does not within [`PATIENCE`]; says what was there instead.
pub fn wait_until<T: PartialEq + Debug>(what: &str, wanted: &T, mut look: impl FnMut() -> T) {
    let begun = Instant::now();
    loop {
        let seen = look();
        if seen == *wanted {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain: {what}: wanted {wanted:?}, last saw {seen:?}"
        );
        std::thread::sleep(POLL);
    }
}
