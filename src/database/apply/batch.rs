//! Applying records that wait together: the locks are taken, the log and the wal-index written once for many of them.
//!
//! Every record stays its own: it is verified by itself, is a record of the log, and has its position published, in order. What
//! readers of the database see are positions of the primary, though not every one of them.

use std::io;
use std::sync::Arc;

use super::incoming::{Incoming, count_fitting};
use super::{ApplyError, Database, Logged};

/// Pages of records that are applied under one hold of the locks, in bytes.
const RUN_BYTES_MAX: usize = 4 << 20;

impl Database {
    /// Applies verified records one after the other, as [`Self::apply`] does. Returns how many are applied (or were here
    /// already), and why the next one is not, if not all are. Blocking.
    pub fn apply_all(self: &Arc<Self>, records: &mut [Incoming]) -> (usize, Result<(), ApplyError>) {
        let mut done = 0;
        while let Some(rest) = records.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let run = run_len(rest);
            match self.apply_run(&mut rest[..run]) {
                Ok(applied) => done += applied,
                Err(error) => {
                    let reached = self.pos();
                    let applied = rest[..run].iter().rposition(|record| record.post() == reached);
                    return (done + applied.map_or(0, |last| last + 1), Err(error));
                }
            }
        }
        (done, Ok(()))
    }

    /// Applies at least the first of these records. Returns how many it has applied.
    fn apply_run(self: &Arc<Self>, run: &mut [Incoming]) -> Result<usize, ApplyError> {
        let Some(first) = run.first() else { return Ok(0) };
        self.make_ready_for(first)?;
        let _action = self.action.lock();
        if !self.shared.is_replica() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "this node has become the primary").into());
        }
        let result = self.complete_from_log().and_then(|()| self.apply_run_received(run));
        self.note_failure(&result);
        result
    }

    fn apply_run_received(&self, run: &mut [Incoming]) -> Result<usize, ApplyError> {
        let Some(first) = run.first() else { return Ok(0) };
        if run.len() > 1 && first.header.pre() == self.pos() {
            // What does not fit is refused by itself, when those before it are applied.
            let fitting = count_fitting(&self.capture.lock(), run);
            if fitting > 1
                && let Some(shm) = self.wal_to_use(first)?
            {
                self.apply_to_wal(&shm, &mut run[..fitting], Logged::No)?;
                return Ok(fitting);
            }
        }
        self.apply_received(&mut run[0]).map(|_| 1)
    }
}

/// How many records from the first on may be applied together: each changes pages, which are in memory, and follows the one
/// before.
fn run_len(records: &[Incoming]) -> usize {
    let mut bytes = 0;
    let mut may_be_joined = |record: &Incoming| {
        let header = &record.header;
        bytes += record.contents_len().unwrap_or(RUN_BYTES_MAX + 1);
        bytes <= RUN_BYTES_MAX && header.commit > 0 && !header.is_snapshot()
    };
    let follows = |pair: &[Incoming]| {
        let (before, after) = (&pair[0], &pair[1]);
        before.post() == after.header.pre() && before.header.page_size == after.header.page_size
    };
    if !records.first().is_some_and(&mut may_be_joined) {
        return 1;
    }
    1 + records.windows(2).take_while(|pair| follows(pair) && may_be_joined(&pair[1])).count()
}
