//! A wal-index as it was left, read without mapping it: an unreadable disk is an error then, and not a fault.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{HEADER_WORDS, HeaderWords, IndexHeader};
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

/// Both copies of the header; `None` when the file ends before.
pub(super) fn header_copies(file: &File) -> io::Result<Option<HeaderWords>> {
    let mut bytes = [0; 2 * HEADER_WORDS * 4];
    if !read_at(file, &mut bytes, 0)? {
        return Ok(None);
    }
    let mut copies = [[0; HEADER_WORDS]; 2];
    for (slot, bytes) in copies.as_flattened_mut().iter_mut().zip(bytes.as_chunks::<4>().0) {
        *slot = word(*bytes);
    }
    Ok(Some(copies))
}

/// What both copies say; `None` when they do not agree. One alone may be retired: it was cut short then, and changes nothing else.
pub(super) fn agreed(copies: &HeaderWords) -> Option<IndexHeader> {
    let [first, second] = copies
        .each_ref()
        .map(|words| IndexHeader::decode(words).or_else(|| IndexHeader::decode_version(words, RETIRED_VERSION)));
    first.filter(|_| first == second)
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
        Ok(header_copies(&file)?.as_ref().and_then(agreed).map(|header| Self { file, header }))
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
