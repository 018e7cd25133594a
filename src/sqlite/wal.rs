//! The write-ahead log file.
//!
//! A 32-byte header, then frames of a 24-byte header and a page. All integers are big-endian; the checksums run over
//! 32-bit words in the byte order that the header's magic names, and each frame continues the chain of the one before.
//! Frames are numbered from 1.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;

use super::page::is_page_size;

/// Length of the WAL header in bytes.
pub const WAL_HEADER_LEN: usize = 32;
/// Length of a frame header in bytes.
pub const FRAME_HEADER_LEN: usize = 24;
/// The only version of the format.
pub const WAL_VERSION: u32 = 3_007_000;
/// Magic of a WAL with little-endian checksums; with bit 0 set they are big-endian.
pub const MAGIC_LITTLE_ENDIAN: u32 = 0x377f_0682;

/// The running checksum: two words.
pub type WalChecksum = [u32; 2];
/// The salts, in the byte order of the file: new at every restart of the WAL.
pub type Salt = [u32; 2];

/// Bytes that are no WAL header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WalError {
    /// Fewer than 32 bytes: as good as an empty WAL.
    #[error("WAL header has {0} bytes instead of 32")]
    Short(usize),
    /// Neither of the two magics.
    #[error("WAL magic is {0:#010x}")]
    Magic(u32),
    /// Another version.
    #[error("WAL version is {0}")]
    Version(u32),
    /// Not a power of two within 512…65536.
    #[error("WAL page size is {0}")]
    PageSize(u32),
    /// The header's checksum does not match.
    #[error("WAL header has a wrong checksum")]
    Checksum,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Continues a checksum over `data`, whose length must be a multiple of 8 (a rest is ignored). `big_endian` is the byte
