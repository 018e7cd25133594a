//! The log as redo: applied to the files where they are behind it, or damaged.

use std::collections::HashMap;
use std::io::{self, BufReader};

use super::Found;
use crate::database::log::RecordReader;
use crate::database::{Database, PageChecksums, Record};
use crate::ltx::{Decoder, Header, LtxError};
use crate::sqlite::header::{DatabaseHeader, HEADER_LEN};
use crate::sqlite::page::{page_checksum, page_offset};
use crate::{Checksum, Pos, os};

/// Bytes read at once from a large record.
const READ_BYTES: usize = 256 << 10;

/// What the log says of the files, and where it starts from.
pub(super) struct Redo {
    /// The commit of the WAL it is applied to.
    pub(super) at: usize,
    /// The page checksums at the log's end.
    pub(super) checksums: PageChecksums,
    /// The first record is the one after this position.
    from: Pos,
    /// The change counter of the newest page 1 in the log.
    change_counter: Option<u32>,
}

impl Database {
    /// Whether and how the log can be applied to the files so that they are at `target`. Nothing is changed.
    pub(super) fn plan_redo(
        &self,
        found: &Found,
        header: &Header,
        target: Pos,
        named: Option<usize>,
    ) -> io::Result<Option<Redo>> {
        let Some(from) = self.redo_start(found)? else { return Ok(None) };
        self.plan_redo_from(from, found, header, target, named)
    }

    /// As [`Self::plan_redo`], with the records after `from`.
    pub(super) fn plan_redo_from(
        &self,
        from: Pos,
        found: &Found,
        header: &Header,
        target: Pos,
        named: Option<usize>,
    ) -> io::Result<Option<Redo>> {
        let mut tried = Vec::new();
        // Where the WAL is known to be captured to; all of it (the log is ahead); none of it (it is newer than the log).
        for at in [named.unwrap_or(found.last()), found.last(), 0] {
            if tried.contains(&at) {
                continue;
            }
            tried.push(at);
            let checksums = self.checksums_at(found, at)?;
            let mut redo = Redo { at, checksums, from, change_counter: None };
            match self.each_record(from, |record| redo.follow(record)) {
                Ok(()) => {}
                Err(error) if is_damage(&error) => {
                    tracing::warn!(database = %self.name, %error, "the log cannot be applied to the files");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
            if redo.checksums.database() == target.checksum && redo.checksums.page_count() == header.commit {
                return Ok(Some(redo));
            }
        }
        Ok(None)
    }

    /// Where to start: behind the position the files show, else with the oldest record.
    fn redo_start(&self, found: &Found) -> io::Result<Option<Pos>> {
        let shown = found.commits[found.last()].checksum;
        match self.log.find_checksum(shown) {
            Ok(Some(pos)) if found.base.page_size != 0 => Ok(Some(pos)),
            Ok(_) => Ok(self.log.first_pos()),
            Err(error) if is_damage(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls `each` with every record after `from`.
    fn each_record(&self, from: Pos, mut each: impl FnMut(&Record) -> io::Result<()>) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("the log does not contain {from}"));
        for record in self.log.after(from)?.ok_or_else(gone)? {
            each(&record?)?;
        }
        Ok(())
    }

    /// How many pages of the files are neither what the log's end says, nor a version that a record of the log replaced:
    /// not the trace of an interruption, but damage, or written by somebody else.
    pub(super) fn unexplained_pages(&self, found: &Found, redo: &Redo) -> io::Result<usize> {
        let now = self.checksums_at(found, redo.at)?;
        let mut unexplained: HashMap<u32, Checksum> = (1..=now.page_count())
            .map(|pgno| (pgno, now.get(pgno)))
            .filter(|(pgno, checksum)| redo.checksums.get(*pgno) != *checksum && *pgno <= redo.checksums.page_count())
            .collect();
        let shown = found.commits[found.last()].checksum;
        if self.log.find_checksum(shown)?.is_some() {
            return Ok(0);
        }
        self.each_record(redo.from, |record| {
            each_page(record, |pgno, page| {
                if unexplained.get(&pgno) == Some(&page_checksum(pgno, page)) {
                    unexplained.remove(&pgno);
                }
                Ok(())
            })
        })?;
        Ok(unexplained.len())
    }

    /// Whether SQLite committed to the file itself after the log's end (in rollback mode, while no node ran): page 1 is
    /// valid, and its change counter is ahead of the log's; or it is known to be `late`, and the file is at no position of the log.
    pub(super) fn file_is_newer(&self, found: &Found, redo: &Redo, late: bool) -> io::Result<bool> {
        let mut page1 = [0; HEADER_LEN];
        os::read_or_zero_at(&*self.files.database()?, &mut page1, 0)?;
        let (Ok(file), Some(log)) = (DatabaseHeader::parse(&page1), redo.change_counter) else { return Ok(false) };
        let ahead = file.change_counter.wrapping_sub(log);
        let is_newer = if late {
            self.log.find_checksum(found.base.checksums.database())?.is_none()
        } else {
            ahead > 0 && ahead < u32::MAX / 2
        };
        Ok(found.last() == 0
            && file.version_valid_for == file.change_counter
            && file.page_count_field == found.base.checksums.page_count()
            && is_newer)
    }

    /// Writes the WAL up to the planned commit, and then every record, into the database file.
    pub(super) fn redo(&self, found: &Found, header: &Header, redo: &Redo) -> io::Result<()> {
        let file = self.files.database()?;
        if let Some(wal) = &found.wal {
            wal.checkpoint(&file, 0, &found.commits[redo.at])?;
        }
        self.each_record(redo.from, |record| {
            each_page(record, |pgno, page| {
                os::write_all_at("recover.redo", &file, page, page_offset(pgno, header.page_size))
            })
        })?;
        os::set_len("recover.redo", &file, u64::from(header.commit) * u64::from(header.page_size))?;
        os::sync_data("recover.redo", &file)
    }
}

impl Redo {
    /// Brings the checksums to what they are after the record, and verifies it.
    fn follow(&mut self, record: &Record) -> io::Result<()> {
        let mut decoder = decoder(record)?;
        let header = *decoder.header();
        if header.is_snapshot() {
            self.checksums.clear();
        }
        self.checksums.resize(header.commit);
        let mut page = vec![0; header.page_size as usize];
        while let Some(pgno) = decoder.next_page(&mut page)? {
            self.checksums.set(pgno, page_checksum(pgno, &page));
            if pgno == 1 {
                self.change_counter = DatabaseHeader::parse(&page).ok().map(|header| header.change_counter);
            }
        }
        decoder.finish()?;
        Ok(())
    }
}

/// Calls `each` with every page of a record that was verified before.
fn each_page(record: &Record, mut each: impl FnMut(u32, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut decoder = decoder(record)?;
    let mut page = vec![0; decoder.header().page_size as usize];
    while let Some(pgno) = decoder.next_page(&mut page)? {
        each(pgno, &page)?;
    }
    Ok(())
}

pub(super) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
}

fn decoder(record: &Record) -> Result<Decoder<BufReader<RecordReader<'_>>>, LtxError> {
    Decoder::new(BufReader::with_capacity(READ_BYTES, record.body.reader()))
}
