//! Capture in the rollback modes, with a client behind the hooks.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::{Connection, OpenFlags};

use super::client::image;
use super::hooked::{self, Journals};
use super::model::Model;
use super::{Node, WAIT};
use crate::database::Database;
use crate::store::Mode;
use crate::{DbName, WriteGate};

/// An empty database and the name of a VFS by which clients reach it.
pub(super) fn hooked_database(node: &Node, name: &str) -> (Arc<Database>, String) {
    database_behind(node, name, Journals::Relayed)
}

fn database_behind(node: &Node, name: &str, journals: Journals) -> (Arc<Database>, String) {
    let database = node.store.create(&name.parse::<DbName>().expect("name")).expect("creates");
    let vfs = hooked::register(vec![(node.path(name), Arc::clone(&database))], journals);
    (database, vfs)
}

pub(super) fn open(node: &Node, name: &str, vfs: &str) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let connection = Connection::open_with_flags_and_vfs(node.path(name), flags, vfs).expect("opens");
    connection.busy_timeout(WAIT).expect("timeout");
    connection
}

fn check(database: &Database, model: &mut Model, connection: &Connection, what: &str) {
    database.position_now().expect("captures");
    model.follow(database);
    assert_eq!(model.pos, database.pos(), "{what}");
    // Without a WAL the file is what counts: a client's cache keeps what a rollback left in free pages.
    let wal = database.files.wal().expect("opens").is_some_and(|wal| wal.metadata().expect("size").len() > 0);
    let theirs = if wal { image(connection) } else { file(database) };
    assert!(model.image() == theirs, "{what}: not what the client sees at {}", model.pos);
}

/// The database file, read by the descriptor that the engine has on it anyway.
pub(super) fn file(database: &Database) -> Vec<u8> {
    let file = database.files.database().expect("opens");
    let mut bytes = vec![0; usize::try_from(file.metadata().expect("size").len()).expect("size")];
    file.read_exact_at(&mut bytes, 0).expect("reads");
    bytes
}

fn change_counter(database: &Database) -> u32 {
    let bytes = file(database);
    u32::from_be_bytes([bytes[24], bytes[25], bytes[26], bytes[27]])
}

const MODES: [&str; 11] = [
    "journal_mode=DELETE",
    "journal_mode=TRUNCATE",
    "journal_mode=PERSIST",
    "journal_mode=MEMORY",
    "journal_mode=OFF",
    "locking_mode=EXCLUSIVE; PRAGMA journal_mode=DELETE",
    "journal_mode=DELETE; PRAGMA synchronous=OFF",
    "journal_mode=MEMORY; PRAGMA synchronous=OFF",
    "journal_mode=PERSIST; PRAGMA synchronous=OFF",
    "locking_mode=EXCLUSIVE; PRAGMA journal_mode=PERSIST; PRAGMA synchronous=OFF",
    "locking_mode=EXCLUSIVE; PRAGMA journal_mode=TRUNCATE",
];

fn step(connection: &Connection, random: &mut fastrand::Rng, journaled: bool) {
    let insert = "INSERT INTO t(x) VALUES(randomblob(abs(random()) % 20000))";
    let sql = match random.u32(..9) {
        0 => "DELETE FROM t WHERE id % 3 = 1".to_owned(),
        1 => "UPDATE t SET x = randomblob(length(x)) WHERE id % 5 = 2".to_owned(),
        2 => "VACUUM".to_owned(),
        3 => "PRAGMA incremental_vacuum".to_owned(),
        // What spills the cache reaches the file before the rollback.
        4 if journaled => format!("BEGIN; {insert}; UPDATE t SET x = zeroblob(30000); ROLLBACK"),
        5 if journaled => format!("BEGIN; {insert}; SAVEPOINT a; DELETE FROM t; ROLLBACK TO a; {insert}; COMMIT"),
        6 => format!("BEGIN; {insert}; {insert}; {insert}; COMMIT"),
        _ => insert.to_owned(),
    };
    connection.execute_batch(&sql).expect(&sql);
}

