//! A primary in rollback mode and its replica: records are applied into the database file.

use std::sync::Arc;

use rusqlite::Connection;

use super::client::Client;
use super::rollback::{file, hooked_database, open};
use super::{Node, WAIT, wait_until};
use crate::database::{ApplyError, Database, Record, RecordBody};
use crate::fault::moment;
use crate::store::Mode;
use crate::{DbName, Pos};

pub(super) fn apply(replica: &Arc<Database>, record: &Record) -> Result<Pos, ApplyError> {
    match &record.body {
        RecordBody::Memory(bytes) => replica.apply(&mut &bytes[..]),
        RecordBody::File { file, offset, len } => {
            let mut bytes = vec![0; usize::try_from(*len).expect("length")];
            std::os::unix::fs::FileExt::read_exact_at(&**file, &mut bytes, *offset).expect("reads");
            replica.apply(&mut bytes.as_slice())
        }
    }
}

fn ship(primary: &Database, replica: &Arc<Database>) {
    primary.position_now().expect("captures");
    for record in primary.log.after(replica.pos()).expect("reads").expect("reaches back") {
        let record = record.expect("reads");
        assert_eq!(apply(replica, &record).expect("applies"), record.post);
    }
    assert_eq!(replica.pos(), primary.pos());
}

pub(super) fn replica(node: &Node) -> Arc<Database> {
    node.store.create(&"db".parse::<DbName>().expect("name")).expect("creates")
}

/// One table with one row.
const TABLE: &str = "CREATE TABLE t(x); INSERT INTO t VALUES(1)";

/// Two nodes; the primary's database and its client, who has run `sql`; the replica's database, which has the same.
fn pair(sql: &str) -> (Node, Node, Arc<Database>, Connection, Arc<Database>) {
    let (first, second) = (Node::start(Mode::Primary), Node::start(Mode::Replica));
    let (primary, vfs) = hooked_database(&first, "db");
    let writer = open(&first, "db", &vfs);
    writer.execute_batch(sql).expect("writes");
    let follower = replica(&second);
    ship(&primary, &follower);
    (first, second, primary, writer, follower)
}

#[test]
fn a_replica_in_rollback_mode_follows_and_its_readers_see_every_change() {
    let (_first, second, primary, writer, follower) =
        pair("PRAGMA auto_vacuum=full; CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, 1)");
    let reader = Client::open(&second.path("db"));
    assert_eq!(reader.run("SELECT count(*) FROM t"), Ok("1".to_owned()));
    for round in 2..12 {
        writer.execute("INSERT INTO t VALUES(?1, randomblob(20000))", [round]).expect("writes");
        if round % 4 == 0 {
            writer.execute_batch("DELETE FROM t WHERE id > 1 AND id % 2 = 1; VACUUM").expect("writes");
        }
        ship(&primary, &follower);
        let rows: i64 = writer.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("reads");
        assert_eq!(reader.run("SELECT count(*) FROM t"), Ok(rows.to_string()));
        assert!(file(&primary) == file(&follower), "round {round}");
    }
    assert_eq!(reader.run("PRAGMA integrity_check"), Ok("ok".to_owned()));
    assert!(reader.run("DELETE FROM t").is_err(), "a replica is read-only");
}

#[test]
fn a_long_reader_in_rollback_mode_makes_a_record_wait_but_is_not_disturbed() {
    let (_first, second, primary, writer, follower) = pair(TABLE);
    let reader = Client::open(&second.path("db"));
    assert_eq!(reader.run("BEGIN; SELECT count(*) FROM t"), Ok("1".to_owned()));
    writer.execute_batch("INSERT INTO t VALUES(2)").expect("writes");
    let record = primary.log.read(primary.pos().txid).expect("reads").expect("there");
    let before = follower.pos();
    let error = apply(&follower, &record).expect_err("a reader is in the way");
    assert!(matches!(&error, ApplyError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut), "{error}");
    assert_eq!((follower.pos(), follower.log.last_pos()), (before, before));
    assert_eq!(reader.run("SELECT count(*) FROM t"), Ok("1".to_owned()));
    reader.run("COMMIT").expect("ends");
    ship(&primary, &follower);
    assert_eq!(reader.run("SELECT count(*) FROM t"), Ok("2".to_owned()));
}

