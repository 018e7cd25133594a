//! Imports beside live clients.

use std::io;
use std::path::Path;

use super::model::Model;
use super::*;
use crate::{Txid, fault};

/// A database file with `rows` rows in table `name`.
fn file(dir: &Path, pragmas: &str, name: &str, rows: u32) -> PathBuf {
    let path = dir.join(name);
    let connection = rusqlite::Connection::open(&path).expect("opens");
    let sql = format!(
        "{pragmas}; CREATE TABLE {name}(x);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows}) INSERT INTO {name} SELECT randomblob(900) FROM n;"
    );
    connection.execute_batch(&sql).expect("runs");
    connection.close().expect("closes");
    path
}

#[test]
fn open_clients_see_the_imported_file_and_keep_their_journal_mode() {
    let files = tempfile::tempdir().expect("dir");
    for (mode, imported_mode) in [("wal", "delete"), ("delete", "wal"), ("wal", "wal")] {
        let node = Node::start(Mode::Primary);
        let sql = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x); INSERT INTO t VALUES(1);");
        let (database, client) =
            if mode == "wal" { node.database("db", &sql) } else { node.rollback_database("db", &sql) };
        if mode == "wal" {
            client.run("INSERT INTO t VALUES(2)").expect("writes");
        }
        let before = database.position_now().expect("captures");
        let name = format!("{mode}_{imported_mode}");
        let source = file(files.path(), &format!("PRAGMA journal_mode={imported_mode}"), &name, 300);
        let pos = database.import(&source).expect("imports");
        assert_eq!(pos.txid, before.txid.next());
        assert_eq!(client.run(&format!("SELECT count(*) FROM {name}")), Ok("300".into()), "{name}");
        assert!(client.run("SELECT * FROM t").is_err(), "the old table is gone");
        assert_eq!(client.run("PRAGMA journal_mode"), Ok(mode.into()));
        assert_eq!(client.run("PRAGMA integrity_check"), Ok("ok".into()));
        if mode == "wal" {
            client.run(&format!("INSERT INTO {name} VALUES(1)")).expect("writes again");
            let mut model = Model::default();
            database.position_now().expect("captures");
            model.follow(&database);
            assert!(model.image() == client.image(), "byte for byte");
        }
        // The same file again: only page 1 differs.
        let again = database.import(&source).expect("imports");
        let record = database.log.read(again.txid).expect("reads").expect("record");
        assert!(mode == "wal" || record.body.len() < 10_000, "unchanged pages are not in the record");
    }
}

#[test]
fn another_page_size_starts_history_again() {
    let files = tempfile::tempdir().expect("dir");
    let node = Node::start(Mode::Primary);
    let (database, client) = node.rollback_database("db", "PRAGMA page_size=4096; CREATE TABLE t(x);");
    let source = file(files.path(), "PRAGMA page_size=1024", "small", 50);
    let pos = database.import(&source).expect("imports");
    assert_eq!((pos.txid, database.page_size()), (Txid(2), 1024));
    assert_eq!(database.log.first_pos(), Some(crate::Pos::ZERO));
    assert_eq!(client.run("SELECT count(*) FROM small"), Ok("50".into()));
}

#[test]
fn a_new_database_is_created_by_its_import_or_not_at_all() {
    let files = tempfile::tempdir().expect("dir");
    let node = Node::start(Mode::Primary);
    let source = file(files.path(), "PRAGMA journal_mode=wal", "fresh", 10);
    let name = "new.db".parse().expect("name");
    let database = node.store.create(&name).expect("creates");
    let pos = database.import(&source).expect("imports");
    assert_eq!(pos.txid, Txid(1));
    let client = Client::open(&node.path("new.db"));
    assert_eq!(client.run("SELECT count(*) FROM fresh"), Ok("10".into()));
}

#[test]
fn what_is_no_database_changes_nothing() {
    let files = tempfile::tempdir().expect("dir");
    let node = Node::start(Mode::Primary);
    let (database, client) = node.rollback_database("db", "CREATE TABLE t(x); INSERT INTO t VALUES(7);");
    let pos = database.pos();
    let source = file(files.path(), "", "whole", 50);
    let whole = std::fs::read(&source).expect("reads");
    let bad = files.path().join("bad");
    for bytes in [&b""[..], b"hello", &whole[..5000], &[&[0; 16], &whole[16..]].concat()] {
        std::fs::write(&bad, bytes).expect("writes");
        assert_eq!(database.import(&bad).expect_err("refused").kind(), io::ErrorKind::InvalidData);
    }
    let other_size = file(files.path(), "PRAGMA page_size=1024;", "small", 50);
    for label in ["log.append", "log.spool", "import.reserve", "log.adopt", "log.sync"] {
        for source in [&source, &other_size] {
            // The first sync of an import is that of the record.
            let times = if label == "log.sync" { 1 } else { u64::MAX };
            database.log.sync().expect("syncs");
            let injected = fault::on_this_thread(label, libc::ENOSPC, times);
            assert_eq!(database.import(source).expect_err("full").raw_os_error(), Some(libc::ENOSPC), "{label}");
            drop(injected);
            assert_eq!((database.pos(), client.run("SELECT x FROM t")), (pos, Ok("7".into())), "{label}");
            assert_eq!(database.log.last_pos(), pos, "{label}: the log is as before");
            client.run("BEGIN IMMEDIATE; ROLLBACK").expect("clients may write again");
        }
    }
    node.store.set_mode(Mode::Replica, WAIT).expect("mode");
    assert_eq!(database.import(&source).expect_err("replica").kind(), io::ErrorKind::ReadOnlyFilesystem);
}
