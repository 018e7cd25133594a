//! The database header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use litefs::sqlite::header::DatabaseHeader;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = DatabaseHeader::parse(data) {
        assert!(header.page_size.is_power_of_two() && (512..=65_536).contains(&header.page_size));
        let _ = header.page_count(data.len() as u64);
    }
});
