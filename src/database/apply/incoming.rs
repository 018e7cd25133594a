//! A record on its way in: received, verified as a whole and kept where it can be read again, before anything is locked.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::ApplyError;
use crate::database::log::{Log, MEMORY_RECORD_BYTES_MAX, Spool};
use crate::database::rollback::FilePages;
use crate::database::{CaptureState, PageSource};
use crate::ltx::{Decoder, Header, Image, LtxError, Trailer, Unpacked, Unpacker};
use crate::sqlite::page::page_checksum;
use crate::{Checksum, Pos};

/// A record that cuts more pages than this off the database is applied alone.
const CUT_PAGES_MAX: u32 = 16 << 10;

/// A verified record.
#[derive(Debug)]
pub struct Incoming {
    pub(super) header: Header,
    pub(super) trailer: Trailer,
    /// Page numbers, ascending, with their new checksums.
    pub(super) pages: Vec<(u32, Checksum)>,
    body: Body,
    plain: Plain,
}

/// Where the pages of a record also lie, so that they need not be decoded again.
#[derive(Debug)]
enum Plain {
    Nowhere,
    /// Back to back.
    Memory(Vec<u8>),
    File(PlainPages),
}

/// The pages of a record that was made from a file. They are believed only while they have the record's checksums.
#[derive(Debug)]
pub(super) struct PlainPages {
    pub(super) file: File,
    /// Page 1 is another one than in the file.
    pub(super) page1: Vec<u8>,
}

#[derive(Debug)]
enum Body {
    Memory(Bytes),
    Spool { spool: Option<Box<Spool>>, file: Arc<File>, start: u64, len: u64 },
}

impl Incoming {
    /// Checks every rule of the format on an LTX file that is in memory. However long it is, it will be appended to the log, rather
    /// than become a file of its own.
    ///
    /// # Errors
    /// [`ApplyError::Damaged`].
    pub fn in_memory(image: &Bytes, unpacker: &mut Unpacker) -> Result<Self, ApplyError> {
        let Unpacked { header, trailer, pages, contents, len } = unpacker.unpack(image).map_err(ltx_error)?;
        let plain = contents.map_or(Plain::Nowhere, Plain::Memory);
        Ok(Self { header, trailer, pages, body: Body::Memory(image.slice(..len)), plain })
    }

    /// Its header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of its pages, if these are in memory.
    #[must_use]
    pub fn contents_len(&self) -> Option<usize> {
        self.contents().map(<[u8]>::len)
    }

    /// Its pages back to back, if they are in memory.
    pub(super) fn contents(&self) -> Option<&[u8]> {
        match &self.plain {
            Plain::Memory(contents) => Some(contents),
            Plain::Nowhere | Plain::File(_) => None,
        }
    }

