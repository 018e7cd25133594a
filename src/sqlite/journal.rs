//! The rollback journal file.
//!
//! One or more sections, each a header padded to the sector size and records of page number, original page and
//! checksum; at its end possibly the name of a super-journal. All integers are big-endian. Playing it back brings the
//! database to what it was before the transaction.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::page::{is_page_size, lock_page};

/// What every valid header begins with; zeroed when the journal is finalised in PERSIST mode.
pub const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// Length of a header's fields in bytes; the header itself fills a sector.
pub const HEADER_LEN: usize = 28;
/// Record count of a journal that was never synced: as many as the file holds.
const RECORDS_BY_LENGTH: u32 = 0xffff_ffff;
/// Longest super-journal name that is believed, in bytes (SQLite's limit for path names is shorter).
const SUPER_NAME_LEN_MAX: u64 = 4096;

fn be32(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Whether a header's fields are what SQLite ends a journal with: all zero. (A journal begun with `synchronous` on has a zero
/// magic at first, too, but its sizes are set.)
#[must_use]
pub fn is_zeroed(head: &[u8]) -> bool {
    head.get(..HEADER_LEN).is_some_and(|fields| fields.iter().all(|byte| *byte == 0))
}

/// The nonce in a header's fields, drawn anew for each transaction.
#[must_use]
pub fn nonce(head: &[u8; HEADER_LEN]) -> u32 {
    be32(head, 12)
}

/// The header of a journal section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHeader {
    /// Records in this section; `0xffff_ffff`: as many as fit the file; 0: not synced yet.
    pub record_count: u32,
    /// Where the checksums of the records start.
    pub nonce: u32,
    /// Database size in pages before the transaction.
    pub initial_pages: u32,
    /// Bytes the header fills.
    pub sector_size: u32,
    /// Bytes per page.
    pub page_size: u32,
}

impl JournalHeader {
    /// Reads a header; `None` when SQLite would not take the bytes as one.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER_LEN || !bytes.starts_with(&MAGIC) {
            return None;
        }
        let header = Self {
            record_count: be32(bytes, 8),
            nonce: be32(bytes, 12),
            initial_pages: be32(bytes, 16),
            sector_size: be32(bytes, 20),
            page_size: be32(bytes, 24),
        };
        let sector = header.sector_size;
        let sane = is_page_size(header.page_size) && (32..=65_536).contains(&sector) && sector.is_power_of_two();
        sane.then_some(header)
    }
}

/// The checksum of a record: the nonce plus every 200th byte of the page, counted from its end.
#[must_use]
pub fn record_checksum(nonce: u32, page: &[u8]) -> u32 {
    let mut sum = nonce;
    let mut at = page.len();
    while at > 200 {
        at -= 200;
        sum = sum.wrapping_add(u32::from(page[at]));
    }
    sum
}

/// A journal that holds a transaction's original pages.
#[derive(Debug)]
pub struct Journal<'a> {
    file: &'a File,
    len: u64,
    first: JournalHeader,
}

impl<'a> Journal<'a> {
    /// Opens a journal; `None` when there is nothing to roll back by it: empty, zeroed, or no header.
    ///
    /// Whether it is *hot* also needs that no connection holds RESERVED, that the database is not empty, and that its
    /// super-journal, if it names one ([`Self::super_journal`]), still exists.
    ///
    /// # Errors
    /// Reading.
    pub fn open(file: &'a File) -> io::Result<Option<Self>> {
        let len = file.metadata()?.len();
        let mut bytes = [0; HEADER_LEN];
        if !read_whole(file, &mut bytes, 0, len)? {
            return Ok(None);
        }
        let Some(first) = JournalHeader::parse(&bytes) else { return Ok(None) };
        // SQLite takes a header that does not fill its sector as the end of the journal.
        Ok((len >= u64::from(first.sector_size)).then_some(Self { file, len, first }))
    }

    /// The first section's header, which decides page size, sector size and the original database size.
    #[must_use]
    pub const fn header(&self) -> &JournalHeader {
        &self.first
    }

    /// The super-journal named at the end: while that file exists the transaction is not committed.
    ///
    /// # Errors
    /// Reading.
    pub fn super_journal(&self) -> io::Result<Option<String>> {
        super_journal_name(self.file)
    }

