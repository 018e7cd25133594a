//! Pages: sizes, offsets, the lock page, and checksums (COMPAT §1).

use crc_fast::{CrcAlgorithm, Digest};

use crate::Checksum;

/// The smallest page size SQLite allows, in bytes.
pub const PAGE_SIZE_MIN: u32 = 512;
/// The largest page size SQLite allows, in bytes.
pub const PAGE_SIZE_MAX: u32 = 65_536;
/// Where SQLite's locks on the database file begin; the page holding this byte is never used for data.
pub const LOCK_BYTE_OFFSET: u64 = 0x4000_0000;

/// Whether `page_size` is a power of two within 512…65536.
#[must_use]
pub const fn is_page_size(page_size: u32) -> bool {
    page_size >= PAGE_SIZE_MIN && page_size <= PAGE_SIZE_MAX && page_size.is_power_of_two()
}

/// The number of the page that holds the lock bytes: never written, no checksum, not in any record.
///
/// `page_size` must be valid ([`is_page_size`]); 0 gives 0, which is no page.
#[must_use]
pub const fn lock_page(page_size: u32) -> u32 {
    match 0x4000_0000_u32.checked_div(page_size) {
        Some(before) => before + 1,
        None => 0,
    }
}

/// Where page `pgno` (from 1) begins in the database file, in bytes. Page 0 does not exist and gives 0.
#[must_use]
pub const fn page_offset(pgno: u32, page_size: u32) -> u64 {
    pgno.saturating_sub(1) as u64 * page_size as u64
}

/// The checksum of one page: CRC-64/GO-ISO over the page number (big-endian) and the page, with the flag bit.
#[must_use]
pub fn page_checksum(pgno: u32, page: &[u8]) -> Checksum {
    let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
    digest.update(&pgno.to_be_bytes());
    digest.update(page);
    Checksum(digest.finalize() | Checksum::FLAG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_go_iso_and_not_xz() {
        let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
        digest.update(b"123456789");
        assert_eq!(digest.finalize(), 0xb909_56c7_75a4_1001);
    }

    #[test]
    fn the_page_number_is_part_of_the_checksum() {
        let page = [7_u8; 4096];
        assert_ne!(page_checksum(1, &page), page_checksum(2, &page));
        assert!(page_checksum(1, &page).is_valid());
        let mut image = 3_u32.to_be_bytes().to_vec();
        image.extend_from_slice(&page);
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64GoIso, &image);
        assert_eq!(page_checksum(3, &page), Checksum(crc | Checksum::FLAG));
    }

    #[test]
    fn the_lock_page_holds_the_lock_bytes() {
        for page_size in [512_u32, 1024, 4096, 65_536] {
            let pgno = lock_page(page_size);
            assert_eq!(page_offset(pgno, page_size), LOCK_BYTE_OFFSET);
        }
        assert_eq!(lock_page(4096), 262_145);
        assert!(!is_page_size(0) && !is_page_size(511) && !is_page_size(768) && !is_page_size(131_072));
    }
}
