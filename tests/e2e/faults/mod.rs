//! Faults at every labelled step of the real binary ([`litefs::fault`]): a full disk, an I/O error, a short write, a kill. The
//! client gets an error or the commit stands; nothing acknowledged is lost; the process lives, says that it is degraded, and
//! heals without a restart when the cause is gone.
//!
//! By default each label meets one of the errors, and the kill; `LITEFS_TEST_FAULTS=all` makes it all of them.

mod disk;
mod following;
mod serving;
mod starting;
mod super_journal;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use litefs::fault::STEPS;
use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually};

/// What strikes at a label: errors first, then the kill.
fn errors(label: &str) -> Vec<String> {
    let at = STEPS.iter().position(|step| step.label == label).expect("a label of fault::STEPS");
    let mut errors = vec![libc::ENOSPC.to_string(), libc::EIO.to_string()];
    if STEPS[at].writes {
        errors.push("short".to_owned());
    }
    if std::env::var("LITEFS_TEST_FAULTS").is_ok_and(|wanted| wanted == "all") {
        return errors;
    }
    vec![errors.swap_remove(at % errors.len())]
}

/// A node whose steps can be made to fail while it runs.
struct Faulty {
    node: Node,
    folder: tempfile::TempDir,
}

impl Faulty {
    /// Not started yet.
    fn new(mut config: NodeConfig) -> Self {
        let folder = tempfile::Builder::new().prefix("litefs-faults-").tempdir().expect("folder");
        let file = folder.path().join("faults").to_string_lossy().into_owned();
        config.env.push(("LITEFS_FAULTS_FILE".to_owned(), file));
        Self { node: Node::new(config), folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("faults")
    }

    fn start(&mut self) {
        self.node.launch();
        self.node.wait_ready();
    }

    /// Starts it again after it was killed at a step.
    fn start_after_kill(&mut self) {
        self.node.wait_exit();
        self.clear();
        // What clients created while there was no mount.
        for entry in fs::read_dir(self.node.mount()).expect("read").flatten() {
            let _ = fs::remove_file(entry.path());
        }
        self.start();
    }

    /// From now on this fault (see [`litefs::fault`]) strikes.
    fn set(&self, fault: &str) {
        let _ = fs::remove_file(self.folder.path().join("faults.struck"));
        let next = self.folder.path().join("next");
        fs::write(&next, fault).expect("write");
        fs::rename(next, self.file()).expect("rename");
    }

    fn clear(&self) {
        fs::remove_file(self.file()).expect("remove");
    }

    fn struck(&self, label: &str) -> bool {
        let told = fs::read_to_string(self.folder.path().join("faults.struck")).unwrap_or_default();
        told.lines().any(|line| line == label)
    }
}

/// What clients were told is committed: numbers by database.
#[derive(Debug, Default)]
struct Acknowledged(BTreeMap<String, BTreeSet<u64>>);

impl Acknowledged {
    /// Every one of them is there, and SQLite finds the databases in order.
    fn check(&self, node: &Node, what: &str) {
        for (name, numbers) in &self.0 {
            let db = node.db(name);
            let rows = eventually("the database can be read", || cli(&db, "SELECT n FROM r").ok());
            let rows: BTreeSet<u64> = rows.lines().map(|row| row.parse().expect("a number")).collect();
            let lost: Vec<_> = numbers.difference(&rows).collect();
            assert!(lost.is_empty(), "{what}: {name}: acknowledged and lost: {lost:?}");
            assert_eq!(cli(&db, "PRAGMA integrity_check").as_deref(), Ok("ok"), "{what}: {name}");
        }
    }
}

/// How a round of `round.py` went.
struct Round {
    lines: Vec<String>,
}

impl Round {
    fn run(node: &Node, number: &mut u64, acknowledged: &mut Acknowledged) -> Self {
        *number += 100;
        let output = Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/faults/round.py"))
            .arg(node.mount())
            .args([node.url(), number.to_string()])
            .stdin(Stdio::null())
            .output()
            .expect("run python3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for line in &lines {
            assert!(!line.contains("malformed") && !line.contains("not a database"), "{text}");
            let mut words = line.split(' ');
            if let (Some(name), Some(Ok(number)), Some("ok")) =
                (words.next(), words.next().map(str::parse::<u64>), words.next())
            {
                acknowledged.0.entry(name.to_owned()).or_default().insert(number);
            }
        }
        Self { lines }
    }

    fn errors(&self) -> Vec<&String> {
        self.lines.iter().filter(|line| line.contains(" error ")).collect()
    }
}

/// The tables `round.py` writes to.
fn create(node: &Node) {
    for name in ["w.db", "d.db"] {
        let sql = "PRAGMA auto_vacuum=FULL; CREATE TABLE r(n INTEGER PRIMARY KEY, x)";
        cli(&node.db(name), sql).expect("create");
    }
}

/// Rounds until one meets no error: it has healed.
fn heal(node: &Node, number: &mut u64, acknowledged: &mut Acknowledged, what: &str) {
    let mut last = Vec::new();
    let healed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(what, || {
            let round = Round::run(node, number, acknowledged);
            last = round.errors().into_iter().cloned().collect();
            last.is_empty().then_some(())
        });
    }));
    assert!(healed.is_ok(), "{what}: it does not heal: {last:?}");
    eventually("the node says that it is healthy", || (node.get("/info").ok()?.json()["health"] == "ok").then_some(()));
}

/// Steps that a test of the engine gets to, as it takes a lease that ends in the middle of a commit.
const IN_UNIT_TESTS: &[&str] = &["journal.restore"];

#[test]
fn no_label_is_forgotten() {
    let all: BTreeSet<&str> = STEPS.iter().map(|step| step.label).collect();
    let scenarios = [serving::LABELS, serving::RELAYED, following::LABELS, starting::LABELS, IN_UNIT_TESTS];
    let reached: BTreeSet<&str> = scenarios.concat().into_iter().collect();
    assert_eq!(all, reached, "every label of fault::STEPS has a scenario that reaches it");
}
