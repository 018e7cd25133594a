//! The one place where a transaction becomes a record and the position advances.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::log::Spool;
use super::{CaptureState, Database, Health};
use crate::ltx::{Encoder, Header, ImageBuilder};
use crate::sqlite::page::{lock_page, page_checksum};
use crate::{Checksum, Pos, Txid};

/// Records of up to this many bytes of pages are made in memory; larger ones in a file.
const MEMORY_BYTES_MAX: usize = 4 << 20;
/// A list of changed pages longer than this is not kept for the next transaction.
const KEPT_CHANGES_MAX: usize = 64 << 10;

/// The pages of a transaction, in strictly ascending order.
///
/// The contract (COMPAT §1, and what makes a replica's file equal byte for byte): every page the transaction changed, and
/// **every page between the old and the new end of the database**, changed or not (a page allocated and freed again is never
/// written by SQLite, but is part of the file); a snapshot holds all. Never the lock page, never a page beyond `commit`.
pub(crate) trait PageSource {
    /// The next page: its number and its bytes, valid until the next call. `None` after the last.
    fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>>;
}

/// What a transaction is, beside its pages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TxHead {
    /// Bytes per page. Another one than before makes the record a snapshot: the source must give every page.
    pub(crate) page_size: u32,
    /// Database size in pages afterwards; 0 = deletion (no pages).
    pub(crate) commit: u32,
    /// About how many pages the source gives: decides between memory and a file.
    pub(crate) page_count_hint: usize,
    /// Leave out pages whose checksum is what it was; without any page left, and the same size, there is no transaction.
    pub(crate) skip_unchanged: bool,
    /// Offset and size in bytes of its frames in the WAL; 0 without a WAL.
    pub(crate) wal_offset: u64,
    pub(crate) wal_size: u64,
    /// The salts of that WAL.
    pub(crate) wal_salts: [u32; 2],
    /// Make the record durable before answering (the frames or the journal it came from are about to vanish).
    pub(crate) durable: bool,
}

/// Reused from transaction to transaction.
#[derive(Default)]
pub(crate) struct CommitBuffers {
    image: ImageBuilder,
    changes: Vec<(u32, Checksum)>,
}

impl std::fmt::Debug for CommitBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitBuffers").finish_non_exhaustive()
    }
}

/// A record that is in the log, and what it changes. Nobody sees it yet: the log's readers stop at the position.
#[derive(Debug)]
pub(crate) struct Prepared {
    header: Header,
    post: Checksum,
    changes: Vec<(u32, Checksum)>,
}

/// Where a record is being made.
enum RecordWriter<'a> {
    Memory(&'a mut ImageBuilder),
    File(Box<Encoder<Spool>>),
}

impl RecordWriter<'_> {
    /// Appends a page; its checksum.
    fn push(&mut self, pgno: u32, page: &[u8]) -> io::Result<Checksum> {
        match self {
            Self::Memory(image) => Ok(image.push_page(pgno, page)?),
            Self::File(encoder) => {
                encoder.write_page(pgno, page)?;
                Ok(page_checksum(pgno, page))
            }
        }
    }
}