/// order in which words are read.
#[must_use]
pub fn checksum(big_endian: bool, data: &[u8], start: WalChecksum) -> WalChecksum {
    let [mut s0, mut s1] = start;
    let (words, _) = data.as_chunks::<8>();
    for &[a, b, c, d, e, f, g, h] in words {
        let (first, second) = if big_endian {
            (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
        } else {
            (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
        };
        s0 = s0.wrapping_add(first).wrapping_add(s1);
        s1 = s1.wrapping_add(second).wrapping_add(s0);
    }
    [s0, s1]
}

/// The header of a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// Byte order of the checksums.
    pub big_endian_checksums: bool,
    /// Bytes per page.
    pub page_size: u32,
    /// Counts restarts.
    pub checkpoint_sequence: u32,
    /// The salts every valid frame repeats.
    pub salt: Salt,
    /// Checksum of the header: where the chain of the frames starts.
    pub checksum: WalChecksum,
}

impl WalHeader {
    /// A header for a new WAL generation, with checksums in this machine's byte order as SQLite writes them.
    #[must_use]
    pub fn new(page_size: u32, checkpoint_sequence: u32, salt: Salt) -> Self {
        let mut header = Self {
            big_endian_checksums: cfg!(target_endian = "big"),
            page_size,
            checkpoint_sequence,
            salt,
            checksum: [0, 0],
        };
        header.checksum = checksum(header.big_endian_checksums, &header.encode()[..24], [0, 0]);
        header
    }

    /// Reads and verifies a header.
    ///
    /// # Errors
    /// When SQLite's recovery would take the WAL as empty.
    pub fn parse(bytes: &[u8]) -> Result<Self, WalError> {
        if bytes.len() < WAL_HEADER_LEN {
            return Err(WalError::Short(bytes.len()));
        }
        let magic = be32(bytes, 0);
        if magic & !1 != MAGIC_LITTLE_ENDIAN {
            return Err(WalError::Magic(magic));
        }
        let page_size = be32(bytes, 8);
        if !is_page_size(page_size) {
            return Err(WalError::PageSize(page_size));
        }
        let big_endian_checksums = magic & 1 != 0;
        let sum = checksum(big_endian_checksums, &bytes[..24], [0, 0]);
        if sum != [be32(bytes, 24), be32(bytes, 28)] {
            return Err(WalError::Checksum);
        }
        let version = be32(bytes, 4);
        if version != WAL_VERSION {
            return Err(WalError::Version(version));
        }
        Ok(Self {
            big_endian_checksums,
            page_size,
            checkpoint_sequence: be32(bytes, 12),
            salt: [be32(bytes, 16), be32(bytes, 20)],
            checksum: sum,
        })
    }

    /// The header's 32 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; WAL_HEADER_LEN] {
        let mut bytes = [0; WAL_HEADER_LEN];
        let words = [
            MAGIC_LITTLE_ENDIAN | u32::from(self.big_endian_checksums),
            WAL_VERSION,
            self.page_size,
            self.checkpoint_sequence,
            self.salt[0],
            self.salt[1],
            self.checksum[0],
            self.checksum[1],
        ];
        for (slot, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *slot = word.to_be_bytes();
        }
        bytes
    }

    /// Reads the header of a WAL file; `None` when SQLite would take the file as an empty WAL.
    ///
    /// # Errors
    /// Reading.
    pub fn read(wal: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; WAL_HEADER_LEN];
        match wal.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(Self::parse(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page's number.
    pub pgno: u32,
    /// Database size in pages after the transaction when this frame ends it, else 0.
    pub commit: u32,
    /// The WAL header's salts when the frame is of this generation.
    pub salt: Salt,
    /// The chain up to and including this frame.
    pub checksum: WalChecksum,
}

impl FrameHeader {
    /// Reads a frame header. Nothing is verified: that takes the page and the chain ([`Self::verifies`]).
    #[must_use]
    pub fn parse(bytes: &[u8; FRAME_HEADER_LEN]) -> Self {
        Self {
            pgno: be32(bytes, 0),
            commit: be32(bytes, 4),
            salt: [be32(bytes, 8), be32(bytes, 12)],
            checksum: [be32(bytes, 16), be32(bytes, 20)],
        }
    }

    /// The header's 24 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        let words = [self.pgno, self.commit, self.salt[0], self.salt[1], self.checksum[0], self.checksum[1]];
        for (slot, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *slot = word.to_be_bytes();
        }
        bytes
    }

    /// Whether it is a frame that SQLite before 3.51 wrote without salts and checksum.
    #[must_use]
    pub fn is_unsealed(&self) -> bool {
        self.pgno != 0 && self.salt == [0, 0] && self.checksum == [0, 0]
    }

    /// Whether the frame continues the chain `before` in the WAL of `header`, as SQLite's recovery asks.
    #[must_use]
    pub fn verifies(&self, header: &WalHeader, page: &[u8], before: WalChecksum) -> bool {
        self.salt == header.salt
            && self.pgno != 0
            && frame_checksum(header.big_endian_checksums, self.pgno, self.commit, page, before) == self.checksum
    }
}

/// The chain after a frame: over the first 8 bytes of its header and its page.
#[must_use]
pub fn frame_checksum(big_endian: bool, pgno: u32, commit: u32, page: &[u8], before: WalChecksum) -> WalChecksum {
    let mut head = [0; 8];
    head[..4].copy_from_slice(&pgno.to_be_bytes());
    head[4..].copy_from_slice(&commit.to_be_bytes());
    checksum(big_endian, page, checksum(big_endian, &head, before))
}

/// Bytes of one frame with its header.
#[must_use]
pub const fn frame_len(page_size: u32) -> u64 {
    FRAME_HEADER_LEN as u64 + page_size as u64
}

/// Where frame `frame` (from 1) begins. For `frame + 1` it is where the frame ends.
#[must_use]
pub const fn frame_offset(frame: u32, page_size: u32) -> u64 {
    WAL_HEADER_LEN as u64 + (frame.saturating_sub(1)) as u64 * frame_len(page_size)
}

/// Appends an encoded frame to `out` and returns the chain after it.
pub fn encode_frame(
    out: &mut Vec<u8>,
    header: &WalHeader,
    pgno: u32,
    commit: u32,
    page: &[u8],
    before: WalChecksum,
) -> WalChecksum {
    let checksum = frame_checksum(header.big_endian_checksums, pgno, commit, page, before);
    out.extend_from_slice(&FrameHeader { pgno, commit, salt: header.salt, checksum }.encode());
    out.extend_from_slice(page);
    checksum
}

/// What a walk along the checksum chain found: what SQLite's recovery would make valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidPrefix {
    /// The WAL's header.
    pub header: WalHeader,
    /// Last frame of the last whole transaction, 0 for none.
    pub mx_frame: u32,
    /// Database size in pages after it; 0 without a frame.
    pub page_count: u32,
    /// The chain after frame `mx_frame`.
    pub checksum: WalChecksum,
}

/// Walks a WAL from its first frame, frame by frame, as SQLite's recovery does.
#[derive(Debug)]
pub struct WalWalk<'a> {
    wal: &'a File,
    header: WalHeader,
    chain: WalChecksum,
    frame: u32,
    buffer: Vec<u8>,
    gaps: Gaps,
    /// The last frame continued the chain, so its page is whole.
    verified: bool,
    only_proven: bool,
}

