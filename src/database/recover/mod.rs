//! STUB (formats): recovery at start, before any client can open the database.
//!
//! What [`super::Database::open`] needs: afterwards the database file alone is the database at `pos` (the WAL is captured,
//! copied into it and gone, like journal and shm), and `pos` is the log's last record.

use std::io;

use super::log::Log;
use super::{Files, Health, PageChecksums};
use crate::kernel::FileKind;
use crate::sqlite::header::{DatabaseHeader, HEADER_LEN};
use crate::sqlite::page::{lock_page, page_checksum, page_offset};
use crate::store::Shared;
use crate::{Pos, os};

/// The state of a database after recovery.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) pos: Pos,
    /// 0 without a database.
    pub(crate) page_size: u32,
    pub(crate) checksums: PageChecksums,
    pub(crate) health: Health,
}

/// Recovers one database. An error is kept as its health by the caller, and never the end of the process.
pub(crate) fn recover(files: &Files, log: &Log, _shared: &Shared) -> io::Result<Recovered> {
    let pos = log.last_pos();
    let mut recovered = Recovered { pos, page_size: 0, checksums: PageChecksums::new(), health: Health::Ok };
    if !files.exists(FileKind::Database) {
        return Ok(recovered);
    }
    let file = files.database()?;
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(recovered);
    }
    let mut head = [0; HEADER_LEN];
    os::read_or_zero_at(&file, &mut head, 0)?;
    let header = DatabaseHeader::parse(&head).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    recovered.page_size = header.page_size;
    let mut page = vec![0; header.page_size as usize];
    for pgno in 1..=header.page_count(len) {
        if pgno != lock_page(header.page_size) {
            os::read_or_zero_at(&file, &mut page, page_offset(pgno, header.page_size))?;
            recovered.checksums.set(pgno, page_checksum(pgno, &page));
        }
    }
    if recovered.checksums.database() != pos.checksum {
        recovered.health = Health::Broken(format!("its checksum is not that of {pos}"));
    }
    Ok(recovered)
}
