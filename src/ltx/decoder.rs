//! Reading an LTX file as a stream, in constant memory.

use std::io::{self, Read};

use lz4_flex::frame::FrameDecoder;

use super::encoder::{PageOrder, check_post_apply};
use super::{Digest, HEADER_BYTES, Header, LtxError, TRAILER_BYTES, Trailer};
use crate::Checksum;
use crate::sqlite::page::page_checksum;

pub(super) enum Source<R: Read> {
    Plain(R),
    Lz4(Box<FrameDecoder<R>>),
}

/// Reads one LTX file and nothing behind it. What [`Decoder::next_page`] returns is in order and in range, but only
/// [`Decoder::finish`] proves that it is what was written.
pub struct Decoder<R: Read> {
    source: Source<R>,
    header: Header,
    order: PageOrder,
    digest: Digest,
    pages: Checksum,
    ended: bool,
}

/// Fills the buffer; says which part of the file was cut short.
fn fill(reader: &mut impl Read, buffer: &mut [u8], part: &'static str) -> Result<(), LtxError> {
    reader.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => LtxError::Truncated(part),
        _ => LtxError::Io(error),
    })
}

/// The same inside the LZ4 frame, whose own errors come wrapped in `io::Error`s.
fn fill_lz4<R: Read>(decoder: &mut FrameDecoder<R>, buffer: &mut [u8], part: &'static str) -> Result<(), LtxError> {
    decoder.read_exact(buffer).map_err(|error| lz4_read_error(error, part))
}

fn lz4_read_error(error: io::Error, part: &'static str) -> LtxError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return LtxError::Truncated(part);
    }
    match error.get_ref() {
        Some(inner) if inner.is::<lz4_flex::frame::Error>() => LtxError::Lz4(error.to_string()),
        _ => LtxError::Io(error),
    }
}

impl<R: Read> Decoder<R> {
    /// Reads and checks the header. The reader should be buffered.
    ///
    /// # Errors
    /// A broken rule of the header, [`LtxError::Truncated`], or the reader's error.
    pub fn new(reader: R) -> Result<Self, LtxError> {
        Self::reusing(reader, None)
    }

    /// As [`Self::new`], with the buffers of a decompressor that has read a whole frame of the same layout.
    pub(super) fn reusing(mut reader: R, kept: Option<Box<FrameDecoder<R>>>) -> Result<Self, LtxError> {
        let mut bytes = [0; HEADER_BYTES];
        fill(&mut reader, &mut bytes, "header")?;
        let header = Header::parse(&bytes)?;
        let mut digest = Digest::new();
        digest.update(&bytes);
        let source = match kept {
            _ if !header.compressed => Source::Plain(reader),
            None => Source::Lz4(Box::new(FrameDecoder::new(reader))),
            Some(mut lz4) => {
                *lz4.get_mut() = reader;
                Source::Lz4(lz4)
            }
        };
        Ok(Self { source, header, order: PageOrder::new(&header), digest, pages: Checksum::EMPTY, ended: false })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next page into `page`, which must have exactly the page size. `None` after the last one.
    ///
    /// # Errors
    /// Damage found so far, or the reader's error. The decoder is of no use afterwards.
    pub fn next_page(&mut self, page: &mut [u8]) -> Result<Option<u32>, LtxError> {
        if page.len() != self.header.page_size as usize {
            return Err(LtxError::PageLength { expected: self.header.page_size, actual: page.len() });
        }
        if self.ended {
            return Ok(None);
        }
        let mut pgno = [0; 4];
        self.take(&mut pgno)?;
        let pgno = u32::from_be_bytes(pgno);
        if pgno == 0 {
            self.order.finish()?;
            self.end_frame()?;
            self.ended = true;
            return Ok(None);
        }
        self.order.next(pgno)?;
        self.take(page)?;
        if self.header.is_snapshot() {
            self.pages = self.pages ^ page_checksum(pgno, page);
        }
        Ok(Some(pgno))
    }

    fn take(&mut self, buffer: &mut [u8]) -> Result<(), LtxError> {
        match &mut self.source {
            Source::Plain(reader) => fill(reader, buffer, "page block")?,
            Source::Lz4(decoder) => fill_lz4(decoder, buffer, "page block")?,
        }
        self.digest.update(buffer);
        Ok(())
    }

    /// Reads the LZ4 frame to its end mark and content checksum; nothing may follow the terminator inside it.
    fn end_frame(&mut self) -> Result<(), LtxError> {
        let Source::Lz4(decoder) = &mut self.source else { return Ok(()) };
        match decoder.read(&mut [0; 1]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(LtxError::TrailingPages),
            Err(error) => Err(lz4_read_error(error, "page block")),
        }
    }

    /// Reads what pages are left, then the trailer, and checks it. Returns the reader, positioned behind the file.
    ///
    /// # Errors
    /// Damage, or the reader's error.
    pub fn finish(self) -> Result<(Trailer, R), LtxError> {
        let (trailer, source) = self.end()?;
        let reader = match source {
            Source::Plain(reader) => reader,
            Source::Lz4(decoder) => decoder.into_inner(),
        };
        Ok((trailer, reader))
    }

    /// As [`Self::finish`]; the reader comes back inside of its decompressor.
    pub(super) fn end(mut self) -> Result<(Trailer, Source<R>), LtxError> {
        if !self.ended {
            let mut page = vec![0; self.header.page_size as usize];
            while self.next_page(&mut page)?.is_some() {}
        }
        let reader = match &mut self.source {
            Source::Plain(reader) => reader,
            Source::Lz4(decoder) => decoder.get_mut(),
        };
        let mut bytes = [0; TRAILER_BYTES];
        fill(reader, &mut bytes, "trailer")?;
        let trailer = Trailer::parse(&bytes);
        self.digest.update(&bytes[..8]);
        let actual = self.digest.checksum();
        if actual != trailer.file_checksum {
            return Err(LtxError::FileChecksum { expected: trailer.file_checksum, actual });
        }
        check_post_apply(&self.header, self.pages, trailer.post_apply)?;
        Ok((trailer, self.source))
    }
}