/// What a walk does at frames without salts and checksums ([`FrameHeader::is_unsealed`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gaps {
    /// It ends before them, as SQLite's recovery does.
    End,
    /// It goes over them.
    Cross,
    /// It is behind one: the next frame of this generation continues the chain from before the gap, or starts it again.
    Behind,
}

impl<'a> WalWalk<'a> {
    /// Starts before frame 1; `None` when SQLite would take the WAL as empty.
    ///
    /// # Errors
    /// Reading.
    pub fn start(wal: &'a File) -> io::Result<Option<Self>> {
        Ok(WalHeader::read(wal)?.map(|header| Self::resume(wal, header, 0, header.checksum)))
    }

    /// Goes on after `frame`, whose chain value is known.
    #[must_use]
    pub fn resume(wal: &'a File, header: WalHeader, frame: u32, chain: WalChecksum) -> Self {
        let buffer = vec![0; FRAME_HEADER_LEN + header.page_size as usize];
        Self { wal, header, chain, frame, buffer, gaps: Gaps::End, verified: true, only_proven: false }
    }

    /// Goes over the frames that SQLite before 3.51 leaves without salts and checksums in the middle of committed transactions
    /// (`ROLLBACK TO` after a spill). What follows them cannot be checked against what comes before, but for its generation:
    /// only where no wal-index says better, and nobody's recovery has cut this WAL back.
    #[must_use]
    pub fn crossing_gaps(mut self) -> Self {
        self.gaps = if self.frame > 0 && self.chain == [0, 0] { Gaps::Behind } else { Gaps::Cross };
        self
    }

    /// [`Self::valid_prefix`] takes a transaction's end for one only when it is proven: its last frame continues the chain, or
    /// frames of a later one follow. For a WAL that somebody writes: SQLite writes a frame's header before its page; and at a
    /// commit after it has overwritten frames of the same transaction it writes the last frame without salts and checksum
    /// first, and completes all of them afterwards (`walRewriteChecksums`), the last one last.
    #[must_use]
    pub const fn only_proven(mut self) -> Self {
        self.only_proven = true;
        self
    }

    /// The WAL's header.
    #[must_use]
    pub const fn header(&self) -> &WalHeader {
        &self.header
    }

