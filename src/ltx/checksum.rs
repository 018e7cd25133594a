//! CRC-64/GO-ISO of files, and how many pages a snapshot has.

use crc_fast::CrcAlgorithm;

use crate::Checksum;
use crate::sqlite::page::lock_page;

/// A running CRC-64/GO-ISO.
#[derive(Debug, Clone)]
pub struct Digest(crc_fast::Digest);

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

impl Digest {
    /// The CRC of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self(crc_fast::Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The CRC of all bytes so far, without the flag bit set.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }

    /// The CRC as a checksum, with the flag bit.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        Checksum(self.value() | Checksum::FLAG)
    }
}

/// How many pages a snapshot of a database with `commit` pages holds: all but the lock page.
#[must_use]
pub const fn pages_in_snapshot(page_size: u32, commit: u32) -> u32 {
    if commit >= lock_page(page_size) { commit - 1 } else { commit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomial_is_go_iso() {
        let mut digest = Digest::new();
        digest.update(b"12345");
        digest.update(b"6789");
        assert_eq!(digest.value(), 0xb909_56c7_75a4_1001);
    }

    #[test]
    fn a_snapshot_leaves_the_lock_page_out() {
        assert_eq!(pages_in_snapshot(4096, 262_144), 262_144);
        assert_eq!(pages_in_snapshot(4096, 262_145), 262_144);
        assert_eq!(pages_in_snapshot(4096, 262_146), 262_145);
    }
}
