//! A wal-index as it was left, read without mapping it: an unreadable disk is an error then, and not a fault.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{HEADER_WORDS, IndexHeader};
use super::retire::RETIRED_VERSION;
use super::table::{PAGES, RESERVED_WORDS, SEGMENT_LEN};

/// The wal-index that the last client left behind. Nobody writes it any more.
#[derive(Debug)]
pub struct StoredIndex {
    file: File,
    header: IndexHeader,
}

/// `false` when the file ends before.
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
    match file.read_exact_at(bytes, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The header's words; `None` when the two copies differ or the file ends before.
pub(super) fn header_words(file: &File) -> io::Result<Option<[u32; HEADER_WORDS]>> {
    let mut bytes = [0; 2 * HEADER_WORDS * 4];
    if !read_at(file, &mut bytes, 0)? {
        return Ok(None);
    }
    let mut words = [0; HEADER_WORDS];
    let (first, second) = bytes.split_at(HEADER_WORDS * 4);
    for (slot, bytes) in words.iter_mut().zip(first.as_chunks::<4>().0) {
        *slot = word(*bytes);
    }
    Ok((first == second).then_some(words))
}

fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

impl StoredIndex {
    /// Reads the header, of a retired index as well; `None` where a client would rebuild the index: the copies differ, or are not valid.
    ///
    /// # Errors
    /// Reading.
    pub fn open(file: File) -> io::Result<Option<Self>> {
        let Some(words) = header_words(&file)? else { return Ok(None) };
        let retired = IndexHeader::decode_version(&words, RETIRED_VERSION);
        Ok(IndexHeader::decode(&words).or(retired).map(|header| Self { file, header }))
    }

    /// What the index says is committed.
    #[must_use]
    pub const fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// Whether `holds` is true of every committed frame and the page that the index says it holds. `false` also when the file
    /// is too short for them.
    ///
    /// # Errors
    /// Reading; those of `holds`.
    pub fn all_frames(&self, mut holds: impl FnMut(u32, u32) -> io::Result<bool>) -> io::Result<bool> {
        let (mut frame, mut skipped) = (0, RESERVED_WORDS as usize);
        let mut bytes = vec![0; PAGES as usize * 4];
        let mut offset = 0;
        while frame < self.header.mx_frame {
            if !read_at(&self.file, &mut bytes, offset)? {
                return Ok(false);
            }
            let left = (self.header.mx_frame - frame) as usize;
            for pgno in bytes.as_chunks::<4>().0.iter().skip(skipped).take(left) {
                frame += 1;
                if !holds(frame, word(*pgno))? {
                    return Ok(false);
                }
            }
            skipped = 0;
            offset += SEGMENT_LEN as u64;
        }
        Ok(true)
    }
}
