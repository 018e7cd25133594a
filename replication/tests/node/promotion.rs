//! The lease changes hands.

use litefs_lease::testing::MemoryCluster;

use crate::harness::{Setup, TestNode, until};

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
        until("the other has stepped back", || !replica.node.role().is_primary()).await;
        let refused = replica.post("/import?name=a.db", Vec::new()).await;
        assert_eq!(refused.status(), 503);
        primary.put("a.db", 100 * rows).await;
        replica.matches(&primary, "a.db").await;
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