#[test]
fn every_transaction_of_every_mode_is_one_record() {
    for (number, mode) in MODES.into_iter().enumerate() {
        one_record_per_transaction(number, mode, Journals::Relayed);
    }
}

#[test]
fn every_transaction_of_every_mode_is_one_record_without_seeing_the_journal() {
    for (number, mode) in MODES.into_iter().enumerate() {
        one_record_per_transaction(number, mode, Journals::Passed);
    }
}

fn one_record_per_transaction(number: usize, mode: &str, journals: Journals) {
    let page_size = [512, 4096][number % 2];
    let node = Node::start(Mode::Primary);
    let (database, vfs) = database_behind(&node, "db", journals);
    let connection = open(&node, "db", &vfs);
    connection
        .execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA auto_vacuum=incremental; PRAGMA cache_size=10; PRAGMA {mode};
             CREATE TABLE t(id INTEGER PRIMARY KEY, x);"
        ))
        .expect(mode);
    let mut model = Model::default();
    check(&database, &mut model, &connection, mode);
    let mut random = fastrand::Rng::with_seed(number as u64);
    for _ in 0..25 {
        let before = (database.pos(), change_counter(&database));
        step(&connection, &mut random, mode != "journal_mode=OFF");
        check(&database, &mut model, &connection, mode);
        // By it the readers of a replica notice, whatever the locking mode.
        let ahead = change_counter(&database) > before.1;
        assert!(ahead || database.pos() == before.0, "{mode}: the change counter stays");
    }
    let before = database.pos();
    connection.execute_batch("INSERT INTO t(x) VALUES('last')").expect("writes");
    check(&database, &mut model, &connection, mode);
    assert_eq!(database.pos().txid, before.txid.next(), "{mode}");
}

#[test]
fn a_free_page_behind_a_cut_that_was_not_recorded_is_what_the_file_holds() {
    let node = Node::start(Mode::Primary);
    let (database, vfs) = hooked_database(&node, "db");
    let connection = open(&node, "db", &vfs);
    connection
        .execute_batch(
            "PRAGMA auto_vacuum=full; PRAGMA journal_mode=off; PRAGMA synchronous=OFF; PRAGMA cache_size=5;
             CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, randomblob(100000))",
        )
        .expect("writes");
    let mut model = Model::default();
    check(&database, &mut model, &connection, "before");
    // All of it becomes one record: the file is cut, and grown again, in part by a page that is free at the end.
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..30 {
        connection.execute_batch("DELETE FROM t").expect("cut");
        let size = random.u32(20_000..100_000);
        connection.execute_batch(&format!("INSERT INTO t VALUES(1, randomblob({size}))")).expect("grown");
        let sql = format!("PRAGMA auto_vacuum=none; UPDATE t SET x = randomblob({})", random.u32(..size));
        connection.execute_batch(&sql).expect("free");
        if round % 3 == 2 {
            check(&database, &mut model, &connection, "after");
        }
    }
}

/// A writer that was killed before it synced its journal leaves one that nobody rolls back, and nobody removes who needs none.
#[test]
fn commits_beside_a_journal_that_was_never_synced_are_captured() {
    for mode in ["off", "memory", "off; PRAGMA synchronous=OFF"] {
        let node = Node::start(Mode::Primary);
        let (database, vfs) = hooked_database(&node, "test.db");
        let mut model = Model::default();
        let connection = open(&node, "test.db", &vfs);
        connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, x)").expect("creates");
        check(&database, &mut model, &connection, mode);
        let mut head = [0; 512];
        for (at, field) in [(12, 0x29ae_4589_u32), (16, 2), (20, 512), (24, 4096)] {
            head[at..at + 4].copy_from_slice(&field.to_be_bytes());
        }
        database.journal_created().expect("a journal");
        database.journal_write(0, &head).expect("its header, which gets its magic with the sync");
        connection.execute_batch(&format!("PRAGMA journal_mode={mode}")).expect("mode");
        for _ in 0..3 {
            let before = database.pos();
            connection.execute("INSERT INTO t(x) VALUES(randomblob(9000))", []).expect("inserts");
            check(&database, &mut model, &connection, mode);
            assert_ne!(database.pos(), before, "{mode}: captured");
        }
    }
}

