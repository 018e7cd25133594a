//! What every lease promises, whichever kind it is.

use std::sync::Arc;
use std::time::Duration;

use litefs_lease::testing::{ConsulServer, MemoryCluster};
use litefs_lease::{
    Acquire, BootInstant, ConsulConfig, ConsulLeaser, LeaseError, Leaser, NodeRecord, PrimaryInfo, StaticLeaser, Timing,
};

/// Two nodes that compete for one lease. `a` is the configured primary of a static lease.
pub struct Pair {
    pub a: Arc<dyn Leaser>,
    pub b: Arc<dyn Leaser>,
    /// Whether the lease can change hands.
    movable: bool,
    _consul: Option<ConsulServer>,
}

pub fn info(hostname: &str) -> PrimaryInfo {
    PrimaryInfo {
        hostname: hostname.to_owned(),
        advertise_url: format!("http://{hostname}:20202"),
        proxy_url: Some(format!("http://{hostname}:8080")),
    }
}

pub fn consul_config(server: &ConsulServer) -> ConsulConfig {
    ConsulConfig {
        url: format!("{}/some/prefix", server.url()),
        key: "litefs/primary".to_owned(),
        ttl: Duration::from_secs(10),
        lock_delay: Duration::from_secs(1),
        // A loaded machine may pause a test for seconds: nothing here may depend on a beat in time.
        timing: Some(Timing {
            heartbeat: Duration::from_secs(1),
            fence_after: Duration::from_secs(9),
            takeover_after: Duration::from_secs(10),
        }),
    }
}

fn static_pair() -> Pair {
    let (a, b) = (StaticLeaser::new(info("a"), true), StaticLeaser::new(info("a"), false));
    Pair { a: Arc::new(a), b: Arc::new(b), movable: false, _consul: None }
}

fn memory_pair() -> Pair {
    let cluster = MemoryCluster::new(None);
    Pair { a: cluster.node("a"), b: cluster.node("b"), movable: true, _consul: None }
}

fn consul_pair(timing: bool) -> Pair {
    let server = ConsulServer::start().unwrap();
    let mut config = consul_config(&server);
    if !timing {
        config.timing = None;
    }
    let node = |hostname| Arc::new(ConsulLeaser::new(config.clone(), info(hostname)).unwrap());
    Pair { a: node("a"), b: node("b"), movable: true, _consul: Some(server) }
}

async fn holder(leaser: &Arc<dyn Leaser>) -> Option<String> {
    leaser.watch(None).await.unwrap().holder.map(|holder| holder.info.hostname)
}

async fn only_one_holds_it(pair: &Pair) {
    let before = BootInstant::now();
    let mut lease = pair.a.acquire(Acquire::Free).await.unwrap();
    assert!(lease.deadline() > before);
    let refused = pair.b.acquire(Acquire::Free).await.unwrap_err();
    assert!(matches!(refused, LeaseError::Held), "{refused}");
    let seen = pair.b.watch(None).await.unwrap().holder.unwrap();
    assert_eq!(seen.info, *pair.a.me());
    assert_eq!(seen.lease, *lease.id());

    let first = lease.deadline();
    let renewed = lease.renew().await.unwrap();
    assert_eq!(renewed, lease.deadline());
    assert!(renewed >= first, "a renewal does not bring the deadline forward");
    lease.close().await.unwrap();
}

async fn a_closed_lease_is_free_at_once(pair: &Pair) {
    let lease = pair.a.acquire(Acquire::Free).await.unwrap();
    lease.close().await.unwrap();
    if !pair.movable {
        assert_eq!(holder(&pair.b).await.as_deref(), Some("a"), "a static primary stays what it is");
        return;
    }
    assert_eq!(holder(&pair.b).await, None);
    let lease = pair.b.acquire(Acquire::Free).await.expect("no lock-delay after a clean close");
    assert_eq!(holder(&pair.a).await.as_deref(), Some("b"));
    lease.close().await.unwrap();
}

