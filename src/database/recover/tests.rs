//! What a start makes of every state a stop can leave. The states are made by SQLite itself: files copied in the middle of
//! something are what a `kill -9` leaves.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use crate::database::{Database, Health};
use crate::kernel::{FileKind, Layout};
use crate::store::{Store, StoreConfig};
use crate::{Pos, Txid, fault};

const NAME: &str = "app.db";

pub(super) fn config(data_dir: &Path) -> StoreConfig {
    StoreConfig {
        data_dir: data_dir.to_owned(),
        compress: true,
        retention: Duration::from_secs(600),
        retention_interval: Duration::from_secs(60),
        strict_verify: false,
        lost_and_found_bytes_max: 1 << 30,
    }
}

/// A data directory with one database, its files named so that SQLite opens them where they lie.
pub(super) struct Node {
    pub(super) dir: TempDir,
}

pub(super) fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    for entry in fs::read_dir(from).expect("read").map(|entry| entry.expect("entry")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

impl Node {
    /// With a database that has rows 1…10 in mode `journal_mode`.
    pub(super) fn new(journal_mode: &str) -> Self {
        let node = Self { dir: TempDir::new().expect("dir") };
        fs::create_dir_all(node.db_dir()).expect("folder");
        let client = node.client();
        client
            .execute_batch(&format!(
                "PRAGMA journal_mode={journal_mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<10)
                 INSERT INTO t SELECT i, randomblob(2000) FROM n;"
            ))
            .expect("create");
        drop(client);
        node
    }

    pub(super) fn db_dir(&self) -> PathBuf {
        self.dir.path().join("dbs").join(NAME)
    }

    pub(super) fn path(&self, kind: FileKind) -> PathBuf {
        self.db_dir().join(Layout::Sqlite.file_name(kind))
    }

    pub(super) fn client(&self) -> Connection {
        let client = Connection::open(self.path(FileKind::Database)).expect("open");
        client.execute_batch("PRAGMA wal_autocheckpoint=0").expect("pragma");
        client
    }

    /// The files at this moment, as a crash would leave them.
    pub(super) fn crash(&self) -> Self {
        let dir = TempDir::new().expect("dir");
        copy_all(self.dir.path(), dir.path());
        Self { dir }
    }

    pub(super) fn start(&self) -> Started {
        self.try_start().expect("open")
    }

    pub(super) fn try_start(&self) -> std::io::Result<Started> {
        let store = Store::open_with_layout(config(self.dir.path()), Layout::Sqlite)?;
        let database = store.database_or_dropped(NAME).expect("database");
        Ok(Started { store, database })
    }

    /// Starts and stops; the position between.
    pub(super) fn restart(&self) -> Pos {
        let started = self.start();
        started.is_what_it_says();
        started.database.pos()
    }

    /// As [`Self::restart`], without what was kept at a clean stop, and without SQLite's own check of all pages.
    pub(super) fn restart_unchecked(&self) -> Pos {
        let _ = fs::remove_file(self.db_dir().join("checksums"));
        let started = self.start();
        assert_eq!(started.database.health(), Health::Ok);
        started.database.pos()
    }

    fn segment(&self) -> PathBuf {
        fs::read_dir(self.db_dir().join("log")).expect("log").next().expect("segment").expect("entry").path()
    }

    /// Takes another one's log.
    pub(super) fn take_log_of(&self, other: &Self) {
        fs::remove_dir_all(self.db_dir().join("log")).expect("remove");
        copy_all(&other.db_dir().join("log"), &self.db_dir().join("log"));
        let _ = fs::remove_file(self.db_dir().join("checksums"));
    }
}

pub(super) struct Started {
    pub(super) store: Arc<Store>,
    pub(super) database: Arc<Database>,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.store.close();
    }
}

