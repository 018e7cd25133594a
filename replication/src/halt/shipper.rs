//! Sends what local clients commit under a HALT lock to the primary, renews the lock, and ends it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use litefs::database::{Next, Record, RecordBody};
use litefs::store::Event;
use litefs::{Database, Pos};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio::time::Instant;

use super::HALT_TTL;
use super::remote::ASK_MAX;
use crate::peer::{Peer, PeerBody, PeerError, full, query_escape};
use crate::roles::{RoleHandle, RoleState};

/// How often the lock is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Bound of one `POST /tx`.
const TX_MAX: Duration = Duration::from_secs(20);
/// Pause between attempts to reach the primary.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Records read ahead.
const RECORDS_MAX: usize = 16;
/// Bytes read at a time from a record that is a range of a file.
const PIECE_BYTES: usize = 64 << 10;

/// The order to give the lock back.
#[derive(Debug)]
pub(super) struct Finish {
    pub(super) answer: oneshot::Sender<Result<(), String>>,
}

/// One lock this node holds on the primary.
pub(super) struct Shipper {
    pub(super) db: Arc<Database>,
    pub(super) events: broadcast::Receiver<Event>,
    pub(super) url: String,
    pub(super) node_id: u64,
    pub(super) cluster_id: Option<String>,
    pub(super) peer: Option<Peer>,
    pub(super) id: u64,
    /// What the primary has.
    pub(super) shipped: Pos,
    pub(super) resync: Arc<Notify>,
    pub(super) role: RoleHandle,
}

impl Shipper {
    pub(super) async fn run(mut self, mut finish: mpsc::Receiver<Finish>) {
        let held = self.hold(&mut finish).await;
        let (held, answer) = match held {
            Ok(answer) => (self.finish().await, answer),
            Err(error) => (Err(error), None),
        };
        let result = match held {
            Ok(()) => Ok(()),
            // What is not shipped is the cluster's history now.
            Err(_) if self.is_primary() => {
                let db = self.db.clone();
                let closed = tokio::task::spawn_blocking(move || db.set_local_writes(false));
                if let Ok(Err(error)) = closed.await {
                    tracing::warn!(db = %self.db.name(), %error, "end the HALT lock on the new primary");
                }
                Ok(())
            }
            Err(cause) => {
                self.give_up(&cause).await;
                Err(cause)
            }
        };
        let answer = match answer {
            Some(answer) => Some(answer),
            // The lock was lost: say so to whoever gives it back, whenever that is.
            None => finish.recv().await.map(|finish| finish.answer),
        };
        if let Some(answer) = answer {
            let _ = answer.send(result);
        }
    }

    /// Sends and renews until the lock is to be given back. `None`: its owner is gone.
    async fn hold(
        &mut self,
        finish: &mut mpsc::Receiver<Finish>,
    ) -> Result<Option<oneshot::Sender<Result<(), String>>>, String> {
        let mut renew = tokio::time::interval_at(Instant::now() + RENEW_EVERY, RENEW_EVERY);
        loop {
            tokio::select! {
                biased;
                () = became_primary(&self.role) => return Err("this node has become the primary".to_owned()),
                order = finish.recv() => return Ok(order.map(|finish| finish.answer)),
                _ = renew.tick() => self.renew().await?,
                event = self.events.recv() => match event {
                    Ok(Event::Tx { db, .. }) if db != *self.db.name() => {}
                    Ok(Event::Tx { .. }) | Err(RecvError::Lagged(_)) => self.ship().await?,
                    Err(RecvError::Closed) => return Err("the store is closed".to_owned()),
                },
            }
        }
    }

    async fn finish(&mut self) -> Result<(), String> {
        let db = self.db.clone();
        let last = tokio::task::spawn_blocking(move || db.set_local_writes(false))
            .await
            .map_err(|panic| panic.to_string())?
            .map_err(|error| format!("stop local writes: {error}"))?;
        self.ship().await?;
        if self.shipped != last {
            return Err(format!("the log ends at {}, the database is at {last}", self.shipped));
        }
        let path = self.halt_path();
        match self.ask(Method::DELETE, &path, || full(Bytes::new())).await {
            // Expired in this moment: everything is there all the same.
            Ok(()) | Err(PeerError::Refused(_, StatusCode::NOT_FOUND, _)) => Ok(()),
            Err(error) => {
                tracing::warn!(db = %self.db.name(), %error, "give the HALT lock back; it expires by itself");
                Ok(())
            }
        }
    }