async fn a_lease_can_be_handed_over(pair: &Pair) {
    let mut lease = pair.a.acquire(Acquire::Free).await.unwrap();
    if !pair.movable {
        assert!(matches!(lease.hand_over().await, Err(LeaseError::Unsupported(_))));
        return;
    }
    let sent = lease.hand_over().await.unwrap();
    assert_eq!(pair.b.watch(None).await.unwrap().heartbeat, None, "nobody may take it over on its way");
    let mut received = pair.b.acquire(Acquire::Existing(sent.lease.clone())).await.unwrap();
    assert_eq!(received.id(), &sent.lease);
    assert_eq!(holder(&pair.a).await.as_deref(), Some("b"));
    let late = pair.a.acquire(Acquire::TakeOver(sent.reclaim)).await.unwrap_err();
    assert!(matches!(late, LeaseError::Changed), "the receiver has it: {late}");
    received.renew().await.unwrap();
    received.close().await.unwrap();
}

async fn a_lease_that_was_not_received_can_be_reclaimed(pair: &Pair) {
    if !pair.movable {
        return;
    }
    let mut lease = pair.a.acquire(Acquire::Free).await.unwrap();
    let sent = lease.hand_over().await.unwrap();
    let mut again = pair.a.acquire(Acquire::TakeOver(sent.reclaim)).await.unwrap();
    assert_eq!(holder(&pair.b).await.as_deref(), Some("a"));
    pair.b.acquire(Acquire::Existing(sent.lease)).await.expect_err("too late for the receiver");
    again.renew().await.unwrap();
    again.close().await.unwrap();
}

async fn a_watch_wakes_at_the_change(pair: &Pair) {
    if !pair.movable {
        return;
    }
    let version = pair.b.watch(None).await.unwrap().version;
    let watching = pair.b.clone();
    let waiting = tokio::spawn(async move {
        let mut version = version;
        loop {
            let view = watching.watch(Some(version)).await.unwrap();
            if view.holder.is_some() {
                return view;
            }
            version = view.version;
        }
    });
    let lease = pair.a.acquire(Acquire::Free).await.unwrap();
    let view = tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
    assert_eq!(view.holder.unwrap().info.hostname, "a");
    lease.close().await.unwrap();
}

async fn the_cluster_id_is_set_once(pair: &Pair) {
    if !pair.movable {
        return;
    }
    assert_eq!(pair.a.watch(None).await.unwrap().cluster_id, None);
    assert_eq!(pair.a.set_cluster_id("LFSC0000000000000001").await.unwrap(), "LFSC0000000000000001");
    assert_eq!(pair.b.set_cluster_id("LFSC0000000000000002").await.unwrap(), "LFSC0000000000000001");
    let view = pair.b.watch(None).await.unwrap();
    assert_eq!(view.cluster_id.as_deref(), Some("LFSC0000000000000001"));
}

async fn records_are_seen_by_the_others(pair: &Pair) {
    let pos = "0000000000000007/8000000000000001".parse().unwrap();
    let mut record = NodeRecord {
        hostname: "a".to_owned(),
        advertise_url: "http://a:20202".to_owned(),
        node_id: "00000000000000AA".to_owned(),
        cluster_id: None,
        candidate: true,
        primary: false,
        stopped: false,
        beat: 1,
        positions: [("db".to_owned(), pos)].into(),
    };
    pair.a.record(&record).await.unwrap();
    if !pair.movable {
        return;
    }
    let (seen, first) = pair.b.watch(None).await.unwrap().nodes.pop().unwrap();
    assert_eq!(seen, record);
    record.beat = 2;
    pair.a.record(&record).await.unwrap();
    let (seen, second) = pair.b.watch(None).await.unwrap().nodes.pop().unwrap();
    assert_eq!(seen.beat, 2);
    assert!(second > first);
}

async fn conforms(pair: Pair) {
    only_one_holds_it(&pair).await;
    a_closed_lease_is_free_at_once(&pair).await;
    a_lease_can_be_handed_over(&pair).await;
    a_lease_that_was_not_received_can_be_reclaimed(&pair).await;
    a_watch_wakes_at_the_change(&pair).await;
    the_cluster_id_is_set_once(&pair).await;
    records_are_seen_by_the_others(&pair).await;
}

#[tokio::test]
async fn a_static_lease_conforms() {
    conforms(static_pair()).await;
}

#[tokio::test]
async fn the_lease_in_memory_conforms() {
    conforms(memory_pair()).await;
}

#[tokio::test]
async fn a_consul_lease_conforms() {
    conforms(consul_pair(true)).await;
}

#[tokio::test]
async fn a_consul_lease_without_heartbeat_conforms() {
    conforms(consul_pair(false)).await;
}