    /// Reads one LTX file to its end and checks every rule of the format.
    pub(super) fn receive(log: &Log, input: &mut dyn Read) -> Result<Self, ApplyError> {
        let tee = Tee { input: BufReader::with_capacity(64 << 10, input), log, memory: Vec::new(), spool: None };
        let mut decoder = Decoder::new(tee).map_err(ltx_error)?;
        let header = *decoder.header();
        let mut page = vec![0; header.page_size as usize];
        let mut pages = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut page).map_err(ltx_error)? {
            pages.push((pgno, page_checksum(pgno, &page)));
        }
        let (trailer, tee) = decoder.finish().map_err(ltx_error)?;
        Ok(Self { header, trailer, pages, body: tee.into_body()?, plain: Plain::Nowhere })
    }

    /// A record that was made here, in a spool.
    pub(super) fn made(
        header: Header,
        trailer: Trailer,
        pages: Vec<(u32, Checksum)>,
        mut spool: Spool,
        plain: PlainPages,
    ) -> io::Result<Self> {
        spool.flush()?;
        let ((file, start), len) = (spool.file(), spool.len());
        let body = Body::Spool { spool: Some(Box::new(spool)), file, start, len };
        Ok(Self { header, trailer, pages, body, plain: Plain::File(plain) })
    }

    /// A record of our own log, read again.
    pub(super) fn reread(log: &Log, record: &crate::database::Record) -> Result<Self, ApplyError> {
        match &record.body {
            crate::database::RecordBody::Memory(bytes) => Self::receive(log, &mut Cursor::new(bytes)),
            crate::database::RecordBody::File { file, offset, len } => {
                Self::receive(log, &mut FileRange { file: Arc::clone(file), at: *offset, end: offset + len })
            }
        }
    }

    /// The position after it.
    #[must_use]
    pub const fn post(&self) -> Pos {
        Pos::new(self.header.max_txid, self.trailer.post_apply)
    }

    /// Its pages: from the file it was made of, or decoded once more.
    pub(super) fn pages(&self) -> io::Result<Box<dyn PageSource + '_>> {
        let numbers = self.pages.iter().map(|(pgno, _)| *pgno);
        match &self.plain {
            Plain::Nowhere => {}
            Plain::Memory(contents) => {
                let pages = numbers.zip(contents.chunks_exact(self.header.page_size as usize));
                return Ok(Box::new(MemoryPages(Box::new(pages))));
            }
            Plain::File(plain) => {
                let file = FilePages::new(&plain.file, self.header.page_size, numbers);
                return Ok(Box::new(CheckedPages { file, page1: &plain.page1, expected: self.pages.iter() }));
            }
        }
        let reader: Box<dyn Read> = match &self.body {
            Body::Memory(bytes) => Box::new(Cursor::new(bytes)),
            Body::Spool { file, start, len, .. } => {
                let range = FileRange { file: Arc::clone(file), at: *start, end: start + len };
                Box::new(BufReader::with_capacity(256 << 10, range))
            }
        };
        let decoder = Decoder::new(reader).map_err(damaged)?;
        Ok(Box::new(RecordPages { decoder, page: vec![0; self.header.page_size as usize] }))
    }

    /// Makes records the next ones of the log: small ones all of them or none.
    pub(super) fn append_all(records: &mut [Self], log: &Log) -> io::Result<()> {
        let mut images = Vec::with_capacity(records.len());
        for record in records {
            match &mut record.body {
                Body::Memory(bytes) => {
                    images.push(Image { header: record.header, trailer: record.trailer, bytes: bytes.clone() });
                }
                // It is alone.
                Body::Spool { spool, .. } => {
                    if let Some(spool) = spool.take() {
                        log.adopt(*spool)?;
                    }
                }
            }
        }
        log.append_all(&images)
    }

    /// Checks that a database in `state` has the record's post-apply checksum when the record is applied to it.
    pub(super) fn check_result(&self, state: &CaptureState) -> Result<(), ApplyError> {
        let expected = self.trailer.post_apply;
        let actual = self.checksum_after(state);
        if actual == expected {
            return Ok(());
        }
        Err(ApplyError::Damaged(format!("applying it to {} gives checksum {actual} instead of {expected}", state.pos)))
    }

    fn checksum_after(&self, state: &CaptureState) -> Checksum {
        let fresh = self.header.is_snapshot() || state.page_size != self.header.page_size;
        let mut sum = if fresh { Checksum::EMPTY } else { state.checksums.database() };
        for (pgno, checksum) in &self.pages {
            let old = if fresh { Checksum::NONE } else { state.checksums.get(*pgno) };
            sum = sum ^ old ^ *checksum;
        }
        if !fresh {
            for cut in self.header.commit.saturating_add(1)..=state.checksums.page_count() {
                sum = sum ^ state.checksums.get(cut);
            }
        }
        sum
    }

    /// Puts the record's checksums, size and position into `state`.
    pub(super) fn update(&self, state: &mut CaptureState) {
        if self.header.is_snapshot() || state.page_size != self.header.page_size {
            state.checksums.clear();
        }
        state.page_size = if self.header.commit == 0 { 0 } else { self.header.page_size };
        state.checksums.resize(self.header.commit);
        for (pgno, checksum) in &self.pages {
            state.checksums.set(*pgno, *checksum);
        }
        state.pos = self.post();
    }
}

/// The pages of a record, read from the file it was made of.
struct CheckedPages<'a, I: Iterator<Item = u32>> {
    file: FilePages<'a, I>,
    page1: &'a [u8],
    expected: std::slice::Iter<'a, (u32, Checksum)>,
}

