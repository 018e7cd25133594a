//! Writing a transaction into the WAL and the wal-index, exactly as a SQLite writer does (ENGINE "Applying on a replica").
//!
//! Readers keep their snapshots: nothing they look at changes before the header is published, and then only for those who
//! begin a new read transaction. The caller holds WRITE.

use std::fs::File;
use std::io;

use crate::database::PageSource;
use crate::os;
use crate::sqlite::locks::{self, LockBytes, LockKind};
use crate::sqlite::wal::{FRAME_HEADER_LEN, FrameHeader, WAL_HEADER_LEN, WalHeader, encode_frame, frame_offset};
use crate::sqlite::wal_index::WalIndex;
use crate::sqlite::wal_index::header::IndexHeader;

/// Bytes of frames gathered before they are written. A transaction up to this size is one write.
const WRITE_LEN_MAX: usize = 1 << 20;
/// A transaction with more than so many bytes of frames is taken for a large one.
const SMALL_LEN_MAX: usize = 64 << 10;
/// READ1…READ4: held by readers of frames.
pub(super) const FRAME_READERS: LockBytes = LockBytes { start: 124, len: 4 };

/// Starts the WAL anew when every frame is in the database file and nobody reads frames, as SQLite's next writer would; else
/// returns the header as it is. `lock_file` is a descriptor that holds none of READ1…READ4.
pub(super) fn restart_if_done(index: &WalIndex, lock_file: &File, header: IndexHeader) -> io::Result<IndexHeader> {
    let Some(info) = index.checkpoint_info()? else { return Ok(header) };
    if header.mx_frame == 0 || info.backfill != header.mx_frame {
        return Ok(header);
    }
    if !locks::try_lock(lock_file, FRAME_READERS, LockKind::Exclusive)? {
        return Ok(header);
    }
    let restarted = index.restart(&header, fastrand::u32(..));
    locks::unlock(lock_file, FRAME_READERS)?;
    restarted
}

/// Writes the frames of one transaction, enters them into the index and publishes the new header. Returns it, and the header of
/// the last frame.
///
/// `pages` must give at least one page; `commit` is the database size in pages afterwards. On an error nothing was published.
pub(super) fn append_transaction(
    wal: &File,
    index: &WalIndex,
    before: &IndexHeader,
    page_size: u32,
    commit: u32,
    pages: &mut dyn PageSource,
) -> io::Result<(IndexHeader, [u8; FRAME_HEADER_LEN])> {
    let mut frames = Frames::start(wal, before, page_size)?;
    let start = frames.offset;
    let mut numbers = Vec::new();
    let mut waiting = Vec::with_capacity(page_size as usize);
    while let Some((pgno, page)) = pages.next_page()? {
        if let Some(last) = numbers.last() {
            frames.push(*last, 0, &waiting)?;
        }
        numbers.push(pgno);
        waiting.clear();
        waiting.extend_from_slice(page);
    }
    let Some(last) = numbers.last().copied() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a transaction without pages has no frames"));
    };
    frames.push(last, commit, &waiting)?;
    frames.flush()?;
    let mut frame = before.mx_frame;
    let entered = numbers.into_iter().try_for_each(|pgno| {
        frame += 1;
        index.append(frame, pgno)
    });
    if entered.is_err() {
        // After a crash these whole frames would be taken for committed, though their records may be in the log no more.
        let _ = os::set_len("wal.truncate", wal, start);
    }
    entered?;
    let after = IndexHeader {
        change: before.change.wrapping_add(1),
        big_endian_checksums: frames.header.big_endian_checksums,
        page_size,
        mx_frame: frame,
        page_count: commit,
        frame_checksum: frames.chain,
        salt: frames.header.salt,
    };
    let last_header = FrameHeader { pgno: last, commit, salt: after.salt, checksum: after.frame_checksum };
    index.write_header(&after)?;
    Ok((after, last_header.encode()))
}

/// Encodes frames behind the last one and writes them.
struct Frames<'a> {
    wal: &'a File,
    header: WalHeader,
    chain: [u32; 2],
    buffer: Vec<u8>,
    /// Where `buffer` goes in the file.
    offset: u64,
}

