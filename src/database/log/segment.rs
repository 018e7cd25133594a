//! The segment file: a header, then records back to back. All integers are big-endian.
//!
//! | offset | size | segment header |
//! |---|---|---|
//! | 0 | 8 | magic `LFSSEG1\n` |
//! | 8 | 8 | sequence number, ascending, as in the file's name |
//! | 16 | 8 | CRC-64/GO-ISO of the bytes before |
//!
//! | offset | size | record |
//! |---|---|---|
//! | 0 | 4 | magic `LREC` |
//! | 4 | 4 | zero |
//! | 8 | 8 | length of the LTX image |
//! | 16 | 8 | post-apply checksum, as in the image's trailer |
//! | 24 | 8 | CRC-64/GO-ISO of the image as stored |
//! | 32 | 8 | CRC-64/GO-ISO of the 32 bytes before and the image's 100 header bytes |
//! | 40 | – | the image, one LTX file |
//!
//! A scan needs the 140 bytes at each record; the image's CRC tells a torn record without decompressing it. Zeros (or
//! the end of the file) where a record would start end the segment.

use std::fs::File;
use std::io;

use super::Entry;
use crate::Checksum;
use crate::ltx::{Digest, HEADER_BYTES, Header, TRAILER_BYTES};
use crate::os;

/// Length of the segment header in bytes.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 24;
/// Length of what precedes an image, in bytes.
pub(super) const FRAME_BYTES: usize = 40;

const SEGMENT_MAGIC: [u8; 8] = *b"LFSSEG1\n";
const FRAME_MAGIC: [u8; 4] = *b"LREC";

/// Bytes read at once when an image is checked.
const CHECK_BYTES: usize = 256 << 10;

