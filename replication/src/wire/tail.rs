//! The body of `POST /resync?name=`: a replica's newest records, and which pages they changed. Between our nodes only.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use litefs::database::{TAIL_PAGES_MAX, TAIL_STEPS_MAX, Tail, TailStep};
use litefs::{Checksum, Pos, Txid};

use super::WireError;

// The longest encoded tail is read as a position map is: with that bound.
const _: () = assert!(12 + TAIL_STEPS_MAX * 20 + TAIL_PAGES_MAX * 4 <= super::POSITION_MAP_BYTES_MAX);

/// `page_size u32, page_count u32, steps u32`, then per record, the newest first, the position before it as `txid u64, checksum
/// u64`, and `count u32, pgno u32…`.
#[must_use]
pub fn encode_tail(tail: &Tail) -> Bytes {
    let pages: usize = tail.steps.iter().map(|step| step.pages.len()).sum();
    let mut out = BytesMut::with_capacity(12 + tail.steps.len() * 20 + pages * 4);
    out.put_u32(tail.page_size);
    out.put_u32(tail.page_count);
    out.put_u32(u32::try_from(tail.steps.len()).unwrap_or(u32::MAX));
    for step in &tail.steps {
        out.put_u64(step.before.txid.0);
        out.put_u64(step.before.checksum.0);
        out.put_u32(u32::try_from(step.pages.len()).unwrap_or(u32::MAX));
        for pgno in &step.pages {
            out.put_u32(*pgno);
        }
    }
    out.freeze()
}

/// Reads a whole tail.
///
/// # Errors
/// When it is cut short, has more than a replica lists, or bytes follow.
pub fn decode_tail(mut input: &[u8]) -> Result<Tail, WireError> {
    const WHAT: &str = "the list of records";
    let cut = |_| WireError::Truncated(WHAT);
    let within = |len: u32, max: usize| match len as usize {
        len if len <= max => Ok(len),
        len => Err(WireError::TooLong { what: WHAT, len: len as u64, max: max as u64 }),
    };
    let page_size = input.try_get_u32().map_err(cut)?;
    let page_count = input.try_get_u32().map_err(cut)?;
    let count = within(input.try_get_u32().map_err(cut)?, TAIL_STEPS_MAX)?;
    let mut steps = Vec::new();
    let mut room = TAIL_PAGES_MAX;
    for _ in 0..count {
        let txid = input.try_get_u64().map_err(cut)?;
        let checksum = input.try_get_u64().map_err(cut)?;
        let len = within(input.try_get_u32().map_err(cut)?, room)?;
        room -= len;
        let bytes = input.split_off(..len * 4).ok_or(WireError::Truncated(WHAT))?;
        let pages = bytes.chunks_exact(4).map(|mut pgno| pgno.get_u32()).collect();
        steps.push(TailStep { before: Pos::new(Txid(txid), Checksum(checksum)), pages });
    }
    if input.has_remaining() {
        return Err(WireError::TrailingBytes(input.remaining()));
    }
    Ok(Tail { page_size, page_count, steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_read_as_it_was_written_and_nothing_else_is() {
        let step = |txid, pages: &[u32]| TailStep {
            before: Pos::new(Txid(txid), Checksum(Checksum::FLAG | txid)),
            pages: pages.to_vec(),
        };
        let tail = Tail { page_size: 4096, page_count: 9, steps: vec![step(7, &[1, 2, 9]), step(6, &[])] };
        let bytes = encode_tail(&tail);
        assert_eq!(decode_tail(&bytes).as_ref(), Ok(&tail));
        for len in 0..bytes.len() {
            assert!(matches!(decode_tail(&bytes[..len]), Err(WireError::Truncated(_))), "{len} bytes");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode_tail(&longer), Err(WireError::TrailingBytes(1)));
        for at in [8, 28] {
            let mut huge = bytes.to_vec();
            huge[at..at + 4].fill(0xff);
            assert!(matches!(decode_tail(&huge), Err(WireError::TooLong { .. })), "at {at}");
        }
    }
}
