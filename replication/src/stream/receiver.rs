//! The replica's side: follows a primary until its stream ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use litefs::ltx::{HEADER_BYTES, Header};
use litefs::{Checksum, DbName, Pos, Store};
use litefs_lease::{LeaseId, PrimaryInfo};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::lanes::{Batch, Connection, Input, Job, Lanes, Mark, Pipe};
use super::now_ms;
use super::patience::Patience;
use crate::lag::Lag;
use crate::peer::{Peer, full, query_escape};
use crate::problems::Problems;
use crate::roles::StreamEnd;
use crate::wire::{Frame, Item, StreamDecoder, encode_position_map};

/// Files up to this size are collected in memory, larger ones are piped to the engine as they arrive.
const MEMORY_FILE_BYTES_MAX: usize = 1 << 20;
/// Bytes of collected files that wait for being applied, of all databases together.
const MEMORY_BYTES_MAX: usize = 16 << 20;
/// Chunks (of at most 64 KiB) between the stream and the engine, for a large file.
pub(super) const PIPE_CHUNKS_MAX: usize = 16;
/// How long a primary may take for the head of its answer.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Follows primaries, one at a time.
pub(crate) struct Receiver {
    pub(crate) store: Arc<Store>,
    pub(crate) lag: Arc<Lag>,
    pub(crate) problems: Arc<Problems>,
    pub(crate) lanes: Lanes,
    /// Bytes of collected files.
    pub(crate) memory: Arc<Semaphore>,
    /// `lease.databases`; all when empty.
    pub(crate) filter: BTreeSet<DbName>,
    /// The primary whose stream is running.
    pub(crate) connected: watch::Sender<Option<PrimaryInfo>>,
    /// Ends the stream, so that the next one starts from the positions as they are then.
    pub(crate) resync: Arc<Notify>,
    pub(crate) patience: Patience,
}

/// Resets [`Receiver::connected`], however following ends.
struct Connected<'a>(&'a watch::Sender<Option<PrimaryInfo>>);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

/// Everything before it has been applied: moves the lag on, unless something failed.
struct InSync {
    lag: Arc<Lag>,
    connection: Arc<Connection>,
    timestamp_ms: i64,
    /// It is in every lane. In one lane it says nothing about the others, so it counts only after one that was in all.
    in_all_lanes: bool,
}

impl Drop for InSync {
    fn drop(&mut self) {
        if self.connection.retry_after().is_some() {
            return;
        }
        if self.in_all_lanes {
            self.connection.caught_up();
        }
        if self.connection.has_caught_up() {
            self.lag.in_sync_at(self.timestamp_ms);
        }
    }
}

/// The LTX file that is arriving.
enum Arriving {
    Nothing,
    Collecting {
        db: DbName,
        chunks: Vec<Bytes>,
        len: usize,
    },
    Piping {
        pipe: mpsc::Sender<Pipe>,
    },
    /// Its database failed: the rest is not looked at.
    Skipping,
}

impl Receiver {
    pub(crate) fn memory() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MEMORY_BYTES_MAX))
    }

    /// Streams from `primary` until that ends; everything received has then been applied or given up.
    pub(crate) async fn follow(&self, primary: &PrimaryInfo) -> StreamEnd {
        // What an earlier connection left in the lanes would make the positions old.
        self.lanes.settle().await;
        let body = match self.open(primary).await {
            Ok(body) => body,
            Err(text) => return StreamEnd::Failed(text),
        };
        self.lag.history_may_differ();
        self.connected.send_replace(Some(primary.clone()));
        let _connected = Connected(&self.connected);
        tracing::info!(primary = %primary.hostname, "connected to the primary");
        let connection = Arc::new(Connection::default());
        let batch = Batch::default();
        let mut following = Following { receiver: self, connection, arriving: Arriving::Nothing, batch, ready: false };
        let end = following.run(body).await;
        following.flush().await;
        // A lane that waits for the rest of a file learns by this that there is none.
        drop(following);
        self.lanes.settle().await;
        end
    }

    async fn open(&self, primary: &PrimaryInfo) -> Result<Incoming, String> {
        let mut peer = Peer::connect(&primary.advertise_url, self.store.node_id(), self.store.cluster_id())
            .await
            .map_err(|error| error.to_string())?;
        let mut positions = self.positions().await?;
        if self.rejoin(&mut peer, &positions).await? {
            positions = self.positions().await?;
        }
        self.disown_damaged(&mut positions);
        let mut path = "/stream".to_owned();
        if !self.filter.is_empty() {
            let names: Vec<_> = self.filter.iter().map(|name| query_escape(name.as_str())).collect();
            path = format!("/stream?filter={}", names.join(","));
        }
        let body = full(encode_position_map(&positions));
        let response =
            peer.send(Method::POST, &path, body, ANSWER_MAX).await.map_err(|error| format!("stream: {error}"))?;
        if let Some(theirs) = response.headers().get("litefs-cluster-id") {
            let theirs = String::from_utf8_lossy(theirs.as_bytes()).into_owned();
            self.check_cluster(&theirs).await?;
        }
        Ok(response.into_body())
    }

    /// Where the primary's next record has been damaged again and again, claims a position that is in nobody's history: the
    /// primary then sends a snapshot, whichever position it is at. (It would send that same record, or its first one, to a
    /// replica that claims none.)
    fn disown_damaged(&self, positions: &mut BTreeMap<DbName, Pos>) {
        for (name, pos) in positions {
            if !pos.is_zero() && self.problems.needs_snapshot(name) {
                tracing::warn!(db = %name, %pos, "the primary's next record is damaged: asking for a snapshot instead");
                pos.checksum = Checksum(pos.checksum.0 ^ 1);
            }
        }
    }

    /// The positions of the databases that are followed.
    async fn positions(&self) -> Result<BTreeMap<DbName, Pos>, String> {
        let store = self.store.clone();
        let mut positions = tokio::task::spawn_blocking(move || store.positions()).await.map_err(|e| e.to_string())?;
        if !self.filter.is_empty() {
            positions.retain(|name, _| self.filter.contains(name));
        }
        Ok(positions)
    }

    /// Never takes data from another cluster; joins the primary's cluster when this node belongs to none.
    pub(super) async fn check_cluster(&self, theirs: &str) -> Result<(), String> {
        match self.store.cluster_id() {
            Some(ours) if ours == theirs => Ok(()),
            Some(ours) => Err(format!(
                "the primary belongs to cluster {theirs}, this node to {ours}: check lease.consul.key, \
                 or remove the data directory to join the other cluster"
            )),
            None => {
                let (store, id) = (self.store.clone(), theirs.to_owned());
                let written = tokio::task::spawn_blocking(move || store.set_cluster_id(&id)).await;
                written.map_err(|e| e.to_string())?.map_err(|error| format!("write the cluster ID: {error}"))
            }
        }
    }
}

