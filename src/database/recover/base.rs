//! The page checksums of the database file alone.

use std::fs::File;
use std::io;

use crate::database::PageChecksums;
use crate::ltx::Header;
use crate::os;
use crate::sqlite::header::{DatabaseHeader, HEADER_LEN};
use crate::sqlite::page::{lock_page, page_checksum};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// Page size (0: the file is empty, or no database) and checksums of a file.
#[derive(Debug, Default)]
pub(super) struct Base {
    pub(super) page_size: u32,
    pub(super) checksums: PageChecksums,
}

fn parse_header(file: &File) -> io::Result<Option<DatabaseHeader>> {
    let mut bytes = [0; HEADER_LEN];
    os::read_or_zero_at(file, &mut bytes, 0)?;
    Ok(DatabaseHeader::parse(&bytes).ok())
}

fn pages_in(len: u64, page_size: u32) -> u32 {
    u32::try_from(len.div_ceil(u64::from(page_size))).unwrap_or(u32::MAX)
}

/// The number of pages that SQLite sees in the file, which holds at least as many.
pub(super) fn page_count(file: &File, page_size: u32) -> io::Result<u32> {
    let len = file.metadata()?.len();
    let held = pages_in(len, page_size);
    Ok(parse_header(file)?.map_or(held, |header| header.page_count(len).min(held)))
}

/// Reads the file. Where page 1 is damaged, `record` (of the log's newest) says page size and count.
pub(super) fn read(file: &File, record: Option<&Header>) -> io::Result<Base> {
    let len = file.metadata()?.len();
    if len == 0 {
        return Ok(Base::default());
    }
    let (page_size, count) = match (parse_header(file)?, record) {
        (Some(header), _) => (header.page_size, header.page_count(len)),
        (None, Some(record)) => (record.page_size, record.commit),
        (None, None) => return Ok(Base::default()),
    };
    let count = count.min(pages_in(len, page_size));
    let skipped = lock_page(page_size);
    let mut checksums = PageChecksums::new();
    checksums.resize(count);
    let mut buffer = vec![0; READ_BYTES];
    let mut pgno = 1;
    while pgno <= count {
        let left = (count - pgno + 1) as usize;
        let pages = left.min(READ_BYTES / page_size as usize);
        let bytes = &mut buffer[..pages * page_size as usize];
        os::read_or_zero_at(file, bytes, u64::from(pgno - 1) * u64::from(page_size))?;
        for page in bytes.chunks_exact(page_size as usize) {
            if pgno != skipped {
                checksums.set(pgno, page_checksum(pgno, page));
            }
            pgno += 1;
        }
    }
    Ok(Base { page_size, checksums })
}
