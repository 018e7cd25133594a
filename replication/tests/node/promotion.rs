//! The lease changes hands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use litefs_lease::testing::MemoryCluster;

use crate::harness::{Setup, TestNode, sqlite_file, until};

async fn member(cluster: &MemoryCluster) -> TestNode {
    TestNode::start(Setup { cluster: Some(cluster.clone()), ..Setup::default() }).await
}

/// A primary and a replica that has what it has.
async fn pair() -> (MemoryCluster, TestNode, TestNode) {
    let cluster = MemoryCluster::new(None);
    let first = member(&cluster).await;
    until("the first node is primary", || first.node.role().is_primary()).await;
    first.put("a.db", 10).await;
    let second = member(&cluster).await;
    second.matches(&first, "a.db").await;
    (cluster, first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_swaps_the_roles_again_and_again() {
    let (_cluster, first, second) = pair().await;
    let (mut primary, mut replica) = (first, second);
    for rows in 1..4 {
        until("the replica is connected", || replica.node.connected().is_some()).await;
        let answer = replica.post("/promote", Vec::new()).await;
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap_or_default());
        std::mem::swap(&mut primary, &mut replica);
        assert!(primary.node.role().is_primary());
        assert!(!primary.node.has_shared_history(), "a primary's own transactions are nobody else's yet");
        until("the other has stepped back", || !replica.node.role().is_primary()).await;
        let refused = replica.post("/import?name=a.db", Vec::new()).await;
        assert_eq!(refused.status(), 503);
        primary.put("a.db", 100 * rows).await;
        replica.matches(&primary, "a.db").await;
        until("the other has caught up", || replica.node.has_shared_history()).await;
    }
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_passes_the_lease_on_with_everything() {
    let (_cluster, first, second) = pair().await;
    let last = first.put("a.db", 77).await;
    first.stop().await;
    until("the other takes over", || second.node.role().is_primary()).await;
    assert_eq!(second.pos("a.db"), last);
    second.put("a.db", 78).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handoff_under_load_loses_nothing() {
    let (_cluster, first, second) = pair().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    sqlite_file(&path, 200);
    let file = std::fs::read(&path).expect("a file");
    let (url, done) = (format!("{}/import?name=a.db", first.info.advertise_url), Arc::new(AtomicBool::new(false)));
    let writing = {
        let done = done.clone();
        tokio::spawn(async move {
            let (client, mut acknowledged) = (reqwest::Client::new(), 0_u64);
            while !done.load(Ordering::Relaxed) {
                let answer = client.post(&url).body(file.clone()).send().await.expect("an answer");
                acknowledged += u64::from(answer.status() == 200);
            }
            acknowledged
        })
    };
    let before = first.pos("a.db").txid;
    until("writes have begun", || first.pos("a.db").txid.0 > before.0 + 2).await;
    assert_eq!(second.post("/promote", Vec::new()).await.status(), 200);
    done.store(true, Ordering::Relaxed);
    let acknowledged = writing.await.expect("no panic");
    // Every import is one transaction.
    let reached = second.pos("a.db");
    assert!(reached.txid.0 >= before.0 + acknowledged, "{acknowledged} acknowledged after {before}: {reached}");
    second.put("a.db", 3).await;
    first.matches(&second, "a.db").await;
    for node in [&first, &second] {
        let listed: serde_json::Value = node.get("/lost-and-found").await.json().await.expect("json");
        assert_eq!(listed, serde_json::json!([]), "nothing had to be set aside");
    }
    first.stop().await;
    second.stop().await;
}
