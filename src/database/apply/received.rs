//! Which part of our history came from a primary, and what to do with the part that did not.
//!
//! A snapshot replaces the database. When it comes because we were too far behind for the primary's log, nothing is lost. When
//! it comes because we, once the primary, have transactions that the cluster does not, those must not vanish. The snapshot does
//! not tell. So the last position that came from a primary is kept in a small file; what lies after it is our own.
//!
//! The file is not synced: after a power loss it may be older, and then more than necessary is set aside.

use std::fs;
use std::io;

use super::Incoming;
use crate::Pos;
use crate::database::{ApplyError, CaptureState, Database, Health};
use crate::os;

/// The file's name in the database's directory: a position as text.
const FILE_NAME: &str = "received";

impl Database {
    /// `pos`, which is about to be ours, came from a primary.
    pub(super) fn note_received(&self, state: &mut CaptureState, pos: Pos) {
        let written = match &state.applied.received {
            Some(file) => os::write_all_at("received.write", file, pos.to_string().as_bytes(), 0),
            None => os::open_or_create("received.create", &self.files.dir().join(FILE_NAME)).and_then(|file| {
                os::write_all_at("received.write", &file, pos.to_string().as_bytes(), 0)?;
                state.applied.received = Some(file);
                Ok(())
            }),
        };
        if let Err(error) = written {
            tracing::debug!(database = %self.name, %error, "note the received position");
        }
    }

    /// The last position that came from a primary; zero when there is none on record.
    fn received_pos(&self) -> Pos {
        match fs::read_to_string(self.files.dir().join(FILE_NAME)) {
            Ok(text) => text.parse().unwrap_or(Pos::ZERO),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(database = %self.name, %error, "read the received position");
                }
                Pos::ZERO
            }
        }
    }

    /// Before a snapshot replaces our history: what the primary does not have goes to `lost+found`. Whether there was any.
    pub(super) fn keep_diverged_tail(&self, record: &Incoming) -> Result<bool, ApplyError> {
        if matches!(self.health(), Health::Broken(_)) {
            let folder = self.keep_files_aside().map_err(|error| ApplyError::SetAside(error.to_string()))?;
            tracing::warn!(
                database = %self.name, folder = %folder.display(),
                "the files of the broken database were kept aside before a snapshot replaces them"
            );
            return Ok(true);
        }
        let (ours, theirs) = (self.pos(), record.post());
        let received = self.received_pos();
        if ours.is_zero() || (ours == received && ours.txid < theirs.txid) {
            return Ok(false);
        }
        let is_ours_from = match self.common_with(record, ours) {
            Some(common) => common,
            None if received == ours || !self.log.contains(received)? => self.log.first_pos().unwrap_or(Pos::ZERO),
            None => received,
        };
        let folder = self.set_aside_after(is_ours_from).map_err(|error| ApplyError::SetAside(error.to_string()))?;
        tracing::warn!(
            database = %self.name, %ours, %theirs, from = %is_ours_from, folder = %folder.display(),
            "our history may not be the primary's; it was set aside before the primary's snapshot replaces it"
        );
        Ok(true)
    }

    /// The last position that we have in common with the record's primary, where a resync has just told.
    fn common_with(&self, record: &Incoming, ours: Pos) -> Option<Pos> {
        let common = self.capture.lock().applied.common?;
        (common.ours == ours && common.node_id == record.header.node_id).then_some(common.from)
    }
}
