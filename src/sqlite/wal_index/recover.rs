//! Rebuilding the wal-index from a WAL, as SQLite does when it finds none or a damaged one.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::header::IndexHeader;
use super::table::{RESERVED_WORDS, SEGMENT_WORDS, Table, segment_of};
use super::{READ_MARK_NOT_USED, WalIndex};
use crate::sqlite::locks::{self, LockKind, READERS};
use crate::sqlite::wal::{ValidPrefix, WalWalk};

impl WalIndex {
    /// Rebuilds the index from `wal` and publishes it. Only whole transactions along the valid checksum chain count.
    ///
    /// The caller holds WRITE and CKPT exclusively; `locks` is the shm through which RECOVER and, one by one, READ1…READ4 are
    /// taken (a read mark that a reader holds stays as it is). It must not hold any of those already.
    ///
    /// # Errors
    /// `WouldBlock` when another connection holds RECOVER; reading the WAL; growing or mapping the index.
    pub fn recover(&self, wal: &File, locks: &File) -> io::Result<IndexHeader> {
        if !locks::try_lock(locks, locks::RECOVER, LockKind::Exclusive)? {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another connection recovers the wal-index"));
        }
        let result = self.recover_locked(wal, locks);
        locks::unlock(locks, locks::RECOVER)?;
        result
    }

    fn recover_locked(&self, wal: &File, locks: &File) -> io::Result<IndexHeader> {
        let (prefix, pages) = valid_pages(wal)?;
        self.write_tables(&pages)?;
        let header = prefix.map_or(IndexHeader::EMPTY, |prefix| IndexHeader {
            change: 0,
            big_endian_checksums: prefix.header.big_endian_checksums,
            page_size: prefix.header.page_size,
            mx_frame: prefix.mx_frame,
            page_count: prefix.page_count,
            frame_checksum: prefix.checksum,
            salt: prefix.header.salt,
        });
        #[cfg(test)]
        crate::fault::moment::passes("wal_index.publish");
        // Before the header: what is in the database file of another WAL says nothing of this one.
        self.set_backfill(0)?;
        self.set_backfill_attempted(header.mx_frame)?;
        self.write_header(&header)?;
        self.set_read_mark(0, 0)?;
        for mark in 1..READERS {
            if locks::try_lock(locks, locks::read(mark), LockKind::Exclusive)? {
                let frame = if mark == 1 && header.mx_frame > 0 { header.mx_frame } else { READ_MARK_NOT_USED };
                let set = self.set_read_mark(mark, frame);
                locks::unlock(locks, locks::read(mark))?;
                set?;
            }
        }
        Ok(header)
    }

    /// Builds each segment aside and copies it over, so that a reader of the same frames never misses one in between.
    fn write_tables(&self, pages: &[u32]) -> io::Result<()> {
        let mut frame = 0_u32;
        let mut pages = pages.iter().copied().peekable();
        for segment in 0.. {
            let words: Box<[AtomicU32; SEGMENT_WORDS]> = Box::new(std::array::from_fn(|_| AtomicU32::new(0)));
            let built = Table::from_words(&words, segment);
            while let Some(pgno) = pages.next_if(|_| segment_of(frame + 1) == segment) {
                frame += 1;
                built.append(frame, pgno)?;
            }
            let skip = if segment == 0 { RESERVED_WORDS as usize } else { 0 };
            let shared = self.segment_or_grow(segment)?;
            for (to, from) in shared.words().iter().zip(words.iter()).skip(skip) {
                to.store(from.load(Ordering::Relaxed), Ordering::Release);
            }
            if pages.peek().is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// The page number of every frame in whole transactions.
fn valid_pages(wal: &File) -> io::Result<(Option<ValidPrefix>, Vec<u32>)> {
    let Some(mut walk) = WalWalk::start(wal)? else { return Ok((None, Vec::new())) };
    let header = *walk.header();
    let mut prefix = ValidPrefix { header, mx_frame: 0, page_count: 0, checksum: header.checksum };
    let mut pages = Vec::new();
    while let Some((frame, head, _)) = walk.next_frame()? {
        pages.push(head.pgno);
        if head.commit != 0 {
            prefix = ValidPrefix { header, mx_frame: frame, page_count: head.commit, checksum: head.checksum };
        }
    }
    pages.truncate(prefix.mx_frame as usize);
    Ok((Some(prefix), pages))
}
