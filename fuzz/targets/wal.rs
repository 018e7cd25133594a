//! The WAL: the walk along the checksum chain ends, and the prefix it believes lies inside the file.
#![no_main]

mod memory;

use libfuzzer_sys::fuzz_target;
use litefs::sqlite::wal::WalWalk;

fuzz_target!(|data: &[u8]| {
    let file = memory::file(data);
    if let Ok(Some(walk)) = WalWalk::start(&file) {
        let page_size = u64::from(walk.header().page_size);
        let prefix = walk.valid_prefix().expect("memory can be read");
        assert!(32 + u64::from(prefix.mx_frame) * (24 + page_size) <= data.len() as u64);
    }
});