struct Following<'a> {
    receiver: &'a Receiver,
    connection: Arc<Connection>,
    arriving: Arriving,
    /// What has arrived and is not handed to the lanes yet: at the latest when there is nothing more to decode.
    batch: Batch,
    ready: bool,
}

impl Following<'_> {
    async fn run(&mut self, mut body: Incoming) -> StreamEnd {
        let mut decoder = StreamDecoder::new();
        let resync = self.receiver.resync.clone();
        let connection = self.connection.clone();
        let give_up = async move {
            tokio::select! {
                () = resync.notified() => "starting over from the current positions".to_owned(),
                () = async {
                    connection.failure.notified().await;
                    tokio::time::sleep(connection.retry_after().unwrap_or_default()).await;
                } => "a database could not be applied; trying again".to_owned(),
            }
        };
        tokio::pin!(give_up);
        let silence_max = self.receiver.patience.silence_max();
        loop {
            let frame = tokio::select! {
                biased;
                reason = &mut give_up => return StreamEnd::Failed(reason),
                frame = tokio::time::timeout(silence_max, body.frame()) => frame,
            };
            let data = match frame {
                Err(_) => {
                    self.receiver.patience.was_silent();
                    return StreamEnd::Failed(format!("the primary has been silent for {silence_max:?}"));
                }
                Ok(None) => return StreamEnd::Failed("the primary closed the stream".to_owned()),
                Ok(Some(Err(error))) => return StreamEnd::Failed(format!("the stream broke: {error}")),
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            };
            decoder.push(&data);
            loop {
                match decoder.next_item() {
                    Ok(None) => {
                        self.flush().await;
                        break;
                    }
                    Ok(Some(item)) => {
                        if let Some(end) = self.item(item).await {
                            return end;
                        }
                    }
                    Err(error) => return StreamEnd::Failed(format!("the primary sends what is not a stream: {error}")),
                }
            }
        }
    }

    async fn item(&mut self, item: Item) -> Option<StreamEnd> {
        match item {
            Item::Chunk(chunk) => return self.chunk(chunk).await.err().map(StreamEnd::Failed),
            Item::LtxEnd => return self.ltx_end().await.err().map(StreamEnd::Failed),
            Item::Frame(Frame::Ltx { name }) => {
                self.arriving = if self.connection.has_failed(&name) {
                    Arriving::Skipping
                } else {
                    Arriving::Collecting { db: name, chunks: Vec::new(), len: 0 }
                };
            }
            Item::Frame(Frame::DropDatabase { name }) => {
                let job = Job::Drop { connection: self.connection.clone(), db: name.clone() };
                self.batch.push(&name, job);
            }
            Item::Frame(Frame::Ready) => {
                self.ready = true;
                self.receiver.patience.is_in_sync();
                self.in_sync_at(now_ms()).await;
            }
            Item::Frame(Frame::Heartbeat { timestamp_ms }) => self.in_sync_at(timestamp_ms).await,
            Item::Frame(Frame::HighWaterMark { .. }) => {}
            Item::Frame(Frame::End) => return Some(StreamEnd::End),
            Item::Frame(Frame::Handoff { lease_id }) => return Some(StreamEnd::Handoff(LeaseId(lease_id))),
        }
        None
    }

    /// Moves the lag on when everything received so far has been applied.
    async fn in_sync_at(&mut self, timestamp_ms: i64) {
        if let Some(mark) = self.in_sync(timestamp_ms, true) {
            self.flush().await;
            self.receiver.lanes.mark(mark).await;
        }
    }

    /// What moves the lag on when it is dropped; nothing before the first catch-up.
    fn in_sync(&self, timestamp_ms: i64, in_all_lanes: bool) -> Option<Mark> {
        let (lag, connection) = (self.receiver.lag.clone(), self.connection.clone());
        self.ready.then(|| Arc::new(InSync { lag, connection, timestamp_ms, in_all_lanes }) as Mark)
    }

    async fn chunk(&mut self, chunk: Bytes) -> Result<(), String> {
        match &mut self.arriving {
            Arriving::Nothing | Arriving::Skipping => {}
            Arriving::Collecting { chunks, len, .. } => {
                *len += chunk.len();
                chunks.push(chunk);
                if *len > MEMORY_FILE_BYTES_MAX {
                    self.start_piping().await?;
                }
            }
            Arriving::Piping { pipe } => {
                // The engine gave the file up: it is in the connection's failures.
                if pipe.send(Pipe::Chunk(chunk)).await.is_err() {
                    self.arriving = Arriving::Skipping;
                }
            }
        }
        Ok(())
    }

    async fn start_piping(&mut self) -> Result<(), String> {
        let arriving = std::mem::replace(&mut self.arriving, Arriving::Skipping);
        let Arriving::Collecting { db, chunks, .. } = arriving else { return Ok(()) };
        let header = header(&db, &chunks)?;
        let (pipe, rest) = mpsc::channel(PIPE_CHUNKS_MAX);
        let input = Input::Piped { first: chunks, rest };
        self.queue(db, header, input);
        // The lane must be reading before the rest is sent.
        self.flush().await;
        self.arriving = Arriving::Piping { pipe };
        Ok(())
    }

    async fn ltx_end(&mut self) -> Result<(), String> {
        match std::mem::replace(&mut self.arriving, Arriving::Nothing) {
            Arriving::Nothing | Arriving::Skipping => {}
            Arriving::Piping { pipe } => {
                let _ = pipe.send(Pipe::End).await;
            }
            Arriving::Collecting { db, chunks, len } => {
                let header = header(&db, &chunks)?;
                let budget = self.budget(len).await?;
                self.queue(db, header, Input::Memory { image: in_one_piece(chunks, len), budget });
            }
        }
        Ok(())
    }

    fn queue(&mut self, db: DbName, header: Header, input: Input) {
        // A busy primary sends no heartbeats: then its transactions tell the time.
        let mark = i64::try_from(header.timestamp_ms).ok().and_then(|timestamp_ms| self.in_sync(timestamp_ms, false));
        let job = Job::Apply { connection: self.connection.clone(), db: db.clone(), header, input, mark };
        self.batch.push(&db, job);
    }

    /// Hands what has arrived to the lanes.
    async fn flush(&mut self) {
        self.receiver.lanes.queue(&mut self.batch).await;
    }

    async fn budget(&mut self, len: usize) -> Result<OwnedSemaphorePermit, String> {
        // A file in memory is at most MEMORY_FILE_BYTES_MAX and one chunk long, so the number fits.
        let permits = u32::try_from(len).unwrap_or(u32::MAX);
        if let Ok(budget) = self.receiver.memory.clone().try_acquire_many_owned(permits) {
            return Ok(budget);
        }
        // What is not handed over yet holds a part of it.
        self.flush().await;
        self.receiver.memory.clone().acquire_many_owned(permits).await.map_err(|error| error.to_string())
    }
}

fn in_one_piece(mut chunks: Vec<Bytes>, len: usize) -> Bytes {
    if chunks.len() == 1 {
        return chunks.pop().unwrap_or_default();
    }
    let mut image = BytesMut::with_capacity(len);
    for chunk in chunks {
        image.extend_from_slice(&chunk);
    }
    image.freeze()
}

/// The header, from the first chunks of a file.
fn header(db: &DbName, chunks: &[Bytes]) -> Result<Header, String> {
    let mut bytes = [0; HEADER_BYTES];
    let mut filled = 0;
    for chunk in chunks {
        let taken = chunk.len().min(HEADER_BYTES - filled);
        bytes[filled..filled + taken].copy_from_slice(&chunk[..taken]);
        filled += taken;
    }
    if filled < HEADER_BYTES {
        return Err(format!("{db}: the primary sends an LTX file of {filled} bytes"));
    }
    Header::parse(&bytes).map_err(|error| format!("{db}: the primary sends what is not an LTX file: {error}"))
}
