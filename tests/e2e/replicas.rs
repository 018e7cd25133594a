//! A primary and replicas by a static lease.

use std::fs;

use litefs_tests::sqlite::cli;
use litefs_tests::{Node, eventually, wait_until};

#[test]
fn every_journal_mode_replicates() {
    let primary = Node::primary();
    let replica = Node::replica_of(&primary);
    for mode in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        let name = format!("{}.db", mode.to_lowercase());
        cli(&primary.db(&name), &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)")).expect(mode);
        for round in 1..=10 {
            let sql = format!(
                "PRAGMA journal_mode={mode}; INSERT INTO t SELECT randomblob(300) FROM generate_series(1, {round})"
            );
            cli(&primary.db(&name), &sql).expect(mode);
        }
        replica.wait_same_pos(&primary, &name);
        let check = "SELECT count(*), sum(length(x)) FROM t; PRAGMA integrity_check";
        assert_eq!(cli(&replica.db(&name), check), cli(&primary.db(&name), check), "{mode}");
    }
    assert!(!replica.is_primary() && primary.is_primary());
}

#[test]
fn a_replica_refuses_writes_as_busy_and_tells_its_primary() {
    let primary = Node::primary();
    let replica = Node::replica_of(&primary);
    cli(&primary.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    replica.wait_same_pos(&primary, "a.db");
    let connection = rusqlite::Connection::open(replica.db("a.db")).expect("open");
    connection.busy_timeout(std::time::Duration::ZERO).expect("timeout");
    let error = connection.execute("INSERT INTO t VALUES(1)", []).expect_err("a replica does not write");
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{error}");
    assert!(replica.db(".primary").exists() && !primary.db(".primary").exists());
    wait_until("the lag is small", &true, || {
        let lag = fs::read_to_string(replica.db(".lag")).unwrap_or_default();
        lag.len() == 11 && lag.trim().parse::<i64>().is_ok_and(|ms| ms < 60_000)
    });
    assert_eq!(fs::read_to_string(primary.db(".lag")).expect("lag"), "+000000000\n");
}

#[test]
fn a_reader_keeps_its_snapshot_while_the_replica_goes_on() {
    let primary = Node::primary();
    let replica = Node::replica_of(&primary);
    cli(&primary.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("create");
    replica.wait_same_pos(&primary, "a.db");
    let connection = rusqlite::Connection::open(replica.db("a.db")).expect("open");
    let count = || connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).expect("read");
    connection.execute_batch("BEGIN").expect("begin");
    assert_eq!(count(), 1);
    for _ in 0..20 {
        cli(&primary.db("a.db"), "INSERT INTO t VALUES(2)").expect("insert");
    }
    replica.wait_same_pos(&primary, "a.db");
    assert_eq!(count(), 1, "the snapshot of the open transaction");
    connection.execute_batch("COMMIT").expect("commit");
    assert_eq!(count(), 21);
}

#[test]
fn a_replica_that_was_away_or_killed_catches_up() {
    let primary = Node::primary();
    let mut replica = Node::replica_of(&primary);
    cli(&primary.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    cli(&primary.db("b.db"), "CREATE TABLE t(x)").expect("create");
    for round in 0..4 {
        if round % 2 == 0 {
            replica.kill();
        } else {
            replica.stop();
        }
        for name in ["a.db", "b.db"] {
            let sql = "INSERT INTO t SELECT randomblob(1000) FROM generate_series(1, 100)";
            cli(&primary.db(name), sql).expect("insert");
        }
        replica.launch();
        replica.wait_ready();
        for name in ["a.db", "b.db"] {
            replica.wait_same_pos(&primary, name);
            let check = "SELECT count(*) FROM t; PRAGMA integrity_check";
            assert_eq!(cli(&replica.db(name), check), cli(&primary.db(name), check));
        }
    }
}

#[test]
fn a_primary_that_comes_back_keeps_its_replica() {
    let mut primary = Node::primary();
    let replica = Node::replica_of(&primary);
    cli(&primary.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    for round in 1..4 {
        if round == 2 {
            primary.restart();
        } else {
            primary.kill();
            primary.launch();
            primary.wait_ready();
        }
        cli(&primary.db("a.db"), "INSERT INTO t VALUES(1)").expect("insert");
        replica.wait_same_pos(&primary, "a.db");
        assert_eq!(cli(&replica.db("a.db"), "SELECT count(*) FROM t"), Ok(round.to_string()));
    }
}

#[test]
fn dropped_and_created_again_databases_replicate() {
    let primary = Node::primary();
    let replica = Node::replica_of(&primary);
    cli(&primary.db("a.db"), "CREATE TABLE old(x)").expect("create");
    replica.wait_same_pos(&primary, "a.db");
    fs::remove_file(primary.db("a.db")).expect("remove");
    wait_until("the drop arrives", &false, || replica.db("a.db").exists());
    cli(&primary.db("a.db"), "CREATE TABLE new(x)").expect("create");
    eventually("the new one arrives", || {
        (cli(&replica.db("a.db"), "SELECT name FROM sqlite_schema").as_deref() == Ok("new")).then_some(())
    });
    replica.wait_same_pos(&primary, "a.db");
}

#[test]
fn a_new_replica_gets_everything_and_exports_the_same() {
    let primary = Node::primary();
    for index in 0..3 {
        let sql = "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t SELECT randomblob(1000) FROM generate_series(1, 500)";
        cli(&primary.db(&format!("{index}.db")), sql).expect("fill");
    }
    let replica = Node::replica_of(&primary);
    for index in 0..3 {
        let name = format!("{index}.db");
        replica.wait_same_pos(&primary, &name);
        let export = |node: &Node| node.get(&format!("/export?name={name}")).expect("export").body;
        let (ours, theirs) = (export(&primary), export(&replica));
        assert!(!ours.is_empty() && ours == theirs, "{name}");
    }
    assert_eq!(replica.post("/import?name=0.db", b"x").expect("answer").status, 503, "only the primary imports");
}
