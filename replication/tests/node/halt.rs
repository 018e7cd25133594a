//! The HALT lock: a replica writes for a while.

use litefs::ltx::{Encoder, Header};
use litefs::{Pos, Txid};
use litefs_replication::HaltError;
use serde_json::Value;

use litefs_lease::testing::MemoryCluster;

use crate::harness::{Setup, TestNode, db_name, until, within};

const OWNER: u64 = 7;

async fn pair() -> (TestNode, TestNode) {
    let primary = TestNode::primary().await;
    primary.put("a.db", 10).await;
    let replica = TestNode::replica_of(&primary.info).await;
    replica.matches(&primary, "a.db").await;
    (primary, replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_writes_under_the_lock_is_on_the_primary_when_it_is_released() {
    let (primary, replica) = pair().await;
    let other = TestNode::replica_of(&primary.info).await;
    let name = db_name("a.db");
    within("the lock", replica.node.halts().acquire(&name, OWNER, true)).await.expect("taken");
    let busy = replica.node.halts().acquire(&name, OWNER + 1, false).await;
    assert!(matches!(busy, Err(HaltError::BusyHere)), "{busy:?}");
    let first = replica.write("a.db", "INSERT INTO t VALUES (1001, 'one')").await;
    assert_eq!(first.txid, Txid(2));
    until("the transaction is sent at once", || primary.pos("a.db") == first).await;
    for n in 0..20 {
        replica.write("a.db", &format!("INSERT INTO t VALUES ({}, 'more')", 2000 + n)).await;
    }
    within("the release", replica.node.halts().release(&name, OWNER)).await.expect("released");
    assert_eq!(primary.pos("a.db"), replica.pos("a.db"));
    assert_eq!(primary.pos("a.db").txid, Txid(22));
    replica.matches(&primary, "a.db").await;
    other.matches(&primary, "a.db").await;
    primary.write("a.db", "DELETE FROM t WHERE id > 1000").await;
    replica.matches(&primary, "a.db").await;
    other.matches(&primary, "a.db").await;
    // Another time, and released by nobody but its owner.
    within("the lock", replica.node.halts().acquire(&name, OWNER, true)).await.expect("taken");
    replica.node.halts().release(&name, OWNER + 1).await.expect("not held is fine");
    replica.write("a.db", "INSERT INTO t VALUES (1001, 'again')").await;
    within("the release", replica.node.halts().release(&name, OWNER)).await.expect("released");
    assert_eq!(primary.pos("a.db"), replica.pos("a.db"));
    for node in [other, replica, primary] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_primary_does_not_take_is_set_aside() {
    let (primary, replica) = pair().await;
    let name = db_name("a.db");
    within("the lock", replica.node.halts().acquire(&name, OWNER, true)).await.expect("taken");
    // The operator ends the lock on the primary.
    let port = primary.node.address().port();
    let dir = primary.stop().await;
    let primary = TestNode::start(Setup { dir: Some(dir), port, ..Setup::default() }).await;
    replica.write("a.db", "INSERT INTO t VALUES (1001, 'lost')").await;
    let released = within("the release", replica.node.halts().release(&name, OWNER)).await;
    assert!(matches!(released, Err(HaltError::Lost(_))), "{released:?}");
    primary.write("a.db", "INSERT INTO t VALUES (1002, 'kept')").await;
    replica.matches(&primary, "a.db").await;
    let listed: Value = replica.get("/lost-and-found").await.json().await.expect("json");
    assert!(listed.as_array().is_some_and(|files| !files.is_empty()), "{listed}");
    replica.stop().await;
    primary.stop().await;
}

/// Commits a transaction that changes nothing, as a LiteFS node does that holds the lock. The status.
async fn transaction_of_litefs(primary: &TestNode, name: &str, lock_id: u64) -> u16 {
    let (pos, db) = (primary.pos(name), primary.store.database(name).expect("a database"));
    let export = primary.export(name).await;
    let header = Header {
        page_size: 4096,
        commit: u32::try_from(export.len() / 4096).expect("a small database"),
        min_txid: Txid(pos.txid.0 + 1),
        max_txid: Txid(pos.txid.0 + 1),
        pre_apply: pos.checksum,
        node_id: 7,
        ..Header::default()
    };
    let record =
        Encoder::new(Vec::new(), &header).and_then(|encoder| encoder.finish(pos.checksum)).expect("a record").1;
    let status = primary.post(&format!("/tx?name={name}&lockID={lock_id}"), record).await.status().as_u16();
    assert_eq!(db.pos(), Pos::new(Txid(pos.txid.0 + 1), pos.checksum), "it is committed");
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_belongs_to_its_id() {
    let (primary, replica) = pair().await;
    let client = reqwest::Client::new();
    let url = |path: &str| format!("{}{path}", primary.info.advertise_url);
    let answer = primary.post("/halt?name=a.db&id=1234", Vec::new()).await;
    assert_eq!(answer.status(), 200);
    let granted: Value = answer.json().await.expect("json");
    assert_eq!(granted["id"], 1234);
    assert_eq!(granted["pos"]["TXID"], primary.pos("a.db").txid.to_string());
    assert_eq!(granted["pos"]["PostApplyChecksum"], primary.pos("a.db").checksum.to_string());
    assert!(granted["expires"].as_str().is_some_and(|time| time.contains('T')), "{granted}");
    assert_eq!(primary.post("/halt?name=a.db&id=1234", Vec::new()).await.status(), 200, "renewed");
    assert_eq!(primary.post("/tx?name=a.db&id=99", vec![0; 200]).await.status(), 409);
    assert_eq!(primary.post("/tx?name=a.db&id=1234", vec![0; 200]).await.status(), 400);
    // So LiteFS calls it at this route.
    assert_eq!(primary.post("/tx?name=a.db&lockID=99", vec![0; 200]).await.status(), 409);
    assert_eq!(transaction_of_litefs(&primary, "a.db", 1234).await, 200);
    for (path, status) in
        [("/halt?name=a.db&id=99", 404), ("/halt?name=b.db&id=1234", 404), ("/halt?name=a.db&id=1234", 200)]
    {
        assert_eq!(client.delete(url(path)).send().await.expect("an answer").status(), status, "{path}");
    }
    assert_eq!(primary.post("/halt?name=a.db&id=99", Vec::new()).await.status(), 200, "free again");
    assert_eq!(client.delete(url("/halt?name=a.db&id=99")).send().await.expect("an answer").status(), 200);
    primary.write("a.db", "INSERT INTO t VALUES (1001, 'the primary writes again')").await;
    replica.matches(&primary, "a.db").await;
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_primary_there_is_nothing_to_take() {
    let (primary, replica) = pair().await;
    let name = db_name("a.db");
    primary.node.halts().acquire(&name, OWNER, false).await.expect("taken");
    primary.write("a.db", "INSERT INTO t VALUES (1001, 'here')").await;
    primary.node.halts().release(&name, OWNER).await.expect("released");
    let unknown = replica.node.halts().acquire(&db_name("x.db"), OWNER, false).await;
    assert!(matches!(unknown, Err(HaltError::UnknownDatabase)), "{unknown:?}");
    replica.stop().await;
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_next_primary_wrote_under_the_lock_stays() {
    let cluster = MemoryCluster::new(None);
    let member = async || TestNode::start(Setup { cluster: Some(cluster.clone()), ..Setup::default() }).await;
    let first = member().await;
    until("the first node is primary", || first.node.role().is_primary()).await;
    first.put("a.db", 10).await;
    let second = member().await;
    second.matches(&first, "a.db").await;
    let name = db_name("a.db");
    within("the lock", second.node.halts().acquire(&name, OWNER, true)).await.expect("taken");
    first.stop().await;
    until("the holder of the lock takes over", || second.node.role().is_primary()).await;
    let written = second.write("a.db", "INSERT INTO t VALUES (1001, 'kept')").await;
    within("the release", second.node.halts().release(&name, OWNER)).await.expect("released");
    assert_eq!(second.pos("a.db"), written);
    let replica = member().await;
    replica.matches(&second, "a.db").await;
    second.write("a.db", "INSERT INTO t VALUES (1002, 'too')").await;
    replica.matches(&second, "a.db").await;
    replica.stop().await;
    second.stop().await;
}
