//! Steps on the way of a client's operation on the primary, and of what the engine does behind it.

use std::time::{Duration, Instant};

use litefs_tests::{NodeConfig, eventually};

use super::{Acknowledged, Faulty, Round, create, errors, heal};

/// What a round gets to.
pub const LABELS: &[&str] = &[
    "database.create",
    "database.sync",
    "database.sync_dir",
    "database.truncate",
    "database.unlink",
    "database.write",
    "import.reserve",
    "journal.create",
    "journal.sync",
    "journal.truncate",
    "journal.unlink",
    "log.adopt",
    "late.create",
    "late.remove",
    "log.append",
    "log.create",
    "log.remove",
    "log.room",
    "log.spool",
    "log.sync",
    "log.sync_dir",
    "log.truncate",
    "shm.create",
    "shm.extend",
    "shm.truncate",
    "shm.unlink",
    "view.copy",
    "wal.extend",
    "wal.sync",
    "wal.unlink",
];

/// The same without passthrough: clients' writes to the journal come to the node.
pub const RELAYED: &[&str] = &["journal.write", "journal.zero"];

/// Without these steps commits in WAL mode go on: the node must say that it is behind.
const DEGRADING: &[&str] = &["log.append", "log.spool", "log.adopt"];

/// Nodes, and the labels they get to.
fn scenarios() -> [(NodeConfig, &'static [&'static str]); 2] {
    // So that the log is shortened in every round.
    let data = "  retention: 1ms\n  retention-monitor-interval: 100ms\n".to_owned();
    let relayed = NodeConfig { data: data.clone(), fuse: "  passthrough: off\n".to_owned(), ..NodeConfig::default() };
    [(NodeConfig { data, ..NodeConfig::default() }, LABELS), (relayed, RELAYED)]
}

/// Waits a moment for what the engine does in the background.
fn wait_struck(faulty: &Faulty, label: &str) -> bool {
    let begun = Instant::now();
    while !faulty.struck(label) && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
    }
    faulty.struck(label)
}

#[test]
fn the_client_gets_an_error_or_its_commit_stands_and_the_node_heals() {
    for (config, labels) in scenarios() {
        errors_strike(config, labels);
    }
}

/// A node that has what the rounds need.
fn serving(config: NodeConfig) -> Faulty {
    let mut faulty = Faulty::new(config);
    faulty.start();
    create(&faulty.node);
    faulty
}

fn errors_strike(config: NodeConfig, labels: &[&'static str]) {
    let mut faulty = serving(config);
    let (mut number, mut acknowledged) = (0, Acknowledged::default());
    let mut missed = Vec::new();
    for label in labels {
        for what in errors(label) {
            let what = format!("{label}:{what}");
            faulty.set(&what);
            Round::run(&faulty.node, &mut number, &mut acknowledged);
            if !wait_struck(&faulty, label) {
                missed.push(what.clone());
            }
            if DEGRADING.contains(label) {
                eventually("the node says that it is degraded", || {
                    let metrics = faulty.node.get("/metrics").ok()?.text();
                    let info = faulty.node.get("/info").ok()?.json();
                    let unhealthy =
                        metrics.lines().any(|line| line.starts_with("litefs_db_unhealthy") && line.ends_with(" 1"));
                    (unhealthy && info["health"] == "degraded").then_some(())
                });
            }
            faulty.clear();
            heal(&faulty.node, &mut number, &mut acknowledged, &what);
            acknowledged.check(&faulty.node, &what);
        }
    }
    assert!(missed.is_empty(), "never reached: {missed:?}");
    // What was told is there after a kill, too.
    faulty.node.kill();
    faulty.start();
    acknowledged.check(&faulty.node, "after a kill");
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill_at_any_step() {
    for (config, labels) in scenarios() {
        kills_strike(config, labels);
    }
}

fn kills_strike(config: NodeConfig, labels: &[&'static str]) {
    let mut faulty = serving(config);
    let (mut number, mut acknowledged) = (0, Acknowledged::default());
    let mut missed = Vec::new();
    for label in labels {
        faulty.set(&format!("{label}:kill:1"));
        Round::run(&faulty.node, &mut number, &mut acknowledged);
        if wait_struck(&faulty, label) {
            faulty.start_after_kill();
        } else {
            missed.push(*label);
            faulty.clear();
        }
        acknowledged.check(&faulty.node, label);
        heal(&faulty.node, &mut number, &mut acknowledged, label);
    }
    assert!(missed.is_empty(), "never reached: {missed:?}");
}
