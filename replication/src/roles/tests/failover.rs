//! Who is primary when, and that there are never two.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use litefs_lease::{Acquire, LeaseId, PrimaryInfo, StaticLeaser};

use super::cluster::{Cluster, Node, candidate, until};
use crate::roles::{Role, RoleConfig};

/// A cluster with primary `a` and replica `b`.
async fn pair(cluster: &Cluster) -> (Arc<Node>, Arc<Node>) {
    let a = cluster.node("a");
    until("a leads", || a.role.is_primary()).await;
    let b = cluster.node("b");
    until("b follows", || b.is_role(Role::Replica) && a.followers() == 1).await;
    (a, b)
}

#[tokio::test]
async fn the_first_candidate_leads_and_the_next_one_follows() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    assert!(a.could_write());
    assert!(!b.could_write());
    assert_eq!(b.role.state().primary.unwrap().hostname, "a");
    assert_eq!(a.role.state().primary.unwrap().hostname, "a");
    let id = a.engine.cluster_id.lock().clone().unwrap();
    assert!(id.starts_with("LFSC") && id.len() == 20, "{id}");
    assert_eq!(cluster.lease.view().cluster_id, Some(id));
}

#[tokio::test]
async fn a_clean_stop_releases_the_lease_and_the_replica_leads() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let writers = cluster.watch_for_two_writers();
    a.role.stop().await;
    assert!(!a.could_write());
    assert!(!a.engine.is_writable(), "the fence is closed before the lease is released");
    until("b leads", || b.role.is_primary() && b.could_write()).await;
    let records = cluster.lease.view().nodes;
    assert!(records.iter().any(|(record, _)| record.hostname == "a" && record.stopped));
    writers.check();
}

#[tokio::test]
async fn a_candidate_without_the_stopping_primarys_tail_lets_one_that_has_it_go_first() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    for node in [&a, &b] {
        node.engine.set_position("db", 10);
    }
    until("their positions are recorded", || {
        cluster.lease.view().nodes.iter().all(|(node, _)| !node.positions.is_empty())
    })
    .await;
    // Sent to a third node, which is about to connect to Consul again.
    a.engine.set_position("db", 12);
    a.role.stop().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!b.could_write());
    let c = cluster.node_with("c", candidate(), |engine| {
        engine.cluster_id.lock().clone_from(&b.engine.cluster_id.lock());
        engine.set_position("db", 12);
    });
    until("the one with the tail leads", || c.could_write()).await;
    assert!(!b.could_write());
}

#[tokio::test]
async fn a_stop_with_a_running_transaction_does_not_release_the_lease() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    a.engine.is_busy.store(true, Ordering::SeqCst);
    a.role.stop().await;
    assert!(!a.fence.is_open());
    assert_eq!(cluster.lease.view().holder.unwrap().info.hostname, "a", "left to expire");
    until("b takes the silent lease over", || b.role.is_primary()).await;
}

#[tokio::test]
async fn a_primary_without_lease_server_fences_itself_before_another_one_leads() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let writers = cluster.watch_for_two_writers();
    cluster.lease.cut_off("a");
    until("b leads", || b.could_write()).await;
    assert!(!a.could_write());
    until("a knows", || !a.role.is_primary()).await;
    cluster.lease.reconnect();
    until("a follows", || a.is_role(Role::Replica) && b.followers() == 1).await;
    assert!(!a.engine.is_writable());
    writers.check();
}

#[tokio::test]
async fn when_the_lease_server_is_away_for_all_the_primary_stops_writing_and_goes_on_afterwards() {
    let cluster = Cluster::new();
    let (a, b) = pair(&cluster).await;
    let writers = cluster.watch_for_two_writers();
    let held = cluster.lease.view().holder.unwrap();
    cluster.lease.cut_off("a");
    cluster.lease.cut_off("b");
    until("a is fenced", || !a.could_write() && a.is_role(Role::Unknown)).await;
    cluster.lease.reconnect();
    until("one leads again", || a.could_write() || b.could_write()).await;
    if a.could_write() {
        assert_eq!(cluster.lease.view().holder.unwrap().lease, held.lease, "with the same lease");
    }
    writers.check();
}

#[tokio::test]
async fn a_lease_that_another_node_took_is_noticed() {
    let cluster = Cluster::new();
    let (a, _b) = pair(&cluster).await;
    let holder = cluster.lease.view().holder.unwrap();
    cluster.lease.change(|view| {
        let info =
            PrimaryInfo { hostname: "litefs".to_owned(), advertise_url: "http://litefs".to_owned(), proxy_url: None };
        let lease = LeaseId("foreign".to_owned());
        view.holder = Some(litefs_lease::Holder { info, lease, index: holder.index + 1000 });
    });
    until("a gives way", || !a.could_write() && a.is_role(Role::Replica)).await;
    assert!(!a.engine.is_writable());
    assert_eq!(a.role.state().primary.unwrap().hostname, "litefs");
    assert_eq!(cluster.lease.view().holder.unwrap().lease.0, "foreign", "its lease is not touched");
}

#[tokio::test]
async fn a_node_does_not_follow_its_own_earlier_run() {
    let cluster = Cluster::new();
    let earlier = cluster.lease.node("a").acquire(Acquire::Free).await.unwrap();
    let a = cluster.node("a");
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(a.is_role(Role::Unknown), "{:?}", a.role.state());
    earlier.close().await.unwrap();
    until("a leads", || a.role.is_primary()).await;
}

#[tokio::test]
async fn a_static_primary_leads_for_ever_and_static_replicas_follow() {
    let cluster = Cluster::new();
    let info = PrimaryInfo { hostname: "a".to_owned(), advertise_url: "http://a".to_owned(), proxy_url: None };
    let primary = Arc::new(StaticLeaser::new(info.clone(), true));
    let replica = Arc::new(StaticLeaser::new(info, false));
    let a = cluster.node_of("a", primary, candidate(), |_| {});
    let config = RoleConfig { candidate: false, ..candidate() };
    let b = cluster.node_of("b", replica, config, |_| {});
    until("b follows", || a.could_write() && b.is_role(Role::Replica) && a.followers() == 1).await;
    assert!(b.role.promote(true).await.is_err());
    assert!(a.role.handoff(b.node_id).await.is_err());
    until("a still writes", || a.could_write()).await;
    a.role.stop().await;
    assert!(!a.could_write() && !a.engine.is_writable());
}

#[tokio::test]
async fn a_node_that_is_no_candidate_never_leads() {
    let cluster = Cluster::new();
    let config = RoleConfig { candidate: false, ..candidate() };
    let b = cluster.node_with("b", config, |_| {});
    let a = cluster.node("a");
    until("b follows", || a.followers() == 1).await;
    a.role.stop().await;
    until("b knows", || b.is_role(Role::Unknown)).await;
    assert!(matches!(b.role.promote(true).await, Err(crate::roles::PromoteError::NotCandidate)));
    assert!(!b.could_write());
}
