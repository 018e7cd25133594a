//! Who is primary, with a real Consul.

use std::time::Duration;

use litefs_lease::testing::ConsulServer;
use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually, wait_until};

fn consul_lease(consul: &ConsulServer, more: &str) -> String {
    format!(
        "  type: consul\n  hostname: 127.0.0.1\n{more}  consul:\n    url: {}\n    key: e2e/primary\n    lock-delay: 1ms\n",
        consul.url()
    )
}

fn start(consul: &ConsulServer, more: &str) -> Node {
    Node::start(NodeConfig { lease: consul_lease(consul, more), ..NodeConfig::default() })
}

fn wait_primary(node: &Node) {
    wait_until("the node is primary", &true, || node.is_primary());
}

/// Two nodes, the first is primary, both have a row.
fn pair(consul: &ConsulServer) -> (Node, Node) {
    let first = start(consul, "");
    wait_primary(&first);
    cli(&first.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("fill");
    let second = start(consul, "");
    second.wait_same_pos(&first, "a.db");
    (first, second)
}

/// Inserts until it is accepted: right after a change of roles the fence may still be closed.
fn insert(node: &Node, value: &str) {
    eventually("the primary takes a write", || cli(&node.db("a.db"), &format!("INSERT INTO t VALUES({value})")).ok());
}

fn rows(node: &Node) -> String {
    cli(&node.db("a.db"), "SELECT group_concat(x) FROM (SELECT x FROM t ORDER BY x)").expect("read")
}

#[test]
fn a_promotion_moves_the_lease_and_open_connections_go_on() {
    let consul = ConsulServer::start().expect("consul");
    let (first, second) = pair(&consul);
    let connection = rusqlite::Connection::open(second.db("a.db")).expect("open");
    connection.busy_timeout(Duration::from_secs(60)).expect("timeout");
    let args = ["run", "-url", &second.url(), "-promote", "--", "sh", "-c", "exit 0"];
    Node::litefs(&args).expect("promote");
    wait_primary(&second);
    connection.execute("INSERT INTO t VALUES(2)", []).expect("the same connection writes now");
    wait_until("the old primary follows", &false, || first.is_primary());
    first.wait_same_pos(&second, "a.db");
    assert_eq!(rows(&first), "1,2");
}

#[test]
fn a_node_that_is_no_candidate_never_takes_over() {
    let consul = ConsulServer::start().expect("consul");
    let mut first = start(&consul, "");
    wait_primary(&first);
    cli(&first.db("a.db"), "CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("fill");
    let mut second = start(&consul, "  candidate: false\n");
    second.wait_same_pos(&first, "a.db");
    assert_eq!(second.post("/promote", b"").expect("answer").status, 409);
    let ran = Node::litefs(&["run", "-url", &second.url(), "-if-candidate", "--", "touch", "/nonexistent/x"]);
    ran.expect("not run");
    first.stop();
    second.wait_log("the primary ended the stream");
    assert!(!second.is_primary());
    first.launch();
    first.wait_ready();
    insert(&first, "2");
    second.wait_same_pos(&first, "a.db");
    assert_eq!(second.stop(), Some(0));
}

#[test]
fn rows_that_only_a_cut_off_primary_has_are_set_aside() {
    let consul = ConsulServer::start().expect("consul");
    let (mut first, mut second) = pair(&consul);
    // The replica is away while the primary commits and dies: that row is on one node only.
    second.kill();
    insert(&first, "100");
    first.kill();
    second.config_mut().args.clear();
    second.launch();
    // It lacks what the dead one has recorded, so it does not take the lease by itself; an operator may say otherwise.
    second.wait_log("the node API listens");
    eventually("the operator's promotion is accepted", || {
        second.post("/promote?force=true", b"").ok().filter(|answer| answer.status == 200)
    });
    wait_primary(&second);
    insert(&second, "2");
    first.launch();
    first.wait_ready();
    first.wait_same_pos(&second, "a.db");
    assert_eq!((rows(&first), rows(&second)), ("1,2".into(), "1,2".into()));
    let aside = first.data().join("lost+found/a.db");
    assert!(aside.exists(), "the row is kept in {}", aside.display());
    assert_eq!(resyncs(&first), ["litefs_resync_count{by=\"snapshot\"} 1"], "as small a database comes whole");
}

fn resyncs(node: &Node) -> Vec<String> {
    let metrics = String::from_utf8(node.get("/metrics").expect("metrics").body).expect("text");
    metrics.lines().filter(|line| line.starts_with("litefs_resync_count{")).map(str::to_owned).collect()
}

#[test]
fn a_primary_that_was_replaced_gets_only_what_differs() {
    let consul = ConsulServer::start().expect("consul");
    let (mut first, mut second) = pair(&consul);
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                INSERT INTO t SELECT hex(randomblob(500)) FROM n; INSERT INTO t VALUES('both')";
    cli(&first.db("a.db"), fill).expect("fill");
    second.wait_same_pos(&first, "a.db");
    second.kill();
    insert(&first, "'lost'");
    insert(&first, "'lost, too'");
    first.kill();
    second.launch();
    second.wait_log("the node API listens");
    eventually("the operator's promotion is accepted", || {
        second.post("/promote?force=true", b"").ok().filter(|answer| answer.status == 200)
    });
    wait_primary(&second);
    insert(&second, "'kept'");
    second.stop();
    // While there is no primary, a reader begins on what only this node has.
    first.config_mut().lease = consul_lease(&consul, "  candidate: false\n");
    first.launch();
    first.wait_log("mounted");
    let reader = rusqlite::Connection::open(first.db("a.db")).expect("open");
    let lost = "SELECT count(*), sum(x LIKE 'lost%'), sum(x = 'kept') FROM t";
    let seen = || reader.query_row(lost, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).expect("read");
    reader.execute_batch("BEGIN").expect("begin");
    let before: (i64, i64, i64) = seen();
    assert_eq!((before.1, before.2), (2, 0));
    second.launch();
    wait_primary(&second);
    first.wait_log("gave our own transactions up for the primary's");
    first.wait_same_pos(&second, "a.db");
    assert_eq!(seen(), before, "the snapshot of the open transaction");
    reader.execute_batch("COMMIT").expect("commit");
    assert_eq!(seen(), (before.0 - 1, 0, 1));
    assert_eq!(resyncs(&first), ["litefs_resync_count{by=\"ltx\"} 1"]);
    let export = |node: &Node| node.get("/export?name=a.db").expect("export").body;
    assert!(export(&first) == export(&second));
    let marks = "SELECT group_concat(x) FROM (SELECT x FROM t WHERE length(x) < 20 ORDER BY rowid)";
    assert_eq!(cli(&first.db("a.db"), marks).as_deref(), Ok("1,both,kept"));
    // What was given up is a file for each transaction, and what came is one record, no copy of the database.
    let bytes = |path: std::path::PathBuf| -> u64 {
        let files = std::fs::read_dir(path).expect("a folder").flatten();
        files.map(|entry| entry.metadata().expect("metadata").len()).sum()
    };
    let aside = first.data().join("lost+found/a.db");
    let folders: Vec<_> = std::fs::read_dir(&aside).expect("kept").flatten().map(|entry| entry.path()).collect();
    assert_eq!(folders.len(), 1);
    assert_eq!(std::fs::read_dir(&folders[0]).expect("kept").count(), 2);
    let database = std::fs::metadata(first.data().join("dbs/a.db/database")).expect("the file").len();
    assert!(bytes(folders[0].clone()) * 10 < database);
    let log = Node::litefs(&["ltx", "list", first.data().join("dbs/a.db").to_str().expect("path")]).expect("list");
    let last = log.lines().last().expect("a record");
    let number = |key: &str| -> u64 {
        let value = last.split(' ').find_map(|field| field.strip_prefix(key)).expect("the field");
        value.parse().expect("a number")
    };
    assert!(number("pages=") * 10 < number("commit="), "{last}");
    insert(&second, "'on'");
    first.wait_same_pos(&second, "a.db");
}
