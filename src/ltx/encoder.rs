//! Writing an LTX file as a stream, in constant memory.

use std::io::Write;

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

use super::{Digest, Header, LtxError, Trailer, pages_in_snapshot};
use crate::Checksum;
use crate::sqlite::page::{lock_page, page_checksum};

/// The frame layout LiteFS writes: independent blocks of 64 KiB and a checksum of the contents.
pub(super) fn frame_info() -> FrameInfo {
    FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Independent).content_checksum(true)
}

pub(super) fn lz4_error(error: lz4_flex::frame::Error) -> LtxError {
    match error {
        lz4_flex::frame::Error::IoError(error) => LtxError::Io(error),
        other => LtxError::Lz4(other.to_string()),
    }
}

/// Checks that pages come in the order the format demands; for encoder and decoder alike.
#[derive(Debug)]
pub(super) struct PageOrder {
    snapshot: bool,
    commit: u32,
    lock_page: u32,
    page_size: u32,
    last: u32,
    count: u32,
}

impl PageOrder {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            snapshot: header.is_snapshot(),
            commit: header.commit,
            lock_page: lock_page(header.page_size),
            page_size: header.page_size,
            last: 0,
            count: 0,
        }
    }

    pub(super) fn next(&mut self, pgno: u32) -> Result<(), LtxError> {
        let refused = |reason| Err(LtxError::Page { pgno, reason });
        if pgno == self.lock_page {
            return refused("it is the lock page");
        }
        if pgno <= self.last {
            return refused("pages must ascend");
        }
        if pgno > self.commit {
            return refused("it lies beyond the end of the database");
        }
        let skipped = pgno - self.last - 1;
        let lock_page_skipped = u32::from(self.last < self.lock_page && self.lock_page < pgno);
        if self.snapshot && skipped != lock_page_skipped {
            return refused("a snapshot must hold every page");
        }
        self.last = pgno;
        self.count += 1;
        Ok(())
    }

    pub(super) fn finish(&self) -> Result<(), LtxError> {
        if self.snapshot && self.count != pages_in_snapshot(self.page_size, self.commit) {
            return Err(LtxError::Page { pgno: self.last, reason: "a snapshot must hold every page" });
        }
        Ok(())
    }
}

/// Checks a post-apply checksum: a deletion leaves nothing, a snapshot exactly its pages.
pub(super) fn check_post_apply(header: &Header, pages: Checksum, post_apply: Checksum) -> Result<(), LtxError> {
    let expected = if header.commit == 0 {
        Checksum::EMPTY
    } else if header.is_snapshot() {
        pages
    } else if post_apply.is_valid() {
        return Ok(());
    } else {
        Checksum(post_apply.0 | Checksum::FLAG)
    };
    if expected == post_apply { Ok(()) } else { Err(LtxError::PostApply { expected, actual: post_apply }) }
}

enum Sink<W: Write> {
    Plain(W),
    Lz4(Box<FrameEncoder<W>>),
}

/// Writes one LTX file: header at once, pages as they come, trailer at [`Encoder::finish`].
/// Compressed output needs ~200 KiB of buffers, however many pages follow. The writer should be buffered.
pub struct Encoder<W: Write> {
    sink: Sink<W>,
    header: Header,
    order: PageOrder,
    digest: Digest,
    pages: Checksum,
}

impl<W: Write> Encoder<W> {
    /// Validates and writes the header.
    ///
    /// # Errors
    /// A broken rule of the header, or the writer's error.
    pub fn new(mut writer: W, header: &Header) -> Result<Self, LtxError> {
        header.validate()?;
        let bytes = header.to_bytes();
        writer.write_all(&bytes)?;
        let mut digest = Digest::new();
        digest.update(&bytes);
        let sink = if header.compressed {
            Sink::Lz4(Box::new(FrameEncoder::with_frame_info(frame_info(), writer)))
        } else {
            Sink::Plain(writer)
        };
        Ok(Self { sink, header: *header, order: PageOrder::new(header), digest, pages: Checksum::EMPTY })
    }

    /// The header written.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Appends a page. Returns nothing; the checksums of snapshots are kept by the encoder itself.
    ///
    /// # Errors
    /// [`LtxError::Page`] when the order is broken, [`LtxError::PageLength`], or the writer's error.
    pub fn write_page(&mut self, pgno: u32, page: &[u8]) -> Result<(), LtxError> {
        if page.len() != self.header.page_size as usize {
            return Err(LtxError::PageLength { expected: self.header.page_size, actual: page.len() });
        }
        self.order.next(pgno)?;
        if self.header.is_snapshot() {
            self.pages = self.pages ^ page_checksum(pgno, page);
        }
        self.put(&pgno.to_be_bytes())?;
        self.put(page)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), LtxError> {
        self.digest.update(bytes);
        match &mut self.sink {
            Sink::Plain(writer) => writer.write_all(bytes)?,
            Sink::Lz4(encoder) => encoder.write_all(bytes)?,
        }
        Ok(())
    }

    /// The checksum of a snapshot's pages so far: what its post-apply checksum must be.
    #[must_use]
    pub fn snapshot_checksum(&self) -> Checksum {
        self.pages
    }

    /// Ends the file. The writer is flushed and returned.
    ///
    /// # Errors
    /// [`LtxError::PostApply`], a page missing from a snapshot, or the writer's error.
    pub fn finish(mut self, post_apply: Checksum) -> Result<(Trailer, W), LtxError> {
        self.order.finish()?;
        check_post_apply(&self.header, self.pages, post_apply)?;
        self.put(&[0; 4])?;
        let mut writer = match self.sink {
            Sink::Plain(writer) => writer,
            Sink::Lz4(encoder) => encoder.finish().map_err(lz4_error)?,
        };
        self.digest.update(&post_apply.0.to_be_bytes());
        let trailer = Trailer { post_apply, file_checksum: self.digest.checksum() };
        writer.write_all(&trailer.to_bytes())?;
        writer.flush()?;
        Ok((trailer, writer))
    }
}