#[test]
fn a_rollback_leaves_no_record() {
    let node = Node::start(Mode::Primary);
    let (database, vfs) = hooked_database(&node, "db");
    let connection = open(&node, "db", &vfs);
    connection.execute_batch("PRAGMA cache_size=5; BEGIN; CREATE TABLE u(x); ROLLBACK").expect("rolls back");
    assert!(database.pos().is_zero());
    connection.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES(zeroblob(200000))").expect("writes");
    let before = database.position_now().expect("captures");
    connection.execute_batch("BEGIN; UPDATE t SET x = randomblob(300000); ROLLBACK").expect("rolls back");
    assert_eq!(database.position_now().expect("captures"), before);
    check(&database, &mut Model::default(), &connection, "rollback");
}

#[test]
fn a_commit_beyond_the_lease_fails_and_the_next_one_works() {
    let node = Node::start(Mode::Primary);
    let (database, vfs) = hooked_database(&node, "db");
    let connection = open(&node, "db", &vfs);
    connection.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("writes");
    let before = database.pos();
    let gate = Arc::new(Gate(AtomicI64::new(0)));
    node.store.set_write_gate(gate.clone());
    assert!(connection.execute_batch("INSERT INTO t VALUES(2)").is_err(), "the lease has run out");
    assert_eq!(database.pos(), before);
    gate.open_for(i64::MAX);
    let rows: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("reads");
    assert_eq!(rows, 1, "rolled back");
    connection.execute_batch("INSERT INTO t VALUES(3)").expect("writes");
    assert_eq!(database.pos().txid, before.txid.next());
    check(&database, &mut Model::default(), &connection, "after a refused commit");
}

/// The lease: how often it may be asked before it has run out.
struct Gate(AtomicI64);

impl Gate {
    fn open_for(&self, times: i64) {
        self.0.store(times, Ordering::Release);
    }
}

impl WriteGate for Gate {
    fn is_open(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) > 0
    }
}

#[test]
fn a_commit_is_refused_at_whatever_moment_the_lease_ends() {
    for mode in ["journal_mode=DELETE", "journal_mode=PERSIST", "locking_mode=EXCLUSIVE; PRAGMA journal_mode=DELETE"] {
        let node = Node::start(Mode::Primary);
        let (database, vfs) = database_behind(&node, "db", Journals::Passed);
        let connection = open(&node, "db", &vfs);
        connection.execute_batch("CREATE TABLE t(x)").expect("writes");
        connection.execute_batch(&format!("PRAGMA {mode}")).expect(mode);
        let gate = Arc::new(Gate(AtomicI64::new(i64::MAX)));
        node.store.set_write_gate(gate.clone());
        let (mut committed, mut refused) = (0, 0);
        for asked in 0..6 {
            let before = database.position_now().expect("captures");
            gate.open_for(asked);
            let result = connection.execute_batch("INSERT INTO t VALUES(2)");
            gate.open_for(i64::MAX);
            committed += i64::from(result.is_ok());
            refused += i64::from(result.is_err());
            let rows: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("reads");
            assert_eq!(rows, committed, "{mode}: refused is rolled back");
            let now = database.position_now().expect("captures");
            assert_eq!(now.txid.0 - before.txid.0, u64::from(result.is_ok()), "{mode}");
            check(&database, &mut Model::default(), &connection, mode);
        }
        assert!(committed > 0 && refused > 1, "{mode}: {committed} committed, {refused} refused");
    }
}

