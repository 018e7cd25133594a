//! The primary's side: one task per replica.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use litefs::store::Event;
use litefs::{DbName, Pos, Store};
use litefs_lease::{BootInstant, FenceCell};
use thiserror::Error;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::producer::{PIECES_MAX, Piece, produce};
use super::subscribers::{Order, Subscription};
use super::{HEARTBEAT, STALL_MAX, now_ms};
use crate::metrics::Metrics;
use crate::roles::RoleState;
use crate::wire::Frame;

/// Pieces between the task and the HTTP connection.
pub(crate) const BODY_PIECES_MAX: usize = 4;

/// Why a stream ends before its primary does.
#[derive(Debug, Error)]
enum SendError {
    /// The replica went away; no news.
    #[error("the replica disconnected")]
    Disconnected,
    /// It reads nothing.
    #[error("the replica has taken nothing for {0:?}")]
    Stalled(Duration),
    /// The file being sent could not be completed; the replica has to ask again.
    #[error("{db}: read the log: {error}")]
    Broken { db: DbName, error: std::io::Error },
    /// Another node may be primary by now, and what only this one has may not come to be: it is not spread.
    #[error("the lease has run out")]
    LeaseOver,
    /// One file takes longer than `http.snapshot-timeout`.
    #[error("{db}: sending took longer than http.snapshot-timeout ({limit:?})")]
    TooSlow { db: DbName, limit: Duration },
}

/// What a stream is made of.
pub(crate) struct Sender {
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) role: watch::Receiver<RoleState>,
    pub(crate) cover: Cover,
    pub(crate) shutdown: CancellationToken,
    pub(crate) subscription: Subscription,
    /// Only these databases; all when `None`.
    pub(crate) filter: Option<BTreeSet<DbName>>,
    /// Where the replica is after what we have sent.
    pub(crate) sent: BTreeMap<DbName, Pos>,
    /// Subscribed before the positions are compared, so that nothing falls in between.
    pub(crate) events: broadcast::Receiver<Event>,
    pub(crate) body: mpsc::Sender<Bytes>,
    pub(crate) snapshot_timeout: Duration,
}

/// How long this node's lease lasts as far as a stream knows: also while the fence is closed for a handoff or a clean stop, when the
/// last transactions are sent under the lease that is about to be given up.
#[derive(Debug)]
pub(crate) struct Cover {
    fence: Arc<FenceCell>,
    until: BootInstant,
}

impl Cover {
    /// `None` when this node does not hold the lease now.
    pub(crate) fn of(fence: &Arc<FenceCell>) -> Option<Self> {
        let until = fence.deadline();
        (BootInstant::now() < until).then(|| Self { fence: fence.clone(), until })
    }

    /// Whether nobody else can be primary yet.
    fn lasts(&mut self) -> bool {
        let deadline = self.fence.deadline();
        if deadline != BootInstant::PAST {
            self.until = deadline;
        }
        BootInstant::now() < self.until
    }
}

/// The parts that change while a stream runs.
struct State {
    /// Databases that may have something to send.
    dirty: BTreeSet<DbName>,
    /// Databases whose log could not be read, with the cause: tried again with the next heartbeat.
    failed: BTreeMap<DbName, String>,
    /// What heartbeats say: the last moment at which nothing was held back.
    in_sync_ms: i64,
    heartbeat: Instant,
}

enum Wake {
    Work,
    Event(Result<Event, RecvError>),
    Heartbeat,
    Order(Order),
    Finish,
}

impl Sender {
    /// Sends until the replica goes away, the node is no longer primary, or stops.
    pub(crate) async fn run(mut self, replica: String) {
        let _counted = self.metrics.stream_opened();
        match self.stream().await {
            Ok(()) => tracing::info!(%replica, "ended the stream to a replica"),
            Err(SendError::Disconnected) => tracing::info!(%replica, "a replica disconnected"),
            Err(error @ SendError::LeaseOver) => tracing::info!(%replica, %error, "ended the stream to a replica"),
            Err(error) => tracing::warn!(%replica, %error, "closed the stream to a replica; it will reconnect"),
        }
    }

    async fn stream(&mut self) -> Result<(), SendError> {
        let mut state = State {
            dirty: BTreeSet::new(),
            failed: BTreeMap::new(),
            in_sync_ms: now_ms(),
            heartbeat: Instant::now() + HEARTBEAT,
        };
        self.check_lease()?;
        let ours = self.store.positions();
        let unknown: Vec<_> =
            self.sent.keys().filter(|name| !ours.contains_key(*name) && self.wants(name)).cloned().collect();
        for name in unknown {
            self.sent.remove(&name);
            self.send(&Frame::DropDatabase { name }).await?;
        }
        self.mark_all(&mut state);
        self.send_dirty(&mut state).await?;
        self.send(&Frame::Ready).await?;
        loop {
            match self.wake(&state).await? {
                Wake::Work => self.send_dirty(&mut state).await?,
                Wake::Event(event) => {
                    self.note(event, &mut state);
                    self.note_pending(&mut state);
                    self.send_dirty(&mut state).await?;
                }
                Wake::Heartbeat => {
                    state.dirty.extend(state.failed.keys().cloned());
                    self.send_dirty(&mut state).await?;
                    let idle = state.failed.is_empty() && state.dirty.is_empty();
                    self.beat(&mut state, idle).await?;
                }
                Wake::Order(Order::Drain { done }) => {
                    self.send_tail(&mut state).await?;
                    let _ = done.send(());
                }
                Wake::Order(Order::Handoff { lease_id, done }) => {
                    self.send_tail(&mut state).await?;
                    self.send(&Frame::Handoff { lease_id }).await?;
                    let _ = done.send(());
                    return self.send(&Frame::End).await;
                }
                Wake::Finish => {
                    self.send_tail(&mut state).await?;
                    return self.send(&Frame::End).await;
                }
            }
        }
    }