impl Started {
    /// The export has the position's checksum (it checks that), the WAL is gone, and SQLite finds nothing wrong.
    fn is_what_it_says(&self) -> Vec<u8> {
        assert_eq!(self.database.health(), Health::Ok);
        let mut bytes = Vec::new();
        assert_eq!(self.database.export(&mut bytes).expect("export"), self.database.pos());
        let dir = TempDir::new().expect("dir");
        fs::write(dir.path().join("copy"), &bytes).expect("write");
        let client = Connection::open(dir.path().join("copy")).expect("open");
        let check: String = client.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("check");
        assert_eq!(check, "ok");
        bytes
    }

    pub(super) fn rows(&self) -> i64 {
        let dir = TempDir::new().expect("dir");
        fs::write(dir.path().join("copy"), self.is_what_it_says()).expect("write");
        let client = Connection::open(dir.path().join("copy")).expect("open");
        client.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("count")
    }
}

pub(super) fn insert(client: &Connection, count: usize) {
    for _ in 0..count {
        client.execute("INSERT INTO t(x) VALUES (randomblob(3000))", []).expect("insert");
    }
}

/// A node recovered at TXID 1, and the same one crashed after three more commits that are only in its WAL.
pub(super) fn with_three_commits_in_the_wal() -> (Node, Node) {
    let node = Node::new("wal");
    assert_eq!(node.restart().txid, Txid(1));
    let base = node.crash();
    let client = node.client();
    insert(&client, 3);
    (base, node.crash())
}

#[test]
fn a_database_without_a_log_becomes_the_first_record() {
    for mode in ["wal", "delete"] {
        let node = Node::new(mode);
        let started = node.start();
        assert_eq!((started.database.pos().txid, started.rows()), (Txid(1), 10), "{mode}");
        drop(started);
        assert_eq!(node.restart().txid, Txid(1), "{mode}");
    }
}

#[test]
fn commits_in_the_wal_go_forward_and_are_never_recorded_twice() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let again = crashed.crash();
    let started = crashed.start();
    assert_eq!((started.database.pos().txid, started.rows()), (Txid(4), 13));
    assert!(!crashed.path(FileKind::Wal).exists() && !crashed.path(FileKind::Shm).exists());
    let pos = started.database.pos();
    drop(started);
    assert_eq!(crashed.restart(), pos);

    // The crash came between the records and the removal of the WAL.
    again.take_log_of(&crashed);
    assert_eq!(again.restart(), pos);
}

#[test]
fn a_lost_tail_of_the_wal_is_replaced_from_the_log() {
    let (base, crashed) = with_three_commits_in_the_wal();
    let recovered = crashed.crash();
    let pos = recovered.restart();
    // One commit of the WAL reached the disk, or none, or half a frame.
    let wal_len = fs::metadata(crashed.path(FileKind::Wal)).expect("metadata").len();
    for kept in [wal_len / 2, wal_len - 100, 32, 10] {
        let lost = crashed.crash();
        lost.take_log_of(&recovered);
        File::options().write(true).open(lost.path(FileKind::Wal)).expect("open").set_len(kept).expect("cut");
        let started = lost.start();
        assert_eq!((started.database.pos(), started.rows()), (pos, 13), "{kept} bytes kept");
        drop(started);
        assert_eq!(lost.restart(), pos);
    }
    base.take_log_of(&recovered);
    assert_eq!(base.restart(), pos, "no WAL at all");
}

#[test]
fn a_wal_that_was_restarted_continues_after_the_checkpoint() {
    let node = Node::new("wal");
    node.restart();
    let client = node.client();
    insert(&client, 3);
    let captured = node.crash();
    assert_eq!(captured.restart().txid, Txid(4));
    client.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").expect("checkpoint");
    insert(&client, 2);
    let crashed = node.crash();
    crashed.take_log_of(&captured);
    let started = crashed.start();
    assert_eq!((started.database.pos().txid, started.rows()), (Txid(6), 15));
}

