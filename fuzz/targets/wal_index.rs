//! The wal-index: any bytes in the shared memory are either refused or give bounded answers.
#![no_main]

mod memory;

use libfuzzer_sys::fuzz_target;
use litefs::sqlite::wal_index::WalIndex;

fuzz_target!(|data: &[u8]| {
    // A whole segment, as every client makes it; the fuzzer's bytes are its beginning.
    let mut bytes = data.to_vec();
    bytes.resize(bytes.len().next_multiple_of(32_768).max(32_768), 0);
    let index = WalIndex::new(memory::file(&bytes), memory::file(&bytes));
    let _ = index.checkpoint_info();
    let header = index.read_header().expect("memory can be mapped");
    let last = header.map_or(4096, |header| header.mx_frame);
    for pgno in [0, 1, 2, u32::MAX] {
        if let Ok(Some(frame)) = index.find(pgno, 1, last) {
            assert!(frame >= 1 && frame <= last);
        }
    }
    for frame in [0, 1, last, u32::MAX] {
        let _ = index.page_of(frame);
    }
});