#[test]
fn the_journal_mode_can_change_at_any_time() {
    let node = Node::start(Mode::Primary);
    let (database, vfs) = hooked_database(&node, "db");
    let connection = open(&node, "db", &vfs);
    connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, x)").expect("writes");
    let mut model = Model::default();
    // Into WAL last: SQLite leaves it only when nobody else shares the wal-index, and the engine does.
    let modes = ["persist", "truncate", "memory", "delete", "off", "truncate", "wal"];
    for (number, mode) in modes.into_iter().enumerate() {
        let now: String =
            connection.query_row(&format!("PRAGMA journal_mode={mode}"), [], |row| row.get(0)).expect(mode);
        assert_eq!(now, mode, "step {number}");
        for _ in 0..3 {
            connection
                .execute_batch("INSERT INTO t(x) VALUES(randomblob(9000)); DELETE FROM t WHERE id % 4 = 0")
                .expect(mode);
            check(&database, &mut model, &connection, &format!("{mode} in step {number}"));
        }
    }
}

#[test]
fn another_page_size_starts_history_again_with_a_snapshot() {
    let node = Node::start(Mode::Primary);
    let (database, vfs) = hooked_database(&node, "db");
    let connection = open(&node, "db", &vfs);
    connection
        .execute_batch("PRAGMA page_size=4096; CREATE TABLE t(x); INSERT INTO t VALUES(randomblob(50000))")
        .expect("writes");
    let before = database.pos();
    connection.execute_batch("PRAGMA page_size=1024; VACUUM").expect("vacuums");
    assert_eq!(database.page_size(), 1024);
    assert_eq!(database.pos().txid, before.txid.next());
    let record = database.log.read(database.pos().txid).expect("reads").expect("there");
    assert_eq!(record.min_txid.0, 1);
    connection.execute_batch("INSERT INTO t VALUES(1)").expect("writes");
    assert_eq!(database.pos().txid, before.txid.next().next());
}

#[test]
fn a_transaction_over_two_databases_commits_in_both() {
    let node = Node::start(Mode::Primary);
    let names = ["a", "b"];
    let databases = names.map(|name| node.store.create(&name.parse::<DbName>().expect("name")).expect("creates"));
    let paths = names.iter().map(|name| node.path(name)).zip(databases.iter().cloned()).collect();
    let vfs = hooked::register(paths, Journals::Passed);
    let connection = open(&node, "a", &vfs);
    connection
        .execute_batch(&format!(
            "ATTACH '{}' AS b; CREATE TABLE main.t(x); CREATE TABLE b.t(x);",
            node.path("b").display()
        ))
        .expect("attaches");
    let before = databases.each_ref().map(|database| database.pos().txid);
    connection
        .execute_batch("BEGIN; INSERT INTO main.t VALUES(1); INSERT INTO b.t VALUES(2); COMMIT")
        .expect("commits");
    let after = databases.each_ref().map(|database| database.pos().txid);
    assert_eq!(after, before.map(|txid| txid.next()));
    for database in &databases {
        let mut model = Model::default();
        model.follow(database);
        assert_eq!(model.pos, database.pos());
    }
}

#[test]
fn copying_a_file_over_the_database_is_one_transaction() {
    let node = Node::start(Mode::Primary);
    let (database, _client) = node.rollback_database("db", "CREATE TABLE t(x); INSERT INTO t VALUES(1)");
    let other = tempfile::tempdir().expect("folder");
    let path = other.path().join("other");
    let connection = Connection::open(&path).expect("opens");
    connection.execute_batch("CREATE TABLE u(x); INSERT INTO u VALUES(randomblob(100000))").expect("writes");
    let bytes = std::fs::read(&path).expect("reads");
    database.db_truncate(0).expect("truncates");
    for (index, chunk) in bytes.chunks(16_384).enumerate() {
        database.db_write(index as u64 * 16_384, chunk).expect("writes");
        assert_eq!(database.position_now().expect("captures").txid.0, 1, "not yet whole");
    }
    database.db_closed();
    assert_eq!(database.pos().txid.0, 2);
    let mut model = Model::default();
    model.follow(&database);
    assert!(model.image() == bytes);
}
