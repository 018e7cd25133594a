//! Two nodes with a lease in a real Consul: who writes when, and that nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use litefs_lease::testing::ConsulServer;
use litefs_tests::{Node, NodeConfig, eventually};
use rusqlite::Connection;
use rustix::process::{Signal, kill_process};

struct Pair {
    consul: ConsulServer,
    a: Node,
    b: Node,
}

fn node(consul: &ConsulServer, hostname: &str) -> Node {
    let mut node = Node::new(NodeConfig::default());
    let (url, consul) = (node.url(), consul.url());
    node.config_mut().lease = format!(
        "  type: consul\n  hostname: {hostname}\n  advertise-url: {url}\n  consul:\n    url: {consul}/prefix\n    key: litefs/primary\n"
    );
    node.launch();
    node.wait_ready();
    node
}

/// Primary `a` with a database, and replica `b` that has it.
fn pair() -> Pair {
    let consul = ConsulServer::start().expect("Consul");
    let a = node(&consul, "a");
    eventually("a is primary", || a.is_primary().then_some(()));
    let create = "PRAGMA journal_mode=WAL; CREATE TABLE t(x INTEGER PRIMARY KEY)";
    eventually("a database", || open(&a).execute_batch(create).ok());
    let b = node(&consul, "b");
    b.wait_same_pos(&a, "a.db");
    Pair { consul, a, b }
}

fn open(node: &Node) -> Connection {
    let connection = Connection::open(node.db("a.db")).expect("open");
    connection.busy_timeout(Duration::ZERO).expect("busy timeout");
    connection
}

fn insert(connection: &Connection, x: i64) -> bool {
    connection.execute("INSERT INTO t VALUES(?)", [x]).is_ok()
}

/// Inserts wherever it is allowed, and remembers what was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(i64, Instant)>>,
}

impl Writer {
    /// Inserts `first`, `first + 2`, …
    fn start(node: &Node, first: i64, synchronous: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, connection) = (stop.clone(), open(node));
        connection.pragma_update(None, "synchronous", synchronous).expect("synchronous");
        let thread = std::thread::spawn(move || {
            let (mut acknowledged, mut x) = (Vec::new(), first);
            while !stopped.load(Ordering::SeqCst) {
                let begun = Instant::now();
                if insert(&connection, x) {
                    acknowledged.push((x, begun));
                }
                x += 2;
                std::thread::sleep(Duration::from_millis(2));
            }
            acknowledged
        });
        Self { stop, thread }
    }

    fn finish(self) -> Vec<(i64, Instant)> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the writer")
    }
}

