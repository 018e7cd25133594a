//! LTX files: any bytes are either refused or verified, and what is verified compacts to itself.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(summary) = litefs::ltx::verify(data) {
        assert!(summary.header.min_txid <= summary.header.max_txid);
        assert!(summary.post().checksum.is_valid());
    }
});