#[test]
fn a_checkpoint_that_was_interrupted_changes_nothing() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let recovered = crashed.crash();
    let pos = recovered.restart();
    // Some pages of the last commit are in the file already.
    let done = fs::read(recovered.path(FileKind::Database)).expect("read");
    let file = File::options().write(true).open(crashed.path(FileKind::Database)).expect("open");
    file.write_all_at(&done[4096..8192], 4096).expect("write");
    let captured = crashed.crash();
    // A power loss took the un-synced end of the log: what the WAL has goes forward, as one transaction.
    let started = crashed.start();
    assert_eq!((started.database.pos(), started.rows()), (Pos::new(Txid(2), pos.checksum), 13));
    drop(started);
    assert_eq!(crashed.restart(), Pos::new(Txid(2), pos.checksum));
    captured.take_log_of(&recovered);
    assert_eq!(captured.restart(), pos);
    assert!(!captured.dir.path().join("lost+found").exists(), "all of it is explained");
}

#[test]
fn what_sqlite_committed_while_no_node_ran_is_recorded() {
    for mode in ["delete", "wal"] {
        let node = Node::new(mode);
        node.restart();
        insert(&node.client(), 3);
        let started = node.start();
        assert_eq!((started.database.pos().txid, started.rows()), (Txid(2), 13), "{mode}");
        drop(started);
        assert_eq!(node.restart().txid, Txid(2), "{mode}");
    }
}

#[test]
fn a_torn_record_is_made_again_from_the_wal() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let recovered = crashed.crash();
    let pos = recovered.restart();
    let torn = crashed.crash();
    torn.take_log_of(&recovered);
    let segment = File::options().write(true).open(torn.segment()).expect("open");
    segment.set_len(segment.metadata().expect("metadata").len() - 50).expect("cut");
    assert_eq!(torn.restart(), pos);
}

#[test]
fn a_damaged_page_is_repaired_from_the_log() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let pos = crashed.restart();
    let damaged = crashed.crash();
    let _ = fs::remove_file(damaged.db_dir().join("checksums"));
    let file = File::options().write(true).open(damaged.path(FileKind::Database)).expect("open");
    for at in [20, 5000, 4096 * 6] {
        file.write_all_at(b"damage", at).expect("write");
        let started = damaged.start();
        assert_eq!((started.database.pos(), started.rows()), (pos, 13), "damage at {at}");
        drop(started);
        let _ = fs::remove_file(damaged.db_dir().join("checksums"));
    }
    let kept = fs::read_dir(damaged.dir.path().join("lost+found").join(NAME)).expect("kept").count();
    assert!(kept > 0, "the damaged file is kept");
    fs::remove_file(damaged.path(FileKind::Database)).expect("remove");
    assert_eq!(damaged.restart(), pos, "the whole file is in the log");
}

#[test]
fn damage_that_the_log_cannot_repair_breaks_this_database_only() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let pos = crashed.restart();
    let _ = fs::remove_file(crashed.db_dir().join("checksums"));
    // The first record, which holds every page, is damaged too.
    File::options().write(true).open(crashed.segment()).expect("open").write_all_at(b"x", 400).expect("write");
    let other = crashed.dir.path().join("dbs/other.db");
    copy_all(&Node::new("delete").db_dir(), &other);
    let whole = crashed.crash();
    assert_eq!(whole.restart(), pos, "the record alone does not matter");

    File::options()
        .write(true)
        .open(crashed.path(FileKind::Database))
        .expect("open")
        .write_all_at(b"x", 8192 + 99)
        .expect("write");
    let before = fs::read(crashed.path(FileKind::Database)).expect("read");
    let started = crashed.start();
    assert!(matches!(started.database.health(), Health::Broken(_)));
    assert!(started.database.export(&mut Vec::new()).is_err() && started.database.snapshot(&mut Vec::new()).is_err());
    assert_eq!(started.store.database("other.db").expect("other").health(), Health::Ok);
    drop(started);
    assert!(fs::read(crashed.path(FileKind::Database)).expect("read") == before, "left as it was");
}