/// All rows of `acknowledged` are on both nodes, which are equal.
fn nothing_is_lost(pair: &Pair, acknowledged: &[(i64, Instant)]) {
    let (primary, replica) = if pair.a.is_primary() { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
    replica.wait_same_pos(primary, "a.db");
    for node in [primary, replica] {
        let connection = open(node);
        let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("check");
        assert_eq!(check, "ok");
        for (x, _) in acknowledged {
            let found = connection.query_row("SELECT count(*) FROM t WHERE x = ?", [x], |row| row.get(0));
            assert_eq!(found, Ok(1), "acknowledged row {x} is lost");
        }
    }
}

#[test]
fn promotions_under_writes_lose_nothing() {
    let pair = pair();
    let writers = [Writer::start(&pair.a, 0, "NORMAL"), Writer::start(&pair.b, 1, "NORMAL")];
    for (node, other) in [(&pair.b, &pair.a), (&pair.a, &pair.b), (&pair.b, &pair.a)] {
        eventually("a promotion", || node.post("/promote", b"").is_ok_and(|answer| answer.status == 200).then_some(()));
        eventually("one primary", || (node.is_primary() && !other.is_primary()).then_some(()));
        let reached = node.pos("a.db");
        eventually("the other one follows", || (other.pos("a.db") >= reached).then_some(()));
    }
    let acknowledged = writers.map(Writer::finish).concat();
    assert!(acknowledged.iter().any(|(x, _)| x % 2 == 0) && acknowledged.iter().any(|(x, _)| x % 2 == 1));
    nothing_is_lost(&pair, &acknowledged);
}

/// FULL: this client is not the node's own application, so it goes on while the mount is taken down. What it commits in that
/// moment with NORMAL is set aside (docs/semantics.md).
#[test]
fn a_clean_stop_hands_the_lease_over_and_loses_nothing() {
    let mut pair = pair();
    let writer = Writer::start(&pair.a, 0, "FULL");
    eventually("some writes", || (pair.a.pos("a.db")? > pair.b.pos("a.db")?).then_some(()));
    let stopping = Instant::now();
    pair.a.signal(Signal::TERM);
    eventually("b is primary", || pair.b.is_primary().then_some(()));
    println!("clean stop: new primary after {:?}", stopping.elapsed());
    let acknowledged = writer.finish();
    pair.a.wait_exit();
    assert!(insert(&open(&pair.b), -1));
    pair.a.launch();
    pair.a.wait_ready();
    nothing_is_lost(&pair, &acknowledged);
}

#[test]
fn a_killed_primary_is_replaced_and_follows_when_it_comes_back() {
    let mut pair = pair();
    assert!(eventually("a write", || insert(&open(&pair.a), 1).then_some(true)));
    pair.b.wait_same_pos(&pair.a, "a.db");
    let killed = Instant::now();
    pair.a.kill();
    eventually("b is primary", || pair.b.is_primary().then_some(()));
    println!("kill -9: new primary after {:?}", killed.elapsed());
    assert!(eventually("a write at b", || insert(&open(&pair.b), 2).then_some(true)));
    pair.a.launch();
    pair.a.wait_ready();
    let now = Instant::now();
    nothing_is_lost(&pair, &[(1, now), (2, now)]);
}

#[test]
fn a_frozen_worker_is_fenced_by_its_supervisor_before_another_node_writes() {
    let pair = pair();
    let worker = pair.a.worker_pid().expect("a worker");
    let writer = Writer::start(&pair.a, 0, "NORMAL");
    eventually("some writes", || (pair.a.pos("a.db")? > pair.b.pos("a.db")?).then_some(()));
    let frozen = Instant::now();
    kill_process(worker, Signal::STOP).expect("stop the worker");
    eventually("b is primary", || pair.b.is_primary().then_some(()));
    let replaced = Instant::now();
    println!("SIGSTOP: new primary after {:?}", replaced - frozen);
    assert!(eventually("a write at b", || insert(&open(&pair.b), -1).then_some(true)));
    std::thread::sleep(Duration::from_secs(1)); // The writer at `a` goes on trying.
    kill_process(worker, Signal::CONT).expect("continue the worker");
    eventually("a gives way", || pair.a.get("/info").is_ok().then(|| !pair.a.is_primary()).filter(|gone| *gone));
    let acknowledged = writer.finish();
    let late: Vec<_> = acknowledged.iter().filter(|(_, begun)| *begun > replaced).collect();
    assert!(late.is_empty(), "both nodes accepted writes: {late:?}");
    pair.a.wait_same_pos(&pair.b, "a.db");
    nothing_is_lost(&pair, &[(-1, replaced)]);
}

#[test]
fn without_consul_nobody_writes_and_afterwards_somebody_does() {
    let pair = pair();
    pair.consul.pause().expect("stop Consul");
    let (at_a, at_b) = (open(&pair.a), open(&pair.b));
    let mut x = 0;
    let mut write = |connection: &Connection| {
        x += 1;
        insert(connection, x)
    };
    eventually("a is fenced", || (!write(&at_a)).then_some(()));
    assert!(!write(&at_b));
    eventually("a says so", || (!pair.a.is_primary()).then_some(()));
    pair.consul.resume().expect("continue Consul");
    eventually("somebody writes", || (write(&at_a) || write(&at_b)).then_some(()));
    eventually("one is primary", || (pair.a.is_primary() != pair.b.is_primary()).then_some(()));
    nothing_is_lost(&pair, &[]);
}