/// A fence that begins to close when applying has waited for it already: it takes its locks by the descriptor that keeps readers out.
#[test]
fn a_record_is_not_written_into_the_file_while_the_fence_is_being_closed() {
    let (_first, second, primary, writer, follower) = pair(TABLE);
    writer.execute_batch("INSERT INTO t VALUES(2)").expect("writes");
    let record = primary.log.read(primary.pos().txid).expect("reads").expect("there");
    let before = follower.pos();
    follower.set_local_writes(true).expect("opens");
    let client = Arc::new(Client::open(&second.path("db")));
    let (sender, closing) = std::sync::mpsc::channel();
    moment::at("apply.action", {
        let (follower, client) = (Arc::clone(&follower), Arc::clone(&client));
        move || {
            client.run("BEGIN IMMEDIATE").expect("begins");
            let closer = Arc::clone(&follower);
            sender.send(std::thread::spawn(move || closer.set_local_writes(false))).expect("sends");
            wait_until("the fence is being closed", || follower.is_fence_closing());
        }
    });
    let error = apply(&follower, &record).expect_err("the fence is being closed");
    assert!(matches!(&error, ApplyError::Io(cause) if cause.kind() == std::io::ErrorKind::TimedOut), "{error}");
    assert!(
        error.to_string().contains("the fence is being closed"),
        "not only when the locks are not to be had: {error}"
    );
    assert_eq!((follower.pos(), follower.log.last_pos()), (before, before));
    client.run("ROLLBACK").expect("ends");
    closing.recv().expect("was begun").join().expect("no panic").expect("closes");
    ship(&primary, &follower);
    assert_eq!(client.run("SELECT count(*) FROM t"), Ok("2".to_owned()));
    assert!(client.run("DELETE FROM t").is_err(), "a replica is read-only");
}

#[test]
fn the_primarys_switch_to_wal_takes_the_replica_along() {
    let (_first, second, primary, writer, follower) = pair(TABLE);
    let reader = Client::open(&second.path("db"));
    assert_eq!(reader.run("SELECT count(*) FROM t"), Ok("1".to_owned()));
    writer.query_row("PRAGMA journal_mode=wal", [], |_| Ok(())).expect("switches");
    for value in 2..6 {
        writer.execute("INSERT INTO t VALUES(?1)", [value]).expect("writes");
        ship(&primary, &follower);
        assert_eq!(reader.run("SELECT count(*) FROM t"), Ok(value.to_string()));
    }
    assert_eq!(reader.run("PRAGMA journal_mode"), Ok("wal".to_owned()));
    // A reader in a transaction no longer makes anybody wait.
    assert_eq!(reader.run("BEGIN; SELECT count(*) FROM t"), Ok("5".to_owned()));
    writer.execute_batch("INSERT INTO t VALUES(6)").expect("writes");
    ship(&primary, &follower);
    assert_eq!(reader.run("SELECT count(*) FROM t"), Ok("5".to_owned()));
    reader.run("COMMIT").expect("ends");
    wait_until("the new row", || reader.run("SELECT count(*) FROM t") == Ok("6".to_owned()));
}

#[test]
fn a_deposed_primarys_own_transactions_are_set_aside_before_a_snapshot_replaces_them() {
    let (first, second, old, writer, new) = pair(TABLE);
    // What the cluster never saw.
    writer.execute_batch("INSERT INTO t VALUES('lost')").expect("writes");
    drop(writer);
    first.store.set_mode(Mode::Replica, WAIT).expect("demotes");
    second.store.set_mode(Mode::Primary, WAIT).expect("promotes");
    let vfs = super::hooked::register(vec![(second.path("db"), Arc::clone(&new))], super::hooked::Journals::Passed);
    let writer = open(&second, "db", &vfs);
    for value in 0..5 {
        writer.execute("INSERT INTO t VALUES(?1)", [value]).expect("writes");
    }
    let mut snapshot = Vec::new();
    let pos = new.snapshot(&mut snapshot).expect("snapshot");
    assert!(old.pos().txid < pos.txid, "by its TXID alone it might only be behind");
    assert_eq!(old.apply(&mut snapshot.as_slice()).expect("applies"), pos);
    assert!(file(&old) == file(&new));
    let aside = first.dir.path().join("lost+found/db");
    assert_eq!(std::fs::read_dir(&aside).expect("set aside").count(), 1);
    // From here on everything came from the primary: another snapshot sets nothing aside.
    writer.execute_batch("INSERT INTO t VALUES('more')").expect("writes");
    let mut snapshot = Vec::new();
    let pos = new.snapshot(&mut snapshot).expect("snapshot");
    assert_eq!(old.apply(&mut snapshot.as_slice()).expect("applies"), pos);
    assert_eq!(std::fs::read_dir(&aside).expect("set aside").count(), 1);
}
