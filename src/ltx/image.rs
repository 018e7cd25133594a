//! Building a small LTX file in memory: the path of every ordinary commit.

use std::io::Write;
use std::mem;

use bytes::Bytes;
use lz4_flex::frame::FrameEncoder;

use super::encoder::{PageOrder, check_post_apply, frame_info, lz4_error};
use super::{Digest, HEADER_BYTES, Header, LtxError, TRAILER_BYTES, Trailer};
use crate::{Checksum, Pos};

/// A complete LTX file in memory, with its parsed ends.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its header.
    pub header: Header,
    /// Its trailer.
    pub trailer: Trailer,
    /// The whole file.
    pub bytes: Bytes,
}

impl Image {
    /// The position after it.
    #[must_use]
    pub fn post(&self) -> Pos {
        Pos::new(self.header.max_txid, self.trailer.post_apply)
    }
}

/// Builds [`Image`]s one after the other, keeping its buffers (page block, LZ4 state) between them.
///
/// Pages are copied once, and their checksum comes from the same bytes. Use [`super::Encoder`] for transactions too
/// large to be held in memory.
pub struct ImageBuilder {
    header: Header,
    order: PageOrder,
    /// Header and page block, not compressed. Given away with an uncompressed image, kept otherwise.
    plain: Vec<u8>,
    lz4: Box<FrameEncoder<Vec<u8>>>,
    pages: Checksum,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// A buffer that has grown larger than this is given back instead of being kept for the next transaction.
const KEPT_BYTES_MAX: usize = 1 << 20;

impl ImageBuilder {
    /// An empty builder; call [`ImageBuilder::begin`] first.
    #[must_use]
    pub fn new() -> Self {
        let header = Header { page_size: 4096, ..Header::default() };
        Self {
            header,
            order: PageOrder::new(&header),
            plain: Vec::new(),
            lz4: Box::new(FrameEncoder::with_frame_info(frame_info(), Vec::new())),
            pages: Checksum::EMPTY,
        }
    }

    /// Starts a file that will hold about `pages` pages. A file begun before and not finished is dropped.
    ///
    /// # Errors
    /// A broken rule of the header.
    pub fn begin(&mut self, header: &Header, pages: usize) -> Result<(), LtxError> {
        header.validate()?;
        self.header = *header;
        self.order = PageOrder::new(header);
        self.pages = Checksum::EMPTY;
        self.plain.clear();
        if self.plain.capacity() > KEPT_BYTES_MAX {
            self.plain = Vec::new();
        }
        let page_block = pages.saturating_mul(header.page_size as usize + 4).saturating_add(4);
        self.plain.reserve(HEADER_BYTES + TRAILER_BYTES + page_block);
        self.plain.extend_from_slice(&header.to_bytes());
        Ok(())
    }

    /// Appends a page and returns its checksum (COMPAT §1).
    ///
    /// # Errors
    /// [`LtxError::Page`] when the order is broken, [`LtxError::PageLength`].
    pub fn push_page(&mut self, pgno: u32, page: &[u8]) -> Result<Checksum, LtxError> {
        if page.len() != self.header.page_size as usize {
            return Err(LtxError::PageLength { expected: self.header.page_size, actual: page.len() });
        }
        self.order.next(pgno)?;
        let start = self.plain.len();
        self.plain.extend_from_slice(&pgno.to_be_bytes());
        self.plain.extend_from_slice(page);
        let mut digest = Digest::new();
        digest.update(&self.plain[start..]);
        let checksum = digest.checksum();
        self.pages = self.pages ^ checksum;
        Ok(checksum)
    }

    /// The XOR of the pages so far: what the post-apply checksum of a snapshot must be.
    #[must_use]
    pub fn pages_checksum(&self) -> Checksum {
        self.pages
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`LtxError::PostApply`], or a page missing from a snapshot.
    pub fn finish(&mut self, post_apply: Checksum) -> Result<Image, LtxError> {
        self.order.finish()?;
        check_post_apply(&self.header, self.pages, post_apply)?;
        self.plain.extend_from_slice(&[0; 4]);
        let mut digest = Digest::new();
        digest.update(&self.plain);
        digest.update(&post_apply.0.to_be_bytes());
        let trailer = Trailer { post_apply, file_checksum: digest.checksum() };
        let mut bytes = if self.header.compressed { self.compress()? } else { mem::take(&mut self.plain) };
        bytes.extend_from_slice(&trailer.to_bytes());
        Ok(Image { header: self.header, trailer, bytes: Bytes::from(bytes) })
    }

    fn compress(&mut self) -> Result<Vec<u8>, LtxError> {
        let mut output = Vec::with_capacity(HEADER_BYTES + TRAILER_BYTES + self.plain.len() / 3);
        output.extend_from_slice(&self.plain[..HEADER_BYTES]);
        *self.lz4.get_mut() = output;
        self.lz4.write_all(&self.plain[HEADER_BYTES..])?;
        self.lz4.try_finish().map_err(lz4_error)?;
        Ok(mem::take(self.lz4.get_mut()))
    }
}
