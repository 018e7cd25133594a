//! Steps on the way of a record on a replica, and of what a node must give up.

use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually};

use super::{Acknowledged, Faulty, Round, create, errors};

/// What applying gets to, beside what it shares with a primary.
pub const LABELS: &[&str] = &[
    "lost_and_found.create",
    "lost_and_found.rename",
    "lost_and_found.sync",
    "lost_and_found.write",
    "received.create",
    "received.write",
    "rejoin.forget",
    "rejoin.mark",
    "wal.append",
    "wal.create",
    "wal.header",
    "wal.truncate",
];

/// Shared with a primary, and different enough.
const SHARED: &[&str] = &[
    "database.sync",
    "database.truncate",
    "database.write",
    "log.adopt",
    "log.append",
    "log.spool",
    "log.sync",
    "wal.sync",
];

/// Whether only a node with transactions of its own gets to it.
fn gives_up(label: &str) -> bool {
    label.starts_with("lost_and_found") || label.starts_with("rejoin")
}

/// A primary with tables, and a replica that can fail.
struct Pair {
    primary: Node,
    replica: Faulty,
    number: u64,
    acknowledged: Acknowledged,
}

impl Pair {
    fn start() -> Self {
        let primary = Node::primary();
        create(&primary);
        let replica = Faulty::new(NodeConfig { lease: primary.replica_lease(), ..NodeConfig::default() });
        Self { primary, replica, number: 0, acknowledged: Acknowledged::default() }
    }

    /// Writes in every way, and in a new database; another page size as well.
    fn write(&mut self) {
        Round::run(&self.primary, &mut self.number, &mut self.acknowledged);
        let page_size = 4096 << (self.number / 100 % 2);
        let sql = format!("PRAGMA journal_mode=DELETE; PRAGMA page_size={page_size}; VACUUM; PRAGMA journal_mode=WAL");
        eventually("another page size", || cli(&self.primary.db("w.db"), &sql).ok());
        cli(&self.primary.db("w.db"), "CREATE TABLE IF NOT EXISTS other(x); INSERT INTO other VALUES(1)")
            .expect("write");
        let new = self.primary.db(&format!("new{}.db", self.number));
        cli(&new, "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("create");
    }

    fn check(&self, what: &str) {
        for name in ["w.db", "d.db", &format!("new{}.db", self.number)] {
            self.replica.node.wait_same_pos(&self.primary, name);
            let export = |node: &Node| node.get(&format!("/export?name={name}")).expect("export").body;
            assert!(export(&self.replica.node) == export(&self.primary), "{what}: {name}");
        }
    }
}

#[test]
fn a_replica_catches_up_when_the_cause_is_gone() {
    let mut pair = Pair::start();
    pair.replica.start();
    for label in LABELS.iter().filter(|label| !gives_up(label)).chain(SHARED) {
        for what in errors(label).into_iter().chain(["kill:1".to_owned()]) {
            let what = format!("{label}:{what}");
            // The position file is opened once per start.
            if *label == "received.create" {
                pair.replica.node.kill();
                pair.replica.start();
            }
            pair.replica.set(&what);
            pair.write();
            eventually(&format!("{what} strikes"), || pair.replica.struck(label).then_some(()));
            if what.contains("kill") {
                pair.replica.start_after_kill();
            } else {
                pair.replica.clear();
            }
            pair.check(&what);
        }
    }
}

#[test]
fn what_a_node_must_give_up_is_kept_whatever_fails() {
    for label in LABELS.iter().filter(|label| gives_up(label)).chain(&["database.write"]) {
        for what in errors(label).into_iter().chain(["kill:1".to_owned()]) {
            let what = format!("{label}:{what}");
            let mut pair = Pair::start();
            // So large that a record is worth it.
            let fill = "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 1300)
                        INSERT INTO r SELECT i, randomblob(1000) FROM n; DELETE FROM r WHERE n = 1100";
            cli(&pair.primary.db("d.db"), fill).expect("fill");
            pair.replica.start();
            pair.replica.node.wait_same_pos(&pair.primary, "d.db");
            // It was a primary of its own for a while.
            pair.replica.node.stop();
            let lease = std::mem::take(&mut pair.replica.node.config_mut().lease);
            pair.replica.start();
            cli(&pair.replica.node.db("d.db"), "INSERT INTO r VALUES(-1, 'mine')").expect("write");
            pair.replica.node.stop();
            cli(&pair.primary.db("d.db"), "INSERT INTO r VALUES(1, 'theirs')").expect("write");
            pair.replica.node.config_mut().lease = lease;
            pair.replica.set(&what);
            pair.replica.node.launch();
            eventually(&format!("{what} strikes"), || pair.replica.struck(label).then_some(()));
            if what.contains("kill") {
                pair.replica.start_after_kill();
            } else {
                pair.replica.clear();
            }
            pair.replica.node.wait_same_pos(&pair.primary, "d.db");
            let export = |node: &Node| node.get("/export?name=d.db").expect("export").body;
            assert!(export(&pair.replica.node) == export(&pair.primary), "{what}");
            let kept = pair.replica.node.data().join("lost+found/d.db");
            let whole = std::fs::read_dir(kept).expect("kept").flatten().any(|entry| {
                !entry.file_name().to_string_lossy().starts_with('.')
                    && std::fs::read_dir(entry.path()).is_ok_and(|mut files| files.next().is_some())
            });
            assert!(whole, "{what}");
        }
    }
}
