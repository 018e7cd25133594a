use std::path::Path;

use rusqlite::Connection;

use super::*;
use crate::sqlite::locks::{self, LockKind};
use crate::sqlite::wal::{FRAME_HEADER_LEN, WalHeader, WalWalk, encode_frame, frame_offset};

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

struct Fixture {
    dir: tempfile::TempDir,
    connection: Connection,
    wal: File,
    shm: File,
    index: WalIndex,
}

fn fixture(page_size: u32) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let connection = Connection::open(dir.path().join("db")).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, randomblob(3000));"
        ))
        .unwrap();
    let wal = open(&dir.path().join("db-wal"));
    let shm = open(&dir.path().join("db-shm"));
    let index = WalIndex::new(open(&dir.path().join("db-shm")), open(&dir.path().join("db-shm")));
    assert!(locks::try_lock(&shm, locks::DMS, LockKind::Shared).unwrap());
    Fixture { dir, connection, wal, shm, index }
}

fn integrity(connection: &Connection) -> String {
    connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

#[test]
fn the_header_of_sqlite_agrees_with_the_wal_at_every_page_size() {
    for shift in 9..=16 {
        let fixture = fixture(1 << shift);
        let header = fixture.index.read_header().unwrap().unwrap();
        let prefix = WalWalk::start(&fixture.wal).unwrap().unwrap().valid_prefix().unwrap();
        assert_eq!(header.page_size, 1 << shift);
        assert_eq!(header.mx_frame, prefix.mx_frame);
        assert_eq!(header.page_count, prefix.page_count);
        assert_eq!(header.frame_checksum, prefix.checksum);
        assert_eq!(header.salt, prefix.header.salt);
        assert_eq!(fixture.index.checkpoint_info().unwrap().unwrap().backfill, 0);
    }
}

#[test]
fn pages_and_frames_are_found_across_segments() {
    let fixture = fixture(512);
    fixture.connection.execute_batch("INSERT INTO t VALUES(2, randomblob(5000000))").unwrap();
    let header = fixture.index.read_header().unwrap().unwrap();
    assert!(header.mx_frame > 4062 + 4096);
    let mut latest = std::collections::HashMap::new();
    let mut walk = WalWalk::start(&fixture.wal).unwrap().unwrap();
    while let Some((frame, head, _)) = walk.next_frame().unwrap() {
        assert_eq!(fixture.index.page_of(frame).unwrap(), head.pgno);
        latest.insert(head.pgno, frame);
    }
    for (pgno, frame) in latest {
        assert_eq!(fixture.index.find(pgno, 1, header.mx_frame).unwrap(), Some(frame));
    }
    assert_eq!(fixture.index.find(9_999_999, 1, header.mx_frame).unwrap(), None);
}

#[test]
fn a_file_that_is_too_short_has_no_header() {
    let file = tempfile::tempfile().unwrap();
    let index = WalIndex::new(file.try_clone().unwrap(), file);
    assert_eq!(index.read_header().unwrap(), None);
    index.file().set_len(3).unwrap();
    assert_eq!(index.read_header().unwrap(), None);
    assert_eq!(index.checkpoint_info().unwrap(), None);
    assert!(index.page_of(1).is_err());
    index.write_header(&IndexHeader::EMPTY).unwrap();
    assert_eq!(index.read_header().unwrap(), Some(IndexHeader::EMPTY));
}

#[test]
fn sqlite_reads_what_we_append_as_a_writer() {
    let fixture = fixture(1024);
    // A reader keeps its snapshot across our transaction.
    let reader = Connection::open(fixture.dir.path().join("db")).unwrap();
    let count = |connection: &Connection| -> i64 {
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    };
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&reader), 1);
    // The transaction: made by SQLite on a copy of the files.
    let copy = tempfile::tempdir().unwrap();
    for name in ["db", "db-wal"] {
        std::fs::copy(fixture.dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let header = fixture.index.read_header().unwrap().unwrap();
    let other = Connection::open(copy.path().join("db")).unwrap();
    other.execute_batch("PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES(2, zeroblob(9000000))").unwrap();
    let mut made = WalWalk::resume(
        &fixture.wal,
        WalHeader::read(&fixture.wal).unwrap().unwrap(),
        header.mx_frame,
        header.frame_checksum,
    );
    assert!(made.next_frame().unwrap().is_none());
    let other_wal = open(&copy.path().join("db-wal"));
    let wal_header = WalHeader::read(&fixture.wal).unwrap().unwrap();
    let mut made = WalWalk::resume(&other_wal, wal_header, header.mx_frame, header.frame_checksum);
    let mut image = Vec::new();
    let mut next = header;
    while let Some((frame, head, page)) = made.next_frame().unwrap() {
        next.frame_checksum = encode_frame(&mut image, &wal_header, head.pgno, head.commit, page, next.frame_checksum);
        next.mx_frame = frame;
        next.page_count = head.commit.max(next.page_count);
    }
    assert!(next.mx_frame > 8000);
    assert!(locks::try_lock(&fixture.shm, locks::WRITE, LockKind::Exclusive).unwrap());
    fixture.wal.write_all_at(&image, frame_offset(header.mx_frame + 1, 1024)).unwrap();
    for (at, frame) in (header.mx_frame + 1..=next.mx_frame).enumerate() {
        let head = image[at * (FRAME_HEADER_LEN + 1024)..][..4].try_into().unwrap();
        fixture.index.append(frame, u32::from_be_bytes(head)).unwrap();
    }
    next.change += 1;
    fixture.index.write_header(&next).unwrap();
    locks::unlock(&fixture.shm, locks::WRITE).unwrap();
    assert_eq!(count(&reader), 1);
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(count(&reader), 2);
    assert_eq!(integrity(&reader), "ok");
    fixture.connection.execute_batch("INSERT INTO t VALUES(3, 'after')").unwrap();
    assert_eq!(count(&reader), 3);
}

#[test]
fn sqlite_goes_on_after_our_recovery_and_after_our_restart() {
    let fixture = fixture(4096);
    let before = fixture.index.read_header().unwrap().unwrap();
    let all = [locks::WRITE, locks::CKPT];
    // Damage the header: clients would recover, so do we.
    fixture.shm.write_all_at(&[0xff; 4], 16).unwrap();
    assert_eq!(fixture.index.read_header().unwrap(), None);
    for lock in all {
        assert!(locks::try_lock(&fixture.shm, lock, LockKind::Exclusive).unwrap());
    }
    let recovered = fixture.index.recover(&fixture.wal, &fixture.shm).unwrap();
    assert_eq!(IndexHeader { change: before.change, ..recovered }, before);
    for lock in all {
        locks::unlock(&fixture.shm, lock).unwrap();
    }
    fixture.connection.execute_batch("INSERT INTO t VALUES(4, 'recovered')").unwrap();
    // Backfill everything by SQLite itself, then restart as its next writer would.
    fixture.connection.query_row("PRAGMA wal_checkpoint(passive)", [], |_| Ok(())).unwrap();
    let header = fixture.index.read_header().unwrap().unwrap();
    assert_eq!(fixture.index.checkpoint_info().unwrap().unwrap().backfill, header.mx_frame);
    let restarted = fixture.index.restart(&header, 42).unwrap();
    assert_eq!(restarted.salt, [header.salt[0].wrapping_add(1), 42]);
    fixture.connection.execute_batch("INSERT INTO t VALUES(5, 'restarted')").unwrap();
    let header = fixture.index.read_header().unwrap().unwrap();
    assert!(header.mx_frame < before.mx_frame);
    let other = Connection::open(fixture.dir.path().join("db")).unwrap();
    assert_eq!(integrity(&other), "ok");
    let rows: i64 = other.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 3);
}
