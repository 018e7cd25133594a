//! Committed frames that only the wal-index vouches for.
//!
//! SQLite before 3.51 leaves frames without salts and checksums in the middle of the WAL (`ROLLBACK TO` after a spill). Its
//! clients go on behind them, by the wal-index; but whoever walks the checksum chain stops there and loses what follows. So
//! where the wal-index of the last run can be believed, the chain is completed first: salts and checksums are put into the
//! headers of its frames, and from then on every walk finds all of its commits.
//!
//! It can be believed when the machine has run on since it was written (after a power loss, parts of WAL and index are older than others),
//! and header, page numbers and WAL agree frame by frame. Where it has nothing to say (a client with `locking_mode=EXCLUSIVE` keeps
//! its index to itself, and it died with it), the frames behind the gap count by their generation alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::database::Database;
use crate::kernel::FileKind;
use crate::os;
use crate::sqlite::wal::{
    FRAME_HEADER_LEN, FrameHeader, WalChecksum, WalHeader, WalWalk, frame_checksum, frame_len, frame_offset,
};
use crate::sqlite::wal_index::stored::StoredIndex;

/// Both copies of the wal-index's header.
const INDEX_HEADER_LEN: usize = 96;

impl Database {
    /// Completes the WAL's checksum chain up to what the wal-index says is committed, if the chain ends before.
    pub(super) fn seal_wal(&self) -> io::Result<()> {
        let Some(wal) = self.files.wal()? else { return Ok(()) };
        let index = Index::read(&self.files.path(FileKind::Shm))?;
        let Some(header) = WalHeader::read(&wal)? else { return Ok(()) };
        let (valid, chain) = chain_end(&wal, header)?;
        let last = match index {
            Index::Of(index) if index.header().salt == header.salt && index.header().mx_frame > valid => {
                if !agree(&index, &wal, &header)? {
                    return Ok(());
                }
                last_committed(&index, &wal, header)?
            }
            Index::Of(_) | Index::None => {
                WalWalk::resume(&wal, header, valid, chain).crossing_gaps().valid_prefix()?.mx_frame
            }
            Index::Damaged => return Ok(()),
        };
        if last <= valid {
            return Ok(());
        }
        complete_chain(&wal, &header, valid, chain, last)?;
        tracing::warn!(
            database = %self.name, frames = last - valid, from = valid + 1, to = last,
            "these frames of the WAL had no checksums (SQLite before 3.51); completed them"
        );
        Ok(())
    }
}

/// The wal-index that the last run left.
enum Index {
    /// None, or one that was made invalid: its last client kept its own.
    None,
    Of(StoredIndex),
    Damaged,
}

impl Index {
    fn read(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::None),
            Err(error) => return Err(error),
        };
        let mut header = [1; INDEX_HEADER_LEN];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            Ok(()) if header == [0; INDEX_HEADER_LEN] => return Ok(Self::None),
            _ => {}
        }
        Ok(StoredIndex::open(file)?.map_or(Self::Damaged, Self::Of))
    }
}

/// The last frame on the chain, and the chain there.
fn chain_end(wal: &File, header: WalHeader) -> io::Result<(u32, WalChecksum)> {
    let mut end = (0, header.checksum);
    let mut walk = WalWalk::resume(wal, header, 0, header.checksum);
    while let Some((frame, head, _)) = walk.next_frame()? {
        end = (frame, head.checksum);
    }
    Ok(end)
}

/// Whether the index describes this WAL: the generation, every frame's page, and a commit at the end.
fn agree(index: &StoredIndex, wal: &File, header: &WalHeader) -> io::Result<bool> {
    let said = index.header();
    if said.salt != header.salt
        || said.page_size != header.page_size
        || said.big_endian_checksums != header.big_endian_checksums
        || wal.metadata()?.len() < frame_offset(said.mx_frame, said.page_size) + frame_len(said.page_size)
    {
        return Ok(false);
    }
    index.all_frames(|frame, pgno| {
        let head = frame_header(wal, header, frame)?;
        // Salts of a former generation: the frame itself never got there.
        let salts = head.salt.iter().zip(header.salt).all(|(there, own)| *there == own || *there == 0);
        let ends = frame < said.mx_frame || head.commit == said.page_count;
        Ok(salts && ends && pgno != 0 && head.pgno == pgno)
    })
}

fn frame_header(wal: &File, header: &WalHeader, frame: u32) -> io::Result<FrameHeader> {
    let mut bytes = [0; FRAME_HEADER_LEN];
    wal.read_exact_at(&mut bytes, frame_offset(frame, header.page_size))?;
    Ok(FrameHeader::parse(&bytes))
}

/// The index's last frame, or the last commit behind it that continues the index's own chain: its writer was killed before it entered it.
fn last_committed(index: &StoredIndex, wal: &File, header: WalHeader) -> io::Result<u32> {
    let said = index.header();
    let behind = WalWalk::resume(wal, header, said.mx_frame, said.frame_checksum).valid_prefix()?;
    Ok(behind.mx_frame.max(said.mx_frame))
}

/// Gives the frames after `valid` up to `last` the salts and checksums that continue the chain.
fn complete_chain(wal: &File, header: &WalHeader, valid: u32, mut chain: WalChecksum, last: u32) -> io::Result<()> {
    let mut page = vec![0; header.page_size as usize];
    for frame in valid + 1..=last {
        let offset = frame_offset(frame, header.page_size);
        let FrameHeader { pgno, commit, .. } = frame_header(wal, header, frame)?;
        wal.read_exact_at(&mut page, offset + FRAME_HEADER_LEN as u64)?;
        chain = frame_checksum(header.big_endian_checksums, pgno, commit, &page, chain);
        let sealed = FrameHeader { pgno, commit, salt: header.salt, checksum: chain };
        os::write_all_at("recover.seal", wal, &sealed.encode(), offset)?;
    }
    os::sync_data("recover.seal", wal)
}