#[test]
fn a_newer_run_of_records_that_does_not_fit_is_cut() {
    let (base, crashed) = with_three_commits_in_the_wal();
    let recovered = crashed.crash();
    recovered.restart();
    // A power loss kept record 4 and lost record 2, and the WAL.
    base.take_log_of(&recovered);
    let bytes = fs::read(base.segment()).expect("read");
    let first = crate::database::log::Log::open(&base.db_dir()).expect("log").0;
    let second_len = first.read(Txid(2)).expect("read").expect("record").body.len() as usize;
    let (third, fourth) = (first.read(Txid(3)).expect("read").expect("record"), first.read(Txid(4)).expect("read"));
    let behind = third.body.len() as usize + fourth.expect("record").body.len() as usize + 80;
    drop(first);
    let at = bytes.len() - behind - second_len / 2;
    File::options().write(true).open(base.segment()).expect("open").write_all_at(&[0; 8], at as u64).expect("write");
    let started = base.start();
    assert_eq!((started.database.pos().txid, started.rows()), (Txid(1), 10));
}

/// A rollback-mode node at TXID 1, and one crashed in the middle of a transaction that has spilled into the database.
pub(super) fn in_mid_transaction() -> (Node, Node, Connection) {
    let node = Node::new("delete");
    assert_eq!(node.restart().txid, Txid(1));
    let client = node.client();
    client
        .execute_batch(
            "PRAGMA synchronous=off; PRAGMA cache_size=2; BEGIN; UPDATE t SET x=randomblob(2000);
             INSERT INTO t VALUES(100, zeroblob(30000));",
        )
        .expect("spill");
    let crashed = node.crash();
    assert!(crashed.path(FileKind::Journal).exists());
    (node, crashed, client)
}

#[test]
fn a_hot_journal_is_rolled_back() {
    let (_node, crashed, _client) = in_mid_transaction();
    let started = crashed.start();
    assert_eq!((started.database.pos().txid, started.rows()), (Txid(1), 10));
    assert!(!crashed.path(FileKind::Journal).exists());
}

#[test]
fn a_transaction_recorded_before_its_journal_ended_is_kept() {
    let (node, crashed, client) = in_mid_transaction();
    client.execute_batch("COMMIT").expect("commit");
    drop(client);
    let recovered = node.crash();
    let pos = recovered.restart();
    assert_eq!(pos.txid, Txid(2));
    crashed.take_log_of(&recovered);
    let started = crashed.start();
    assert_eq!((started.database.pos(), started.rows()), (pos, 11));
}

#[test]
fn a_super_journal_decides_for_its_databases() {
    for exists in [true, false] {
        let (node, crashed, client) = in_mid_transaction();
        client.execute_batch("COMMIT").expect("commit");
        fs::copy(node.path(FileKind::Database), crashed.path(FileKind::Database)).expect("the committed file");
        let name = "/mnt/app.db-mj0000";
        let sum: u32 = name.bytes().map(u32::from).sum();
        let mut tail = name.as_bytes().to_vec();
        tail.extend_from_slice(&u32::try_from(name.len()).expect("short").to_be_bytes());
        tail.extend_from_slice(&sum.to_be_bytes());
        tail.extend_from_slice(&crate::sqlite::journal::MAGIC);
        let journal = File::options().write(true).open(crashed.path(FileKind::Journal)).expect("open");
        journal.write_all_at(&tail, journal.metadata().expect("metadata").len()).expect("write");
        if exists {
            fs::create_dir_all(crashed.dir.path().join("files")).expect("folder");
            fs::write(crashed.dir.path().join("files/app.db-mj0000"), b"").expect("super-journal");
        }
        let started = crashed.start();
        // Without the super-journal the transaction is committed, but has no record yet.
        let expected = if exists { (Txid(1), 10) } else { (Txid(2), 11) };
        assert_eq!((started.database.pos().txid, started.rows()), expected);
    }
}

