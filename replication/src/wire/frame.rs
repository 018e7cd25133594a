//! Stream frames and the chunks that carry an LTX file.

use bytes::{Buf, BufMut, BytesMut};
use litefs::name::NAME_BYTES_MAX;
use litefs::{DbName, Txid};

use super::WireError;

/// The longest lease ID in a handoff frame (a Consul session ID has 36 bytes).
pub const LEASE_ID_BYTES_MAX: usize = 1024;
/// How an LTX file is cut when we send it; as LiteFS does.
pub const CHUNK_BYTES: usize = 32 << 10;
/// The longest chunk the format allows.
pub const CHUNK_BYTES_MAX: usize = u16::MAX as usize;

/// The start of a stream frame. All but [`Frame::Ltx`] are complete with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Type 1: an LTX file of this database follows in chunks. (The `size u64` field is always sent as 0, and not read.)
    Ltx {
        /// The database.
        name: DbName,
    },
    /// Type 2: everything up to the replica's connecting has been sent.
    Ready,
    /// Type 3: the primary goes away cleanly.
    End,
    /// Type 4: the primary does not know this database (deletions it knows travel as LTX files with commit = 0).
    DropDatabase {
        /// The database.
        name: DbName,
    },
    /// Type 5: the receiver shall take over this lease.
    Handoff {
        /// The lease, in the lease system's own terms.
        lease_id: String,
    },
    /// Type 6: the backup service has everything up to here. Only LiteFS sends it.
    HighWaterMark {
        /// The last transaction in the backup.
        txid: Txid,
        /// The database.
        name: DbName,
    },
    /// Type 7: nothing happened.
    Heartbeat {
        /// The primary's clock, ms since the epoch.
        timestamp_ms: i64,
    },
}

impl Frame {
    /// What `litefs_http_frame_send_count` calls it (LiteFS's labels).
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Ltx { .. } => "ltx",
            Self::Ready => "ready",
            Self::End => "end",
            Self::DropDatabase { .. } => "dropdb",
            Self::Handoff { .. } => "handoff",
            Self::HighWaterMark { .. } => "hwm",
            Self::Heartbeat { .. } => "heartbeat",
        }
    }

    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Ltx { name } => {
                out.put_u32(1);
                out.put_u64(0);
                put_text(out, name.as_str());
            }
            Self::Ready => out.put_u32(2),
            Self::End => out.put_u32(3),
            Self::DropDatabase { name } => {
                out.put_u32(4);
                put_text(out, name.as_str());
            }
            Self::Handoff { lease_id } => {
                out.put_u32(5);
                put_text(out, lease_id);
            }
            Self::HighWaterMark { txid, name } => {
                out.put_u32(6);
                out.put_u64(txid.0);
                put_text(out, name.as_str());
            }
            Self::Heartbeat { timestamp_ms } => {
                out.put_u32(7);
                out.put_i64(*timestamp_ms);
            }
        }
    }

    /// Takes a frame from the front of `input`; `None` (and an unspecified rest) when it is not there completely.
    ///
    /// # Errors
    /// When no continuation could make it a frame.
    pub(super) fn take(input: &mut &[u8]) -> Result<Option<Self>, WireError> {
        let Ok(kind) = input.try_get_u32() else { return Ok(None) };
        Ok(match kind {
            1 => {
                let Ok(_size) = input.try_get_u64() else { return Ok(None) };
                take_name(input)?.map(|name| Self::Ltx { name })
            }
            2 => Some(Self::Ready),
            3 => Some(Self::End),
            4 => take_name(input)?.map(|name| Self::DropDatabase { name }),
            5 => take_text(input, "the lease ID", LEASE_ID_BYTES_MAX)?
                .map(|lease_id| Self::Handoff { lease_id: lease_id.to_owned() }),
            6 => {
                let Ok(txid) = input.try_get_u64() else { return Ok(None) };
                take_name(input)?.map(|name| Self::HighWaterMark { txid: Txid(txid), name })
            }
            7 => input.try_get_i64().ok().map(|timestamp_ms| Self::Heartbeat { timestamp_ms }),
            other => return Err(WireError::UnknownFrame(other)),
        })
    }
}

/// Appends a piece of an LTX file, as many chunks as it takes.
pub fn put_chunks(out: &mut BytesMut, piece: &[u8]) {
    out.reserve(piece.len() + (piece.len() / CHUNK_BYTES + 1) * 2);
    for chunk in piece.chunks(CHUNK_BYTES) {
        out.put_u16(chunk.len() as u16);
        out.put_slice(chunk);
    }
}

/// Appends the mark after an LTX file's last chunk.
pub fn end_ltx(out: &mut BytesMut) {
    out.put_u16(0);
}

pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text.as_bytes());
}

pub(super) fn take_name(input: &mut &[u8]) -> Result<Option<DbName>, WireError> {
    match take_text(input, "a database name", NAME_BYTES_MAX)? {
        Some(text) => Ok(Some(text.parse()?)),
        None => Ok(None),
    }
}

fn take_text<'a>(input: &mut &'a [u8], what: &'static str, max: usize) -> Result<Option<&'a str>, WireError> {
    let Ok(len) = input.try_get_u32() else { return Ok(None) };
    let len = len as usize;
    if len > max {
        return Err(WireError::TooLong { what, len: len as u64, max: max as u64 });
    }
    let Some((text, rest)) = input.split_at_checked(len) else { return Ok(None) };
    *input = rest;
    std::str::from_utf8(text).map(Some).map_err(|_| WireError::NotUtf8(what))
}
