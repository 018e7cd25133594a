//! Many replicas at once, and slow ones.

use bytes::Bytes;
use litefs::database::Next;
use litefs::ltx::{HEADER_BYTES, Header};
use litefs::{Pos, Txid};
use litefs_lease::BootInstant;
use litefs_replication::wire::{Frame, Item, StreamDecoder, encode_position_map};

use crate::harness::{Setup, TestNode, db_name, until, within};

/// The answer to a replica's request for a stream.
async fn ask(primary: &TestNode, node_id: u64, at: Option<Pos>) -> reqwest::Response {
    let client = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let positions = at.map(|pos| (db_name("a.db"), pos)).into_iter().collect();
    let request = client
        .post(format!("{}/stream", primary.info.advertise_url))
        .header("litefs-id", format!("{node_id:016X}"))
        .body(encode_position_map(&positions).to_vec());
    request.send().await.expect("an answer")
}

/// A replica that only listens.
struct Listener {
    response: reqwest::Response,
    decoder: StreamDecoder,
    ltx: Vec<u8>,
}

impl Listener {
    async fn connect(primary: &TestNode, node_id: u64, at: Option<Pos>) -> Self {
        let response = ask(primary, node_id, at).await;
        assert_eq!(response.status(), 200);
        Self { response, decoder: StreamDecoder::new(), ltx: Vec::new() }
    }

    /// The next LTX file; `None` at the end of the stream.
    async fn next_file(&mut self) -> Option<Bytes> {
        loop {
            while let Some(item) = self.decoder.next_item().expect("a stream") {
                match item {
                    Item::Chunk(chunk) => self.ltx.extend_from_slice(&chunk),
                    Item::LtxEnd => return Some(std::mem::take(&mut self.ltx).into()),
                    Item::Frame(Frame::End) => return None,
                    Item::Frame(_) => {}
                }
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.decoder.push(&bytes),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

fn header(file: &[u8]) -> Header {
    Header::parse(file.first_chunk::<HEADER_BYTES>().expect("a header")).expect("an LTX file")
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_streams_get_the_same_bytes_while_the_primary_goes_on() {
    const STREAMS: u64 = 50;
    let primary = TestNode::primary().await;
    primary.put("a.db", 5).await;
    let mut listeners = Vec::new();
    for id in 1..=STREAMS {
        listeners.push(Listener::connect(&primary, id, None).await);
    }
    until("all are connected", || primary.node.subscribers().count() as u64 == STREAMS).await;
    let reading: Vec<_> = listeners
        .into_iter()
        .map(|mut listener| {
            tokio::spawn(async move {
                let mut files = Vec::new();
                while files.last().is_none_or(|last: &Bytes| header(last).max_txid < Txid(21)) {
                    files.push(listener.next_file().await.expect("the stream goes on"));
                }
                files
            })
        })
        .collect();
    for rows in 6..26 {
        primary.put("a.db", rows).await;
    }
    let mut all = Vec::new();
    for reading in reading {
        all.push(within("every stream has everything", reading).await.expect("no panic"));
    }
    for files in &all {
        let mut at = Txid::ZERO;
        for file in files {
            assert_eq!(header(file).min_txid, at.next(), "without a gap");
            at = header(file).max_txid;
        }
    }
    // Each got the records as they lie in the log, and not one of its own making.
    assert!(all.iter().all(|files| files == &all[0]), "the streams differ");
    primary.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_takes_nothing_blocks_nobody_and_gets_a_snapshot_in_the_end() {
    let primary = TestNode::start(Setup {
        cluster_id: Some("LFSC0000000000000001"),
        retention: Some(std::time::Duration::ZERO),
        ..Setup::default()
    })
    .await;
    let first = primary.put("a.db", 10).await;
    let mut slow = Listener::connect(&primary, 0xAB, Some(first)).await;
    let replica = TestNode::replica_of(&primary.info).await;
    // Several full segments of the log, so that retention has something to drop: also what follows the record that is on its way.
    let mut rows = 80_000;
    let on_its_way = primary.put("a.db", rows).await;
    let db = primary.store.database("a.db").expect("the database");
    while !matches!(db.next_after(on_its_way), Ok(Next::SnapshotNeeded)) {
        rows += 1;
        primary.put("a.db", rows).await;
        replica.matches(&primary, "a.db").await;
        assert!(rows < 80_100, "retention drops nothing");
    }
    let target = primary.pos("a.db");
    // Now it reads: what was on the way, and then (on this stream or the next) everything at once.
    let (mut at, mut snapshots) = (first, 0);
    while at.txid < target.txid {
        match within("a file, or the end", slow.next_file()).await {
            Some(file) => {
                let header = header(&file);
                snapshots += u32::from(header.is_snapshot());
                assert!(header.is_snapshot() || header.pre() == at, "{} does not follow {at}", header.file_name());
                let checksum =
                    file.last_chunk::<16>().and_then(|trailer| trailer.first_chunk::<8>()).expect("a trailer");
                at = Pos::new(header.max_txid, litefs::Checksum(u64::from_be_bytes(*checksum)));
            }
            None => slow = Listener::connect(&primary, 0xAC, Some(at)).await,
        }
    }
    assert_eq!(at, target);
    assert!(snapshots > 0, "the records were gone");
    replica.stop().await;
    primary.stop().await;
}

/// After a pause that was longer than its lease, a primary does not know yet that another one has taken over.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_lease_has_run_out_sends_nothing_more() {
    let primary = TestNode::primary().await;
    primary.put("a.db", 5).await;
    let mut listener = Listener::connect(&primary, 0xAB, None).await;
    assert!(within("a snapshot", listener.next_file()).await.is_some());
    primary.fence.set_deadline(BootInstant::from_nanos(1));
    primary.put("a.db", 6).await;
    assert!(within("the end", listener.next_file()).await.is_none(), "a transaction that may be lost was spread");
    assert_eq!(ask(&primary, 0xAB, None).await.status(), 503);
    primary.stop().await;
}
