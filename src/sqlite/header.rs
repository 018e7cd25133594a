//! The database header: the first 100 bytes of page 1 (all integers big-endian).

use thiserror::Error;

use super::page::is_page_size;

/// Length of the database header in bytes.
pub const HEADER_LEN: usize = 100;
/// What every SQLite database begins with.
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Write/read version of a database in WAL mode.
pub const VERSION_WAL: u8 = 2;
/// Write/read version of a database with a rollback journal.
pub const VERSION_ROLLBACK: u8 = 1;

/// Bytes that are not the header of a SQLite database.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Fewer than 100 bytes.
    #[error("database header has {0} bytes instead of 100")]
    Short(usize),
    /// Not `SQLite format 3\0`.
    #[error("no SQLite database: its first 16 bytes are not \"SQLite format 3\\0\"")]
    Magic,
    /// Not a power of two within 512…65536.
    #[error("page size field {0} is not a page size")]
    PageSize(u16),
    /// Payload fractions or reserved bytes that SQLite refuses.
    #[error("database header is damaged: {0}")]
    Damaged(&'static str),
}

/// The fields of the header that the engine reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseHeader {
    /// Bytes per page, 512…65536 (stored as 1 for 65536).
    pub page_size: u32,
    /// 1 rollback journal, 2 WAL; a larger one makes the file read-only for SQLite.
    pub write_version: u8,
    /// 1 rollback journal, 2 WAL; a larger one makes the file unreadable for SQLite.
    pub read_version: u8,
    /// Bytes at the end of each page that SQLite leaves to extensions.
    pub reserved: u8,
    /// Grows with every transaction in rollback mode: tells clients to drop their caches.
    pub change_counter: u32,
    /// Page count as written; valid only when [`Self::version_valid_for`] is the change counter.
    pub page_count_field: u32,
    /// First freelist trunk page, 0 for none.
    pub freelist_trunk: u32,
    /// Pages on the freelist.
    pub freelist_count: u32,
    /// Grows with every change of the schema.
    pub schema_cookie: u32,
    /// Largest root page when auto-vacuum or incremental vacuum is on, else 0.
    pub largest_root: u32,
    /// Nonzero for incremental vacuum.
    pub incremental_vacuum: u32,
    /// The change counter when [`Self::page_count_field`] was written.
    pub version_valid_for: u32,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => u16::from_be_bytes([a, b]),
        _ => 0,
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

impl DatabaseHeader {
    /// Reads the header from the beginning of page 1.
    ///
    /// # Errors
    /// When SQLite would say "file is not a database".
    pub fn parse(page1: &[u8]) -> Result<Self, HeaderError> {
        if page1.len() < HEADER_LEN {
            return Err(HeaderError::Short(page1.len()));
        }
        if !page1.starts_with(MAGIC) {
            return Err(HeaderError::Magic);
        }
        let field = be16(page1, 16);
        let page_size = if field == 1 { 65_536 } else { u32::from(field) };
        if !is_page_size(page_size) {
            return Err(HeaderError::PageSize(field));
        }
        if page1[21..24] != [64, 32, 32] {
            return Err(HeaderError::Damaged("payload fractions are not 64, 32, 32"));
        }
        let reserved = page1[20];
        if page_size - u32::from(reserved) < 480 {
            return Err(HeaderError::Damaged("usable page size is below 480 bytes"));
        }
        Ok(Self {
            page_size,
            write_version: page1[18],
            read_version: page1[19],
            reserved,
            change_counter: be32(page1, 24),
            page_count_field: be32(page1, 28),
            freelist_trunk: be32(page1, 32),
            freelist_count: be32(page1, 36),
            schema_cookie: be32(page1, 40),
            largest_root: be32(page1, 52),
            incremental_vacuum: be32(page1, 64),
            version_valid_for: be32(page1, 92),
        })
    }

    /// Whether clients must use the WAL for this database.
    #[must_use]
    pub const fn is_wal(&self) -> bool {
        self.read_version == VERSION_WAL
    }

