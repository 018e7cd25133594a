//! The WAL as recovery finds it: its commits, and what the database's checksums are at each of them.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::database::PageChecksums;
use crate::sqlite::page::{lock_page, page_checksum, page_offset};
use crate::sqlite::wal::{FRAME_HEADER_LEN, WAL_HEADER_LEN, WalChecksum, WalHeader, WalWalk, frame_len};
use crate::sqlite::wal_index::header::IndexHeader;
use crate::{Checksum, os};

/// A WAL with a valid header.
#[derive(Debug)]
pub(super) struct Wal {
    file: Arc<File>,
    pub(super) header: WalHeader,
}

/// The end of a transaction in the WAL; frame 0: the database file without it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Commit {
    pub(super) frame: u32,
    pub(super) page_count: u32,
    /// Of the database.
    pub(super) checksum: Checksum,
    /// The WAL's checksum chain after the frame.
    pub(super) chain: WalChecksum,
    pub(super) last_header: [u8; FRAME_HEADER_LEN],
}

impl Commit {
    /// The database file alone.
    pub(super) fn of_file(checksums: &PageChecksums) -> Self {
        Self {
            frame: 0,
            page_count: checksums.page_count(),
            checksum: checksums.database(),
            chain: [0, 0],
            last_header: [0; FRAME_HEADER_LEN],
        }
    }
}

impl Wal {
    pub(super) fn open(file: Arc<File>) -> io::Result<Option<Self>> {
        Ok(WalHeader::read(&file)?.map(|header| Self { file, header }))
    }

    /// The number of the frame that ends at this offset.
    pub(super) fn frame_before(&self, offset: u64) -> Option<u32> {
        let bytes = offset.checked_sub(WAL_HEADER_LEN as u64)?;
        let stride = frame_len(self.header.page_size);
        if bytes % stride == 0 { u32::try_from(bytes / stride).ok() } else { None }
    }

    /// The last commit that SQLite's recovery would find; its checksum is not computed.
    pub(super) fn last_commit(&self) -> io::Result<Commit> {
        let mut last = Commit::of_file(&PageChecksums::new());
        if let Some(mut walk) = WalWalk::start(&self.file)? {
            while let Some((frame, head, _)) = walk.next_frame()? {
                if head.commit != 0 {
                    last.frame = frame;
                    last.page_count = head.commit;
                    last.chain = head.checksum;
                    last.last_header = head.encode();
                }
            }
        }
        Ok(last)
    }

    /// Brings `checksums` (those of the database file) forward through the transactions up to frame `upto`, and calls
    /// `commit` after each.
    pub(super) fn overlay(
        &self,
        database: &File,
        checksums: &mut PageChecksums,
        upto: u32,
        commit: &mut dyn FnMut(Commit),
    ) -> io::Result<()> {
        let Some(mut walk) = WalWalk::start(&self.file)? else { return Ok(()) };
        let mut unwritten = Unwritten { database, page_size: self.header.page_size, latest: HashMap::new() };
        let skipped = lock_page(self.header.page_size);
        let mut pages = Vec::new();
        while let Some((frame, head, page)) = walk.next_frame()? {
            if frame > upto {
                return Ok(());
            }
            if head.pgno != skipped {
                pages.push((head.pgno, page_checksum(head.pgno, page)));
            }
            if head.commit == 0 {
                continue;
            }
            let old_end = checksums.page_count();
            checksums.resize(head.commit);
            for (pgno, checksum) in pages.drain(..) {
                unwritten.latest.insert(pgno, checksum);
                if pgno <= head.commit {
                    checksums.set(pgno, checksum);
                }
            }
            for pgno in old_end + 1..=head.commit {
                if pgno != skipped && !checksums.get(pgno).is_valid() {
                    checksums.set(pgno, unwritten.checksum(pgno)?);
                }
            }
            commit(Commit {
                frame,
                page_count: head.commit,
                checksum: checksums.database(),
                chain: head.checksum,
                last_header: head.encode(),
            });
        }
        Ok(())
    }

    /// The pages that transactions after frame `from` wrote.
    pub(super) fn pages_after(&self, from: u32) -> io::Result<BTreeSet<u32>> {
        let (mut pages, mut open) = (BTreeSet::new(), Vec::new());
        if let Some(mut walk) = WalWalk::start(&self.file)? {
            while let Some((frame, head, _)) = walk.next_frame()? {
                if frame > from {
                    open.push(head.pgno);
                }
                if head.commit != 0 {
                    pages.extend(open.drain(..));
                }
            }
        }
        Ok(pages)
    }

    /// What a valid wal-index would say at this commit.
    pub(super) fn index_header(&self, commit: &Commit) -> IndexHeader {
        IndexHeader {
            change: 1,
            big_endian_checksums: self.header.big_endian_checksums,
            page_size: self.header.page_size,
            mx_frame: commit.frame,
            page_count: commit.page_count,
            frame_checksum: commit.chain,
            salt: self.header.salt,
        }
    }

    /// Writes the frames after `from` up to the commit into the database file, makes it as long as the commit says, and durable.
    pub(super) fn checkpoint(&self, database: &File, from: u32, to: &Commit) -> io::Result<()> {
        let page_size = self.header.page_size;
        let Some(mut walk) = WalWalk::start(&self.file)? else { return Ok(()) };
        if to.frame <= from {
            return Ok(());
        }
        while let Some((frame, head, page)) = walk.next_frame()? {
            if frame > to.frame {
                break;
            }
            if frame > from && head.pgno <= to.page_count {
                os::write_all_at("recover.checkpoint", database, page, page_offset(head.pgno, page_size))?;
            }
        }
        os::set_len("recover.checkpoint", database, u64::from(to.page_count) * u64::from(page_size))?;
        os::sync_data("recover.checkpoint", database)
    }
}

/// Pages by which a transaction grew the database without writing them: what they hold is in an older frame, or the file.
struct Unwritten<'a> {
    database: &'a File,
    page_size: u32,
    latest: HashMap<u32, Checksum>,
}

impl Unwritten<'_> {
    fn checksum(&self, pgno: u32) -> io::Result<Checksum> {
        if let Some(checksum) = self.latest.get(&pgno) {
            return Ok(*checksum);
        }
        let mut page = vec![0; self.page_size as usize];
        os::read_or_zero_at(self.database, &mut page, page_offset(pgno, self.page_size))?;
        Ok(page_checksum(pgno, &page))
    }
}