#[test]
fn the_checksums_of_a_clean_stop_spare_the_scan_and_are_never_believed_falsely() {
    let (_, crashed) = with_three_commits_in_the_wal();
    let pos = crashed.restart();
    assert!(crashed.db_dir().join("checksums").exists());
    // Damage under the same length and time is not seen: the file was not read.
    let path = crashed.path(FileKind::Database);
    let mtime = fs::metadata(&path).expect("metadata").modified().expect("mtime");
    let file = File::options().write(true).open(&path).expect("open");
    file.write_all_at(b"x", 8192 + 99).expect("write");
    file.set_modified(mtime).expect("set time");
    let started = crashed.start();
    assert_eq!(started.database.pos(), pos);
    assert!(started.database.export(&mut Vec::new()).is_err(), "but an export is checked");
    assert!(!crashed.db_dir().join("checksums").exists(), "used once");
    drop(started);
    // With another time, or a damaged file of checksums, the database is read.
    let mtime = fs::metadata(&path).expect("metadata").mtime();
    file.write_all_at(b"y", 8192 + 99).expect("write");
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(mtime.unsigned_abs() + 5)).expect("set time");
    assert_eq!(crashed.restart(), pos, "repaired");
    let sums = crashed.db_dir().join("checksums");
    let mut bytes = fs::read(&sums).expect("read");
    bytes[100] ^= 1;
    fs::write(&sums, bytes).expect("write");
    assert_eq!(crashed.restart(), pos);
}

#[test]
fn a_full_disk_at_the_start_loses_nothing() {
    for label in ["log.append", "recover.checkpoint", "log.sync"] {
        let (_, crashed) = with_three_commits_in_the_wal();
        let injected = fault::on_this_thread(label, libc::ENOSPC, u64::MAX);
        let started = crashed.start();
        assert!(
            matches!(started.database.health(), Health::Degraded { .. }),
            "{label}: {:?}",
            started.database.health()
        );
        assert!(crashed.path(FileKind::Wal).exists(), "{label}");
        let expected = if label == "log.append" { Txid(1) } else { Txid(4) };
        assert_eq!(started.database.pos().txid, expected, "{label}");
        drop(started);
        drop(injected);
        let started = crashed.start();
        assert_eq!((started.database.pos().txid, started.rows()), (Txid(4), 13), "{label}");
    }
}

#[test]
fn what_is_no_database_is_broken_and_left_alone() {
    let node = Node { dir: TempDir::new().expect("dir") };
    fs::create_dir_all(node.db_dir()).expect("folder");
    fs::write(node.path(FileKind::Database), b"hello").expect("write");
    fs::write(node.dir.path().join("dbs/stray"), b"a file").expect("write");
    let started = node.start();
    assert!(matches!(started.database.health(), Health::Broken(_)));
    assert_eq!(started.database.pos(), Pos::ZERO);
    drop(started);
    assert_eq!(fs::read(node.path(FileKind::Database)).expect("read"), b"hello");

    fs::write(node.path(FileKind::Database), b"").expect("write");
    let started = node.start();
    assert_eq!((started.database.health(), started.database.pos()), (Health::Ok, Pos::ZERO));
}

#[test]
fn a_log_that_cannot_be_read_costs_its_database_alone() {
    let node = Node::new("delete");
    let pos = node.restart();
    let other = node.dir.path().join("dbs/other.db");
    fs::create_dir_all(&other).expect("folder");
    let name = Layout::Sqlite.file_name(FileKind::Database);
    fs::copy(node.path(FileKind::Database), other.join(name)).expect("copy");
    fs::write(other.join("log"), "not a folder").expect("write");

    let started = node.start();
    assert_eq!((started.database.pos(), started.rows()), (pos, 10));
    let broken = started.store.database("other.db").expect("it is known");
    assert!(matches!(broken.health(), Health::Broken(_)), "{:?}", broken.health());
    assert!(broken.log.truncate_after(Txid::ZERO).is_err(), "what is there is not touched");
    drop(started);

    fs::remove_file(other.join("log")).expect("remove");
    let started = node.start();
    assert_eq!(started.store.database("other.db").expect("there").health(), Health::Ok);
}
