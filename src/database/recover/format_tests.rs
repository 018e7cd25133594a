//! Every page size, both byte orders of the WAL's checksums, and the lock page.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rusqlite::config::DbConfig;

use super::tests::{Node, insert};
use crate::kernel::FileKind;
use crate::sqlite::page::{lock_page, page_offset};
use crate::sqlite::wal::{WalHeader, WalWalk, checksum, encode_frame};

/// A database with 10 rows and this page size, in WAL mode; and it again after three more commits that are only in its WAL.
fn with_page_size(page_size: u32) -> Node {
    let node = Node::new("delete");
    let sql = format!("PRAGMA page_size={page_size}; VACUUM; PRAGMA journal_mode=WAL");
    node.client().execute_batch(&sql).expect("another page size");
    node.restart();
    let client = node.client();
    insert(&client, 3);
    node.crash()
}

/// Writes the WAL again with its checksums in the other byte order.
fn turn_byte_order(node: &Node) {
    let path = node.path(FileKind::Wal);
    let wal = File::open(&path).expect("open");
    let mut header = WalHeader::read(&wal).expect("read").expect("a header");
    let mut walk = WalWalk::resume(&wal, header, 0, header.checksum);
    header.big_endian_checksums = !header.big_endian_checksums;
    header.checksum = checksum(header.big_endian_checksums, &header.encode()[..24], [0, 0]);
    let mut turned = header.encode().to_vec();
    let mut chain = header.checksum;
    while let Some((_, head, page)) = walk.next_frame().expect("read") {
        chain = encode_frame(&mut turned, &header, head.pgno, head.commit, page, chain);
    }
    fs::write(path, turned).expect("write");
    fs::remove_file(node.path(FileKind::Shm)).expect("remove");
}

#[test]
fn every_page_size_and_byte_order_is_recovered() {
    for page_size in (9..=16).map(|bits| 1 << bits) {
        let crashed = with_page_size(page_size);
        let turned = crashed.crash();
        turn_byte_order(&turned);
        let pos = crashed.restart();
        assert_eq!(pos.txid.0, 4, "{page_size}");
        let started = turned.start();
        assert_eq!((started.database.pos(), started.rows()), (pos, 13), "{page_size}");
    }
}

/// SQLite goes on in the byte order it finds, and so does what reads its WAL.
#[test]
fn a_client_goes_on_in_the_other_byte_order() {
    let crashed = with_page_size(4096);
    turn_byte_order(&crashed);
    let client = crashed.client();
    insert(&client, 2);
    let header = WalHeader::read(&File::open(crashed.path(FileKind::Wal)).expect("open")).expect("read");
    assert!(header.expect("a header").big_endian_checksums != cfg!(target_endian = "big"));
    let again = crashed.crash();
    let started = again.start();
    assert_eq!((started.database.pos().txid.0, started.rows()), (6, 15));
}

/// More than 1 GiB, nearly all of it a hole: the lock page is no page, the ones around it are.
#[test]
fn a_database_with_a_lock_page_is_recovered() {
    const PAGE_SIZE: u32 = 65_536;
    let node = Node::new("delete");
    node.client()
        .execute_batch(&format!("PRAGMA page_size={PAGE_SIZE}; VACUUM; PRAGMA journal_mode=WAL"))
        .expect("vacuum");
    node.client().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("checkpoint");
    let _ = fs::remove_file(node.path(FileKind::Wal));
    let _ = fs::remove_file(node.path(FileKind::Shm));
    let lock = lock_page(PAGE_SIZE);
    let count = lock - 1;
    let file = File::options().write(true).open(node.path(FileKind::Database)).expect("open");
    file.set_len(page_offset(count + 1, PAGE_SIZE)).expect("grow");
    file.write_all_at(&count.to_be_bytes(), 28).expect("write");
    let first = node.restart_unchecked();
    let client = node.client();
    // Each row needs a page of its own: the first behind the lock page.
    for _ in 0..2 {
        client.execute("INSERT INTO t(x) VALUES (randomblob(70000))", []).expect("insert");
    }
    let pages: u32 = client.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("count");
    assert!(pages > lock, "{pages} pages");
    // As after a crash, without copying a GiB.
    client.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).expect("no checkpoint");
    drop(client);
    assert!(node.path(FileKind::Wal).exists());
    assert_eq!(node.restart_unchecked().txid.0, first.txid.0 + 2);
}
