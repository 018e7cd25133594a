//! Memory that is not used goes back to the system.

use std::time::Duration;

/// Buffers of at least this many bytes are mappings of their own: larger than what records in memory take, smaller than a
/// FUSE thread's request buffer of 16 MiB.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: libc::c_int = 8 << 20;
/// Between two looks at whether the process has become idle.
const LOOK: Duration = Duration::from_secs(2);
/// An idle process uses less of a processor than this between two looks.
const IDLE_MAX: Duration = Duration::from_millis(50);
/// Work that leaves memory worth giving back takes more than this.
const WORK_MIN: Duration = Duration::from_millis(250);

/// Makes large buffers mappings of their own for good, so that only what is used of them takes memory, and nothing when they are
/// freed. By itself glibc goes over to its heap for sizes that were freed once; then each FUSE thread's 16 MiB request buffer,
/// of which hardly anything is ever used, is cleared and so resident.
///
/// Buffers of records, which come and go, are to be used again instead: memory that is new costs more to be made (and cleared) by
/// the kernel than to be written. (More than the default of free bytes at a heap's end is not kept: a thread's heap that has
/// become idle would keep them, [`return_free_memory_when_idle`] does not reach them.)
pub(super) fn set_up_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a parameter of the allocator, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
    }
}

/// Gives back what is free in the allocator's heaps each time the process becomes idle after work: by itself glibc keeps it in
/// every thread's heap (10 MB after 30,000 small transactions).
pub(super) async fn return_free_memory_when_idle() {
    let mut work = Work::new(processor_time());
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        if work.has_ended(processor_time()) {
            // A few milliseconds in which allocating threads wait.
            let _ = tokio::task::spawn_blocking(return_free_memory).await;
        }
    }
}

fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: only releases memory that the allocator has free; takes its locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What the process has used of processors since it was started.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Tells when a time of work is over.
struct Work {
    /// Processor time at the last look.
    last: Duration,
    /// What was used between looks at which it was not idle, since it last ended.
    done: Duration,
}

impl Work {
    const fn new(now: Duration) -> Self {
        Self { last: now, done: Duration::ZERO }
    }

    /// Whether there was work, and none since the last look; once after each.
    fn has_ended(&mut self, now: Duration) -> bool {
        let used = now.saturating_sub(std::mem::replace(&mut self.last, now));
        if used >= IDLE_MAX {
            self.done += used;
            return false;
        }
        let has_ended = self.done > WORK_MIN;
        if has_ended {
            self.done = Duration::ZERO;
        }
        has_ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_ends_once_when_the_process_is_idle_again() {
        let mut now = Duration::from_secs(7);
        let mut work = Work::new(now);
        let mut after = |used: u64| {
            now += Duration::from_millis(used);
            work.has_ended(now)
        };
        assert_eq!([0, 1, 2].map(&mut after), [false; 3], "it did nothing");
        assert_eq!([60, 2000, 200].map(&mut after), [false; 3], "it works");
        assert!(after(3), "it is idle again");
        assert_eq!([1, 49, 0].map(&mut after), [false; 3], "it has been told");
        assert_eq!([100, 1].map(&mut after), [false; 2], "that was little");
        assert_eq!([400, 1].map(&mut after), [false, true]);
    }

    #[test]
    fn processor_time_grows_with_work_and_giving_back_harms_nothing() {
        let (before, kept) = (processor_time(), vec![7_u8; 100_000]);
        while processor_time() == before {
            std::hint::spin_loop();
        }
        return_free_memory();
        assert!(kept.iter().all(|byte| *byte == 7));
    }
}
