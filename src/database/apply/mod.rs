//! Applying a record from the primary (DESIGN §8).
//!
//! The record is received and verified whole before anything is locked ([`incoming`]). Then one of three ways:
//!
//! * **Through the WAL** ([`through_wal`]), whenever clients use one: readers keep their snapshots and never wait. So also goes the
//!   record by which the primary *left* WAL mode: clients go on with the WAL as long as there is one, whatever page 1 says.
//! * **Into the database file** ([`into_file`]) in rollback mode, and when there was no database: under EXCLUSIVE, after a bounded
//!   wait for readers.
//! * **Deletion**.
//!
//! In each the record is in the log before the first byte of the database changes: a crash in between leaves a log ahead of the
//! files, and recovery (or the next call) applies it from there.

mod batch;
#[cfg(test)]
mod batch_tests;
mod import;
mod incoming;
mod into_file;
mod received;
mod rejoin;
#[cfg(test)]
mod tests;
mod through_wal;
mod wal_writer;

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::incoming::Incoming;
pub(crate) use self::rejoin::Rejoining;
pub(crate) use self::through_wal::Applied;
use super::links::ShmLink;
use super::{ApplyError, CaptureState, Database, Health};
use crate::Pos;
use crate::kernel::FileKind;
use crate::os;
use crate::sqlite::header::{DatabaseHeader, HEADER_LEN};
use crate::store::Notice;

/// How long applying waits for the fence: for a local transaction that is still running after a demotion.
const FENCE_WAIT: Duration = Duration::from_secs(10);

/// Whether the record is in the log already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Logged {
    No,
    /// A crash or an error kept it from the files.
    Yes,
    /// No; it takes the place of the log's end, which led to this position ([`rejoin`]).
    InsteadOf(Pos),
}

