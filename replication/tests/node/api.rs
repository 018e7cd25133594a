//! Routes of the node API over HTTP/1.1 and HTTP/2.

use serde_json::Value;

use crate::harness::{TestNode, sqlite_file, within};

async fn text(response: reqwest::Response) -> (u16, String) {
    (response.status().as_u16(), response.text().await.expect("a body"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_names_node_and_cluster() {
    let node = TestNode::primary().await;
    for path in ["/info", "/nothing", "/export?name=a.db", "/metrics"] {
        let headers = node.get(path).await.headers().clone();
        assert_eq!(headers["litefs-id"], format!("{:016X}", node.store.node_id()), "{path}");
        assert_eq!(headers["litefs-cluster-id"], "LFSC0000000000000001", "{path}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn info_has_the_originals_members_and_health() {
    let node = TestNode::primary().await;
    let pos = node.put("a.db", 3).await;
    let info: Value = node.get("/info").await.json().await.expect("json");
    assert_eq!(info["clusterID"], "LFSC0000000000000001");
    assert_eq!(info["isPrimary"], true);
    assert_eq!(info["candidate"], true);
    assert_eq!(info["path"], "/litefs");
    assert_eq!(info["primary"]["hostname"], "node");
    assert_eq!(info["health"], "ok");
    assert_eq!(info["databases"]["a.db"]["pos"], pos.to_string());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_one_line_with_the_right_status() {
    let node = TestNode::primary().await;
    let replica = TestNode::replica_of(&node.info).await;
    for (path, status) in [
        ("/nothing", 404),
        ("/export?name=a.db", 404),
        ("/export?name=../a", 400),
        ("/export", 400),
        ("/lost-and-found/a/b", 404),
        ("/stream", 405),
    ] {
        let (got, line) = text(node.get(path).await).await;
        assert_eq!(got, status, "{path}: {line}");
        assert!(line.ends_with('\n') && line.lines().count() == 1, "{path}: {line:?}");
    }
    for (to, path, status) in [
        (&node, "/stream", 426),
        (&node, "/handoff?nodeID=00000000000000AB", 409),
        (&node, "/handoff?nodeID=x", 400),
        (&node, "/halt?name=a.db&id=1", 404),
        (&node, "/halt?name=a.db&id=x", 400),
        (&node, "/tx?name=a.db&id=1", 404),
        (&node, "/promote", 200),
        (&replica, "/promote", 409),
        (&replica, "/import?name=a.db", 503),
        (&replica, "/halt?name=a.db&id=1", 503),
        (&replica, "/tx?name=a.db&id=1", 503),
    ] {
        let (got, line) = text(to.post(path, Vec::new()).await).await;
        assert_eq!(got, status, "{path}: {line}");
    }
    replica.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_refused_with_the_right_status() {
    let node = TestNode::primary().await;
    let replica = TestNode::replica_of(&node.info).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let own = format!("{:016X}", node.store.node_id());
    for (to, id, body, status) in [
        (&node, Some(own.as_str()), vec![0; 4], 400),
        (&node, None, vec![0; 4], 400),
        (&node, Some("AB"), vec![0; 5], 400),
        (&node, Some("AB"), vec![255; 4], 400),
        (&replica, Some("AB"), vec![0; 4], 503),
    ] {
        let mut request = client.post(format!("{}/stream", to.info.advertise_url)).body(body.clone());
        if let Some(id) = id {
            request = request.header("litefs-id", id);
        }
        assert_eq!(request.send().await.expect("an answer").status(), status, "{id:?} {body:?}");
    }
    replica.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_and_export_round_trip_and_a_failed_import_leaves_nothing() {
    let node = TestNode::primary().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    sqlite_file(&path, 5_000);
    let answer = node.post("/import?name=a.db", std::fs::read(&path).expect("a file")).await;
    assert_eq!(answer.status(), 200);
    let exported = node.get("/export?name=a.db").await.bytes().await.expect("a body");
    let copy = dir.path().join("copy");
    std::fs::write(&copy, &exported).expect("written");
    let connection = rusqlite::Connection::open(&copy).expect("a database");
    let rows: u32 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("a count");
    assert_eq!(rows, 5_000);

    let before = node.pos("a.db");
    let (status, line) = text(node.post("/import?name=a.db", b"not a database".repeat(100)).await).await;
    assert_eq!(status, 400, "{line}");
    assert_eq!(node.pos("a.db"), before);
    assert_eq!(node.post("/import?name=new.db", b"nor this".repeat(1000)).await.status(), 400);
    assert!(!node.store.databases().iter().any(|db| db.name().as_str() == "new.db"));
    assert_eq!(std::fs::read_dir(node.store.config().data_dir.join("spool")).expect("the spool").count(), 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_of_transactions() {
    let node = TestNode::primary().await;
    let mut events = node.get("/events").await;
    let mut pending = Vec::new();
    let mut next = async || {
        loop {
            if let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                return serde_json::from_slice::<Value>(&line).expect("json");
            }
            pending.extend_from_slice(&events.chunk().await.expect("a chunk").expect("no end"));
        }
    };
    let init = within("init", next()).await;
    assert_eq!(init, serde_json::json!({"type":"init","data":{"isPrimary":true,"hostname":"node"}}));
    let pos = node.put("a.db", 3).await;
    let tx = within("tx", next()).await;
    assert_eq!((&tx["type"], &tx["db"]), (&"tx".into(), &"a.db".into()));
    assert_eq!(tx["data"]["txID"], pos.txid.to_string());
    assert_eq!(tx["data"]["postApplyChecksum"], pos.checksum.to_string());
    assert_eq!(tx["data"]["pageSize"], 4096);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_names_of_the_original() {
    let node = TestNode::primary().await;
    node.put("a.db", 3).await;
    let replica = TestNode::replica_of(&node.info).await;
    replica.matches(&node, "a.db").await;
    let (_, metrics) = text(node.get("/metrics").await).await;
    for line in [
        "litefs_is_primary 1",
        "litefs_subscriber_count 1",
        "litefs_http_stream_count 1",
        "litefs_db_count 1",
        "litefs_db_txid{db=\"a.db\"} 1",
        "litefs_http_frame_send_count{db=\"a.db\",type=\"ltx\"} 1",
    ] {
        let found = metrics.lines().any(|got| got == line || got.strip_suffix(".0") == Some(line));
        assert!(found, "{line} is not in\n{metrics}");
    }
    let (_, metrics) = text(replica.get("/metrics").await).await;
    assert!(metrics.contains("litefs_db_lag_seconds{db=\"a.db\"}"), "{metrics}");
    replica.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn debug_routes_answer() {
    let node = TestNode::primary().await;
    let vars: Value = node.get("/debug/vars").await.json().await.expect("json");
    assert_eq!(vars["pid"], std::process::id());
    assert_ne!(text(node.get("/debug/rand").await).await, text(node.get("/debug/rand").await).await);
    assert_eq!(node.get("/debug/pprof/").await.status(), 200);
    let profile = node.get("/debug/pprof/profile?seconds=1").await;
    assert_eq!(profile.status(), 200);
    assert!(!profile.bytes().await.expect("a profile").is_empty());
    node.stop().await;
}
