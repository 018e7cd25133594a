//! Giving our own newest transactions up for the primary's: one record takes their place ([`crate::database::tail`]).
//!
//! In this order, so that a crash anywhere loses nothing: the transactions are copied to `lost+found`; the mark is made; the
//! log is cut back to the common position and goes on with the record, which is made durable; then the record is applied as any
//! other, beside readers, from the log. Before the mark nothing has changed. After it, a start that finds the record at the log's
//! end and the files elsewhere knows that they are what was set aside, or half of the record: it may only go to the log's
//! end, never record what it finds (which could undo the primary's transactions). With the log cut and no record behind
//! the cut, it finds what was there before. A mark that cannot be read may have named the log's end: files that are elsewhere
//! are not believed then, and a primary replaces them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::{Incoming, Logged};
use crate::database::{ApplyError, Database, Health};
use crate::ltx::Digest;
use crate::{Pos, os};

/// The mark's name in the database's directory. One line: the position after the record, and the CRC-64/GO-ISO of that text as 16
/// hex digits. It comes by a rename, so that what cannot be read is damage and not half written.
const MARK: &str = "rejoining";
/// The most bytes that are read of it.
const MARK_BYTES_MAX: u64 = 128;

/// Whether our own transactions were being given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rejoining {
    /// No.
    No,
    /// For the record that leads to this position.
    To(Pos),
    /// The mark cannot be read, and why.
    Unknown(String),
}

impl Rejoining {
    /// What the mark in a database's folder says.
    pub(crate) fn read(dir: &Path) -> Self {
        let mut text = Vec::new();
        match File::open(dir.join(MARK)).and_then(|mark| mark.take(MARK_BYTES_MAX).read_to_end(&mut text)) {
            Ok(_) => read_mark(&text).map_or_else(|| Self::Unknown("it is damaged".to_owned()), Self::To),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::No,
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}

/// A position of ours that a primary has, too: where a resync with it was to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Common {
    /// The primary.
    pub(super) node_id: u64,
    pub(super) from: Pos,
    /// Where we were.
    pub(super) ours: Pos,
}

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
                self.end_rejoin();
            }
            // Between the histories: only a snapshot, or a start, leads on from here.
            Err(_) if self.log.last_pos() != ours => self.forget_position(&mut self.capture.lock()),
            Err(ApplyError::Io(_) | ApplyError::SetAside(_)) => {
                let (node_id, from) = (record.header.node_id, record.header.pre());
                self.capture.lock().applied.common = Some(Common { node_id, from, ours });
            }
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
        self.write_mark(record.post())?;
        self.log.truncate_after(from.txid)?;
        Incoming::append_all(std::slice::from_mut(record), &self.log)?;
        Ok(self.log.sync()?)
    }

    fn write_mark(&self, pos: Pos) -> io::Result<()> {
        let unfinished = self.files.dir().join(format!("{MARK}.tmp"));
        let mark = os::open_or_create("rejoin.mark", &unfinished)?;
        os::set_len("rejoin.mark", &mark, 0)?;
        os::write_all_at("rejoin.mark", &mark, mark_text(pos).as_bytes(), 0)?;
        os::sync_data("rejoin.mark", &mark)?;
        os::rename("rejoin.mark", &unfinished, &self.files.dir().join(MARK))?;
        os::sync_dir("rejoin.mark", self.files.dir())
    }

    /// What the mark says.
    pub(crate) fn rejoining(&self) -> Rejoining {
        Rejoining::read(self.files.dir())
    }

    /// The files are where the log is: removes the mark, if that can be done.
    pub(super) fn end_rejoin(&self) {
        if let Err(error) = self.forget_rejoin() {
            // It names a position that the log has left with the next record.
            tracing::debug!(database = %self.name, %error, "remove the mark of a resync");
        }
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

fn mark_text(pos: Pos) -> String {
    let mut digest = Digest::new();
    digest.update(pos.to_string().as_bytes());
    format!("{pos} {:016x}\n", digest.value())
}

fn read_mark(text: &[u8]) -> Option<Pos> {
    let pos = std::str::from_utf8(text).ok()?.split_once(' ')?.0.parse().ok()?;
    (mark_text(pos).as_bytes() == text).then_some(pos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checksum, Txid};

    #[test]
    fn a_mark_with_any_bit_changed_cut_off_or_longer_is_none() {
        let pos = Pos::new(Txid(0x2a), Checksum(0x8000_0000_0000_00ff));
        let text = mark_text(pos).into_bytes();
        assert_eq!(read_mark(&text), Some(pos));
        for (at, bit) in (0..text.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut damaged = text.clone();
            damaged[at] ^= 1 << bit;
            assert_eq!(read_mark(&damaged), None, "bit {bit} of byte {at}");
        }
        for len in 0..text.len() {
            assert_eq!(read_mark(&text[..len]), None, "{len} bytes");
        }
        assert_eq!(read_mark(&[text.as_slice(), &[0]].concat()), None);
    }
}
