//! Labelled faults: any OS call by which the engine changes files ([`crate::os`]) can be made to fail by its label, in a test
//! build and in a debug build of the real binary; a release build has none of this (but with the feature `fault-injection`).
//!
//! A fault is `label:what[:count[:after]]`, several are separated by commas. `what` is an errno (`28`), `short` (half of the bytes are
//! written, then `ENOSPC`), or `kill` (the process ends by SIGKILL instead of making the call). Without a count it strikes
//! until it is taken away; `after` is how many calls go through before.
//!
//! - `LITEFS_FAULTS=log.append:28:1` for a whole process;
//! - `LITEFS_FAULTS_FILE=path` the same, from a file that may change at any time. Every strike appends the label to `path.struck`;
//! - `on_this_thread` for a test inside a process.

/// A step at which a fault can strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// `<what>.<operation>`.
    pub label: &'static str,
    /// Whether bytes are written there, so that a write can be cut short.
    pub writes: bool,
}

const fn call(label: &'static str) -> Step {
    Step { label, writes: false }
}

const fn write(label: &'static str) -> Step {
    Step { label, writes: true }
}

/// Every label. The source of truth: a label that is not here fails every test that gets to it, and one that no scenario of
/// `tests/e2e/faults` reaches fails there.
pub const STEPS: &[Step] = &[
    write("bootid.keep"),
    call("checksums.create"),
    call("checksums.remove"),
    call("checksums.rename"),
    call("checksums.sync"),
    write("checksums.write"),
    write("clusterid.keep"),
    call("database.create"),
    call("database.sync"),
    call("database.sync_dir"),
    call("database.truncate"),
    call("database.unlink"),
    write("database.write"),
    call("import.reserve"),
    call("journal.create"),
    write("journal.restore"),
    call("journal.sync"),
    call("journal.truncate"),
    call("journal.unlink"),
    write("journal.write"),
    write("journal.zero"),
    call("late.create"),
    call("late.remove"),
    call("log.adopt"),
    write("log.append"),
    call("log.create"),
    call("log.remove"),
    write("log.room"),
    call("log.spool"),
    call("log.sync"),
    call("log.sync_dir"),
    call("log.truncate"),
    call("lost_and_found.create"),
    call("lost_and_found.rename"),
    call("lost_and_found.sync"),
    write("lost_and_found.write"),
    call("received.create"),
    write("received.write"),
    write("recover.checkpoint"),
    write("recover.redo"),
    write("recover.rollback"),
    write("recover.seal"),
    call("rejoin.forget"),
    write("rejoin.mark"),
    call("shm.create"),
    write("shm.extend"),
    write("shm.retire"),
    call("shm.truncate"),
    call("shm.unlink"),
    write("view.copy"),
    write("wal.append"),
    call("wal.create"),
    write("wal.extend"),
    write("wal.header"),
    call("wal.sync"),
    call("wal.truncate"),
    call("wal.unlink"),
];

#[cfg(not(any(test, debug_assertions, feature = "fault-injection")))]
mod release {
    /// No fault is ever due.
    #[allow(clippy::unnecessary_wraps)] // the other build fails here
    #[inline]
    pub(crate) fn check(_label: &'static str) -> std::io::Result<()> {
        Ok(())
    }

    /// No write is ever cut short.
    #[inline]
    pub(crate) fn check_write(_label: &'static str, len: usize) -> std::io::Result<usize> {
        Ok(len)
    }
}

#[cfg(not(any(test, debug_assertions, feature = "fault-injection")))]
pub(crate) use release::{check, check_write};

#[cfg(any(test, debug_assertions, feature = "fault-injection"))]
mod injection;
#[cfg(test)]
pub(crate) mod moment;
#[cfg(test)]
pub(crate) use injection::on_this_thread_after;
#[cfg(any(test, debug_assertions, feature = "fault-injection"))]
pub use injection::{Injected, on_this_thread};
#[cfg(any(test, debug_assertions, feature = "fault-injection"))]
pub(crate) use injection::{check, check_write};