impl<'a> Frames<'a> {
    fn start(wal: &'a File, before: &IndexHeader, page_size: u32) -> io::Result<Self> {
        if before.mx_frame > 0 {
            if before.page_size != page_size {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the WAL has frames of another page size"));
            }
            let header = WalHeader {
                big_endian_checksums: before.big_endian_checksums,
                page_size,
                checkpoint_sequence: 0,
                salt: before.salt,
                checksum: [0, 0],
            };
            let offset = frame_offset(before.mx_frame + 1, page_size);
            return Ok(Self { wal, header, chain: before.frame_checksum, buffer: Vec::new(), offset });
        }
        let sequence = WalHeader::read(wal)?.map_or(0, |header| header.checkpoint_sequence.wrapping_add(1));
        let salt = if before.salt == [0, 0] { [fastrand::u32(..), fastrand::u32(..)] } else { before.salt };
        let header = WalHeader::new(page_size, sequence, salt);
        let mut buffer = Vec::with_capacity(WAL_HEADER_LEN + page_size as usize * 2);
        buffer.extend_from_slice(&header.encode());
        Ok(Self { wal, header, chain: header.checksum, buffer, offset: 0 })
    }

    fn push(&mut self, pgno: u32, commit: u32, page: &[u8]) -> io::Result<()> {
        if self.buffer.len() >= SMALL_LEN_MAX && self.buffer.capacity() < WRITE_LEN_MAX {
            // More is to come: growing step by step would copy it each time.
            self.buffer.reserve_exact(WRITE_LEN_MAX + FRAME_HEADER_LEN + page.len() - self.buffer.len());
        }
        self.chain = encode_frame(&mut self.buffer, &self.header, pgno, commit, page, self.chain);
        if self.buffer.len() >= WRITE_LEN_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        os::write_all_at("wal.append", self.wal, &self.buffer, self.offset)?;
        if self.buffer.len() >= WRITE_LEN_MAX {
            // The next checkpoint syncs it.
            os::start_writing_back(self.wal, self.offset, self.buffer.len() as u64);
        }
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    struct Pages(std::vec::IntoIter<(u32, Vec<u8>)>, Vec<u8>);

    impl PageSource for Pages {
        fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
            let Some((pgno, page)) = self.0.next() else { return Ok(None) };
            self.1 = page;
            Ok(Some((pgno, &self.1)))
        }
    }

    /// The pages in which two database images differ.
    fn difference(old: &[u8], new: &[u8], page_size: usize) -> Vec<(u32, Vec<u8>)> {
        let old: Vec<&[u8]> = old.chunks(page_size).collect();
        (1..)
            .zip(new.chunks(page_size))
            .filter(|(pgno, page)| old.get(*pgno as usize - 1) != Some(page))
            .map(|(pgno, page)| (pgno, page.to_vec()))
            .collect()
    }

    fn image(connection: &Connection, path: &Path) -> Vec<u8> {
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        std::fs::read(path).unwrap()
    }

