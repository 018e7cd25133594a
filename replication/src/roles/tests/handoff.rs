//! Promotion and handoff.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::cluster::{Cluster, Node, candidate, until};
use crate::roles::{HandoffError, HandoffRefused, PromoteError, Role, RoleConfig};

async fn pair(cluster: &Cluster) -> (Arc<Node>, Arc<Node>) {
    let a = cluster.node_with("a", candidate(), |engine| engine.set_position("db", 7));
    until("a leads", || a.role.is_primary()).await;
    let b = cluster.node("b");
    until("b follows", || a.followers() == 1).await;
    (a, b)
}

#[tokio::test]
async fn a_promoted_replica_gets_the_tail_and_then_the_lease() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let writers = cluster.watch_for_two_writers();
    a.engine.set_position("db", 99);
    b.role.promote(false).await.unwrap();
    assert!(b.could_write());
    assert_eq!(*b.engine.positions.lock(), *a.engine.positions.lock());
    assert!(!a.engine.is_writable());
    until("a follows b", || b.followers() == 1).await;
    b.role.promote(false).await.expect("already primary");
    a.role.promote(false).await.expect("and back, in spite of the demote-delay");
    until("b follows a", || a.followers() == 1).await;
    writers.check();
}

#[tokio::test]
async fn a_handoff_waits_for_no_transaction_that_does_not_end() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.engine.is_busy.store(true, Ordering::SeqCst);
    let refused = a.role.handoff(b.node_id).await.unwrap_err();
    assert!(matches!(refused, HandoffRefused::Lease(_)), "{refused}");
    until("a writes on", || a.could_write() && a.role.is_primary()).await;
    let refused = b.role.promote(false).await.unwrap_err();
    assert!(
        matches!(&refused, PromoteError::Failed(text) if text.contains("writes did not come to an end")),
        "{refused}"
    );
}

#[tokio::test]
async fn only_a_connected_replica_can_be_given_the_lease_and_only_by_the_primary() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let refused = a.role.handoff(12345).await.unwrap_err();
    assert!(matches!(refused, HandoffRefused::Link(HandoffError::NotConnected(12345))), "{refused}");
    assert!(a.could_write());
    assert!(matches!(b.role.handoff(a.node_id).await, Err(HandoffRefused::NotPrimary)));
}

#[tokio::test]
async fn a_lease_that_is_lost_on_its_way_is_taken_back() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let writers = cluster.watch_for_two_writers();
    a.loses_handoffs.store(true, Ordering::SeqCst);
    a.role.handoff(b.node_id).await.unwrap();
    until("a writes again", || a.could_write() && a.role.is_primary()).await;
    until("b follows again", || a.followers() == 1).await;
    writers.check();
}

#[tokio::test]
async fn with_lease_promote_a_node_asks_for_the_lease_once_it_has_caught_up() {
    let cluster = Cluster::new();
    let (a, _b) = pair(&cluster).await;
    a.engine.is_busy.store(true, Ordering::SeqCst);
    let c = cluster.node_with("c", RoleConfig { promote: true, ..candidate() }, |_| {});
    until("c follows", || a.followers() == 2).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!c.could_write());
    a.engine.is_busy.store(false, Ordering::SeqCst); // It is refused until here, and asks again.
    until("c leads", || c.could_write()).await;
    until("a follows", || a.is_role(Role::Replica)).await;
    a.role.promote(false).await.unwrap();
    until("c follows", || c.is_role(Role::Replica)).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(a.could_write(), "c asks once, not whenever it is connected");
}
