//! A node whose history is another one than its primary's: by a record where there is a common position, else by a snapshot.

use std::sync::Arc;

use tempfile::TempDir;

use crate::harness::{Setup, TestNode};

/// A primary with some 2 MB, and the data directory of a replica that had all of it and is stopped.
async fn pair() -> (TestNode, Arc<TempDir>) {
    let primary = TestNode::primary().await;
    primary.put("a.db", 15_000).await;
    primary.put("b.db", 1).await;
    primary.write("a.db", "INSERT INTO t VALUES (100001, 'everywhere')").await;
    let replica = TestNode::replica_of(&primary.info).await;
    replica.matches(&primary, "a.db").await;
    replica.matches(&primary, "b.db").await;
    (primary, replica.stop().await)
}

/// Writes on a primary of its own.
async fn alone(dir: Arc<TempDir>, sql: &[&str]) -> Arc<TempDir> {
    let node = TestNode::start(Setup { dir: Some(dir), ..Setup::default() }).await;
    for sql in sql {
        node.write("a.db", sql).await;
    }
    node.stop().await
}

async fn metrics(node: &TestNode) -> String {
    node.get("/metrics").await.text().await.expect("metrics")
}

async fn kept(node: &TestNode) -> Vec<String> {
    let listed = node.get("/lost-and-found").await.json::<serde_json::Value>().await.expect("json");
    let paths = listed.as_array().expect("a list").iter().filter_map(|file| file["path"].as_str());
    paths.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diverged_database_is_brought_back_by_one_record() {
    let (primary, dir) = pair().await;
    let own = ["INSERT INTO t VALUES (100002, 'mine')", "DELETE FROM t WHERE id = 9000"];
    let dir = alone(dir, &own).await;
    primary.write("a.db", "UPDATE t SET text = 'theirs' WHERE id = 3").await;
    primary.write("b.db", "INSERT INTO t VALUES (2, 'theirs')").await;
    let setup = Setup { primary: Some(primary.info.clone()), dir: Some(dir), ..Setup::default() };
    let replica = TestNode::start(setup).await;
    replica.matches(&primary, "a.db").await;
    replica.matches(&primary, "b.db").await;
    let text = metrics(&replica).await;
    assert!(text.contains("litefs_resync_count{by=\"ltx\"} 1\n"), "{text}");
    assert!(!text.contains("by=\"snapshot\""), "{text}");
    assert!(text.contains("litefs_set_aside_count 1\n"), "{text}");
    assert_eq!(kept(&replica).await.len(), own.len(), "one file for each transaction");
    // It goes on as any other replica, also after a restart.
    primary.write("a.db", "DELETE FROM t WHERE id = 4").await;
    replica.matches(&primary, "a.db").await;
    let setup = Setup { primary: Some(primary.info.clone()), dir: Some(replica.stop().await), ..Setup::default() };
    let replica = TestNode::start(setup).await;
    primary.write("a.db", "DELETE FROM t WHERE id = 5").await;
    replica.matches(&primary, "a.db").await;
    assert!(!metrics(&replica).await.contains("litefs_resync_count{"), "nothing diverged any more");
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_common_position_or_much_in_common_a_snapshot_follows() {
    for sql in ["UPDATE t SET text = hex(randomblob(40))", ""] {
        let (primary, mut dir) = pair().await;
        if sql.is_empty() {
            // Another cluster's database of this name.
            let other = TestNode::primary().await;
            other.put("a.db", 700).await;
            other.write("a.db", "DELETE FROM t WHERE id = 1").await;
            dir = other.stop().await;
        } else {
            dir = alone(dir, &[sql]).await;
        }
        primary.write("a.db", "UPDATE t SET text = 'theirs' WHERE id = 3").await;
        let setup = Setup { primary: Some(primary.info.clone()), dir: Some(dir), ..Setup::default() };
        let replica = TestNode::start(setup).await;
        replica.matches(&primary, "a.db").await;
        let text = metrics(&replica).await;
        assert!(text.contains("litefs_resync_count{by=\"snapshot\"} 1\n"), "{text}");
        assert!(!text.contains("by=\"ltx\""), "{text}");
        assert!(!kept(&replica).await.is_empty());
        replica.stop().await;
        primary.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_resync_is_checked() {
    let (primary, _) = pair().await;
    let client = reqwest::Client::new();
    let ask = async |path: &str, id: &str, cluster: &str, body: Vec<u8>| {
        let request = client.post(format!("{}{path}", primary.info.advertise_url)).header("litefs-id", id);
        request.header("litefs-cluster-id", cluster).body(body).send().await.expect("an answer").status().as_u16()
    };
    const OURS: &str = "LFSC0000000000000001";
    assert_eq!(ask("/resync", "AB", OURS, vec![0; 4]).await, 200);
    assert_eq!(ask("/resync", "AB", OURS, vec![1; 4]).await, 400);
    assert_eq!(ask("/resync", "AB", "LFSC0000000000000002", vec![0; 4]).await, 409);
    assert_eq!(ask("/resync", "zz", OURS, vec![0; 4]).await, 400);
    assert_eq!(ask("/resync?name=a.db", "AB", OURS, vec![0xff; 40]).await, 400);
    assert_eq!(ask("/resync?name=a.db", "AB", OURS, vec![0; 12]).await, 409, "nothing in common");
    assert_eq!(ask("/resync?name=c.db", "AB", OURS, vec![0; 12]).await, 404);
    let replica = TestNode::replica_of(&primary.info).await;
    assert_eq!(replica.post("/resync", vec![0; 4]).await.status(), 400);
    replica.stop().await;
    primary.stop().await;
}
