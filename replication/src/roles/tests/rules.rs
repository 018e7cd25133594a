//! Who may take the lease by itself.

use std::time::Duration;

use litefs_lease::NodeRecord;

use super::cluster::{Cluster, candidate, until};
use crate::roles::{PromoteError, Role};

fn record(hostname: &str, databases: &[(&str, &str)]) -> NodeRecord {
    NodeRecord {
        hostname: hostname.to_owned(),
        advertise_url: format!("http://{hostname}"),
        node_id: "0000000000000009".to_owned(),
        cluster_id: Some("LFSC1".to_owned()),
        candidate: true,
        primary: true,
        stopped: true,
        beat: 1,
        positions: databases.iter().map(|(name, pos)| ((*name).to_owned(), pos.parse().unwrap())).collect(),
    }
}

/// A cluster whose last primary had `db` at transaction 10 and is gone.
fn bereft() -> Cluster {
    let cluster = Cluster::new();
    cluster.lease.change(|view| {
        view.cluster_id = Some("LFSC1".to_owned());
        let last = record("gone", &[("db", "000000000000000a/8000000000000001")]);
        view.nodes.push((last, 1));
    });
    cluster
}

#[tokio::test]
async fn an_empty_node_never_leads_by_itself_only_by_force() {
    let cluster = bereft();
    for (hostname, cluster_id) in [("new", None), ("emptied", Some("LFSC1".to_owned()))] {
        let node = cluster.node_with(hostname, candidate(), |engine| *engine.cluster_id.lock() = cluster_id);
        let refused = node.role.promote(false).await.unwrap_err();
        assert!(matches!(refused, PromoteError::NotEligible(_)), "{refused}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(node.is_role(Role::Unknown) && cluster.lease.view().holder.is_none());
        node.role.stop().await;
    }
    let node = cluster.node_with("forced", candidate(), |engine| *engine.cluster_id.lock() = Some("LFSC1".to_owned()));
    node.role.promote(true).await.unwrap();
    assert!(node.could_write());
}

#[tokio::test]
async fn a_node_of_another_cluster_does_not_lead_even_by_force() {
    let cluster = bereft();
    let node = cluster.node_with("b", candidate(), |engine| {
        *engine.cluster_id.lock() = Some("LFSC2".to_owned());
        engine.set_position("db", 50);
    });
    node.role.promote(true).await.unwrap_err();
    assert!(!node.could_write());
    until("the lease is given back", || cluster.lease.view().holder.is_none()).await;
    assert_eq!(node.engine.cluster_id.lock().as_deref(), Some("LFSC2"));
}

#[tokio::test]
async fn the_candidate_with_more_transactions_goes_first() {
    let cluster = bereft();
    let member = |txid| {
        move |engine: &super::cluster::FakeEngine| {
            *engine.cluster_id.lock() = Some("LFSC1".to_owned());
            engine.set_position("db", txid);
        }
    };
    // The better one is known but not there yet: the other one waits for it.
    let better = record("better", &[("db", "000000000000000c/8000000000000001")]);
    cluster.lease.change(|view| view.nodes.push((NodeRecord { stopped: false, ..better }, 2)));
    let worse = cluster.node_with("worse", candidate(), member(11));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!worse.could_write());
    let better = cluster.node_with("better", candidate(), member(12));
    until("the better one leads", || better.could_write()).await;
    until("the other one follows", || better.followers() == 1).await;
}

#[tokio::test]
async fn waiting_for_a_better_candidate_has_an_end() {
    let cluster = bereft();
    let node = cluster.node_with("b", candidate(), |engine| {
        *engine.cluster_id.lock() = Some("LFSC1".to_owned());
        engine.set_position("db", 9);
    });
    until("it leads in the end", || node.could_write()).await;
}
