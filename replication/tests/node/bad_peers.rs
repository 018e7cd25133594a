//! Peers that send what they should not: said, survived, nothing applied.

use bytes::{BufMut, Bytes, BytesMut};
use litefs::ltx::{Encoder, Header, Trailer};
use litefs::{Checksum, Pos, Txid};
use litefs_replication::wire::{Frame, end_ltx, put_chunks};

use crate::fake_primary::FakePrimary;
use crate::harness::{Setup, TestNode, db_name, until};

const CLUSTER: &str = "LFSC00000000000000AA";

fn golden(name: &str) -> Vec<u8> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    std::fs::read(root.join(name)).expect(name)
}

/// A stream with one LTX file.
fn stream_of(name: &str, ltx: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    Frame::Ltx { name: db_name(name) }.encode(&mut out);
    put_chunks(&mut out, ltx);
    end_ltx(&mut out);
    Frame::Ready.encode(&mut out);
    out.freeze()
}

/// A replica gets `bad` first, and then the whole golden stream: it must get to the end of it by itself.
async fn recovers_from(bad: Vec<(Bytes, bool)>) {
    let count = bad.len();
    let primary = FakePrimary::start(CLUSTER, move |number, _| match bad.get(number) {
        Some(bad) => bad.clone(),
        None => (golden("stream-from-empty.bin").into(), true),
    })
    .await;
    let replica = TestNode::replica_of(&primary.info).await;
    until("wal.db is at transaction 6", || replica.pos("wal.db").txid == Txid(6)).await;
    let asked = primary.asked.lock().clone();
    for positions in &asked[..=count] {
        assert!(positions.values().all(|pos| pos.is_zero()), "something bad was applied: {positions:?}");
    }
    until("no problem is left", || replica.node.problems().list().is_empty()).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_cut_streams() {
    let whole: Bytes = golden("stream-from-empty.bin").into();
    let mut unknown = BytesMut::new();
    unknown.put_u32(99);
    let mut name = BytesMut::new();
    name.put_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
    name.put_slice(b"../a");
    recovers_from(vec![
        (Bytes::from_static(b"HTTP/1.1 400 what"), true),
        (unknown.freeze(), true),
        (name.freeze(), true),
        (Bytes::new(), false),
        (whole.slice(..200), false),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files() {
    let good = golden("stream-from-empty.ltx/000-wal.db-0000000000000001-0000000000000002.ltx");
    let flipped = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        (stream_of("wal.db", &bad), true)
    };
    recovers_from(vec![
        (stream_of("wal.db", &good[..50]), true),
        (stream_of("wal.db", &good[..good.len() - 20]), true),
        flipped(0),
        flipped(30),
        flipped(150),
        flipped(good.len() - 1),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_does_not_follow() {
    let third = golden("stream-from-empty.ltx/005-wal.db-0000000000000003-0000000000000003.ltx");
    recovers_from(vec![(stream_of("wal.db", &third), true)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_the_wrong_order() {
    let first = golden("stream-from-empty.ltx/000-wal.db-0000000000000001-0000000000000002.ltx");
    let third = golden("stream-from-empty.ltx/005-wal.db-0000000000000003-0000000000000003.ltx");
    let fourth = golden("stream-from-empty.ltx/009-wal.db-0000000000000004-0000000000000004.ltx");
    let stream = |files: &[&[u8]]| {
        let frames: Vec<Bytes> = files.iter().map(|file| stream_of("wal.db", file)).collect();
        (Bytes::from(frames.concat()), true)
    };
    recovers_from(vec![stream(&[&third, &first]), stream(&[&fourth, &third, &first])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_goes_silent_in_the_middle_of_a_file() {
    let whole: Bytes = golden("stream-from-empty.bin").into();
    recovers_from(vec![(whole.slice(..100), true)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_applied_does_not_stop_the_others() {
    let good = golden("stream-from-empty.ltx/000-wal.db-0000000000000001-0000000000000002.ltx");
    let mut bad = good.clone();
    bad[150] ^= 1;
    let both = [stream_of("bad.db", &bad), stream_of("good.db", &good)].concat();
    let primary = FakePrimary::start(CLUSTER, move |_, _| (both.clone().into(), true)).await;
    let replica = TestNode::replica_of(&primary.info).await;
    until("good.db is there", || replica.pos("good.db").txid == Txid(2)).await;
    until("the problem is listed", || replica.node.problems().list().contains_key("bad.db")).await;
    let info: serde_json::Value = replica.get("/info").await.json().await.expect("json");
    assert_eq!(info["health"], "degraded", "{info}");
    assert_eq!(replica.node.lag_ms(), litefs_replication::LAG_NEVER_MS, "it is not in sync");
    replica.stop().await;
}

/// As LiteFS makes one for `PRAGMA journal_mode = DELETE` in a WAL database: the checksum has changed, but no page is in it.
fn record_without_its_page(from: Pos) -> Vec<u8> {
    let header = Header {
        min_txid: Txid(from.txid.0 + 1),
        max_txid: Txid(from.txid.0 + 1),
        pre_apply: from.checksum,
        ..header_of(&golden("stream-from-empty.ltx/005-wal.db-0000000000000003-0000000000000003.ltx"))
    };
    let encoder = Encoder::new(Vec::new(), &header).expect("a header");
    encoder.finish(Checksum(from.checksum.0 ^ 2)).expect("a record").1
}

fn header_of(file: &[u8]) -> Header {
    Header::parse(file.first_chunk().expect("a whole header")).expect("a header")
}

#[tokio::test(flavor = "multi_thread")]
async fn past_a_record_that_stays_damaged_leads_a_snapshot() {
    let first = golden("stream-from-empty.ltx/000-wal.db-0000000000000001-0000000000000002.ltx");
    let trailer = Trailer::parse(first.last_chunk().expect("a trailer"));
    let pos = Pos::new(Txid(2), trailer.post_apply);
    let bad = stream_of("wal.db", &record_without_its_page(pos));
    let primary = FakePrimary::start(CLUSTER, move |number, positions| {
        let bytes = match (number, positions.get(&db_name("wal.db"))) {
            (0, _) => [stream_of("wal.db", &first), bad.clone()].concat().into(),
            (_, Some(claimed)) if *claimed == pos => bad.clone(),
            // Recorded from the original, asked with a checksum that is not in its history.
            _ => golden("stream-badsum.bin").into(),
        };
        (bytes, true)
    })
    .await;
    let replica = TestNode::replica_of(&primary.info).await;
    until("wal.db is at transaction 6", || replica.pos("wal.db").txid == Txid(6)).await;
    let asked: Vec<_> =
        primary.asked.lock().iter().map(|positions| positions.get(&db_name("wal.db")).copied()).collect();
    assert_eq!(asked[..2], [None, Some(pos)], "the record is tried twice");
    assert_eq!(asked[2].map(|claimed| claimed.txid), Some(pos.txid), "then another history is claimed");
    assert_ne!(asked[2], Some(pos));
    assert_eq!(replica.export("wal.db").await, golden("export-wal.db.sqlite"));
    until("no problem is left", || replica.node.problems().list().is_empty()).await;
    let aside: serde_json::Value = replica.get("/lost-and-found").await.json().await.expect("json");
    assert_eq!(aside, serde_json::json!([]), "nothing of the replica's own was replaced");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_is_not_followed() {
    let primary = FakePrimary::start(CLUSTER, |_, _| (golden("stream-from-empty.bin").into(), true)).await;
    let setup =
        Setup { primary: Some(primary.info.clone()), cluster_id: Some("LFSC00000000000000BB"), ..Setup::default() };
    let replica = TestNode::start(setup).await;
    until("it has tried twice", || primary.asked.lock().len() >= 2).await;
    assert!(replica.store.positions().is_empty());
    assert_eq!(replica.store.cluster_id().as_deref(), Some("LFSC00000000000000BB"));
    replica.stop().await;

    let ours = TestNode::primary().await;
    let setup =
        Setup { primary: Some(ours.info.clone()), cluster_id: Some("LFSC00000000000000BB"), ..Setup::default() };
    let stranger = TestNode::start(setup).await;
    ours.put("a.db", 1).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let request = client.post(format!("{}/stream", ours.info.advertise_url)).header("litefs-id", "AB");
    let refused = request.header("litefs-cluster-id", "LFSC00000000000000BB").body(vec![0; 4]).send().await;
    assert_eq!(refused.expect("an answer").status(), 409);
    assert!(stranger.store.positions().is_empty());
    stranger.stop().await;
    ours.stop().await;
}
