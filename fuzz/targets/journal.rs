//! Rollback journals: playing any bytes back ends, and calls with whole pages only.
#![no_main]

mod memory;

use libfuzzer_sys::fuzz_target;
use litefs::sqlite::journal::{Journal, super_journal_name};

fuzz_target!(|data: &[u8]| {
    let file = memory::file(data);
    let _ = super_journal_name(&file);
    if let Ok(Some(journal)) = Journal::open(&file) {
        let _ = journal.super_journal();
        let _ = journal.play_back(|pgno, page| {
            assert!(pgno > 0 && page.len().is_power_of_two());
            Ok(())
        });
    }
});
