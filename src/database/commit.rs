//! The one place where a transaction becomes a record and the position advances.

use std::io;

use super::{CaptureState, Database};
use crate::Pos;

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
    /// About how many pages the source gives: decides between memory and streaming.
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

impl Database {
    /// Makes a record of a transaction that the *local* SQLite committed (or import made): computes the checksums, appends
    /// it to the log under the next TXID, advances and publishes the position. `Ok(None)`: nothing had changed.
    ///
    /// On an error nothing has changed: not the log (a torn append is cut), not `state`.
    pub(crate) fn commit_transaction(
        &self,
        _state: &mut CaptureState,
        _head: &TxHead,
        _pages: &mut dyn PageSource,
    ) -> io::Result<Option<Pos>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the log is not there yet"))
    }

    /// After a record was appended to the log (by [`Self::commit_transaction`], or by apply): tells waiters, streams,
    /// `GET /events` and the mount. `state` is the new state.
    pub(crate) fn publish(&self, state: &CaptureState, timestamp_ms: u64) {
        self.positions.publish(state.pos);
        self.shared.advanced(self, state, timestamp_ms);
    }
}
