//! Recovery beside the mark of commits that are recorded late, and a hot journal.

use std::fs;

use super::tests::{Node, insert};
use crate::Txid;
use crate::kernel::FileKind;

/// A database with free pages, all of it recorded, and its client with `synchronous=OFF`.
fn with_free_pages() -> (Node, rusqlite::Connection) {
    let node = Node::new("delete");
    node.client().execute_batch("DELETE FROM t WHERE id > 5").expect("delete");
    assert_eq!(node.restart().txid, Txid(1));
    let client = node.client();
    client.execute_batch("PRAGMA synchronous=off; PRAGMA cache_size=2").expect("pragmas");
    (node, client)
}

fn mark(node: &Node) {
    fs::write(node.db_dir().join("late"), "").expect("the mark");
}

#[test]
fn a_recorded_transaction_whose_journal_had_not_ended_goes_forward() {
    let (node, client) = with_free_pages();
    // What was on the free pages is not in the journal: rolled back, the file is at no position of the log.
    client
        .execute_batch("BEGIN; INSERT INTO t VALUES(100, randomblob(9000)); UPDATE t SET x=randomblob(2000)")
        .expect("spill");
    let crashed = node.crash();
    assert!(crashed.path(FileKind::Journal).exists());
    client.execute_batch("COMMIT").expect("commit");
    drop(client);
    let recorded = node.crash();
    let pos = recorded.restart();
    crashed.take_log_of(&recorded);
    mark(&crashed);
    let started = crashed.start();
    assert_eq!((started.database.pos(), started.rows()), (pos, 6));
    assert!(!crashed.db_dir().join("late").exists());
}

#[test]
fn a_late_commit_is_recorded_though_a_transaction_had_begun_behind_it() {
    let (node, client) = with_free_pages();
    insert(&client, 1);
    // Nothing of it is in the database file yet.
    client.execute_batch("PRAGMA cache_size=1000; BEGIN; UPDATE t SET x=1 WHERE id=1").expect("begin");
    let crashed = node.crash();
    assert!(crashed.path(FileKind::Journal).exists());
    mark(&crashed);
    let started = crashed.start();
    assert_eq!((started.database.pos().txid, started.rows()), (Txid(2), 6));
}
