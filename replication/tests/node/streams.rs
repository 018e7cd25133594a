//! Two nodes of ours.

use bytes::{BufMut, BytesMut};
use litefs::{Checksum, Pos, Txid};
use litefs_replication::LAG_NEVER_MS;

use crate::harness::{PATIENCE, Setup, TestNode, db_name, until, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_catches_up_and_follows() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 10).await;
    primary.put("a.db", 500).await;
    let replica = TestNode::replica_of(&primary.info).await;
    replica.matches(&primary, "a.db").await;
    primary.put("a.db", 20).await;
    primary.put("b.db", 7).await;
    replica.matches(&primary, "a.db").await;
    replica.matches(&primary, "b.db").await;
    assert_eq!(replica.store.cluster_id(), primary.store.cluster_id());
    assert_eq!(replica.node.connected().map(|info| info.hostname), Some("node".to_owned()));
    until("the replica knows that it is in sync", || replica.node.lag_ms() < LAG_NEVER_MS).await;
    assert_eq!(primary.node.lag_ms(), 0);
    assert_eq!(primary.node.subscribers().count(), 1);
    replica.stop().await;
    until("the primary sees it go", || primary.node.subscribers().count() == 0).await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_database_arrives_whole() {
    let primary = TestNode::primary().await;
    // Some 10 MB: piped to the engine rather than collected.
    primary.put("big.db", 80_000).await;
    let replica = TestNode::replica_of(&primary.info).await;
    replica.matches(&primary, "big.db").await;
    primary.put("big.db", 60_000).await;
    replica.matches(&primary, "big.db").await;
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_databases_of_the_filter_are_followed() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 1).await;
    primary.put("b.db", 2).await;
    let setup = Setup { primary: Some(primary.info.clone()), databases: &["b.db"], ..Setup::default() };
    let replica = TestNode::start(setup).await;
    replica.matches(&primary, "b.db").await;
    primary.put("a.db", 3).await;
    primary.put("b.db", 4).await;
    replica.matches(&primary, "b.db").await;
    assert!(replica.store.database("a.db").is_none());
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_reconnects_when_the_primary_comes_back() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 10).await;
    let replica = TestNode::replica_of(&primary.info).await;
    replica.matches(&primary, "a.db").await;
    let port = primary.node.address().port();
    let dir = primary.stop().await;
    until("the replica sees it go", || replica.node.connected().is_none()).await;
    let primary = TestNode::start(Setup { dir: Some(dir), port, ..Setup::default() }).await;
    primary.put("a.db", 30).await;
    replica.matches(&primary, "a.db").await;
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_continues_where_it_was() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 10).await;
    let replica = TestNode::replica_of(&primary.info).await;
    replica.matches(&primary, "a.db").await;
    let dir = replica.stop().await;
    for rows in 11..15 {
        primary.put("a.db", rows).await;
    }
    let setup = Setup { primary: Some(primary.info.clone()), dir: Some(dir), ..Setup::default() };
    let replica = TestNode::start(setup).await;
    replica.matches(&primary, "a.db").await;
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_replica_has_is_set_aside() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 10).await;
    let other = TestNode::primary().await;
    other.put("a.db", 99).await;
    other.put("a.db", 98).await;
    other.put("only-here.db", 1).await;
    let dir = other.stop().await;
    let setup = Setup { primary: Some(primary.info.clone()), dir: Some(dir), ..Setup::default() };
    let replica = TestNode::start(setup).await;
    replica.matches(&primary, "a.db").await;
    until("the unknown database is gone", || {
        !replica.store.databases().iter().any(|db| db.name().as_str() == "only-here.db")
    })
    .await;
    let listed = replica.get("/lost-and-found").await.json::<serde_json::Value>().await.expect("json");
    let paths: Vec<_> = listed.as_array().expect("a list").iter().filter_map(|file| file["path"].as_str()).collect();
    for name in ["a.db/", "only-here.db/"] {
        assert!(paths.iter().any(|path| path.starts_with(name)), "{name} is not in {paths:?}");
    }
    let file = replica.get(&format!("/lost-and-found/{}", paths[0])).await;
    assert_eq!(file.status(), 200);
    assert!(!file.bytes().await.expect("a file").is_empty());
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_database_is_dropped_and_created_anew() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 10).await;
    let replica = TestNode::replica_of(&primary.info).await;
    replica.matches(&primary, "a.db").await;
    let db = primary.store.database("a.db").expect("the database");
    tokio::task::spawn_blocking(move || db.db_unlink()).await.expect("no panic").expect("dropped");
    let deleted = Pos::new(Txid(2), Checksum::EMPTY);
    assert_eq!(primary.pos("a.db"), deleted);
    until("the replica drops it", || replica.pos("a.db") == deleted).await;
    assert!(replica.store.databases().is_empty());
    let late = TestNode::replica_of(&primary.info).await;
    until("a new replica learns that it is gone", || late.pos("a.db") == deleted).await;
    primary.put("a.db", 5).await;
    replica.matches(&primary, "a.db").await;
    late.matches(&primary, "a.db").await;
    for node in [replica, late, primary] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_takes_nothing_does_not_hold_up_the_primary() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 60_000).await;
    let mut map = BytesMut::new();
    map.put_u32(0);
    // An HTTP/2 client that reads the head of the answer and then nothing.
    let client = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let request = client.post(format!("{}/stream", primary.info.advertise_url));
    let stuck = request.header("litefs-id", "00000000000000AB").body(map.freeze()).send().await.expect("a stream");
    assert_eq!(stuck.status(), 200);
    let replica = TestNode::replica_of(&primary.info).await;
    for rows in 1..4 {
        primary.put("a.db", rows * 20_000).await;
        replica.matches(&primary, "a.db").await;
    }
    drop(stuck);
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_replicas_follow_one_primary() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 10).await;
    let mut replicas = Vec::new();
    for _ in 0..5 {
        replicas.push(TestNode::replica_of(&primary.info).await);
    }
    primary.put("a.db", 300).await;
    for replica in &replicas {
        replica.matches(&primary, "a.db").await;
    }
    for replica in replicas {
        replica.stop().await;
    }
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_can_be_waited_for() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 10).await;
    let replica = TestNode::replica_of(&primary.info).await;
    replica.matches(&primary, "a.db").await;
    let db = replica.store.database("a.db").expect("the database");
    let waiting = tokio::spawn(async move { tokio::time::timeout(PATIENCE, db.wait(Txid(2))).await });
    let pos = primary.put("a.db", 11).await;
    assert_eq!(waiting.await.expect("no panic").expect("in time"), pos);
    assert_eq!(db_name("a.db").as_str(), "a.db");
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_moves_on_while_the_primary_is_too_busy_for_heartbeats() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 1).await;
    let replica = TestNode::replica_of(&primary.info).await;
    until("first sync", || replica.node.lag_ms() < LAG_NEVER_MS).await;
    let begun = std::time::Instant::now();
    within("the lag is smaller than the time since the first sync", async {
        let mut id = 1000;
        while begun.elapsed() < std::time::Duration::from_secs(3)
            || u128::try_from(replica.node.lag_ms()).expect("not negative") + 2000 > begun.elapsed().as_millis()
        {
            id += 1;
            primary.write("a.db", &format!("INSERT INTO t VALUES ({id}, 'more')")).await;
        }
    })
    .await;
}