    fn count(connection: &Connection) -> i64 {
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    /// A primary in one directory, its copy with readers in another: every transaction applied through the WAL.
    fn replicate(page_size: u32) {
        let (primary, replica) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = primary.path().join("db");
        let writer = Connection::open(&path).unwrap();
        writer
            .execute_batch(&format!(
                "PRAGMA page_size={page_size}; PRAGMA auto_vacuum=incremental; PRAGMA journal_mode=wal;
                 CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, 'one');"
            ))
            .unwrap();
        let mut before = image(&writer, &path);
        let copy = replica.path().join("db");
        std::fs::write(&copy, &before).unwrap();
        let reader = Connection::open(&copy).unwrap();
        assert_eq!(count(&reader), 1);
        let open = |name: &str| File::options().read(true).write(true).open(replica.path().join(name)).unwrap();
        let (wal, shm) = (open("db-wal"), open("db-shm"));
        let index = WalIndex::new(open("db-shm"), open("db-shm"));
        assert!(locks::try_lock(&shm, locks::DMS, LockKind::Shared).unwrap());
        assert!(locks::try_lock(&shm, locks::WRITE, LockKind::Exclusive).unwrap());
        let mut random = fastrand::Rng::with_seed(u64::from(page_size));
        for round in 0..30 {
            let before_count = count(&reader);
            reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
            assert_eq!(count(&reader), before_count);
            match random.u32(..4) {
                0 => writer.execute("DELETE FROM t WHERE id % 3 = 0", []).map(drop).unwrap(),
                1 => writer.execute_batch("PRAGMA incremental_vacuum; UPDATE t SET x = x || 'y'").unwrap(),
                _ => writer
                    .execute("INSERT INTO t(x) VALUES(randomblob(?1))", [random.u32(1..60_000)])
                    .map(drop)
                    .unwrap(),
            }
            let after = image(&writer, &path);
            let changed = difference(&before, &after, page_size as usize);
            if !changed.is_empty() {
                let header = index.read_header().unwrap().unwrap();
                let header = restart_if_done(&index, &shm, header).unwrap();
                let commit = u32::try_from(after.len() / page_size as usize).unwrap();
                let mut pages = Pages(changed.into_iter(), Vec::new());
                append_transaction(&wal, &index, &header, page_size, commit, &mut pages).unwrap();
            }
            assert_eq!(count(&reader), before_count, "round {round}: the snapshot changed");
            reader.execute_batch("COMMIT").unwrap();
            assert_eq!(count(&reader), count(&writer), "round {round}");
            let check: String = reader.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
            if round % 7 == 6 {
                reader.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
            }
            before = after;
        }
        // A client that was never there, without our index: by SQLite's own recovery.
        let recovered = tempfile::tempdir().unwrap();
        for name in ["db", "db-wal"] {
            std::fs::copy(replica.path().join(name), recovered.path().join(name)).unwrap();
        }
        let client = Connection::open(recovered.path().join("db")).unwrap();
        assert!(image(&client, &recovered.path().join("db")) == before, "not equal byte for byte");
    }

    #[test]
    fn readers_keep_their_snapshot_and_the_copy_is_equal_at_every_page_size() {
        for shift in 9..=16 {
            replicate(1 << shift);
        }
    }

    #[test]
    fn a_failed_source_publishes_nothing() {
        struct Broken(bool);
        impl PageSource for Broken {
            fn next_page(&mut self) -> io::Result<Option<(u32, &[u8])>> {
                self.0 = !self.0;
                if self.0 { Ok(Some((1, &[0; 512]))) } else { Err(io::Error::other("broken")) }
            }
        }
        let (wal, shm) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let index = WalIndex::new(shm.try_clone().unwrap(), shm);
        index.write_header(&IndexHeader::EMPTY).unwrap();
        let header = IndexHeader::EMPTY;
        assert!(append_transaction(&wal, &index, &header, 512, 1, &mut Broken(false)).is_err());
        assert_eq!(index.read_header().unwrap(), Some(header));
        let mut none = Pages(Vec::new().into_iter(), Vec::new());
        assert!(append_transaction(&wal, &index, &header, 512, 1, &mut none).is_err());
    }

    #[test]
    fn frames_that_the_index_cannot_take_do_not_stay_in_the_wal() {
        let (wal, shm) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let index = WalIndex::new(shm.try_clone().unwrap(), shm.try_clone().unwrap());
        index.write_header(&IndexHeader::EMPTY).unwrap();
        let pages = |byte: u8| Pages(vec![(1, vec![byte; 512]), (2, vec![byte; 512])].into_iter(), Vec::new());
        let (header, _) = append_transaction(&wal, &index, &IndexHeader::EMPTY, 512, 2, &mut pages(1)).unwrap();
        let len = wal.metadata().unwrap().len();
        // Every slot of the hash table is taken: by nobody who may.
        shm.write_all_at(&[1; 16 << 10], 16 << 10).unwrap();
        assert!(append_transaction(&wal, &index, &header, 512, 2, &mut pages(2)).is_err());
        assert_eq!(wal.metadata().unwrap().len(), len);
        assert_eq!(index.read_header().unwrap(), Some(header));
    }
}
