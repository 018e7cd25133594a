//! The renewal of a lease.

use std::sync::Arc;
use std::time::Duration;

use litefs_lease::testing::MemoryCluster;
use litefs_lease::{Acquire, FenceCell, Timing};

use super::cluster::{PATIENCE, timing, until};
use crate::roles::tenure::Tenure;

async fn tenure(cluster: &MemoryCluster) -> (Tenure, Arc<FenceCell>) {
    let fence = Arc::new(FenceCell::create().unwrap());
    let lease = cluster.node("a").acquire(Acquire::Free).await.unwrap();
    (Tenure::start(lease, fence.clone()), fence)
}

#[tokio::test]
async fn renewals_open_the_fence_only_while_they_may() {
    let cluster = MemoryCluster::new(Some(timing()));
    let (mut tenure, fence) = tenure(&cluster).await;
    tokio::time::timeout(PATIENCE, tenure.changed()).await.unwrap();
    assert!(!fence.is_open(), "nobody has opened it yet");
    tenure.open();
    let before = fence.deadline();
    until("a renewal extends the deadline", || fence.deadline() > before).await;
    tenure.close();
    for _ in 0..3 {
        tokio::time::timeout(PATIENCE, tenure.changed()).await.unwrap();
        assert!(!fence.is_open(), "a renewal has opened a fence that was closed");
    }
}

#[tokio::test]
async fn a_poke_finds_a_lost_lease_at_once_and_stopping_returns_it() {
    let hour = Duration::from_secs(3600);
    let rarely = Timing { heartbeat: hour, fence_after: hour * 3, takeover_after: hour * 4 };
    let cluster = MemoryCluster::new(Some(rarely));
    let (mut tenure, fence) = tenure(&cluster).await;
    tokio::time::timeout(PATIENCE, tenure.changed()).await.unwrap();
    tenure.open();
    cluster.change(|view| view.holder = None);
    tenure.poke();
    tokio::time::timeout(PATIENCE, tenure.changed()).await.unwrap();
    assert!(tenure.report().lost.is_some());
    assert!(tenure.stop().await.is_some());
    assert!(!fence.is_open());
}
