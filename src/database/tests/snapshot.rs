//! Records, snapshots and copies for others, while clients go on.

use std::io::{self, Write};

use super::model::Model;
use super::*;
use crate::database::Next;
use crate::ltx::verify;
use crate::{Checksum, Pos, Txid};

const WAL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, x);
                   INSERT INTO t VALUES(0, randomblob(200000));";

/// A receiver that lets something happen before each of its first writes.
struct Slow<F: FnMut()> {
    bytes: Vec<u8>,
    left: u32,
    meanwhile: F,
}

impl<F: FnMut()> Write for Slow<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left > 0 {
            self.left -= 1;
            (self.meanwhile)();
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_snapshot_shows_one_moment_while_writers_and_checkpoints_go_on() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    for round in 0..6 {
        let mut model = Model::default();
        database.position_now().expect("captures");
        model.follow(&database);
        let meanwhile = || {
            client
                .run("UPDATE t SET x = randomblob(200000); INSERT INTO t(x) VALUES(randomblob(9000))")
                .expect("writes");
            database.checkpoint().expect("checkpoints");
        };
        let mut out = Slow { bytes: Vec::new(), left: 3, meanwhile };
        let pos = if round % 2 == 0 { database.snapshot(&mut out) } else { database.export(&mut out) }.expect("sends");
        assert_eq!(pos, model.pos, "the moment it was asked for");
        if round % 2 == 0 {
            let summary = verify(&out.bytes[..]).expect("a valid LTX file");
            assert_eq!((summary.post(), summary.header.min_txid), (pos, Txid(1)));
        } else {
            assert!(out.bytes == model.image(), "byte for byte, round {round}");
        }
        assert_ne!(database.position_now().expect("captures"), pos, "writers did not wait");
    }
    // The locks are given back: the WAL can be brought home and started again.
    client.run("INSERT INTO t(x) VALUES(1)").expect("writes");
    wait_until("the WAL is checkpointed to its end", || {
        database.checkpoint().expect("checkpoints");
        database.checkpoint_backlog() == 0
    });
}

#[test]
fn in_rollback_mode_a_slow_receiver_keeps_nobody_waiting() {
    let node = Node::start(Mode::Primary);
    let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(0, randomblob(300000));";
    let (database, client) = node.rollback_database("db", sql);
    let before = client.image();
    let mut out = Slow {
        bytes: Vec::new(),
        left: 1,
        // There is no mount that would see this; the copy must not.
        meanwhile: || drop(client.run("UPDATE t SET x = randomblob(300000)").expect("is not kept waiting")),
    };
    assert_eq!(database.export(&mut out).expect("sends"), database.pos());
    assert!(out.bytes == before);
}

#[test]
fn in_rollback_mode_without_room_for_a_copy_writers_wait() {
    let node = Node::start(Mode::Primary);
    let (database, client) =
        node.rollback_database("db", "CREATE TABLE t(x); INSERT INTO t VALUES(randomblob(300000));");
    let before = client.image();
    let _injected = crate::fault::on_this_thread("view.copy", libc::ENOSPC, 1);
    let meanwhile = || {
        let error = client.run("BEGIN IMMEDIATE; UPDATE t SET x = 1; COMMIT").expect_err("waits");
        assert!(error.contains("locked"), "{error}");
        client.run("ROLLBACK").expect("ends");
    };
    let mut out = Slow { bytes: Vec::new(), left: 1, meanwhile };
    database.export(&mut out).expect("sends");
    assert!(out.bytes == before);
    client.run("UPDATE t SET x = 1").expect("writes again");
}

#[test]
fn a_copy_that_is_not_what_the_position_says_is_refused() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.rollback_database("db", "CREATE TABLE t(x); INSERT INTO t VALUES(1);");
    client.run("INSERT INTO t VALUES(2)").expect("writes past the hooks");
    for result in [database.snapshot(&mut Vec::new()), database.export(&mut Vec::new())] {
        assert_eq!(result.expect_err("refused").kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_deleted_database_has_a_snapshot_and_no_copy() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.rollback_database("db", "CREATE TABLE t(x);");
    drop(client);
    database.db_unlink().expect("deletes");
    let mut out = Vec::new();
    let pos = database.snapshot(&mut out).expect("sends");
    let summary = verify(&out[..]).expect("valid");
    assert_eq!((pos, summary.header.commit, summary.pages), (Pos::new(Txid(2), Checksum::EMPTY), 0, 0));
    assert_eq!(database.export(&mut Vec::new()).expect_err("is gone").kind(), io::ErrorKind::NotFound);
}

#[test]
fn what_a_replica_needs_depends_on_its_position() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let mut positions = vec![Pos::ZERO, database.pos()];
    for _ in 0..5 {
        client.run("INSERT INTO t(x) VALUES(1)").expect("writes");
        positions.push(database.position_now().expect("captures"));
    }
    for (index, pos) in positions.iter().enumerate() {
        match database.next_after(*pos).expect("reads") {
            Next::UpToDate => assert_eq!(index, 6),
            Next::Records(records) => {
                let posts: Vec<Pos> = records.map(|record| record.expect("reads").post).collect();
                assert_eq!(posts, positions[index + 1..]);
            }
            Next::SnapshotNeeded => panic!("{pos} is in the log"),
        }
    }
    let last = positions[6];
    for other in [
        Pos::new(last.txid, Checksum::EMPTY),
        Pos::new(last.txid.next(), last.checksum),
        Pos::new(Txid(3), Checksum::EMPTY),
    ] {
        assert!(matches!(database.next_after(other).expect("reads"), Next::SnapshotNeeded), "{other}");
    }
}

#[test]
fn diverged_transactions_are_kept_within_the_bound() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    let from = database.pos();
    client.run("INSERT INTO t(x) VALUES(1)").expect("writes");
    client.run("INSERT INTO t(x) VALUES(2)").expect("writes");
    let last = database.position_now().expect("captures");
    let folder = database.set_aside_after(from).expect("sets aside");
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .inspect(|path| assert!(verify(std::fs::File::open(path).expect("opens")).is_ok()))
        .collect();
    names.sort();
    assert_eq!(names.len(), 2);
    assert!(names[1].ends_with(format!("{}-{}.ltx", last.txid, last.txid)));
    assert_eq!(database.pos(), Pos::ZERO);

    // From a position that is not ours everything is kept; beyond the bound nothing is given up.
    let mut config = config(node.dir.path());
    config.lost_and_found_bytes_max = 100_000;
    let small = tempfile::tempdir().expect("dir");
    config.data_dir = small.path().to_owned();
    let store = Store::open_with_layout(config, Layout::Sqlite).expect("opens");
    let database = store.create(&"x".parse().expect("name")).expect("creates");
    database.db_opened().expect_err("no mount");
    let page = rusqlite_file("CREATE TABLE t(x); INSERT INTO t VALUES(randomblob(200000));");
    database.db_write(0, &page).expect("writes");
    database.db_closed();
    let pos = database.pos();
    assert_eq!(pos.txid, Txid(1));
    let error = database.set_aside_after(Pos::new(Txid(7), Checksum::EMPTY)).expect_err("too large");
    assert_eq!((error.kind(), database.pos()), (io::ErrorKind::StorageFull, pos));
    let left = std::fs::read_dir(small.path().join("lost+found/x")).expect("folder").count();
    assert_eq!(left, 0, "no half folder");
    store.close();
}

fn rusqlite_file(sql: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("db");
    let connection = rusqlite::Connection::open(&path).expect("opens");
    connection.execute_batch(sql).expect("runs");
    connection.close().expect("closes");
    std::fs::read(path).expect("reads")
}