impl Database {
    /// Applies one LTX file from the primary, read to its end from `input`. A snapshot replaces everything; when our own
    /// history is not a prefix of it, our tail is set aside first. A record that brings us to where we are is no error.
    /// Blocking; verification holds no lock.
    ///
    /// # Errors
    /// [`ApplyError::Damaged`] and [`ApplyError::WrongPosition`]: nothing has changed. [`ApplyError::Io`] with `TimedOut`: readers of
    /// a rollback-mode database are in the way; try again. Any other: the disk; the next call completes what was begun.
    pub fn apply(self: &Arc<Self>, input: &mut dyn Read) -> Result<Pos, ApplyError> {
        let mut record = self.receive(input)?;
        #[cfg(test)]
        crate::fault::moment::passes("apply.action");
        let _action = self.action.lock();
        if !self.shared.is_replica() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "this node has become the primary").into());
        }
        self.apply_record(&mut record)
    }

    /// On the primary: commits an LTX file of the node that holds the HALT lock.
    ///
    /// # Errors
    /// As [`Self::apply`]; [`ApplyError::Io`] with `ResourceBusy` when nobody holds the lock, or this node is not the primary any more.
    pub fn apply_halted(self: &Arc<Self>, input: &mut dyn Read) -> Result<Pos, ApplyError> {
        let mut record = self.receive(input)?;
        let _own_commit = self.own_commit.lock();
        if self.shared.is_replica() || !self.is_halted() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the HALT lock is not held any more").into());
        }
        let _action = self.action.lock();
        self.apply_record(&mut record)
    }

    /// Reads and verifies a record, and makes sure that nobody else writes.
    fn receive(self: &Arc<Self>, input: &mut dyn Read) -> Result<Incoming, ApplyError> {
        let record = Incoming::receive(&self.log, input)?;
        self.make_ready_for(&record)?;
        Ok(record)
    }

    /// Makes sure that there is a database, and that nobody else writes.
    fn make_ready_for(self: &Arc<Self>, record: &Incoming) -> io::Result<()> {
        if record.header.commit > 0 {
            self.bring_into_being()?;
        }
        if self.is_live() {
            self.reconcile_fence()?;
            self.wait_fenced(Instant::now() + FENCE_WAIT)?;
        }
        Ok(())
    }

    /// The caller holds [`Self::action`].
    fn apply_record(&self, record: &mut Incoming) -> Result<Pos, ApplyError> {
        let result = self.complete_from_log().and_then(|()| self.apply_received(record));
        self.note_failure(&result);
        result
    }

    /// The disk's failures count for the database's health.
    fn note_failure<T>(&self, result: &Result<T, ApplyError>) {
        if let Err(ApplyError::Io(error)) = result
            && error.kind() != io::ErrorKind::TimedOut
        {
            self.note_outcome("apply a record", Some(error));
        }
    }

    /// Creates the database file of a database that is new, or was deleted and is created again.
    fn bring_into_being(self: &Arc<Self>) -> io::Result<()> {
        if !self.is_live() {
            self.bring_to_life(self.shared.is_replica())?;
        }
        Ok(())
    }

    fn apply_received(&self, record: &mut Incoming) -> Result<Pos, ApplyError> {
        let actual = self.pos();
        if record.post() == actual {
            return Ok(actual);
        }
        if !record.header.is_snapshot() && record.header.pre() != actual {
            return Err(ApplyError::WrongPosition { expected: record.header.pre(), actual });
        }
        if !record.header.is_snapshot() {
            return self.apply_verified(record, Logged::No);
        }
        let had_history = actual.is_zero() && self.capture.lock().page_size != 0;
        let is_resync = self.keep_diverged_tail(record)? || had_history;
        let pos = self.apply_verified(record, Logged::No)?;
        self.end_rejoin();
        if is_resync {
            self.shared.metrics.resynced_by_snapshot();
        }
        Ok(pos)
    }

    /// Brings the files to the end of the log, when an earlier call failed in between. The caller holds [`Self::action`].
    fn complete_from_log(&self) -> Result<(), ApplyError> {
        // A client was killed before it committed: nobody has seen that, and nobody shall.
        self.withdraw_prepared(&mut self.capture.lock())?;
        let (at, end) = (self.pos(), self.log.last_pos());
        // Without a position a snapshot comes next (our history was set aside), and what is broken is not at the log's end
        // because the log cannot bring it there.
        if at == end || at.is_zero() || matches!(self.health(), Health::Broken(_)) {
            return Ok(());
        }
        tracing::info!(database = %self.name, %at, %end, "apply from the log what an earlier attempt left over");
        let Some(records) = self.log.after(at)? else {
            // A snapshot: the log begins with it.
            let Some(record) = self.log.read(end.txid)? else { return Ok(()) };
            return self.apply_verified(&mut Incoming::reread(&self.log, &record)?, Logged::Yes).map(drop);
        };
        for record in records {
            self.apply_verified(&mut Incoming::reread(&self.log, &record?)?, Logged::Yes)?;
        }
        Ok(())
    }

    /// Applies a record that follows our position. The caller holds [`Self::action`].
    fn apply_verified(&self, record: &mut Incoming, logged: Logged) -> Result<Pos, ApplyError> {
        if record.header.commit == 0 {
            return self.apply_deletion(record, logged);
        }
        record.check_result(&self.capture.lock())?;
        match self.wal_to_use(record)? {
            Some(shm) => self.apply_to_wal(&shm, std::slice::from_mut(record), logged),
            None => self.apply_to_file(record, logged),
        }
    }

    /// Checks under the capture lock that a record which is not in the log yet still goes on from where we are.
    fn check_position(state: &CaptureState, record: &Incoming, logged: Logged) -> Result<(), ApplyError> {
        let expected = match logged {
            Logged::No if !record.header.is_snapshot() => record.header.pre(),
            Logged::InsteadOf(ours) => ours,
            Logged::No | Logged::Yes => return Ok(()),
        };
        if state.pos == expected { Ok(()) } else { Err(ApplyError::WrongPosition { expected, actual: state.pos }) }
    }

    /// Puts the records into the log, unless they are there.
    fn log_records(&self, records: &mut [Incoming], logged: Logged, durable: bool) -> Result<(), ApplyError> {
        match logged {
            Logged::No => Incoming::append_all(records, &self.log)?,
            Logged::Yes => {}
            Logged::InsteadOf(_) => records.iter_mut().try_for_each(|record| self.replace_log_end(record))?,
        }
        if durable {
            self.log.sync()?;
        }
        Ok(())
    }

    /// The records are applied: advances the position, once for each.
    fn records_applied(&self, state: &mut CaptureState, records: &[Incoming]) -> Pos {
        if let Some(last) = records.last() {
            self.note_received(state, last.post());
        }
        for record in records {
            record.update(state);
            self.publish(state, record.header.timestamp_ms);
        }
        if records.iter().any(|record| record.header.is_snapshot()) {
            self.log.drop_superseded();
        }
        if *self.health.lock() != Health::Ok {
            self.set_healthy();
        }
        state.pos
    }

    fn apply_deletion(&self, record: &mut Incoming, logged: Logged) -> Result<Pos, ApplyError> {
        let mut state = self.capture.lock();
        self.log_records(std::slice::from_mut(record), logged, true)?;
        if self.is_live() {
            self.remove_files(&mut state)?;
            self.shared.notify(Notice::Entry(self.name.clone(), FileKind::Database));
        }
        Ok(self.records_applied(&mut state, std::slice::from_ref(record)))
    }

    /// The shm through which to apply: when clients use a WAL, or page 1 of the file says that they will. `None`: into the file.
    fn wal_to_use(&self, record: &Incoming) -> io::Result<Option<Arc<ShmLink>>> {
        {
            let state = self.capture.lock();
            if state.page_size != record.header.page_size || state.applied.half_written {
                return Ok(None);
            }
        }
        if let Some(shm) = self.shm() {
            return Ok(Some(shm));
        }
        let mut head = [0; HEADER_LEN];
        os::read_or_zero_at(&*self.files.database()?, &mut head, 0)?;
        if !DatabaseHeader::parse(&head).is_ok_and(|header| header.is_wal()) || self.shared.kernel().is_none() {
            return Ok(None);
        }
        self.create_shm().map(Some)
    }

    /// Creates the WAL and the shm that no client has opened yet, so that none will be in the way of what we apply, nor we in its.
    fn create_shm(&self) -> io::Result<Arc<ShmLink>> {
        for (kind, label) in [(FileKind::Wal, "wal.create"), (FileKind::Shm, "shm.create")] {
            if !self.files.exists(kind) {
                os::open_or_create(label, &self.files.path(kind))?;
                self.files.forget(kind);
                if let Some(kernel) = self.shared.kernel() {
                    kernel.invalidate_entry(&self.name, kind);
                }
            }
        }
        self.attach_shm()
    }
}
