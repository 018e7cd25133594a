//! The checksum of every page, and the database checksum rolled along with them (COMPAT §1).

use crate::Checksum;

/// Checksums of pages 1…n (n = size of the database in pages) and their XOR. The lock page counts as [`Checksum::NONE`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageChecksums {
    pages: Vec<u64>,
    sum: u64,
}

impl PageChecksums {
    /// Of an empty database.
    #[must_use]
    pub const fn new() -> Self {
        Self { pages: Vec::new(), sum: 0 }
    }

    /// Number of pages of the database, the lock page included.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        u32::try_from(self.pages.len()).unwrap_or(u32::MAX)
    }

    /// The checksum of a page; [`Checksum::NONE`] for the lock page and beyond the end.
    #[must_use]
    pub fn get(&self, pgno: u32) -> Checksum {
        let index = (pgno as usize).wrapping_sub(1);
        Checksum(self.pages.get(index).copied().unwrap_or(0))
    }

    /// The checksum of the whole database.
    #[must_use]
    pub const fn database(&self) -> Checksum {
        Checksum(self.sum | Checksum::FLAG)
    }

    /// Sets a page's checksum, growing the table to hold it. `pgno` ≥ 1.
    pub fn set(&mut self, pgno: u32, checksum: Checksum) {
        debug_assert!(pgno > 0, "pages count from 1");
        let index = (pgno as usize).saturating_sub(1);
        if index >= self.pages.len() {
            self.pages.resize(index + 1, 0);
        }
        self.sum ^= self.pages[index] ^ checksum.0;
        self.pages[index] = checksum.0;
    }

    /// Cuts or grows the table to `page_count` pages; new ones have no checksum until they are set.
    pub fn resize(&mut self, page_count: u32) {
        for cut in self.pages.drain((page_count as usize).min(self.pages.len())..) {
            self.sum ^= cut;
        }
        self.pages.resize(page_count as usize, 0);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.sum = 0;
    }

    /// All checksums in page order, for the file kept at a clean stop.
    #[must_use]
    pub fn as_slice(&self) -> &[u64] {
        &self.pages
    }
}

impl FromIterator<u64> for PageChecksums {
    fn from_iter<I: IntoIterator<Item = u64>>(pages: I) -> Self {
        let pages: Vec<u64> = pages.into_iter().collect();
        let sum = pages.iter().fold(0, |sum, page| sum ^ page);
        Self { pages, sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::page::page_checksum;

    #[test]
    fn the_database_checksum_is_the_xor_of_its_pages() {
        let page = [7u8; 512];
        let mut table = PageChecksums::new();
        assert_eq!(table.database(), Checksum::EMPTY);
        for pgno in 1..=3 {
            table.set(pgno, page_checksum(pgno, &page));
        }
        let expected = page_checksum(1, &page) ^ page_checksum(2, &page) ^ page_checksum(3, &page);
        assert_eq!(table.database(), expected);
        table.set(2, page_checksum(2, &[8; 512]));
        table.set(2, page_checksum(2, &page));
        assert_eq!(table.database(), expected);
        table.resize(1);
        assert_eq!((table.page_count(), table.database()), (1, page_checksum(1, &page)));
        assert_eq!(table.as_slice().iter().copied().collect::<PageChecksums>(), table);
    }
}
