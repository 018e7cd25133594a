//! Bringing a diverged replica back by one record instead of a snapshot.
//!
//! The log keeps what pages became, not what they were, so nobody can roll a database back by itself. But its own records
//! after a common position name every page in which it can differ from that position. So the replica lists them
//! ([`Database::tail`]), and the primary sends, as *one* record from the common position to its own ([`Database::write_rejoin`]),
//! these pages and all that its own records since then change, as they are now. Such a record is true for a database at the
//! common position (it only holds more than it must) and for the diverged one; that it is, the checksum after it proves on
//! both. `Database::rejoin` applies it.

use std::collections::BTreeSet;
use std::io::{self, BufReader, BufWriter, Write};

use super::commit::now_ms;
use super::snapshot::{VIEW_WAIT, WRITE_BYTES};
use super::view::View;
use super::{Database, Health, Record};
use crate::ltx::{Decoder, Encoder, Header};
use crate::sqlite::page::lock_page;
use crate::{Pos, Txid};

/// The most records a replica looks at for a common position.
pub const TAIL_STEPS_MAX: usize = 4096;
/// The most page numbers it lists.
pub const TAIL_PAGES_MAX: usize = 256 << 10;
/// Bytes read at once from a record.
const READ_BYTES: usize = 64 << 10;

/// A record of a replica's own log, as far as it matters for rolling it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailStep {
    /// The position it goes on from.
    pub before: Pos,
    /// The pages it changed.
    pub pages: Vec<u32>,
}

/// What a replica may have to give up: its newest records, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// Bytes per page.
    pub page_size: u32,
    /// Size of its database in pages.
    pub page_count: u32,
    /// Its records.
    pub steps: Vec<TailStep>,
}

/// The primary cannot bring the replica back by a record: `InvalidInput`.
fn refused(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

impl Database {
    /// On a replica: its newest records, back to where the log could be cut. `None` when it has nothing that could be rolled
    /// back: no position, files that are not at it, a log that does not reach back, a client that writes under the HALT lock.
    ///
    /// # Errors
    /// Reading the log.
    pub fn tail(&self) -> io::Result<Option<Tail>> {
        if !self.is_live() || self.writes_under_halt() || matches!(self.health(), Health::Broken(_)) {
            return Ok(None);
        }
        let (pos, mut tail) = {
            let state = self.capture.lock();
            let (page_size, page_count) = (state.page_size, state.checksums.page_count());
            (state.pos, Tail { page_size, page_count, steps: Vec::new() })
        };
        if pos.is_zero() || self.log.last_pos() != pos {
            return Ok(None);
        }
        let (mut at, mut count) = (pos, 0);
        while tail.steps.len() < TAIL_STEPS_MAX {
            let Some(record) = self.log.read(at.txid)?.filter(|record| record.post == at) else { break };
            let mut pages = BTreeSet::new();
            let header = add_pages(&record, &mut pages)?;
            count += pages.len();
            let before = header.pre();
            let is_end = header.is_snapshot() || header.commit == 0 || header.page_size != tail.page_size;
            if is_end || count > TAIL_PAGES_MAX || !self.log.ends_at(before)? {
                break;
            }
            tail.steps.push(TailStep { before, pages: pages.into_iter().collect() });
            at = before;
        }
        Ok(Some(tail).filter(|tail| !tail.steps.is_empty()))
    }

    /// On the primary: writes the record that brings the owner of `tail` to our position. Returns that.
    ///
    /// # Errors
    /// `InvalidInput`, and nothing is written: only a snapshot brings it there, or is not larger. Else as [`Database::snapshot`].
    pub fn write_rejoin(&self, tail: &Tail, out: &mut dyn Write) -> io::Result<Pos> {
        let view = self.view(VIEW_WAIT)?;
        if view.page_size != tail.page_size || view.page_count == 0 {
            return Err(refused("the page size has changed, or the database was deleted"));
        }
        let Some((ancestor, mut pages)) = self.common_pos(tail, view.pos.txid)? else {
            return Err(refused("the log has no position in common with the replica's"));
        };
        let half = view.page_count / 2;
        let cut = view.page_count.saturating_sub(tail.page_count);
        if cut > half || !self.add_changed(ancestor, &view, &mut pages)? {
            return Err(refused("more of the database has changed than a snapshot is worth"));
        }
        pages.extend(tail.page_count.saturating_add(1)..=view.page_count);
        pages.insert(1);
        pages.retain(|pgno| (1..=view.page_count).contains(pgno) && *pgno != lock_page(view.page_size));
        if pages.len() > half as usize {
            return Err(refused("more of the database has changed than a snapshot is worth"));
        }
        let header = Header {
            compressed: self.shared.config.compress,
            page_size: view.page_size,
            commit: view.page_count,
            min_txid: ancestor.txid.next(),
            max_txid: view.pos.txid,
            timestamp_ms: now_ms(),
            pre_apply: ancestor.checksum,
            node_id: self.shared.node_id,
            ..Header::default()
        };
        let mut encoder = Encoder::new(BufWriter::with_capacity(WRITE_BYTES, out), &header)?;
        let mut page = vec![0; view.page_size as usize];
        for pgno in pages {
            view.read_page(pgno, &mut page)?;
            encoder.write_page(pgno, &page)?;
        }
        let (_, mut out) = encoder.finish(view.pos.checksum)?;
        out.flush()?;
        Ok(view.pos)
    }

    /// The newest position of the tail that our log has, before `end`, and the pages that the tail changed after it.
    fn common_pos(&self, tail: &Tail, end: Txid) -> io::Result<Option<(Pos, BTreeSet<u32>)>> {
        let mut pages = BTreeSet::new();
        for step in &tail.steps {
            pages.extend(step.pages.iter().copied());
            if !step.before.is_zero() && step.before.txid < end && self.log.contains(step.before)? {
                return Ok(Some((step.before, pages)));
            }
        }
        Ok(None)
    }

    /// Adds what our own records changed since; `false` when these are larger than the database.
    fn add_changed(&self, since: Pos, view: &View, pages: &mut BTreeSet<u32>) -> io::Result<bool> {
        let Some(records) = self.log.after(since)? else { return Ok(false) };
        let mut left = u64::from(view.page_count) * u64::from(view.page_size);
        for record in records.until(view.pos.txid) {
            let record = record?;
            let Some(less) = left.checked_sub(record.body.len()) else { return Ok(false) };
            left = less;
            if add_pages(&record, pages)?.is_snapshot() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Adds the numbers of a record's pages; its header.
fn add_pages(record: &Record, pages: &mut BTreeSet<u32>) -> io::Result<Header> {
    let mut decoder = Decoder::new(BufReader::with_capacity(READ_BYTES, record.body.reader()))?;
    let header = *decoder.header();
    let mut page = vec![0; header.page_size as usize];
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.insert(pgno);
    }
    Ok(header)
}