/// Milliseconds since the epoch, for records.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Database {
    /// Makes a record of a transaction that the *local* SQLite committed (or import made): computes the checksums, appends
    /// it to the log under the next TXID, advances and publishes the position. `Ok(None)`: nothing had changed.
    ///
    /// On an error nothing has changed: not the log, not `state`.
    pub(crate) fn commit_transaction(
        &self,
        state: &mut CaptureState,
        head: &TxHead,
        pages: &mut dyn PageSource,
    ) -> io::Result<Option<Pos>> {
        let Some(prepared) = self.prepare_transaction(state, head, pages)? else { return Ok(None) };
        if head.durable {
            let synced = self.sync_prepared(state);
            self.note_outcome("record a transaction", synced.as_ref().err());
            synced?;
        }
        Ok(Some(self.publish_prepared(state, prepared)))
    }

    /// The first half of [`Self::commit_transaction`]: makes the record and appends it to the log, where nobody sees it before
    /// [`Self::publish_prepared`]. `Ok(None)`: nothing had changed.
    ///
    /// On an error nothing has changed: not the log, not `state`.
    pub(crate) fn prepare_transaction(
        &self,
        state: &mut CaptureState,
        head: &TxHead,
        pages: &mut dyn PageSource,
    ) -> io::Result<Option<Prepared>> {
        if let Health::Broken(reason) = &*self.health.lock() {
            // Its state is unknown: a record of it would start history again.
            return Err(io::Error::other(reason.clone()));
        }
        self.withdraw_prepared(state)?;
        let mut buffers = std::mem::take(&mut state.buffers);
        buffers.changes.clear();
        let result = self.forget_refused(state).and_then(|()| self.make_record(state, head, pages, &mut buffers));
        if !matches!(result, Ok(Some(_))) && buffers.changes.capacity() > KEPT_CHANGES_MAX {
            buffers.changes = Vec::new();
        }
        state.buffers = buffers;
        self.note_outcome("record a transaction", result.as_ref().err());
        result
    }

    /// Cuts what a commit that was refused left at the end of the log because the disk failed then as well.
    fn forget_refused(&self, state: &CaptureState) -> io::Result<()> {
        let Some(last) = self.log.last_header().filter(|_| !state.pos.is_zero()) else { return Ok(()) };
        // A record of another node is waiting to be applied.
        if last.max_txid > state.pos.txid && last.node_id == self.shared.node_id {
            self.log.truncate_after(state.pos.txid)?;
        }
        Ok(())
    }

    fn make_record(
        &self,
        state: &CaptureState,
        head: &TxHead,
        pages: &mut dyn PageSource,
        buffers: &mut CommitBuffers,
    ) -> io::Result<Option<Prepared>> {
        let CommitBuffers { image, changes } = buffers;
        let header = self.record_header(state, head);
        let replaces_all = header.is_snapshot();
        let mut writer = None;
        while let Some((pgno, page)) = pages.next_page()? {
            if head.skip_unchanged && !replaces_all && page_checksum(pgno, page) == state.checksums.get(pgno) {
                continue;
            }
            if writer.is_none() {
                writer = Some(self.record_writer(&header, head, image)?);
            }
            let Some(writer) = &mut writer else { continue };
            let checksum = writer.push(pgno, page)?;
            changes.push((pgno, checksum));
        }
        if writer.is_none() {
            if head.skip_unchanged && !replaces_all && head.commit == state.checksums.page_count() {
                return Ok(None);
            }
            writer = Some(self.record_writer(&header, head, image)?);
        }
        check_growth(state, head, replaces_all, changes)?;
        let post = database_checksum(state, head.commit, replaces_all, changes);
        match writer {
            Some(RecordWriter::Memory(image)) => self.log.append(&image.finish(post)?)?,
            Some(RecordWriter::File(encoder)) => {
                let (_, spool) = encoder.finish(post)?;
                self.log.adopt(spool)?;
            }
            None => {}
        }
        Ok(Some(Prepared { header, post, changes: std::mem::take(changes) }))
    }

    /// Makes a prepared record durable. When that fails it is withdrawn: SQLite is told that the commit failed and takes it
    /// back, so it must not be in the log.
    pub(crate) fn sync_prepared(&self, state: &CaptureState) -> io::Result<()> {
        if let Err(error) = self.log.sync() {
            self.log.truncate_after(state.pos.txid)?;
            return Err(error);
        }
        Ok(())
    }

    /// The second half of [`Self::commit_transaction`]: the transaction is committed.
    pub(crate) fn publish_prepared(&self, state: &mut CaptureState, prepared: Prepared) -> Pos {
        let Prepared { header, post, mut changes } = prepared;
        if header.is_snapshot() {
            state.checksums.clear();
        }
        state.checksums.resize(header.commit);
        for (pgno, checksum) in changes.drain(..) {
            state.checksums.set(pgno, checksum);
        }
        if changes.capacity() <= KEPT_CHANGES_MAX {
            state.buffers.changes = changes;
        }
        state.page_size = header.page_size;
        state.pos = Pos::new(header.max_txid, post);
        self.publish(state, header.timestamp_ms);
        if header.is_snapshot() {
            self.log.drop_superseded();
        }
        state.pos
    }

    /// Whether the next record of this page size is a snapshot, which takes the place of all records before it.
    pub(crate) fn replaces_history(&self, state: &CaptureState, page_size: u32) -> bool {
        state.pos.is_zero() || (state.page_size != 0 && state.page_size != page_size)
    }

    /// The header of the next record. Only a record from TXID 1 on is a snapshot, so a change of the page size starts there again.
    fn record_header(&self, state: &CaptureState, head: &TxHead) -> Header {
        let next = state.pos.txid.next();
        let replaces_all = self.replaces_history(state, head.page_size);
        Header {
            compressed: self.shared.config.compress,
            page_size: head.page_size,
            commit: head.commit,
            min_txid: if replaces_all { Txid(1) } else { next },
            max_txid: next,
            timestamp_ms: now_ms(),
            pre_apply: if replaces_all { Checksum::NONE } else { state.pos.checksum },
            wal_offset: head.wal_offset,
            wal_size: head.wal_size,
            wal_salts: head.wal_salts,
            node_id: self.shared.node_id,
        }
    }

    fn record_writer<'a>(
        &self,
        header: &Header,
        head: &TxHead,
        image: &'a mut ImageBuilder,
    ) -> io::Result<RecordWriter<'a>> {
        if head.page_count_hint.saturating_mul(head.page_size as usize) > MEMORY_BYTES_MAX {
            return Ok(RecordWriter::File(Box::new(Encoder::new(self.log.spool()?, header)?)));
        }
        image.begin(header, head.page_count_hint)?;
        Ok(RecordWriter::Memory(image))
    }

    /// After a record was appended to the log (by [`Self::commit_transaction`], or by apply): tells waiters, streams,
    /// `GET /events` and the mount. `state` is the new state.
    pub(crate) fn publish(&self, state: &CaptureState, timestamp_ms: u64) {
        self.positions.publish(state.pos);
        self.shared.advanced(self, state, timestamp_ms);
    }

    /// Makes the log durable: what it holds is about to vanish elsewhere.
    pub(crate) fn sync_log(&self) -> io::Result<()> {
        let result = self.log.sync();
        self.note_outcome("sync the log", result.as_ref().err());
        result
    }
}