    /// The database size in pages, by SQLite's rule: the field of the header when the last writer kept it up (its
    /// "version-valid-for" is the change counter), else the length of the file.
    #[must_use]
    pub fn page_count(&self, file_len: u64) -> u32 {
        if self.page_count_field != 0 && self.version_valid_for == self.change_counter {
            return self.page_count_field;
        }
        u32::try_from(file_len.div_ceil(u64::from(self.page_size))).unwrap_or(u32::MAX)
    }
}

/// Sets both version bytes of page 1, by which clients choose WAL or rollback journal. Shorter input stays as it is.
pub fn set_wal(page1: &mut [u8], wal: bool) {
    let version = if wal { VERSION_WAL } else { VERSION_ROLLBACK };
    if let Some(bytes) = page1.get_mut(18..20) {
        bytes.fill(version);
    }
}

/// Sets the schema cookie of page 1: clients with another one read the schema again.
pub fn set_schema_cookie(page1: &mut [u8], cookie: u32) {
    if let Some(bytes) = page1.get_mut(40..44) {
        bytes.copy_from_slice(&cookie.to_be_bytes());
    }
}

/// Sets the change counter and "version-valid-for", and with them makes the page count field valid.
pub fn set_change_counter(page1: &mut [u8], counter: u32, page_count: u32) {
    for (at, value) in [(24, counter), (28, page_count), (92, counter)] {
        if let Some(bytes) = page1.get_mut(at..at + 4) {
            bytes.copy_from_slice(&value.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn database(page_size: u32, mode: &str) -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch(&format!("PRAGMA page_size={page_size}; PRAGMA journal_mode={mode};")).unwrap();
        connection.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES(zeroblob(100000));").unwrap();
        drop(connection);
        let bytes = std::fs::read(&path).unwrap();
        (dir, bytes)
    }

    #[test]
    fn reads_what_sqlite_writes_at_every_page_size() {
        for shift in 9..=16 {
            let page_size = 1_u32 << shift;
            let (_dir, bytes) = database(page_size, "delete");
            let header = DatabaseHeader::parse(&bytes).unwrap();
            assert_eq!(header.page_size, page_size);
            assert!(!header.is_wal());
            assert_eq!(header.page_count(0), header.page_count_field);
            assert_eq!(u64::from(header.page_count_field) * u64::from(page_size), bytes.len() as u64);
        }
        let (_dir, bytes) = database(4096, "wal");
        assert!(DatabaseHeader::parse(&bytes).unwrap().is_wal());
    }

    #[test]
    fn a_stale_page_count_field_is_not_believed() {
        let (_dir, mut bytes) = database(4096, "delete");
        let pages = bytes.len() as u64 / 4096;
        bytes[28..32].copy_from_slice(&1_u32.to_be_bytes());
        bytes[24..28].copy_from_slice(&77_u32.to_be_bytes());
        let header = DatabaseHeader::parse(&bytes).unwrap();
        assert_eq!(u64::from(header.page_count(bytes.len() as u64)), pages);
        set_change_counter(&mut bytes, 78, 5);
        assert_eq!(DatabaseHeader::parse(&bytes).unwrap().page_count(0), 5);
    }

    #[test]
    fn patched_versions_are_read_back() {
        let (_dir, mut bytes) = database(512, "delete");
        set_wal(&mut bytes, true);
        assert!(DatabaseHeader::parse(&bytes).unwrap().is_wal());
        set_wal(&mut bytes, false);
        assert!(!DatabaseHeader::parse(&bytes).unwrap().is_wal());
        set_wal(&mut [], true);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if magic && bytes.len() >= 16 {
                bytes[..16].copy_from_slice(MAGIC);
            }
            if let Ok(header) = DatabaseHeader::parse(&bytes) {
                prop_assert!(is_page_size(header.page_size));
                let _ = header.page_count(u64::MAX);
            }
        }
    }
}
