//! Applying a record when an OS call fails: the next call completes it; and a node that dies at that point recovers.

use std::path::Path;
use std::sync::Arc;

use super::replica::{apply, replica};
use super::rollback::{hooked_database, open};
use super::{Node, WAIT, config};
use crate::database::{Database, Health, Record};
use crate::store::Mode;
use crate::{Layout, PlainDirectory, Store, fault};

/// Every labelled call on the way of a record.
const LABELS: [&str; 9] = [
    "log.append",
    "log.sync",
    "wal.append",
    "wal.sync",
    "wal.create",
    "shm.create",
    "database.write",
    "database.truncate",
    "database.sync",
];

fn export(database: &Database, what: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    database.export(&mut bytes).unwrap_or_else(|error| panic!("export {what}: {error}"));
    bytes
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("lists") {
        let (path, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("lists");
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(path, target).expect("copies");
        }
    }
}

/// The node as its files say at this moment: what a start after `kill -9` finds.
pub(super) fn restarted(node: &Node) -> Node {
    let dir = tempfile::tempdir().expect("temporary folder");
    copy_folder(node.dir.path(), dir.path());
    let store = Store::open_with_layout(config(dir.path()), Layout::Sqlite).expect("opens");
    store.attach_kernel(Arc::new(PlainDirectory { dbs: dir.path().join("dbs"), layout: Layout::Sqlite }));
    store.set_mode(Mode::Replica, WAIT).expect("mode");
    Node { dir, store }
}

/// A primary's history in this journal mode, and what it exports at the end.
fn history(mode: &str) -> (Vec<Record>, Vec<u8>, Node) {
    let node = Node::start(Mode::Primary);
    let (primary, vfs) = hooked_database(&node, "db");
    let writer = open(&node, "db", &vfs);
    writer
        .execute_batch(&format!(
            "PRAGMA auto_vacuum=full; PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x);"
        ))
        .expect("creates");
    for statement in [
        "INSERT INTO t VALUES(1, randomblob(30000)), (2, randomblob(30000))",
        "UPDATE t SET x = randomblob(60000) WHERE id = 1",
        // Shorter than before, in rollback mode at once.
        "DELETE FROM t WHERE id = 2",
        "INSERT INTO t VALUES(3, randomblob(9000))",
    ] {
        writer.execute_batch(statement).expect(statement);
        primary.position_now().expect("captures");
    }
    let records =
        primary.log.after(crate::Pos::ZERO).expect("reads").expect("all").map(|record| record.expect("reads"));
    let records = records.collect();
    let image = export(&primary, mode);
    (records, image, node)
}

fn finish(database: &Arc<Database>, records: &[Record], image: &[u8], what: &str) {
    for record in records.iter().filter(|record| record.post.txid > database.pos().txid).collect::<Vec<_>>() {
        apply(database, record).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    assert_eq!(database.pos(), records.last().expect("some").post, "{what}");
    assert!(export(database, what) == image, "{what}: other contents");
}

fn fail_at(label: &'static str, mode: &str, at: usize, records: &[Record], image: &[u8]) {
    let what = format!("{label} fails in {mode} at record {at}");
    let node = Node::start(Mode::Replica);
    let database = replica(&node);
    for record in &records[..at] {
        apply(&database, record).expect(&what);
    }
    let injected = fault::on_this_thread(label, libc::ENOSPC, 1);
    let result = apply(&database, &records[at]);
    drop(injected);
    let dead = restarted(&node);
    let recovered = dead.store.database("db").expect("there");
    assert_eq!(recovered.health(), Health::Ok, "{what}");
    let possible = [at.checked_sub(1).map(|before| records[before].post).unwrap_or_default(), records[at].post];
    assert!(possible.contains(&recovered.pos()), "{what}: recovered to {}", recovered.pos());
    if result.is_ok() {
        assert_eq!(recovered.pos(), records[at].post, "{what}: an applied record is lost");
    }
    finish(&recovered, records, image, &what);
    finish(&database, records, image, &what);
}

#[test]
fn a_failed_call_is_completed_by_the_next_apply_and_by_recovery() {
    for mode in ["delete", "wal"] {
        let (records, image, _node) = history(mode);
        for label in LABELS {
            for at in 0..records.len() {
                fail_at(label, mode, at, &records, &image);
            }
        }
    }
}