    async fn give_up(&self, cause: &str) {
        let (db, from) = (self.db.clone(), self.shipped);
        let aside = tokio::task::spawn_blocking(move || {
            let last = db.set_local_writes(false)?;
            if last == from { Ok(None) } else { db.set_aside_after(from).map(Some) }
        });
        let db = self.db.name();
        match aside.await.unwrap_or_else(|panic| Err(io::Error::other(panic.to_string()))) {
            Ok(None) => tracing::error!(%db, error = cause, "lost the HALT lock; nothing was written since"),
            Ok(Some(folder)) => {
                tracing::error!(
                    %db, error = cause, folder = %folder.display(),
                    "the primary does not take what was written under the HALT lock: set aside"
                );
            }
            Err(error) => tracing::error!(
                %db, error = cause, aside = %error,
                "the primary does not take what was written under the HALT lock, and it could not be set aside"
            ),
        }
        self.resync.notify_one();
    }

    fn is_primary(&self) -> bool {
        self.role.is_primary()
    }

    fn halt_path(&self) -> String {
        format!("/halt?name={}&id={}", query_escape(self.db.name().as_str()), self.id)
    }

    fn tx_path(&self) -> String {
        format!("/tx?name={}&lockID={}", query_escape(self.db.name().as_str()), self.id)
    }

    async fn renew(&mut self) -> Result<(), String> {
        let path = self.halt_path();
        self.ask(Method::POST, &path, || full(Bytes::new())).await.map_err(|error| format!("renew the lock: {error}"))
    }

    /// Sends every transaction the primary does not have.
    async fn ship(&mut self) -> Result<(), String> {
        loop {
            let (db, from) = (self.db.clone(), self.shipped);
            let records = tokio::task::spawn_blocking(move || match db.next_after(from)? {
                Next::UpToDate => Ok(Vec::new()),
                Next::Records(records) => records.take(RECORDS_MAX).collect::<io::Result<Vec<_>>>(),
                Next::SnapshotNeeded => Err(io::Error::other("the log does not continue from there")),
            });
            let records = records
                .await
                .map_err(|panic| panic.to_string())?
                .map_err(|error| format!("read the log after {from}: {error}"))?;
            if records.is_empty() {
                return Ok(());
            }
            let path = self.tx_path();
            for record in records {
                let sent = self.ask(Method::POST, &path, || body(&record)).await;
                sent.map_err(|error| format!("send {}: {error}", record.post))?;
                self.shipped = record.post;
            }
        }
    }

    /// Asks the primary; a broken connection is tried again while the lock cannot have expired.
    async fn ask(&mut self, method: Method, path: &str, body: impl Fn() -> PeerBody) -> Result<(), PeerError> {
        let deadline = Instant::now() + HALT_TTL;
        loop {
            let result = self.ask_once(method.clone(), path, body()).await;
            match result {
                Err(PeerError::Connect(..) | PeerError::Http(..) | PeerError::TimedOut(_))
                    if Instant::now() < deadline && !self.is_primary() =>
                {
                    self.peer = None;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn ask_once(&mut self, method: Method, path: &str, body: PeerBody) -> Result<(), PeerError> {
        let peer = match &mut self.peer {
            Some(peer) => peer,
            None => self.peer.insert(Peer::connect(&self.url, self.node_id, self.cluster_id.clone()).await?),
        };
        let within = if path.starts_with("/tx") { TX_MAX } else { ASK_MAX };
        peer.ask(method, path, body, within).await.map(drop)
    }
}

async fn became_primary(role: &RoleHandle) {
    if role.subscribe().wait_for(RoleState::is_primary).await.is_err() {
        // The role machine is gone, and so is this node in a moment.
        std::future::pending::<()>().await;
    }
}

/// A record as a request body; a large one is read piece by piece.
fn body(record: &Record) -> PeerBody {
    match &record.body {
        RecordBody::Memory(bytes) => full(bytes.clone()),
        RecordBody::File { file, offset, len } => {
            let start = (file.clone(), *offset, offset.saturating_add(*len));
            let pieces = futures_util::stream::unfold(start, |(file, at, end)| async move {
                if at >= end {
                    return None;
                }
                let size = PIECE_BYTES.min(usize::try_from(end - at).unwrap_or(PIECE_BYTES));
                let source = file.clone();
                let read = tokio::task::spawn_blocking(move || {
                    use std::os::unix::fs::FileExt;
                    let mut piece = vec![0; size];
                    source.read_exact_at(&mut piece, at)?;
                    Ok(Frame::data(Bytes::from(piece)))
                });
                let piece = read.await.unwrap_or_else(|panic| Err(io::Error::other(panic.to_string())));
                let next = if piece.is_ok() { at + size as u64 } else { end };
                Some((piece, (file, next, end)))
            });
            BodyExt::boxed_unsync(StreamBody::new(pieces))
        }
    }
}
