//! LTX files: any bytes are either refused or verified, and the decoder for files in memory, whose buffers go from one file to the
//! next, finds the same in them as the one for streams.
#![no_main]

use std::cell::RefCell;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use litefs::ltx::Unpacker;

thread_local! {
    static UNPACKER: RefCell<Unpacker> = RefCell::new(Unpacker::new());
}

fuzz_target!(|data: &[u8]| {
    let verified = litefs::ltx::verify(data);
    let unpacked = UNPACKER.with_borrow_mut(|unpacker| unpacker.unpack(&Bytes::copy_from_slice(data)));
    assert_eq!(verified.is_ok(), unpacked.is_ok(), "{verified:?} {unpacked:?}");
    let (Ok(summary), Ok(unpacked)) = (verified, unpacked) else { return };
    assert!(summary.header.min_txid <= summary.header.max_txid);
    assert!(summary.post().checksum.is_valid());
    assert_eq!((summary.header, summary.trailer), (unpacked.header, unpacked.trailer));
    assert_eq!(summary.pages, unpacked.pages.len() as u32);
    assert!(unpacked.len <= data.len());
});
