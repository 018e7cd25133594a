//! Reading whole files that are in memory, one after the other: the path of every small record on a replica.

use std::io::Cursor;

use bytes::Bytes;
use lz4_flex::frame::FrameDecoder;

use super::decoder::Source;
use super::{Decoder, HEADER_BYTES, Header, LtxError, Trailer};
use crate::Checksum;
use crate::sqlite::page::page_checksum;

/// Pages of a file beyond this many bytes together are verified, but not kept.
const CONTENTS_BYTES_MAX: usize = 4 << 20;

/// A verified file.
#[derive(Debug)]
pub struct Unpacked {
    /// Its header.
    pub header: Header,
    /// Its trailer.
    pub trailer: Trailer,
    /// Page numbers, ascending, with the checksums of the pages.
    pub pages: Vec<(u32, Checksum)>,
    /// The pages themselves, back to back; `None` when that were more than 4 MiB.
    pub contents: Option<Vec<u8>>,
    /// How long the file is, in bytes: what follows it in the input does not belong to it.
    pub len: usize,
}

/// Verifies and decompresses files, keeping the decompressor between them: making one costs more than a small file.
#[derive(Default)]
pub struct Unpacker {
    lz4: Option<Box<FrameDecoder<Cursor<Bytes>>>>,
    /// The two bytes by which the frames that `lz4` has buffers for describe themselves.
    layout: [u8; 2],
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

impl Unpacker {
    /// One without buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks every rule of the format, as [`super::verify()`], and returns what the file holds.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn unpack(&mut self, file: &Bytes) -> Result<Unpacked, LtxError> {
        // LZ4 frame format: a magic number of 4 bytes, then the descriptor's flags and block size.
        let layout = file.get(HEADER_BYTES + 4..HEADER_BYTES + 6).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
        let kept = self.lz4.take().filter(|_| layout == Some(self.layout));
        let mut decoder = Decoder::reusing(Cursor::new(file.clone()), kept)?;
        let header = *decoder.header();
        let page_len = header.page_size as usize;
        // One page and the end of the pages, most often; else hardly less than the file.
        let room = (2 * page_len).max((file.len() + page_len).min(CONTENTS_BYTES_MAX));
        let (mut pages, mut contents, mut is_kept) = (Vec::new(), Vec::with_capacity(room), true);
        loop {
            if contents.len() + page_len > CONTENTS_BYTES_MAX {
                contents.clear();
                is_kept = false;
            }
            let at = contents.len();
            contents.resize(at + page_len, 0);
            let Some(pgno) = decoder.next_page(&mut contents[at..])? else {
                contents.truncate(at);
                break;
            };
            pages.push((pgno, page_checksum(pgno, &contents[at..])));
        }
        let (trailer, source) = decoder.end()?;
        let len = match source {
            Source::Plain(reader) => reader.position(),
            Source::Lz4(mut lz4) => {
                let reader = std::mem::take(lz4.get_mut());
                self.lz4 = Some(lz4);
                self.layout = layout.unwrap_or_default();
                reader.position()
            }
        };
        let len = usize::try_from(len).unwrap_or(file.len());
        Ok(Unpacked { header, trailer, pages, contents: is_kept.then_some(contents), len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Txid;
    use crate::ltx::{Encoder, ImageBuilder};

    fn header(txid: u64, compressed: bool) -> Header {
        Header {
            compressed,
            page_size: 4096,
            commit: 5000,
            min_txid: Txid(txid),
            max_txid: Txid(txid),
            pre_apply: Checksum(Checksum::FLAG | 1),
            ..Header::default()
        }
    }

    fn file(txid: u64, compressed: bool, pages: u32) -> Bytes {
        let header = header(txid, compressed);
        let mut encoder = Encoder::new(Vec::new(), &header).unwrap();
        for pgno in 2..2 + pages {
            let page: Vec<u8> = (0..4096_u32).map(|at| (at * pgno / 7) as u8).collect();
            encoder.write_page(pgno, &page).unwrap();
        }
        Bytes::from(encoder.finish(Checksum(Checksum::FLAG | 2)).unwrap().1)
    }

    #[test]
    fn one_after_the_other_with_the_same_buffers_and_after_damage() {
        let mut unpacker = Unpacker::new();
        for (txid, pages) in [(2, 1), (3, 40), (4, 0), (5, 3)] {
            for compressed in [true, false] {
                let whole = file(txid, compressed, pages);
                let mut longer = whole.to_vec();
                longer.extend_from_slice(b"what follows");
                let unpacked = unpacker.unpack(&Bytes::from(longer)).unwrap();
                assert_eq!(unpacked.len, whole.len());
                assert_eq!(unpacked.header, header(txid, compressed));
                let contents = unpacked.contents.unwrap();
                assert_eq!(unpacked.pages.len(), pages as usize);
                for ((pgno, checksum), page) in unpacked.pages.iter().zip(contents.chunks_exact(4096)) {
                    assert_eq!(*checksum, page_checksum(*pgno, page));
                }
                for at in (0..whole.len()).step_by(whole.len() / 50 + 1) {
                    let mut damaged = whole.to_vec();
                    damaged[at] ^= 0x10;
                    assert!(unpacker.unpack(&Bytes::from(damaged)).is_err(), "byte {at}");
                    assert!(unpacker.unpack(&whole.slice(..at)).is_err(), "cut at {at}");
                    assert!(unpacker.unpack(&whole).is_ok(), "after byte {at}");
                }
            }
        }
    }

    #[test]
    fn many_pages_are_verified_and_not_kept() {
        let whole = file(2, true, 1030);
        let unpacked = Unpacker::new().unpack(&whole).unwrap();
        assert_eq!(unpacked.pages.len(), 1030);
        assert!(unpacked.contents.is_none());
        assert_eq!(Unpacker::new().unpack(&file(2, true, 1000)).unwrap().contents.unwrap().len(), 1000 * 4096);
    }

    #[test]
    fn what_the_builder_makes_is_read() {
        let mut builder = ImageBuilder::new();
        builder.begin(&header(9, true), 1).unwrap();
        builder.push_page(3, &[7; 4096]).unwrap();
        let image = builder.finish(Checksum(Checksum::FLAG | 3)).unwrap();
        let unpacked = Unpacker::new().unpack(&image.bytes).unwrap();
        assert_eq!((unpacked.trailer, unpacked.len), (image.trailer, image.bytes.len()));
        assert_eq!(unpacked.contents.unwrap(), [7; 4096]);
    }
}
