//! Recovery that is itself interrupted: any one of its OS calls fails, and the next start gets to the same end.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::seal_tests::without_checksums;
use super::tests::{Node, in_mid_transaction, insert, with_three_commits_in_the_wal};
use crate::kernel::FileKind;
use crate::{Pos, fault};

/// Every labelled call that recovery makes.
const LABELS: [&str; 17] = [
    "recover.seal",
    "recover.rollback",
    "recover.checkpoint",
    "recover.redo",
    "log.create",
    "log.append",
    "log.adopt",
    "log.spool",
    "log.sync",
    "log.sync_dir",
    "log.truncate",
    "log.remove",
    "wal.unlink",
    "shm.unlink",
    "journal.unlink",
    "checksums.remove",
    "lost_and_found.sync",
];

/// Files in need of recovery, the position it must lead to (if it is the same every time), and the rows.
fn cases() -> Vec<(&'static str, Node, Option<Pos>, i64)> {
    let mut cases = Vec::new();
    let (base, crashed) = with_three_commits_in_the_wal();
    let recovered = crashed.crash();
    let pos = recovered.restart();
    cases.push(("commits without a record", crashed.crash(), Some(pos), 13));

    cases.push(("a frame that only the wal-index vouches for", without_checksums(&crashed), Some(pos), 13));

    base.take_log_of(&recovered);
    cases.push(("the log is ahead", base, Some(pos), 13));

    let begun = crashed.crash();
    let done = fs::read(recovered.path(FileKind::Database)).expect("read");
    let file = File::options().write(true).open(begun.path(FileKind::Database)).expect("open");
    file.write_all_at(&done[4096..8192], 4096).expect("write");
    cases.push(("a checkpoint had begun", begun, None, 13));

    let damaged = recovered.crash();
    let _ = fs::remove_file(damaged.dir.path().join("dbs/app.db/checksums"));
    let file = File::options().write(true).open(damaged.path(FileKind::Database)).expect("open");
    file.write_all_at(b"damage", 5000).expect("write");
    cases.push(("a damaged page", damaged, Some(pos), 13));

    cases.push(("no log", Node::new("wal"), None, 10));
    let (_, hot, _client) = in_mid_transaction();
    cases.push(("a hot journal", hot, None, 10));
    let node = Node::new("delete");
    node.restart();
    insert(&node.client(), 2);
    cases.push(("written while no node ran", node, None, 12));
    cases
}

#[test]
fn whichever_call_fails_the_next_start_gets_there() {
    for (name, node, pos, rows) in cases() {
        for label in LABELS {
            for strikes in [1, 2] {
                println!("{name}, {label} fails {strikes} times");
                let node = node.crash();
                let injected = fault::on_this_thread(label, libc::EIO, strikes);
                // Broken, degraded, or not started at all.
                drop(node.try_start());
                drop(injected);
                let started = node.start();
                assert_eq!(started.rows(), rows, "{name}, {label} failed {strikes} times");
                if let Some(pos) = pos {
                    assert_eq!(started.database.pos(), pos, "{name}, {label} failed {strikes} times");
                }
            }
        }
    }
}
