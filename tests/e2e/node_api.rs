//! The node's HTTP API (COMPAT §4).

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use litefs_tests::Node;
use litefs_tests::sqlite::cli;

#[test]
fn info_metrics_and_errors_are_as_documented() {
    let node = Node::primary();
    cli(&node.db("a.db"), "CREATE TABLE t(x)").expect("create");
    let info = node.get("/info").expect("info");
    assert_eq!(info.status, 200);
    assert_eq!(info.header("litefs-id").len(), 16);
    let json = info.json();
    assert_eq!((&json["isPrimary"], &json["candidate"]), (&true.into(), &true.into()), "{json}");
    assert_eq!(json["path"], node.mount().to_str().expect("path"));
    assert!(json["clusterID"].as_str().is_some_and(|id| id.starts_with("LFSC") && id.len() == 20), "{json}");
    let metrics = node.get("/metrics").expect("metrics").text();
    for line in ["litefs_is_primary 1", "litefs_db_count 1", "litefs_db_txid{db=\"a.db\"}"] {
        assert!(metrics.lines().any(|has| has.starts_with(line)), "{line} in\n{metrics}");
    }
    assert_eq!(node.get("/export?name=nothing.db").expect("answer").status, 404);
    assert_eq!(node.get("/export?name=..%2Fetc").expect("answer").status, 400);
    assert_eq!(node.get("/nonsense").expect("answer").status, 404);
    assert_eq!(node.post("/stream", b"").expect("answer").status, 426);
    assert_eq!(node.get("/debug/vars").expect("answer").status, 200);
}

#[test]
fn both_http_versions_are_spoken() {
    let node = Node::primary();
    for (flag, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", flag])
            .arg(format!("{}/info", node.url()))
            .output()
            .expect("curl");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{version} 200"));
    }
}

#[test]
fn events_arrive_as_they_happen() {
    let node = Node::primary();
    let mut curl = Command::new("curl")
        .args(["-sN", "--max-time", "60"])
        .arg(format!("{}/events", node.url()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl");
    let mut lines = BufReader::new(curl.stdout.take().expect("stdout")).lines();
    let mut next =
        || -> serde_json::Value { serde_json::from_str(&lines.next().expect("a line").expect("read")).expect("json") };
    let init = next();
    assert_eq!((&init["type"], &init["data"]["isPrimary"]), (&"init".into(), &true.into()));
    cli(&node.db("a.db"), "CREATE TABLE t(x)").expect("create");
    let tx = next();
    assert_eq!((&tx["type"], &tx["db"]), (&"tx".into(), &"a.db".into()));
    let pos = format!(
        "{}/{}",
        tx["data"]["txID"].as_str().expect("txid"),
        tx["data"]["postApplyChecksum"].as_str().expect("sum")
    );
    assert_eq!(Some(pos), node.pos("a.db"));
    let _ = curl.kill();
    let _ = curl.wait();
}
