//! The wal-index header.

use crate::sqlite::page::is_page_size;
use crate::sqlite::wal::{Salt, WAL_VERSION, WalChecksum};

/// Length of one copy of the header, in words of 4 bytes.
pub const HEADER_WORDS: usize = 12;

/// Both copies of the header as they stand. A writer changes the second first, so that one of them is whole at any time.
pub type HeaderWords = [[u32; HEADER_WORDS]; 2];

/// A valid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexHeader {
    /// Grows by one with every transaction; reset by recovery.
    pub change: u32,
    /// Byte order of the WAL's checksums.
    pub big_endian_checksums: bool,
    /// Bytes per page; 0 while the WAL has never had a frame.
    pub page_size: u32,
    /// Last committed frame, 0 for none.
    pub mx_frame: u32,
    /// Database size in pages.
    pub page_count: u32,
    /// The checksum chain after frame `mx_frame`.
    pub frame_checksum: WalChecksum,
    /// Salts of the WAL generation, as integers read big-endian from the WAL.
    pub salt: Salt,
}

impl IndexHeader {
    /// The header of an index without a WAL.
    pub const EMPTY: Self = Self {
        change: 0,
        big_endian_checksums: cfg!(target_endian = "big"),
        page_size: 0,
        mx_frame: 0,
        page_count: 0,
        frame_checksum: [0, 0],
        salt: [0, 0],
    };

    /// Decodes one copy; `None` when it is not initialised, of another version, or its checksum is wrong.
    #[must_use]
    pub fn decode(words: &[u32; HEADER_WORDS]) -> Option<Self> {
        Self::decode_version(words, WAL_VERSION)
    }

    /// As [`Self::decode`], for a header of that version.
    pub(super) fn decode_version(words: &[u32; HEADER_WORDS], version: u32) -> Option<Self> {
        let [initialised, big_endian, size_low, size_high] = words[3].to_ne_bytes();
        if words[0] != version || initialised == 0 || header_checksum(words) != [words[10], words[11]] {
            return None;
        }
        let field = u16::from_ne_bytes([size_low, size_high]);
        let page_size = if field == 1 { 65_536 } else { u32::from(field) };
        let sane = is_page_size(page_size) || (page_size == 0 && words[4] == 0);
        sane.then_some(Self {
            change: words[2],
            big_endian_checksums: big_endian != 0,
            page_size,
            mx_frame: words[4],
            page_count: words[5],
            frame_checksum: [words[6], words[7]],
            salt: [u32::from_be(words[8]), u32::from_be(words[9])],
        })
    }

    /// Encodes one copy, initialised and with its checksum.
    #[must_use]
    pub fn encode(&self) -> [u32; HEADER_WORDS] {
        self.encode_version(WAL_VERSION)
    }

    /// As [`Self::encode`], with that version.
    pub(super) fn encode_version(&self, version: u32) -> [u32; HEADER_WORDS] {
        // 65536 does not fit the field and stands as 1.
        let field = u16::try_from(self.page_size).unwrap_or(1);
        let [size_low, size_high] = field.to_ne_bytes();
        let mut words = [
            version,
            0,
            self.change,
            u32::from_ne_bytes([1, u8::from(self.big_endian_checksums), size_low, size_high]),
            self.mx_frame,
            self.page_count,
            self.frame_checksum[0],
            self.frame_checksum[1],
            self.salt[0].to_be(),
            self.salt[1].to_be(),
            0,
            0,
        ];
        [words[10], words[11]] = header_checksum(&words);
        words
    }
}

/// The WAL's checksum over the first 40 bytes, in the machine's byte order.
fn header_checksum(words: &[u32; HEADER_WORDS]) -> [u32; 2] {
    let (mut s0, mut s1) = (0_u32, 0_u32);
    for &[first, second] in words[..10].as_chunks::<2>().0 {
        s0 = s0.wrapping_add(first).wrapping_add(s1);
        s1 = s1.wrapping_add(second).wrapping_add(s0);
    }
    [s0, s1]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_survive_a_round_trip(
            change: u32, big_endian_checksums: bool, shift in 9_u32..=16, mx_frame: u32, page_count: u32,
            frame_checksum: [u32; 2], salt: [u32; 2],
        ) {
            let header = IndexHeader {
                change, big_endian_checksums, page_size: 1 << shift, mx_frame, page_count, frame_checksum, salt,
            };
            let mut words = header.encode();
            prop_assert_eq!(IndexHeader::decode(&words), Some(header));
            words[5] ^= 1;
            prop_assert_eq!(IndexHeader::decode(&words), None);
        }

        #[test]
        fn random_words_are_no_header(words: [u32; HEADER_WORDS]) {
            prop_assert_eq!(IndexHeader::decode(&words), None);
        }
    }

    #[test]
    fn an_uninitialised_header_is_none() {
        assert_eq!(IndexHeader::decode(&[0; HEADER_WORDS]), None);
        assert_eq!(IndexHeader::decode(&IndexHeader::EMPTY.encode()), Some(IndexHeader::EMPTY));
    }
}
