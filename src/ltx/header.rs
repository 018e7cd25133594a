//! Header and trailer of an LTX file.

use super::LtxError;
use crate::sqlite::page::is_page_size;
use crate::{Checksum, Pos, Txid};

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 100;
/// Length of the trailer in bytes.
pub const TRAILER_BYTES: usize = 16;

const MAGIC: [u8; 4] = *b"LTX1";
const FLAG_COMPRESSED: u32 = 1;

/// The header of an LTX file; the offsets are in the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Whether the page block is one LZ4 frame.
    pub compressed: bool,
    /// Bytes per page.
    pub page_size: u32,
    /// Pages of the database after the transaction; 0: the database is deleted.
    pub commit: u32,
    /// First transaction; 1 makes the file a snapshot.
    pub min_txid: Txid,
    /// Last transaction.
    pub max_txid: Txid,
    /// When it was committed, in ms since the epoch.
    pub timestamp_ms: u64,
    /// Database checksum before; [`Checksum::NONE`] for a snapshot.
    pub pre_apply: Checksum,
    /// Offset of the transaction's first frame in the WAL, in bytes; 0 for a rollback journal.
    pub wal_offset: u64,
    /// Bytes of its frames in the WAL; 0 for a rollback journal.
    pub wal_size: u64,
    /// The WAL's salts; 0 for a rollback journal or a compacted file.
    pub wal_salts: [u32; 2],
    /// The node that made the file; 0: unset.
    pub node_id: u64,
}

impl Header {
    /// Whether the file holds the whole database rather than changes to it.
    #[must_use]
    pub const fn is_snapshot(&self) -> bool {
        self.min_txid.0 == 1
    }

    /// The position a database must be at for this file to be applied ([`Pos::ZERO`] for a snapshot, which goes anywhere).
    #[must_use]
    pub const fn pre(&self) -> Pos {
        Pos::new(self.min_txid.prev(), self.pre_apply)
    }

    /// The name LiteFS gives to the file: `<min>-<max>.ltx`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}-{}.ltx", self.min_txid, self.max_txid)
    }

    /// Checks the rules of COMPAT §1 that concern the header alone.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn validate(&self) -> Result<(), LtxError> {
        if !is_page_size(self.page_size) {
            return Err(LtxError::PageSize(self.page_size));
        }
        if self.min_txid.is_zero() || self.min_txid > self.max_txid {
            return Err(LtxError::TxidRange { min: self.min_txid, max: self.max_txid });
        }
        let pre_apply_fits =
            if self.is_snapshot() { self.pre_apply == Checksum::NONE } else { self.pre_apply.is_valid() };
        if !pre_apply_fits {
            return Err(LtxError::PreApply { min: self.min_txid, checksum: self.pre_apply });
        }
        Ok(())
    }

    /// The header as bytes. It is not validated.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&(if self.compressed { FLAG_COMPRESSED } else { 0 }).to_be_bytes());
        bytes[8..12].copy_from_slice(&self.page_size.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.commit.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.min_txid.0.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.max_txid.0.to_be_bytes());
        bytes[32..40].copy_from_slice(&self.timestamp_ms.to_be_bytes());
        bytes[40..48].copy_from_slice(&self.pre_apply.0.to_be_bytes());
        bytes[48..56].copy_from_slice(&self.wal_offset.to_be_bytes());
        bytes[56..64].copy_from_slice(&self.wal_size.to_be_bytes());
        bytes[64..68].copy_from_slice(&self.wal_salts[0].to_be_bytes());
        bytes[68..72].copy_from_slice(&self.wal_salts[1].to_be_bytes());
        bytes[72..80].copy_from_slice(&self.node_id.to_be_bytes());
        bytes
    }

    /// Reads and validates a header. Reserved bytes are ignored, as LiteFS does.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, LtxError> {
        if bytes[0..4] != MAGIC {
            return Err(LtxError::Magic([bytes[0], bytes[1], bytes[2], bytes[3]]));
        }
        let flags = be32(bytes, 4);
        if flags & !FLAG_COMPRESSED != 0 {
            return Err(LtxError::Flags(flags));
        }
        let header = Self {
            compressed: flags & FLAG_COMPRESSED != 0,
            page_size: be32(bytes, 8),
            commit: be32(bytes, 12),
            min_txid: Txid(be64(bytes, 16)),
            max_txid: Txid(be64(bytes, 24)),
            timestamp_ms: be64(bytes, 32),
            pre_apply: Checksum(be64(bytes, 40)),
            wal_offset: be64(bytes, 48),
            wal_size: be64(bytes, 56),
            wal_salts: [be32(bytes, 64), be32(bytes, 68)],
            node_id: be64(bytes, 72),
        };
        header.validate()?;
        Ok(header)
    }
}

/// The trailer of an LTX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Database checksum after the transaction.
    pub post_apply: Checksum,
    /// Checksum of the file itself.
    pub file_checksum: Checksum,
}

impl Trailer {
    /// The trailer as bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[0..8].copy_from_slice(&self.post_apply.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.file_checksum.0.to_be_bytes());
        bytes
    }

    /// Reads a trailer; the decoder checks it.
    #[must_use]
    pub fn parse(bytes: &[u8; TRAILER_BYTES]) -> Self {
        Self { post_apply: Checksum(be64(bytes, 0)), file_checksum: Checksum(be64(bytes, 8)) }
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(word)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { page_size: 4096, commit: 2, min_txid: Txid(1), max_txid: Txid(2), ..Header::default() }
    }

    #[test]
    fn a_header_survives_the_way_to_bytes_and_back() {
        let full = Header {
            compressed: true,
            min_txid: Txid(3),
            max_txid: Txid(9),
            timestamp_ms: 1_795_411_857_666,
            pre_apply: Checksum(Checksum::FLAG | 5),
            wal_offset: 32,
            wal_size: 4120,
            wal_salts: [7, 8],
            node_id: u64::MAX,
            ..header()
        };
        assert_eq!(Header::parse(&full.to_bytes()).expect("valid"), full);
        assert_eq!(full.file_name(), "0000000000000003-0000000000000009.ltx");
    }

    #[test]
    fn every_broken_rule_is_named() {
        let parse = |change: &dyn Fn(&mut Header)| {
            let mut header = header();
            change(&mut header);
            Header::parse(&header.to_bytes())
        };
        assert!(parse(&|_| ()).is_ok());
        assert!(matches!(parse(&|h| h.page_size = 1000), Err(LtxError::PageSize(1000))));
        assert!(matches!(parse(&|h| h.page_size = 256), Err(LtxError::PageSize(256))));
        assert!(matches!(parse(&|h| h.min_txid = Txid(0)), Err(LtxError::TxidRange { .. })));
        assert!(matches!(parse(&|h| h.min_txid = Txid(3)), Err(LtxError::TxidRange { .. })));
        assert!(matches!(parse(&|h| h.min_txid = Txid(2)), Err(LtxError::PreApply { .. })));
        assert!(matches!(parse(&|h| h.pre_apply = Checksum::EMPTY), Err(LtxError::PreApply { .. })));
        let mut bytes = header().to_bytes();
        bytes[3] = b'2';
        assert!(matches!(Header::parse(&bytes), Err(LtxError::Magic(_))));
        let mut bytes = header().to_bytes();
        bytes[7] = 2;
        assert!(matches!(Header::parse(&bytes), Err(LtxError::Flags(2))));
    }
}