/// The header of a segment.
pub(super) fn segment_header(sequence: u64) -> [u8; SEGMENT_HEADER_BYTES as usize] {
    let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
    bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
    bytes[8..16].copy_from_slice(&sequence.to_be_bytes());
    let crc = crc(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// CRC-64/GO-ISO of some bytes.
pub(super) fn crc(bytes: &[u8]) -> u64 {
    let mut digest = Digest::new();
    digest.update(bytes);
    digest.value()
}

/// The frame in front of an image. `ltx_header` is the image's beginning.
pub(super) fn frame(len: u64, post: Checksum, image_crc: u64, ltx_header: &[u8]) -> [u8; FRAME_BYTES] {
    let mut bytes = [0; FRAME_BYTES];
    bytes[..4].copy_from_slice(&FRAME_MAGIC);
    bytes[8..16].copy_from_slice(&len.to_be_bytes());
    bytes[16..24].copy_from_slice(&post.0.to_be_bytes());
    bytes[24..32].copy_from_slice(&image_crc.to_be_bytes());
    let mut digest = Digest::new();
    digest.update(&bytes[..32]);
    digest.update(ltx_header);
    bytes[32..].copy_from_slice(&digest.value().to_be_bytes());
    bytes
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

/// Whether the file starts with the header of the segment of this number.
pub(super) fn is_segment(file: &File, sequence: u64) -> io::Result<bool> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
    os::read_or_zero_at(file, &mut bytes, 0)?;
    Ok(bytes == segment_header(sequence))
}

/// The record whose frame begins at `offset`: `None` where there is none, or a frame that is damaged or leads beyond
/// the end of the file. The image itself is not checked.
pub(super) fn read_frame(file: &File, offset: u64, file_len: u64) -> io::Result<Option<(Header, Entry)>> {
    let mut bytes = [0; FRAME_BYTES + HEADER_BYTES];
    os::read_or_zero_at(file, &mut bytes, offset)?;
    let len = be64(&bytes, 8);
    let mut ltx_header = [0; HEADER_BYTES];
    ltx_header.copy_from_slice(&bytes[FRAME_BYTES..]);
    let expected = frame(len, Checksum(be64(&bytes, 16)), be64(&bytes, 24), &ltx_header);
    let image = offset + FRAME_BYTES as u64;
    let fits = image.checked_add(len).is_some_and(|end| end <= file_len);
    if bytes[..FRAME_BYTES] != expected || !fits || len < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Ok(None);
    }
    let Ok(header) = Header::parse(&ltx_header) else { return Ok(None) };
    let entry = Entry {
        min: header.min_txid,
        max: header.max_txid,
        pre: header.pre_apply,
        post: Checksum(be64(&bytes, 16)),
        offset: image,
        len,
        crc: Some(be64(&bytes, 24)),
    };
    Ok(Some((header, entry)))
}

/// Whether the image is what was written.
pub(super) fn image_is_whole(file: &File, entry: &Entry) -> io::Result<bool> {
    let Some(expected) = entry.crc else { return Ok(true) };
    let mut digest = Digest::new();
    let mut buffer = vec![0; CHECK_BYTES.min(usize::try_from(entry.len).unwrap_or(CHECK_BYTES))];
    let mut offset = entry.offset;
    while offset < entry.end() {
        let count = usize::try_from(entry.end() - offset).map_or(buffer.len(), |left| left.min(buffer.len()));
        os::read_or_zero_at(file, &mut buffer[..count], offset)?;
        digest.update(&buffer[..count]);
        offset += count as u64;
    }
    Ok(digest.value() == expected)
}

/// Whether there is nothing but zeros: room that was made for records, and no torn one.
pub(super) fn is_room(file: &File, from: u64, to: u64) -> io::Result<bool> {
    let mut buffer = vec![0; CHECK_BYTES];
    let mut offset = from;
    while offset < to {
        let count = usize::try_from(to - offset).map_or(CHECK_BYTES, |left| left.min(CHECK_BYTES));
        os::read_or_zero_at(file, &mut buffer[..count], offset)?;
        if buffer[..count].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        offset += count as u64;
    }
    Ok(true)
}

/// Where the LTX images of a segment file lie: offset and length in bytes, in order. What is not whole (the node is writing, or
/// was killed) is left out.
///
/// # Errors
/// `InvalidData` when it is no segment; reading.
pub fn segment_images(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
    os::read_or_zero_at(file, &mut bytes, 0)?;
    if bytes != segment_header(be64(&bytes, 8)) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a segment of a litefs log"));
    }
    Ok(scan(file, true)?.entries.iter().map(|entry| (entry.offset, entry.len)).collect())
}

/// What a scan of a segment found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Its whole records, in file order.
    pub(super) entries: Vec<Entry>,
    pub(super) first: Option<Header>,
    pub(super) last: Option<Header>,
    /// From this entry on the records do not connect to the ones before: a damaged record lies in between.
    pub(super) gap_before: Option<usize>,
    /// End of the last whole record (of the header when there is none), in bytes.
    pub(super) end: u64,
}

/// Reads the index of a segment; with `check_images`, records whose image is damaged are left out.
///
/// # Errors
/// Reading failed. Damage is no error: the scan ends there, or goes on behind the damaged image.
pub(super) fn scan(file: &File, check_images: bool) -> io::Result<Scan> {
    let file_len = file.metadata()?.len();
    let mut scan = Scan { end: SEGMENT_HEADER_BYTES, ..Scan::default() };
    let mut offset = SEGMENT_HEADER_BYTES;
    while let Some((header, entry)) = read_frame(file, offset, file_len)? {
        offset = entry.end();
        if check_images && !image_is_whole(file, &entry)? {
            continue;
        }
        if scan.entries.last().is_some_and(|before| before.post() != entry.pre()) {
            scan.gap_before = Some(scan.entries.len());
        }
        scan.first.get_or_insert(header);
        scan.last = Some(header);
        scan.entries.push(entry);
        scan.end = offset;
    }
    Ok(scan)
}
