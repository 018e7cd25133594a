//! Streams recorded from the original lead a replica to the original's positions.

use std::path::Path;

use bytes::Bytes;
use litefs::{Checksum, Pos, Txid};

use crate::fake_primary::FakePrimary;
use crate::harness::{TestNode, until};

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)).expect(name)
}

/// The post-apply checksum of an LTX file.
fn checksum(ltx: &[u8]) -> Checksum {
    let trailer = ltx.last_chunk::<16>().expect("a trailer").first_chunk::<8>().expect("a checksum");
    Checksum(u64::from_be_bytes(*trailer))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_stream_leads_to_the_recorded_positions() {
    let primary =
        FakePrimary::start("LFSC00000000000000AA", |_, _| (golden("stream-from-empty.bin").into(), true)).await;
    let replica = TestNode::replica_of(&primary.info).await;
    let last = golden("stream-from-empty.ltx/013-wal.db-0000000000000006-0000000000000006.ltx");
    let target = Pos::new(Txid(6), checksum(&last));
    until("wal.db is at the golden position", || replica.pos("wal.db") == target).await;
    until("del.db is deleted", || replica.pos("del.db") == Pos::new(Txid(3), Checksum::EMPTY)).await;
    assert!(
        replica.store.database("del.db").is_none_or(|db| !replica
            .store
            .databases()
            .iter()
            .any(|d| d.name() == db.name()))
    );
    assert_eq!(replica.export("wal.db").await, golden("export-wal.db.sqlite"));
    assert_eq!(replica.store.cluster_id().as_deref(), Some("LFSC00000000000000AA"));
    until("the node is in sync", || replica.node.lag_ms() < litefs_replication::LAG_NEVER_MS).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_asks_for_what_it_lacks_after_a_restart() {
    let cut = |bytes: Vec<u8>| Bytes::from(bytes).slice(..1891);
    let primary = FakePrimary::start("LFSC00000000000000AA", move |number, _| {
        // The first stream ends before transaction 6.
        let bytes = golden("stream-from-empty.bin");
        if number == 0 { (cut(bytes), false) } else { (Bytes::new(), true) }
    })
    .await;
    let replica = TestNode::replica_of(&primary.info).await;
    until("it reconnects", || primary.asked.lock().len() >= 2).await;
    let asked = primary.asked.lock()[1].clone();
    assert_eq!(asked.get("wal.db").map(|pos| pos.txid), Some(Txid(5)));
    assert_eq!(asked.get("del.db").map(|pos| pos.txid), Some(Txid(2)));
    replica.stop().await;
}
