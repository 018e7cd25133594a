//! LTX, version 1: the file format of one transaction (or a contiguous range of them), as LiteFS v0.5 writes it.
//!
//! All integers are big-endian.
//!
//! | offset | size | header field |
//! |---|---|---|
//! | 0 | 4 | magic `LTX1` |
//! | 4 | 4 | flags; bit 0: the page block is one LZ4 frame |
//! | 8 | 4 | page size |
//! | 12 | 4 | commit: pages of the database after the transaction; 0: the database is deleted |
//! | 16 | 8+8 | min TXID, max TXID |
//! | 32 | 8 | timestamp, ms since the epoch |
//! | 40 | 8 | pre-apply checksum; 0 exactly when min TXID is 1 (a snapshot) |
//! | 48 | 8+8 | offset and size of the frames in the WAL; 0 for a rollback journal |
//! | 64 | 4+4 | salts of the WAL |
//! | 72 | 8 | node that made the file |
//! | 80 | 20 | reserved, zero |
//!
//! The page block is `pgno u32, page` in strictly ascending order, ended by `pgno = 0`. The trailer is the post-apply
//! checksum and the file checksum: CRC-64/GO-ISO of header, *uncompressed* page block and post-apply checksum.

mod checksum;
mod compact;
mod decoder;
mod encoder;
mod header;
mod image;
mod unpack;
mod verify;

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod property_tests;

pub use checksum::{Digest, pages_in_snapshot};
pub use compact::{COMPACT_INPUTS_MAX, compact, compact_spooled};
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use header::{HEADER_BYTES, Header, TRAILER_BYTES, Trailer};
pub use image::{Image, ImageBuilder};
pub use unpack::{Unpacked, Unpacker};
pub use verify::{Summary, verify};

use std::io;

use crate::{Checksum, Txid};

/// Why bytes are not a valid LTX file, or could not become one.
#[derive(Debug, thiserror::Error)]
pub enum LtxError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The input ends too early.
    #[error("file ends inside its {0}")]
    Truncated(&'static str),
    /// Not an LTX file, or of a later version.
    #[error("not an LTX version 1 file (magic {0:02x?})")]
    Magic([u8; 4]),
    /// A flag this version does not define.
    #[error("unknown flags {0:#x}")]
    Flags(u32),
    /// Not a power of two in 512…65536.
    #[error("invalid page size {0}")]
    PageSize(u32),
    /// min TXID is 0 or above max TXID.
    #[error("invalid TXID range {min}-{max}")]
    TxidRange {
        /// First transaction of the file.
        min: Txid,
        /// Last transaction of the file.
        max: Txid,
    },
    /// A snapshot with, or another file without, a pre-apply checksum.
    #[error("invalid pre-apply checksum {checksum} for min TXID {min}")]
    PreApply {
        /// First transaction of the file.
        min: Txid,
        /// The checksum in the header.
        checksum: Checksum,
    },
    /// A page is out of order, repeated, missing from a snapshot, the lock page or beyond the end of the database.
    #[error("page {pgno} is not allowed here ({reason})")]
    Page {
        /// The page number found.
        pgno: u32,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The page buffer has not the file's page size.
    #[error("page of {actual} bytes in a file with pages of {expected} bytes")]
    PageLength {
        /// The page size of the header.
        expected: u32,
        /// Bytes given.
        actual: usize,
    },
    /// The compressed page block is damaged.
    #[error("compressed page block is damaged: {0}")]
    Lz4(String),
    /// The page block goes on behind its terminator.
    #[error("data after the last page")]
    TrailingPages,
    /// The file checksum does not match its contents.
    #[error("file checksum {actual}, trailer says {expected}")]
    FileChecksum {
        /// The trailer's.
        expected: Checksum,
        /// The one computed.
        actual: Checksum,
    },
    /// The post-apply checksum is not valid, or not the checksum of the snapshot's pages.
    #[error("post-apply checksum {actual} where {expected} is needed")]
    PostApply {
        /// The computed one, or [`Checksum::EMPTY`] for a deletion.
        expected: Checksum,
        /// The one of the trailer or caller.
        actual: Checksum,
    },
    /// Files to compact do not follow each other.
    #[error("files are not contiguous: {0}")]
    NotContiguous(String),
    /// More files than can be merged at once.
    #[error("{0} files to compact, at most {COMPACT_INPUTS_MAX} at once")]
    TooManyInputs(usize),
}

impl LtxError {
    /// Whether the bytes are at fault (rather than the disk or peer they came from).
    #[must_use]
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Io(_))
    }
}

impl From<LtxError> for io::Error {
    fn from(error: LtxError) -> Self {
        match error {
            LtxError::Io(error) => error,
            LtxError::Truncated(_) => Self::new(io::ErrorKind::UnexpectedEof, error),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}