    /// Calls `page` with the number and content of every original page that SQLite would play back, in that order. The caller
    /// then cuts the database to [`JournalHeader::initial_pages`].
    ///
    /// # Errors
    /// Reading, and whatever `page` gives.
    pub fn play_back(&self, mut page: impl FnMut(u32, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let sector = u64::from(self.first.sector_size);
        let mut buffer = vec![0; self.first.page_size as usize + 8];
        let record_len = buffer.len() as u64;
        let mut offset = 0;
        loop {
            let Some(header) = self.section(offset)? else { return Ok(()) };
            let first = offset == 0;
            offset += sector;
            let records = if first && header.record_count == RECORDS_BY_LENGTH {
                self.len.saturating_sub(sector) / record_len
            } else {
                u64::from(header.record_count)
            };
            for _ in 0..records {
                if !self.record(&header, offset, &mut buffer, &mut page)? {
                    // What follows was never synced, so its pages were never overwritten in the database.
                    return Ok(());
                }
                offset += record_len;
            }
            offset = offset.div_ceil(sector) * sector;
        }
    }

    /// The header of the section at `offset`; `None` at the end of the journal.
    fn section(&self, offset: u64) -> io::Result<Option<JournalHeader>> {
        if offset + u64::from(self.first.sector_size) > self.len {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_LEN];
        self.file.read_exact_at(&mut bytes, offset)?;
        if !bytes.starts_with(&MAGIC) {
            return Ok(None);
        }
        // Only the first header's sizes count; SQLite does not look at the later ones'.
        let (record_count, nonce) = (be32(&bytes, 8), be32(&bytes, 12));
        Ok(Some(JournalHeader { record_count, nonce, ..self.first }))
    }

    /// Reads one record; `false` when it ends the journal.
    fn record(
        &self,
        header: &JournalHeader,
        offset: u64,
        buffer: &mut [u8],
        page: &mut impl FnMut(u32, &[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        if !read_whole(self.file, buffer, offset, self.len)? {
            return Ok(false);
        }
        let pgno = be32(buffer, 0);
        let data = &buffer[4..buffer.len() - 4];
        if pgno == 0 || pgno == lock_page(self.first.page_size) {
            return Ok(false);
        }
        // Pages beyond the original end are cut off anyway, and SQLite does not verify them.
        if pgno > self.first.initial_pages {
            return Ok(true);
        }
        if record_checksum(header.nonce, data) != be32(buffer, buffer.len() - 4) {
            return Ok(false);
        }
        page(pgno, data)?;
        Ok(true)
    }
}

/// Whether a connection that opens the database now would roll it back by this journal.
///
/// `reserved_held`: another connection holds RESERVED, so the journal belongs to a running transaction. `exists` says
/// whether a super-journal of that name is still there: with its removal the transaction was committed.
///
/// # Errors
/// Reading.
pub fn is_hot(
    journal: &File,
    database_len: u64,
    reserved_held: bool,
    exists: impl FnOnce(&str) -> bool,
) -> io::Result<bool> {
    if reserved_held || database_len == 0 {
        return Ok(false);
    }
    let Some(journal) = Journal::open(journal)? else { return Ok(false) };
    Ok(journal.super_journal()?.is_none_or(|name| exists(&name)))
}

/// Fills `buffer` from `offset` if the file of `len` bytes holds that much.
fn read_whole(file: &File, buffer: &mut [u8], offset: u64, len: u64) -> io::Result<bool> {
    if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > len) {
        return Ok(false);
    }
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The super-journal name at the end of a journal file, if there is a valid one: the name, its length, the sum of its
/// bytes, and the magic.
///
/// # Errors
/// Reading.
pub fn super_journal_name(file: &File) -> io::Result<Option<String>> {
    let len = file.metadata()?.len();
    let mut tail = [0; 16];
    let Some(tail_at) = len.checked_sub(16) else { return Ok(None) };
    if !read_whole(file, &mut tail, tail_at, len)? || tail[8..] != MAGIC {
        return Ok(None);
    }
    let name_len = u64::from(be32(&tail, 0));
    if name_len == 0 || name_len > SUPER_NAME_LEN_MAX || name_len > tail_at {
        return Ok(None);
    }
    let mut name = vec![0; usize::try_from(name_len).unwrap_or_default()];
    if !read_whole(file, &mut name, tail_at - name_len, len)? {
        return Ok(None);
    }
    // SQLite sums `char`s: signed on x86, unsigned on ARM.
    let unsigned = name.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    let signed = name.iter().fold(0_u32, |sum, byte| sum.wrapping_add_signed(i32::from(byte.cast_signed())));
    let sum = be32(&tail, 4);
    if sum != signed && sum != unsigned {
        return Ok(None);
    }
    // The name is stored with SQLite's terminating zeroes cut off; what is not UTF-8 cannot be a file of ours.
    Ok(String::from_utf8(name).ok().filter(|name| !name.contains('\0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::page::page_offset;
    use proptest::prelude::*;
    use rusqlite::Connection;
    use std::path::{Path, PathBuf};

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// A database in the middle of a transaction that has spilled its cache: the files as a crash would leave them, and the
    /// database as it was before.
    fn crashed(page_size: u32, synchronous: &str) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA page_size={page_size}; PRAGMA journal_mode=delete; PRAGMA synchronous={synchronous};
                 CREATE TABLE t(id INTEGER PRIMARY KEY, x);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300)
                 INSERT INTO t SELECT i, randomblob(1500) FROM n;"
            ))
            .unwrap();
        let before = std::fs::read(&path).unwrap();
        connection
            .execute_batch(
                "PRAGMA cache_size=5; BEGIN; UPDATE t SET x=randomblob(1500); INSERT INTO t VALUES(1000, zeroblob(300000));",
            )
            .unwrap();
        let copy = dir.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::copy(dir.path().join("db-journal"), dir.path().join("copy-journal")).unwrap();
        (dir, copy, before)
    }

    fn play_back(db: &Path) -> Vec<u8> {
        let database = open(db);
        let journal = open(&db.with_file_name("copy-journal"));
        assert!(is_hot(&journal, database.metadata().unwrap().len(), false, |_| false).unwrap());
        let journal = Journal::open(&journal).unwrap().unwrap();
        let page_size = journal.header().page_size;
        journal.play_back(|pgno, page| database.write_all_at(page, page_offset(pgno, page_size))).unwrap();
        database.set_len(page_offset(journal.header().initial_pages + 1, page_size)).unwrap();
        std::fs::read(db).unwrap()
    }

    #[test]
    fn playing_back_a_hot_journal_restores_the_database_at_every_page_size() {
        for shift in 9..=16 {
            for synchronous in ["off", "full"] {
                let (_dir, copy, before) = crashed(1 << shift, synchronous);
                assert_ne!(std::fs::read(&copy).unwrap(), before, "nothing was spilled");
                assert!(play_back(&copy) == before, "page size {} synchronous {synchronous}", 1 << shift);
            }
        }
    }

    #[test]
    fn a_record_that_does_not_verify_ends_the_playback() {
        let (_dir, copy, _) = crashed(4096, "full");
        let journal_file = open(&copy.with_file_name("copy-journal"));
        let journal = Journal::open(&journal_file).unwrap().unwrap();
        let count = || {
            let mut count = 0;
            journal
                .play_back(|_, _| {
                    count += 1;
                    Ok(())
                })
                .unwrap();
            count
        };
        let whole = count();
        assert!(whole > 3);
        let second = u64::from(journal.header().sector_size) + 4104;
        journal_file.write_all_at(&[0x55; 4096], second + 4).unwrap();
        assert_eq!(count(), 1);
    }

    #[test]
    fn zeroed_empty_and_foreign_journals_are_not_hot() {
        let file = tempfile::tempfile().unwrap();
        assert!(Journal::open(&file).unwrap().is_none());
        file.write_all_at(&[0; 4096], 0).unwrap();
        assert!(!is_hot(&file, 4096, false, |_| true).unwrap());
        file.write_all_at(b"something else", 0).unwrap();
        assert!(Journal::open(&file).unwrap().is_none());
        let (_dir, copy, _) = crashed(4096, "full");
        let journal = open(&copy.with_file_name("copy-journal"));
        assert!(is_hot(&journal, 4096, false, |_| false).unwrap());
        assert!(!is_hot(&journal, 4096, true, |_| false).unwrap());
        assert!(!is_hot(&journal, 0, false, |_| false).unwrap());
    }

    #[test]
    fn a_journal_with_a_super_journal_is_hot_only_while_that_exists() {
        let (_dir, copy, _) = crashed(4096, "full");
        let journal = open(&copy.with_file_name("copy-journal"));
        let name = "/data/x.db-mj1A2B";
        let sum: u32 = name.bytes().map(u32::from).sum();
        let mut tail = 0x0004_0001_u32.to_be_bytes().to_vec();
        tail.extend_from_slice(name.as_bytes());
        tail.extend_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        tail.extend_from_slice(&sum.to_be_bytes());
        tail.extend_from_slice(&MAGIC);
        journal.write_all_at(&tail, journal.metadata().unwrap().len()).unwrap();
        assert_eq!(super_journal_name(&journal).unwrap().as_deref(), Some(name));
        assert!(is_hot(&journal, 4096, false, |asked| asked == name).unwrap());
        assert!(!is_hot(&journal, 4096, false, |_| false).unwrap());
        let len = journal.metadata().unwrap().len();
        journal.write_all_at(&[0xff; 4], len - 16).unwrap();
        assert_eq!(super_journal_name(&journal).unwrap(), None, "a length beyond the file");
    }

    proptest! {
        #[test]
        fn random_journals_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000), records: u32, pages: u32, sector_shift in 0_u32..20,
        ) {
            let mut image = MAGIC.to_vec();
            for word in [records, 7, pages, 1 << sector_shift, 512] {
                image.extend_from_slice(&word.to_be_bytes());
            }
            image.extend_from_slice(&bytes);
            image.extend_from_slice(&MAGIC);
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&image, 0).unwrap();
            let _ = super_journal_name(&file).unwrap();
            if let Some(journal) = Journal::open(&file).unwrap() {
                journal.play_back(|pgno, page| {
                    assert!(pgno >= 1 && pgno <= pages && page.len() == 512);
                    Ok(())
                }).unwrap();
            }
        }
    }
}
