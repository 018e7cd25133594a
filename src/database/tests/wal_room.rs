//! Zeros ahead of a writer that syncs: nobody takes them for frames.

use super::model::Model;
use super::wal::{WAL, check};
use super::*;
use crate::fault;

fn wal_len(database: &Database) -> u64 {
    database.files.wal().expect("wal").expect("exists").metadata().expect("metadata").len()
}

/// A database with some frames in its WAL, and the WAL's length.
fn with_frames(node: &Node) -> (Arc<Database>, Client, u64) {
    let (database, client) = node.database("db", WAL);
    client.run("INSERT INTO t VALUES(1, randomblob(100000))").expect("writes");
    database.position_now().expect("captures");
    let len = wal_len(&database);
    (database, client, len)
}

#[test]
fn a_synced_wal_has_room_and_what_is_behind_its_frames_is_nothing() {
    let node = Node::start(Mode::Primary);
    let (database, client, frames) = with_frames(&node);
    let mut model = Model::default();
    database.wal_sync().expect("syncs");
    let roomy = wal_len(&database);
    assert!(roomy >= frames + (256 << 10), "{roomy} bytes for {frames} of frames");
    check(&database, &mut model, &client);
    for id in 2..10 {
        client.run(&format!("INSERT INTO t VALUES({id}, randomblob(5000))")).expect("writes");
        database.wal_sync().expect("syncs");
        check(&database, &mut model, &client);
    }
    assert_eq!(wal_len(&database), roomy, "commits go into the room");

    // SQLite's own recovery, on copies without the wal-index.
    let copy = tempfile::tempdir().expect("folder");
    let file = copy.path().join("copy");
    std::fs::copy(node.path("db"), &file).expect("copies");
    std::fs::copy(database.files.path(crate::FileKind::Wal), copy.path().join("copy-wal")).expect("copies");
    let connection = rusqlite::Connection::open(&file).expect("opens");
    let rows: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("reads");
    assert_eq!(rows, 9);
    connection.execute_batch("INSERT INTO t VALUES(100, 'x'); PRAGMA integrity_check").expect("writes on");
}

#[test]
fn a_node_that_died_with_room_in_the_wal_recovers_every_commit() {
    let node = Node::start(Mode::Primary);
    let (database, client, _) = with_frames(&node);
    database.wal_sync().expect("syncs");
    client.run("INSERT INTO t VALUES(2, 'x')").expect("writes");
    let pos = database.position_now().expect("captures");
    let restarted = super::crash::restarted(&node);
    let again = restarted.store.database("db").expect("is there");
    assert_eq!(again.health(), crate::database::Health::Ok);
    assert_eq!(again.pos(), pos);
}

#[test]
fn room_is_made_neither_beyond_what_a_client_wants_nor_on_a_full_disk() {
    let node = Node::start(Mode::Primary);
    let (database, client, frames) = with_frames(&node);
    let mut model = Model::default();
    database.wal_truncate(frames).expect("cuts nothing");
    database.wal_sync().expect("syncs");
    assert_eq!(wal_len(&database), frames, "`journal_size_limit`");
    check(&database, &mut model, &client);

    let node = Node::start(Mode::Primary);
    let (database, client, frames) = with_frames(&node);
    let mut model = Model::default();
    {
        let _full = fault::on_this_thread("wal.extend", libc::ENOSPC, 1);
        database.wal_sync().expect("the commit itself has its room");
    }
    database.wal_sync().expect("syncs");
    assert_eq!(wal_len(&database), frames, "not tried again");
    check(&database, &mut model, &client);
}
