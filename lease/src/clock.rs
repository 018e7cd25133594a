//! The clock of the fence: `CLOCK_BOOTTIME`, which goes on while the process is stopped and while the machine sleeps.

use std::fmt;
use std::time::Duration;

/// An instant on `CLOCK_BOOTTIME`, in nanoseconds since the machine started. Equal for all processes of one machine,
/// meaningless on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootInstant(u64);

impl BootInstant {
    /// Before every other instant: a deadline that has passed.
    pub const PAST: Self = Self(0);
    /// After every other instant: a deadline that never passes (static lease).
    pub const NEVER: Self = Self(u64::MAX);

    /// The present.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// From nanoseconds since boot.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Later by `duration`; saturates at [`BootInstant::NEVER`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Earlier by `duration`; [`BootInstant::NEVER`] stays what it is.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        if self == Self::NEVER {
            return self;
        }
        Self(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for BootInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NEVER => f.write_str("never"),
            Self(nanos) => write!(f, "boot+{}.{:03}s", nanos / 1_000_000_000, nanos / 1_000_000 % 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_add_and_saturate() {
        let at = BootInstant::from_nanos(5);
        assert_eq!(at.after(Duration::from_nanos(3)).as_nanos(), 8);
        assert_eq!(at.before(Duration::from_nanos(9)), BootInstant::PAST);
        assert_eq!(at.since(BootInstant::from_nanos(2)), Duration::from_nanos(3));
        assert_eq!(at.since(BootInstant::from_nanos(7)), Duration::ZERO);
        assert_eq!(at.after(Duration::MAX), BootInstant::NEVER);
        assert_eq!(BootInstant::NEVER.before(Duration::from_secs(1)), BootInstant::NEVER);
    }

    #[test]
    fn the_clock_is_boottime() {
        let uptime: f64 = std::fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().unwrap();
        let now = BootInstant::now();
        assert!(now.as_nanos() as f64 / 1e9 > uptime - 1.0, "{now} is behind /proc/uptime {uptime}");
        assert!(BootInstant::now() >= now);
    }
}
