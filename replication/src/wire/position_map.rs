//! The body of `POST /stream`: which transaction of which database the replica has.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use litefs::{Checksum, DbName, Pos, Txid};

use super::WireError;
use super::frame::take_name;

/// The largest position map read from a peer: some 70,000 databases with the longest names.
pub const POSITION_MAP_BYTES_MAX: usize = 16 << 20;

/// `count u32`, then per database `name_len u32, name, txid u64, checksum u64`, in order of the names.
#[must_use]
pub fn encode_position_map(positions: &BTreeMap<DbName, Pos>) -> Bytes {
    let mut out = BytesMut::with_capacity(4 + positions.len() * 64);
    out.put_u32(u32::try_from(positions.len()).unwrap_or(u32::MAX));
    for (name, pos) in positions {
        super::frame::put_text(&mut out, name.as_str());
        out.put_u64(pos.txid.0);
        out.put_u64(pos.checksum.0);
    }
    out.freeze()
}

/// Reads a whole position map. LiteFS sends the names in no particular order.
///
/// # Errors
/// When it is cut short, a name is invalid or named twice, or bytes follow.
pub fn decode_position_map(mut input: &[u8]) -> Result<BTreeMap<DbName, Pos>, WireError> {
    const WHAT: &str = "the position map";
    let count = input.try_get_u32().map_err(|_| WireError::Truncated(WHAT))?;
    let mut positions = BTreeMap::new();
    for _ in 0..count {
        let name = take_name(&mut input)?.ok_or(WireError::Truncated(WHAT))?;
        let txid = input.try_get_u64().map_err(|_| WireError::Truncated(WHAT))?;
        let checksum = input.try_get_u64().map_err(|_| WireError::Truncated(WHAT))?;
        if positions.insert(name.clone(), Pos::new(Txid(txid), Checksum(checksum))).is_some() {
            return Err(WireError::Duplicate(name.to_string()));
        }
    }
    if input.has_remaining() {
        return Err(WireError::TrailingBytes(input.remaining()));
    }
    Ok(positions)
}