/// Checks that the source gave every page by which the database grew; without them a replica's file would differ.
fn check_growth(
    state: &CaptureState,
    head: &TxHead,
    replaces_all: bool,
    changes: &[(u32, Checksum)],
) -> io::Result<()> {
    let old_end = if replaces_all { 0 } else { state.checksums.page_count() };
    let skipped = lock_page(head.page_size);
    let grown = head.commit.saturating_sub(old_end) - u32::from(skipped > old_end && skipped <= head.commit);
    let given = changes.iter().rev().take_while(|(pgno, _)| *pgno > old_end).count();
    if given == grown as usize {
        return Ok(());
    }
    let reason = format!("transaction to {} pages gives {given} of {grown} new pages", head.commit);
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

/// The database checksum with the changes: pages cut off leave it, changed ones replace their old selves.
fn database_checksum(state: &CaptureState, commit: u32, replaces_all: bool, changes: &[(u32, Checksum)]) -> Checksum {
    if replaces_all {
        return changes.iter().fold(Checksum::EMPTY, |sum, (_, checksum)| sum ^ *checksum);
    }
    let cut = (commit + 1..=state.checksums.page_count()).map(|pgno| state.checksums.get(pgno));
    let sum = cut.fold(state.checksums.database(), |sum, page| sum ^ page);
    changes.iter().fold(sum, |sum, (pgno, checksum)| sum ^ state.checksums.get(*pgno) ^ *checksum)
}