    /// The next valid frame: its number, header and page. `None` at the end of the chain, for ever after.
    ///
    /// # Errors
    /// Reading (the end of the file is not an error).
    pub fn next_frame(&mut self) -> io::Result<Option<(u32, FrameHeader, &[u8])>> {
        let Some(frame) = self.frame.checked_add(1) else { return Ok(None) };
        match self.wal.read_exact_at(&mut self.buffer, frame_offset(frame, self.header.page_size)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let Some((head, page)) = self.buffer.split_first_chunk::<FRAME_HEADER_LEN>() else { return Ok(None) };
        let head = FrameHeader::parse(head);
        self.verified = head.verifies(&self.header, page, self.chain);
        if self.verified || (self.gaps == Gaps::Behind && head.salt == self.header.salt && head.pgno != 0) {
            self.chain = head.checksum;
            if self.gaps == Gaps::Behind {
                self.gaps = Gaps::Cross;
            }
        } else if self.gaps != Gaps::End && head.is_unsealed() {
            self.chain = head.checksum;
            self.gaps = Gaps::Behind;
        } else {
            return Ok(None);
        }
        self.frame = frame;
        Ok(Some((frame, head, page)))
    }

    /// Walks to the end and says where the last whole transaction ends.
    ///
    /// # Errors
    /// Reading.
    pub fn valid_prefix(mut self) -> io::Result<ValidPrefix> {
        let header = self.header;
        let mut prefix = ValidPrefix { header, mx_frame: 0, page_count: 0, checksum: header.checksum };
        while let Some((frame, head, _)) = self.next_frame()? {
            if head.commit != 0 && (self.verified || !self.only_proven) {
                prefix = ValidPrefix { header, mx_frame: frame, page_count: head.commit, checksum: head.checksum };
            }
        }
        Ok(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wal_of(page_size: u32) -> (tempfile::TempDir, rusqlite::Connection, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA page_size={page_size}; PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0;
                 CREATE TABLE t(x); INSERT INTO t VALUES(randomblob(90000)); DELETE FROM t;"
            ))
            .unwrap();
        let wal = File::options().read(true).write(true).open(dir.path().join("db-wal")).unwrap();
        (dir, connection, wal)
    }

    #[test]
    fn the_chain_of_sqlites_wal_verifies_at_every_page_size() {
        for shift in 9..=16 {
            let page_size = 1 << shift;
            let (_dir, _connection, wal) = wal_of(page_size);
            let prefix = WalWalk::start(&wal).unwrap().unwrap().valid_prefix().unwrap();
            assert_eq!(prefix.header.page_size, page_size);
            assert_eq!(frame_offset(prefix.mx_frame + 1, page_size), wal.metadata().unwrap().len());
            assert!(prefix.page_count > 0);
        }
    }

    #[test]
    fn the_walk_ends_at_a_damaged_frame_and_at_the_commit_before_it() {
        let (_dir, _connection, wal) = wal_of(4096);
        let whole = WalWalk::start(&wal).unwrap().unwrap().valid_prefix().unwrap();
        wal.write_all_at(&[0xee], frame_offset(whole.mx_frame, 4096) + 100).unwrap();
        let cut = WalWalk::start(&wal).unwrap().unwrap().valid_prefix().unwrap();
        assert!(cut.mx_frame < whole.mx_frame);
        let mut walk = WalWalk::start(&wal).unwrap().unwrap();
        let mut last_commit = 0;
        while let Some((frame, head, _)) = walk.next_frame().unwrap() {
            if head.commit != 0 {
                last_commit = frame;
            }
        }
        assert_eq!(cut.mx_frame, last_commit);
    }

    #[test]
    fn an_end_without_checksum_is_proven_by_what_follows_only() {
        let (_dir, connection, wal) = wal_of(4096);
        let ends = |proven: bool| {
            let walk = WalWalk::start(&wal).unwrap().unwrap().crossing_gaps();
            let walk = if proven { walk.only_proven() } else { walk };
            walk.valid_prefix().unwrap().mx_frame
        };
        let before = ends(true);
        connection.execute_batch("INSERT INTO t VALUES('a')").unwrap();
        let end = ends(true);
        assert!(end > before);
        // As SQLite before 3.51 writes it at first.
        wal.write_all_at(&[0; 16], frame_offset(end, 4096) + 8).unwrap();
        assert_eq!((ends(true), ends(false)), (before, end));
        for _ in 0..2 {
            connection.execute_batch("INSERT INTO t VALUES('b')").unwrap();
        }
        assert!(ends(true) > end);
        assert_eq!(ends(true), ends(false));
    }

    #[test]
    fn sqlite_recovers_a_wal_that_we_encoded() {
        let (dir, connection, wal) = wal_of(1024);
        connection.execute_batch("INSERT INTO t VALUES('kept')").unwrap();
        // The same frames again under other salts, in both byte orders.
        for big_endian in [false, true] {
            let mut header = WalHeader::new(1024, 7, [11, 12]);
            header.big_endian_checksums = big_endian;
            header.checksum = checksum(big_endian, &header.encode()[..24], [0, 0]);
            let mut image = header.encode().to_vec();
            let mut chain = header.checksum;
            let mut walk = WalWalk::start(&wal).unwrap().unwrap();
            while let Some((_, head, page)) = walk.next_frame().unwrap() {
                chain = encode_frame(&mut image, &header, head.pgno, head.commit, page, chain);
            }
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(dir.path().join("db"), copy.path().join("db")).unwrap();
            std::fs::write(copy.path().join("db-wal"), &image).unwrap();
            let reader = rusqlite::Connection::open(copy.path().join("db")).unwrap();
            let value: String = reader.query_row("SELECT x FROM t", [], |row| row.get(0)).unwrap();
            assert_eq!(value, "kept");
        }
    }

    #[test]
    fn an_empty_or_short_wal_is_none() {
        let file = tempfile::tempfile().unwrap();
        assert!(WalWalk::start(&file).unwrap().is_none());
        file.write_all_at(&[1; 31], 0).unwrap();
        assert!(WalWalk::start(&file).unwrap().is_none());
        assert_eq!(WalHeader::parse(&[0; 32]), Err(WalError::Magic(0)));
    }

    proptest! {
        #[test]
        fn headers_survive_a_round_trip(sequence: u32, salt: [u32; 2], shift in 9_u32..=16) {
            let header = WalHeader::new(1 << shift, sequence, salt);
            prop_assert_eq!(WalHeader::parse(&header.encode()), Ok(header));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = WalHeader::parse(&bytes);
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            prop_assert!(WalWalk::start(&file).unwrap().is_none());
            let header = WalHeader::new(512, 0, [0, 0]);
            file.write_all_at(&header.encode(), 0).unwrap();
            let prefix = WalWalk::start(&file).unwrap().unwrap().valid_prefix().unwrap();
            prop_assert_eq!(prefix.mx_frame, 0);
        }
    }
}
