//! Random writers, killed and restarted nodes: nothing acknowledged is lost, and all nodes hold the same in the end.
//!
//! `LITEFS_TEST_SEEDS=a..b` runs other seeds than the default.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use litefs_tests::sqlite::cli;
use litefs_tests::{Node, eventually};

const WRITERS: u64 = 2;

fn seeds() -> std::ops::Range<u64> {
    let text = std::env::var("LITEFS_TEST_SEEDS").unwrap_or_default();
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.unwrap_or(1..3)
}

/// Starts a writer whose acknowledged numbers go to a file of the node's folder.
fn start_writer(node: &Node, writer: u64, seed: u64, mode: &str, node_first: bool) -> Child {
    let acknowledged = File::create(node.folder().join(format!("acked-{writer}"))).expect("create");
    Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/writer.py"))
        .arg(node.db("a.db"))
        .args([writer.to_string(), seed.to_string(), mode.to_owned()])
        .arg(if node_first { "rewinds" } else { "-" })
        .stdin(Stdio::null())
        .stdout(acknowledged)
        .stderr(Stdio::null())
        .spawn()
        .expect("start a writer")
}

/// The last number a writer was told is committed.
fn acknowledged(node: &Node, writer: u64) -> u64 {
    let text = fs::read_to_string(node.folder().join(format!("acked-{writer}"))).unwrap_or_default();
    text.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0)
}

fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mode = if seed.is_multiple_of(2) { "DELETE" } else { "WAL" };
    let mut primary = Node::primary();
    let replica = Node::replica_of(&primary);
    let schema = format!("PRAGMA journal_mode={mode}; CREATE TABLE acked(writer, number); CREATE TABLE filler(x)");
    cli(&primary.db("a.db"), &schema).expect("create");
    for round in 0..3 {
        let first = round * WRITERS;
        let node_first = random.bool();
        let start = |writer| start_writer(&primary, writer, seed * 100 + writer, mode, node_first);
        let mut writers: Vec<Child> = (first..first + WRITERS).map(start).collect();
        let enough = 5 + random.u64(0..30);
        let begun = Instant::now();
        eventually("the writers write", || {
            let slow = begun.elapsed() > Duration::from_secs(20);
            let total: u64 = (first..first + WRITERS).map(|writer| acknowledged(&primary, writer)).sum();
            (total >= enough || (slow && total > 0)).then_some(())
        });
        if node_first {
            primary.kill();
        }
        for writer in &mut writers {
            let _ = writer.kill();
            let _ = writer.wait();
        }
        if node_first {
            primary.launch();
            primary.wait_ready();
        }
        for writer in 0..first + WRITERS {
            let wanted = acknowledged(&primary, writer);
            let sql = format!("SELECT count(*), coalesce(max(number), 0) FROM acked WHERE writer = {writer}");
            let seen = cli(&primary.db("a.db"), &sql).expect("read");
            let (count, last) = seen.split_once('|').expect("two columns");
            assert_eq!(count, last, "seed {seed}: no gap");
            // One more may have been committed without anybody having been told.
            let last: u64 = last.parse().expect("a number");
            assert!(last == wanted || last == wanted + 1, "seed {seed}: writer {writer}: {last}, told {wanted}");
        }
    }
    assert_eq!(cli(&primary.db("a.db"), "PRAGMA integrity_check").as_deref(), Ok("ok"), "seed {seed}");
    replica.wait_same_pos(&primary, "a.db");
    let export = |node: &Node| node.get("/export?name=a.db").expect("export").body;
    assert!(export(&primary) == export(&replica), "seed {seed}: the replica holds the same bytes");
}

#[test]
fn nothing_acknowledged_is_lost_by_kills() {
    for seed in seeds() {
        run(seed);
    }
}
