//! Steps of a start and of a clean stop.

use std::fs;
use std::path::{Path, PathBuf};

use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually};

use super::{Acknowledged, Faulty, errors};

/// What recovery and a clean stop get to.
pub const LABELS: &[&str] = &[
    "bootid.keep",
    "checksums.create",
    "checksums.remove",
    "checksums.rename",
    "checksums.sync",
    "checksums.write",
    "clusterid.keep",
    "late.remove",
    "recover.checkpoint",
    "recover.redo",
    "recover.rollback",
    "recover.seal",
    "shm.retire",
];

/// Shared with a running node.
const SHARED: &[&str] = &["journal.unlink", "log.append", "log.sync", "wal.unlink"];

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    for entry in fs::read_dir(from).expect("read").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

/// A data directory in need of recovery, and what must be there afterwards.
struct Case {
    name: &'static str,
    data: PathBuf,
    acknowledged: Acknowledged,
    _folder: tempfile::TempDir,
}

impl Case {
    /// Runs a node through `run`, which ends it, and keeps its directory.
    fn make(name: &'static str, run: impl FnOnce(&mut Faulty) -> Vec<(&'static str, u64)>) -> Self {
        let mut faulty = Faulty::new(NodeConfig::default());
        faulty.start();
        let mut acknowledged = Acknowledged::default();
        for (db, number) in run(&mut faulty) {
            acknowledged.0.entry(db.to_owned()).or_default().insert(number);
        }
        let folder = tempfile::tempdir().expect("folder");
        let data = folder.path().join("data");
        copy_all(&faulty.node.data(), &data);
        Self { name, data, acknowledged, _folder: folder }
    }
}

fn insert(node: &Node, db: &str, number: u64) {
    cli(&node.db(db), &format!("INSERT INTO r VALUES({number}, randomblob(5000))")).expect("insert");
}

fn cases() -> Vec<Case> {
    let behind = Case::make("commits that the log lacks", |faulty| {
        cli(&faulty.node.db("w.db"), "PRAGMA journal_mode=WAL; CREATE TABLE r(n INTEGER PRIMARY KEY, x)")
            .expect("create");
        insert(&faulty.node, "w.db", 1);
        faulty.set("log.append:28");
        insert(&faulty.node, "w.db", 2);
        faulty.node.kill();
        vec![("w.db", 1), ("w.db", 2)]
    });
    let ahead = Case::make("a journal that had not ended", |faulty| {
        cli(&faulty.node.db("d.db"), "CREATE TABLE r(n INTEGER PRIMARY KEY, x)").expect("create");
        insert(&faulty.node, "d.db", 1);
        faulty.set("journal.unlink:kill");
        let sql = "INSERT INTO r VALUES(2, randomblob(5000))";
        assert!(cli(&faulty.node.db("d.db"), sql).is_err(), "the node was killed");
        faulty.node.wait_exit();
        vec![("d.db", 1)]
    });
    let late = Case::make("a commit with synchronous=OFF that is not recorded", |faulty| {
        cli(&faulty.node.db("e.db"), "CREATE TABLE r(n INTEGER PRIMARY KEY, x)").expect("create");
        insert(&faulty.node, "e.db", 1);
        // The first of two commits is recorded when the client begins the second.
        faulty.set("log.append:28:1000:1");
        let sql = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=PERSIST; PRAGMA synchronous=OFF;
            INSERT INTO r VALUES(2, randomblob(5000)); INSERT INTO r VALUES(3, randomblob(5000))";
        cli(&faulty.node.db("e.db"), sql).expect("insert");
        faulty.node.kill();
        vec![("e.db", 1), ("e.db", 2), ("e.db", 3)]
    });
    let clean = Case::make("a clean stop", |faulty| {
        cli(&faulty.node.db("c.db"), "CREATE TABLE r(n INTEGER PRIMARY KEY, x)").expect("create");
        insert(&faulty.node, "c.db", 1);
        faulty.node.stop();
        vec![("c.db", 1)]
    });
    let gap = Case::make("frames without checksums", |faulty| {
        faulty.node.kill();
        let dir = faulty.node.data().join("dbs/gap.db");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/sqlite-3.40-rollback-to");
        fs::create_dir_all(&dir).expect("folder");
        for name in ["database", "wal", "shm"] {
            fs::copy(golden.join(name), dir.join(name)).expect("copy");
        }
        Vec::new()
    });
    vec![behind, ahead, late, clean, gap]
}

/// A start on a copy of the case's directory with a fault; whether it struck.
fn start_with(case: &Case, label: &str, what: &str) -> bool {
    let mut faulty = Faulty::new(NodeConfig::default());
    copy_all(&case.data, &faulty.node.data());
    match label {
        "bootid.keep" => drop(fs::remove_file(faulty.node.data().join("bootid"))),
        "clusterid.keep" => drop(fs::remove_file(faulty.node.data().join("clusterid"))),
        _ => {}
    }
    let fault = format!("{label}:{what}");
    let what = format!("{}, {fault}", case.name);
    let at_stop = label.starts_with("checksums.") && label != "checksums.remove";
    if !at_stop {
        faulty.set(&fault);
    }
    // It serves, says what is broken, or does not start: whatever the step allows.
    faulty.node.launch();
    let mut up = eventually("the start ends", || {
        let up = faulty.node.log_of_this_start().contains("node is ready");
        // Without a cluster ID it does not become the primary, and tries again.
        let waits = label == "clusterid.keep" && faulty.struck(label) && !what.contains("kill");
        (up || waits || faulty.node.has_ended()).then_some(up)
    });
    let struck = faulty.struck(label);
    if !up && !faulty.node.has_ended() {
        faulty.clear();
        faulty.node.wait_ready();
        faulty.set("");
        up = true;
    }
    if up {
        if at_stop {
            faulty.set(&fault);
        }
        faulty.node.stop();
    } else {
        faulty.node.wait_exit();
    }
    let struck = struck || faulty.struck(label);
    faulty.clear();
    faulty.start();
    case.acknowledged.check(&faulty.node, &what);
    if case.name.starts_with("frames") {
        // Without the boot's ID the wal-index, which alone vouches for the last one, is not believed.
        let rows = if label == "bootid.keep" { "3" } else { "4" };
        assert_eq!(cli(&faulty.node.db("gap.db"), "SELECT count(*) FROM t").as_deref(), Ok(rows), "{what}");
    }
    struck
}

#[test]
fn a_start_or_stop_that_fails_at_any_step_is_repeated() {
    let cases = cases();
    for label in LABELS.iter().chain(SHARED) {
        for what in errors(label).into_iter().chain(["kill:1".to_owned()]) {
            let mut struck = false;
            for case in &cases {
                struck |= start_with(case, label, &what);
                // One case is enough, where not all are wanted.
                if struck && std::env::var_os("LITEFS_TEST_FAULTS").is_none() {
                    break;
                }
            }
            assert!(struck, "{label}:{what} is never reached");
        }
    }
}
