//! What other nodes and operators get of a database: records, snapshots, copies.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use super::commit::now_ms;
use super::{Database, Health, Next, PageSource};
use crate::ltx::{Encoder, Header};
use crate::sqlite::page::{lock_page, page_checksum};
use crate::{Checksum, Pos, Txid};

/// How long a view waits for writers.
pub(super) const VIEW_WAIT: Duration = Duration::from_secs(10);
/// Bytes handed to the receiver at once.
pub(super) const WRITE_BYTES: usize = 128 << 10;

impl Database {
    /// What a replica at `from` needs (COMPAT §4 "Primary's rule"). Blocking file reads.
    ///
    /// # Errors
    /// `InvalidData` when the database is broken; reading the log.
    pub fn next_after(&self, from: Pos) -> io::Result<Next> {
        if let Health::Broken(reason) = self.health() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let pos = self.pos();
        if from == pos {
            return Ok(Next::UpToDate);
        }
        if from.txid >= pos.txid {
            return Ok(Next::SnapshotNeeded);
        }
        match self.log.after(from) {
            // The log runs ahead of the position while a record is being applied: who got it would seem to be ahead of us, and
            // it could still fail.
            Ok(Some(records)) => Ok(Next::Records(Box::new(records.until(pos.txid)))),
            Ok(None) => Ok(Next::SnapshotNeeded),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(database = %self.name, %error, "a stream gets a snapshot instead of records");
                Ok(Next::SnapshotNeeded)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes an LTX snapshot (min TXID 1 … our TXID) of a consistent view while writers go on; constant memory. Returns
    /// its position.
    ///
    /// # Errors
    /// `NotFound` without a transaction; `TimedOut` while a writer locks the database; `InvalidData` when what was read
    /// is not what the position says (the file is not ended then); reading and writing.
    pub fn snapshot(&self, out: &mut dyn Write) -> io::Result<Pos> {
        let view = self.view(VIEW_WAIT)?;
        let header = Header {
            compressed: self.shared.config.compress,
            page_size: view.page_size,
            commit: view.page_count,
            min_txid: Txid(1),
            max_txid: view.pos.txid,
            timestamp_ms: now_ms(),
            node_id: self.shared.node_id,
            ..Header::default()
        };
        let mut encoder = Encoder::new(BufWriter::with_capacity(WRITE_BYTES, out), &header)?;
        let mut pages = view.pages();
        while let Some((pgno, page)) = pages.next_page()? {
            encoder.write_page(pgno, page)?;
        }
        let actual = encoder.snapshot_checksum();
        if actual != view.pos.checksum {
            return Err(view.wrong_checksum(actual));
        }
        encoder.finish(actual)?;
        Ok(view.pos)
    }

    /// Writes a consistent database file. Returns its position.
    ///
    /// # Errors
    /// As [`Database::snapshot`]; also `NotFound` for a deleted database.
    pub fn export(&self, out: &mut dyn Write) -> io::Result<Pos> {
        if !self.is_live() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the database does not exist"));
        }
        let view = self.view(VIEW_WAIT)?;
        let mut out = BufWriter::with_capacity(WRITE_BYTES, out);
        let skipped = lock_page(view.page_size);
        let mut actual = Checksum::EMPTY;
        let mut pages = view.pages();
        while let Some((pgno, page)) = pages.next_page()? {
            if pgno == skipped + 1 {
                out.write_all(&vec![0; view.page_size as usize])?;
            }
            actual = actual ^ page_checksum(pgno, page);
            out.write_all(page)?;
        }
        if actual != view.pos.checksum {
            return Err(view.wrong_checksum(actual));
        }
        out.flush()?;
        Ok(view.pos)
    }
}