impl<I: Iterator<Item = u32>> PageSource for CheckedPages<'_, I> {
    fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
        let Some((pgno, page)) = self.file.next_page()? else { return Ok(None) };
        let page = if pgno == 1 { self.page1 } else { page };
        if self.expected.next() != Some(&(pgno, page_checksum(pgno, page))) {
            let reason = format!("page {pgno} of the file changed while it was imported");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(Some((pgno, page)))
    }
}

/// The latest version of each page that records changed, one after the other; without the pages that the last one cuts off.
pub(super) fn newest_pages(records: &[Incoming]) -> MemoryPages<'_> {
    let mut newest = BTreeMap::new();
    for record in records {
        let contents = record.contents().unwrap_or_default();
        let pages = contents.chunks_exact(record.header.page_size as usize);
        newest.extend(record.pages.iter().map(|(pgno, _)| *pgno).zip(pages));
    }
    let end = records.last().map_or(0, |last| last.header.commit);
    newest.retain(|pgno, _| *pgno <= end);
    MemoryPages(Box::new(newest.into_iter()))
}

/// How many of these records, each of which follows the one before, lead from `state` to the checksums that they name. Counting ends
/// at a record that cuts off so much that it had better be alone.
pub(super) fn count_fitting(state: &CaptureState, records: &[Incoming]) -> usize {
    let mut changed = HashMap::new();
    let (mut sum, mut end) = (state.checksums.database(), state.checksums.page_count());
    let mut replace = |sum: Checksum, pgno: u32, checksum: Checksum| {
        let old = changed.insert(pgno, checksum).unwrap_or_else(|| state.checksums.get(pgno));
        sum ^ old ^ checksum
    };
    for (count, record) in records.iter().enumerate() {
        if end.saturating_sub(record.header.commit) > CUT_PAGES_MAX {
            return count;
        }
        for cut in record.header.commit.saturating_add(1)..=end {
            sum = replace(sum, cut, Checksum::NONE);
        }
        for (pgno, checksum) in &record.pages {
            sum = replace(sum, *pgno, *checksum);
        }
        end = record.header.commit;
        if sum != record.trailer.post_apply {
            return count;
        }
    }
    records.len()
}

/// Pages in memory.
pub(super) struct MemoryPages<'a>(Box<dyn Iterator<Item = (u32, &'a [u8])> + 'a>);

impl PageSource for MemoryPages<'_> {
    fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
        Ok(self.0.next())
    }
}

/// The pages of a verified record.
struct RecordPages<'a> {
    decoder: Decoder<Box<dyn Read + 'a>>,
    page: Vec<u8>,
}

impl PageSource for RecordPages<'_> {
    fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
        let pgno = self.decoder.next_page(&mut self.page).map_err(damaged)?;
        Ok(pgno.map(|pgno| (pgno, &self.page[..])))
    }
}

fn ltx_error(error: LtxError) -> ApplyError {
    match error {
        LtxError::Io(error) => ApplyError::Io(error),
        error => ApplyError::Damaged(error.to_string()),
    }
}

fn damaged(error: LtxError) -> io::Error {
    match error {
        LtxError::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    }
}

/// Keeps what passes: in memory up to [`MEMORY_RECORD_BYTES_MAX`], else in a spool of the log.
struct Tee<'a> {
    input: BufReader<&'a mut dyn Read>,
    log: &'a Log,
    memory: Vec<u8>,
    spool: Option<Spool>,
}

impl Tee<'_> {
    fn into_body(self) -> io::Result<Body> {
        let Some(mut spool) = self.spool else { return Ok(Body::Memory(Bytes::from(self.memory))) };
        spool.flush()?;
        let ((file, start), len) = (spool.file(), spool.len());
        Ok(Body::Spool { spool: Some(Box::new(spool)), file, start, len })
    }
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        let bytes = &buffer[..count];
        if let Some(spool) = &mut self.spool {
            spool.write_all(bytes)?;
        } else if (self.memory.len() + count) as u64 > MEMORY_RECORD_BYTES_MAX {
            let mut spool = self.log.spool()?;
            spool.write_all(&std::mem::take(&mut self.memory))?;
            spool.write_all(bytes)?;
            self.spool = Some(spool);
        } else {
            self.memory.extend_from_slice(bytes);
        }
        Ok(count)
    }
}

/// A range of a file as a reader.
struct FileRange {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for FileRange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..len], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
