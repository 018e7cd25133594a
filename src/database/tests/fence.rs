//! The fence.

use super::*;

const WAL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(x);";
const ROLLBACK: &str = "CREATE TABLE t(x);";

#[test]
fn a_replica_refuses_writes_as_busy_and_takes_them_after_promotion() {
    for sql in [WAL, ROLLBACK] {
        let node = Node::start(Mode::Primary);
        let (_, client) = if sql == WAL { node.database("db", sql) } else { node.rollback_database("db", sql) };
        node.store.set_mode(Mode::Replica, WAIT).expect("closes");
        assert_eq!(client.run("INSERT INTO t VALUES(1)"), Err("database is locked".to_owned()));
        assert_eq!(client.run("SELECT count(*) FROM t"), Ok("0".to_owned()));
        node.store.set_mode(Mode::Primary, WAIT).expect("opens");
        client.run("INSERT INTO t VALUES(1)").expect("writes on the same connection");
    }
}

#[test]
fn closing_waits_for_the_running_transaction_and_captures_it() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    client.run("BEGIN IMMEDIATE; INSERT INTO t VALUES(1)").expect("writes");
    let error = node.store.set_mode(Mode::Replica, Duration::from_millis(50)).expect_err("still running");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(!database.is_fenced());
    client.run("COMMIT").expect("commits");
    node.store.set_mode(Mode::Replica, WAIT).expect("closes");
    assert_eq!(database.pos().txid.0, 2, "captured");
    assert!(client.run("INSERT INTO t VALUES(2)").is_err());
}

#[test]
fn halt_keeps_writers_out_until_unhalt() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    client.run("INSERT INTO t VALUES(1)").expect("writes");
    let pos = database.halt(WAIT).expect("halts");
    assert_eq!(pos.txid.0, 2);
    assert!(client.run("INSERT INTO t VALUES(2)").is_err());
    database.unhalt();
    client.run("INSERT INTO t VALUES(2)").expect("writes");
    client.run("BEGIN IMMEDIATE").expect("begins");
    assert!(database.halt(Duration::from_millis(20)).is_err());
    client.run("COMMIT").expect("ends");
    wait_until("a halt in vain leaves nothing", || client.run("INSERT INTO t VALUES(3)").is_ok());
}

#[test]
fn a_replica_with_the_halt_lock_writes_locally() {
    let node = Node::start(Mode::Primary);
    let (database, client) = node.database("db", WAL);
    node.store.set_mode(Mode::Replica, WAIT).expect("closes");
    database.set_local_writes(true).expect("opens");
    client.run("INSERT INTO t VALUES(1)").expect("writes");
    assert_eq!(database.set_local_writes(false).expect("closes").txid.0, 2);
    assert!(client.run("INSERT INTO t VALUES(2)").is_err());
}
