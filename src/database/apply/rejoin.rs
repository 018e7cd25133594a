//! Giving our own newest transactions up for the primary's: one record takes their place ([`crate::database::tail`]).
//!
//! In this order, so that a crash anywhere loses nothing: the transactions are copied to `lost+found`; the mark is made; the
//! log is cut back to the common position and goes on with the record, which is made durable; then the record is applied as any
//! other, beside readers, from the log. Before the mark nothing has changed. After it, a start that finds the record at the log's
//! end and the files elsewhere knows that they are what was set aside, or half of the record: it may only go to the log's
//! end, never record what it finds (which could undo the primary's transactions). With the log cut and no record behind
//! the cut, it finds what was there before.

use std::fs;
use std::io::{self, Read};
use std::sync::Arc;

use super::{Incoming, Logged};
use crate::database::{ApplyError, Database, Health};
use crate::{Pos, os};

/// The mark's name in the database's directory: the position after the record, as text.
const MARK: &str = "rejoining";

impl Database {
    /// On a replica: applies a record that the primary made for our [`Database::tail`], in the place of what comes after the
    /// position it begins at; that is set aside first. Blocking; as [`Database::apply`] otherwise.
    ///
    /// # Errors
    /// Nothing has changed, or the position is forgotten and the next stream sends a snapshot.
    pub fn rejoin(self: &Arc<Self>, input: &mut dyn Read) -> Result<Pos, ApplyError> {
        if self.writes_under_halt() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "a client holds the HALT lock").into());
        }
        let mut record = self.receive(input)?;
        let _action = self.action.lock();
        if !self.shared.is_replica() || self.writes_under_halt() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "this node may write now").into());
        }
        self.complete_from_log()?;
        let ours = self.pos();
        self.check_rejoin(&record, ours)?;
        let result = self.apply_verified(&mut record, Logged::InsteadOf(ours));
        match &result {
            Ok(pos) => {
                tracing::warn!(
                    database = %self.name, %ours, from = %record.header.pre(), %pos, pages = record.pages.len(),
                    "gave our own transactions up for the primary's: by one record from the last common position"
                );
                self.shared.metrics.resynced_by_record();
                if let Err(error) = self.forget_rejoin() {
                    // It names a position that the log has left with the next record.
                    tracing::debug!(database = %self.name, %error, "remove the mark of a resync");
                }
            }
            // Between the histories: only a snapshot, or a start, leads on from here.
            Err(_) if self.log.last_pos() != ours => self.forget_position(&mut self.capture.lock()),
            Err(_) => {}
        }
        result
    }

    fn check_rejoin(&self, record: &Incoming, ours: Pos) -> Result<(), ApplyError> {
        if let Health::Broken(reason) = self.health() {
            return Err(io::Error::other(reason).into());
        }
        let header = &record.header;
        let page_size = self.capture.lock().page_size;
        if header.is_snapshot() || header.commit == 0 || header.page_size != page_size || record.pages.is_empty() {
            return Err(ApplyError::Damaged("it is no record that can take the place of others".into()));
        }
        if header.pre().txid >= ours.txid || !self.log.ends_at(header.pre())? {
            return Err(ApplyError::WrongPosition { expected: header.pre(), actual: ours });
        }
        Ok(())
    }

    /// Puts the record in the place of the log's end. Nothing of the database has changed yet, and nobody writes.
    pub(super) fn replace_log_end(&self, record: &mut Incoming) -> Result<(), ApplyError> {
        let from = record.header.pre();
        self.keep_aside(from).map_err(|error| ApplyError::SetAside(error.to_string()))?;
        let path = self.files.dir().join(MARK);
        let mark = os::open_or_create("rejoin.mark", &path)?;
        os::write_all_at("rejoin.mark", &mark, record.post().to_string().as_bytes(), 0)?;
        os::sync_data("rejoin.mark", &mark)?;
        os::sync_dir("rejoin.mark", self.files.dir())?;
        self.log.truncate_after(from.txid)?;
        record.append_to(&self.log)?;
        Ok(self.log.sync()?)
    }

    /// The position after the record with which a resync was under way, if one was.
    pub(crate) fn rejoining(&self) -> Option<Pos> {
        fs::read_to_string(self.files.dir().join(MARK)).ok()?.parse().ok()
    }

    /// Removes the mark: the files are where the log is.
    ///
    /// # Errors
    /// Removing it.
    pub(crate) fn forget_rejoin(&self) -> io::Result<()> {
        let path = self.files.dir().join(MARK);
        if path.exists() { os::remove_file("rejoin.forget", &path) } else { Ok(()) }
    }
}
