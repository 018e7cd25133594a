//! The change counter under `locking_mode=EXCLUSIVE`.
//!
//! By that counter (page 1, byte 24) clients notice that what they have cached is old. A client with EXCLUSIVE to itself
//! increments it once and never again: here nobody can read meanwhile. But on a replica others do. So where a transaction leaves
//! it as it was, the engine increments it in the file, before the record is made.
//!
//! When the record is not made, or withdrawn, the counter is put back: a rollback leaves nothing.

use std::fs::File;
use std::io;

use super::RollbackState;
use super::unjournaled::Writer;
use crate::database::{CaptureState, Database};
use crate::os;
use crate::sqlite::header::{DatabaseHeader, HEADER_LEN};

const COUNTER_OFFSET: u64 = 24;
/// The counter's value for which the size in page 1 is valid.
const VALID_FOR_OFFSET: u64 = 92;

/// Whether the byte `at` of page 1 belongs to the counter, or to the counter for which the size is valid.
pub(crate) fn is_counter(at: usize) -> bool {
    [COUNTER_OFFSET, VALID_FOR_OFFSET].iter().any(|offset| (*offset..offset + 4).contains(&(at as u64)))
}

/// What was in page 1 before the engine incremented the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Advanced {
    counter: u32,
    valid_for: u32,
    /// What is there now.
    now: u32,
}

impl RollbackState {
    /// The transaction is recorded, or has left nothing to record.
    pub(super) fn transaction_ended(&mut self) {
        self.dirty.clear();
        self.counter = None;
        self.advanced = None;
    }
}

impl Database {
    /// Before the first write of a transaction: what the counter is.
    pub(super) fn note_change_counter(&self, state: &mut CaptureState) -> io::Result<()> {
        if state.rollback.counter.is_none() {
            state.rollback.counter = self.page1_header()?.map(|header| header.change_counter);
        }
        Ok(())
    }

    fn page1_header(&self) -> io::Result<Option<DatabaseHeader>> {
        let mut head = [0; HEADER_LEN];
        os::read_or_zero_at(&*self.files.database()?, &mut head, 0)?;
        Ok(DatabaseHeader::parse(&head).ok())
    }

    /// Increments the counter in the file when the transaction that is about to be recorded has not. Its client holds EXCLUSIVE.
    pub(super) fn advance_change_counter(
        &self,
        state: &mut CaptureState,
        file: &File,
        header: &DatabaseHeader,
        commit: u32,
    ) -> io::Result<()> {
        let Some(before) = state.rollback.counter else { return Ok(()) };
        let is_ahead = header.change_counter.wrapping_sub(before).cast_signed() > 0;
        if is_ahead
            || state.page_size != header.page_size
            || state.rollback.unjournaled == Writer::Copying
            || !self.has_changes(state, file, header, commit)?
        {
            return Ok(());
        }
        let now = before.wrapping_add(1);
        let (counter, valid_for) = (header.change_counter, header.version_valid_for);
        state.rollback.dirty.insert(1..=1);
        state.rollback.advanced = Some(Advanced { counter, valid_for, now });
        let valid_for = if valid_for == counter { now } else { valid_for };
        self.write_change_counter(file, now, valid_for)
    }

    /// The record with the incremented counter does not count: as before, unless the client has written page 1 since.
    pub(super) fn take_change_counter_back(&self, state: &mut CaptureState) -> io::Result<()> {
        let Some(Advanced { counter, valid_for, now }) = state.rollback.advanced else { return Ok(()) };
        if self.page1_header()?.is_some_and(|header| header.change_counter == now) {
            self.write_change_counter(&*self.files.database()?, counter, valid_for)?;
        }
        state.rollback.advanced = None;
        Ok(())
    }

    fn write_change_counter(&self, file: &File, counter: u32, valid_for: u32) -> io::Result<()> {
        os::write_all_at("database.write", file, &valid_for.to_be_bytes(), VALID_FOR_OFFSET)?;
        os::write_all_at("database.write", file, &counter.to_be_bytes(), COUNTER_OFFSET)?;
        if let Some(kernel) = self.shared.kernel() {
            // Not stored: until the kernel takes the message the client may have written other bytes around these.
            kernel.invalidate_soon(&self.name, 0, HEADER_LEN as u64);
        }
        Ok(())
    }
}
