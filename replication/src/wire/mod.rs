//! The replication protocol's bytes (COMPAT §4): the position map a replica sends, the frames a primary answers with.
//!
//! Every integer is big-endian. Decoders trust nothing: lengths are bounded before anything is allocated, names are
//! validated, and a decoder never holds more than one frame header or one chunk beyond what it was given.

mod decoder;
mod frame;
mod position_map;
mod tail;
#[cfg(test)]
mod tests;

pub use decoder::{Item, StreamDecoder};
pub use frame::{CHUNK_BYTES, CHUNK_BYTES_MAX, Frame, LEASE_ID_BYTES_MAX, end_ltx, put_chunks};
pub use position_map::{POSITION_MAP_BYTES_MAX, decode_position_map, encode_position_map};
pub use tail::{decode_tail, encode_tail};

use litefs::NameError;
use thiserror::Error;

/// What a peer sent is not the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// A frame type that does not exist.
    #[error("unknown stream frame type {0}")]
    UnknownFrame(u32),
    /// A length beyond its bound.
    #[error("{what} of {len} bytes is longer than {max}")]
    TooLong {
        /// Which field.
        what: &'static str,
        /// What the peer announced.
        len: u64,
        /// The most we take.
        max: u64,
    },
    /// The input ends inside a field.
    #[error("{0} is cut short")]
    Truncated(&'static str),
    /// More bytes than the message says.
    #[error("{0} bytes follow the position map")]
    TrailingBytes(usize),
    /// Text that is not UTF-8.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// A database name we would not create a file for.
    #[error("database name: {0}")]
    Name(#[from] NameError),
    /// The same database twice in one position map.
    #[error("database {0} is in the position map twice")]
    Duplicate(String),
}