    fn check_lease(&mut self) -> Result<(), SendError> {
        if self.cover.lasts() { Ok(()) } else { Err(SendError::LeaseOver) }
    }

    async fn wake(&mut self, state: &State) -> Result<Wake, SendError> {
        if !state.dirty.is_empty() {
            return Ok(Wake::Work);
        }
        tokio::select! {
            biased;
            order = self.subscription.orders.recv() => Ok(order.map_or(Wake::Finish, Wake::Order)),
            event = self.events.recv() => Ok(Wake::Event(event)),
            () = tokio::time::sleep_until(state.heartbeat) => Ok(Wake::Heartbeat),
            () = async { let _ = self.role.wait_for(|role| !role.is_primary()).await; } => Ok(Wake::Finish),
            () = self.shutdown.cancelled() => Ok(Wake::Finish),
            () = self.body.closed() => Err(SendError::Disconnected),
        }
    }

    /// Events that came together are one piece of work.
    fn note_pending(&mut self, state: &mut State) {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.note(Ok(event), state),
                Err(TryRecvError::Lagged(missed)) => self.note(Err(RecvError::Lagged(missed)), state),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn note(&self, event: Result<Event, RecvError>, state: &mut State) {
        match event {
            Ok(Event::Tx { db, .. }) => {
                if self.wants(&db) {
                    state.dirty.insert(db);
                }
            }
            // Too many at once for the channel: look at every database.
            Err(_) => self.mark_all(state),
        }
    }

    fn wants(&self, name: &DbName) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.contains(name))
    }

    fn mark_all(&self, state: &mut State) {
        state.dirty = self.store.positions().into_keys().filter(|name| self.wants(name)).collect();
    }

    /// Everything committed so far, of every database.
    async fn send_tail(&mut self, state: &mut State) -> Result<(), SendError> {
        self.mark_all(state);
        self.send_dirty(state).await
    }

    async fn send_dirty(&mut self, state: &mut State) -> Result<(), SendError> {
        // One pass over what is dirty now, so that a busy database does not starve the others or the heartbeat.
        for name in std::mem::take(&mut state.dirty) {
            self.send_database(name, state).await?;
        }
        Ok(())
    }

    async fn send_database(&mut self, name: DbName, state: &mut State) -> Result<(), SendError> {
        let Some(db) = self.store.database_or_dropped(name.as_str()) else { return Ok(()) };
        let from = self.sent.get(&name).copied().unwrap_or_default();
        if db.pos() == from {
            return Ok(());
        }
        self.check_lease()?;
        let (pieces, mut produced) = mpsc::channel(PIECES_MAX);
        let job = tokio::task::spawn_blocking(move || produce(&db, from, &pieces));
        let deadline = Instant::now() + self.snapshot_timeout;
        // Nothing sent yet: then a failure can be tried again on this stream.
        let (mut untouched, mut mid_frame) = (true, false);
        loop {
            tokio::select! {
                biased;
                piece = produced.recv() => {
                    let Some(Piece { bytes, mid_frame: more, frames }) = piece else { break };
                    if !mid_frame {
                        self.check_lease()?;
                    }
                    (untouched, mid_frame) = (false, more);
                    self.metrics.frames_sent(name.as_str(), "ltx", frames);
                    self.put(bytes).await?;
                    state.heartbeat = Instant::now() + HEARTBEAT;
                }
                () = tokio::time::sleep_until(state.heartbeat), if !mid_frame => self.beat(state, false).await?,
                () = tokio::time::sleep_until(deadline) => {
                    return Err(SendError::TooSlow { db: name, limit: self.snapshot_timeout });
                }
            }
        }
        match job.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic.to_string()))) {
            Ok(reached) => {
                state.failed.remove(&name);
                self.sent.insert(name.clone(), reached);
                if self.store.database_or_dropped(name.as_str()).is_some_and(|db| db.pos() != reached)
                    && reached != from
                {
                    state.dirty.insert(name);
                }
                Ok(())
            }
            Err(error) if !untouched => Err(SendError::Broken { db: name, error }),
            Err(error) => {
                let cause = error.to_string();
                if state.failed.get(&name) != Some(&cause) {
                    tracing::warn!(db = %name, %error, "read the log for a replica; trying again");
                    state.failed.insert(name, cause);
                }
                Ok(())
            }
        }
    }

    /// `idle`: the replica has been sent everything.
    async fn beat(&mut self, state: &mut State, idle: bool) -> Result<(), SendError> {
        self.check_lease()?;
        state.heartbeat = Instant::now() + HEARTBEAT;
        if idle {
            state.in_sync_ms = now_ms();
        }
        self.send(&Frame::Heartbeat { timestamp_ms: state.in_sync_ms }).await
    }

    async fn send(&mut self, frame: &Frame) -> Result<(), SendError> {
        let mut bytes = BytesMut::with_capacity(64);
        frame.encode(&mut bytes);
        let db = match frame {
            Frame::Ltx { name } | Frame::DropDatabase { name } | Frame::HighWaterMark { name, .. } => name.as_str(),
            _ => "",
        };
        self.metrics.frames_sent(db, frame.label(), 1);
        self.put(bytes.freeze()).await
    }

    async fn put(&self, bytes: Bytes) -> Result<(), SendError> {
        match tokio::time::timeout(STALL_MAX, self.body.send(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SendError::Disconnected),
            Err(_) => Err(SendError::Stalled(STALL_MAX)),
        }
    }
}
