//! Before a stream: databases that have diverged are brought to the primary's history by one record each, if they can be; the
//! others get a snapshot by the stream, as from a LiteFS primary, which knows none of this.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use litefs::{DbName, Pos};
use tokio::sync::mpsc;

use super::SILENCE_MAX;
use super::lanes::{Pipe, PipeReader};
use super::receiver::{ANSWER_MAX, PIPE_CHUNKS_MAX, Receiver};
use crate::peer::{Peer, PeerError, full, query_escape};
use crate::wire::{decode_position_map, encode_position_map, encode_tail};

/// How long a primary may take until the record begins.
const RECORD_MAX: Duration = Duration::from_secs(30);

impl Receiver {
    /// Asks the primary which of these positions it does not go on from, and brings those databases to its history.
    /// Whether any position is another one now. What fails is left to the stream.
    ///
    /// # Errors
    /// The primary belongs to another cluster, or is none (yet).
    pub(super) async fn rejoin(&self, peer: &mut Peer, positions: &BTreeMap<DbName, Pos>) -> Result<bool, String> {
        let known: BTreeMap<_, _> =
            positions.iter().filter(|(_, pos)| !pos.is_zero()).map(|(name, pos)| (name.clone(), *pos)).collect();
        if known.is_empty() {
            return Ok(false);
        }
        let response = match peer.send(Method::POST, "/resync", full(encode_position_map(&known)), ANSWER_MAX).await {
            Ok(response) => response,
            Err(PeerError::Refused(_, StatusCode::NOT_FOUND, _)) => {
                tracing::debug!("the primary knows only snapshots for what has diverged");
                return Ok(false);
            }
            // It has the lease and is about to know: a stream a moment later would send whole databases.
            Err(error @ PeerError::Refused(_, StatusCode::SERVICE_UNAVAILABLE, _)) => return Err(error.to_string()),
            Err(error) => {
                tracing::debug!(%error, "ask the primary what has diverged");
                return Ok(false);
            }
        };
        if let Some(theirs) = response.headers().get("litefs-cluster-id") {
            let theirs = String::from_utf8_lossy(theirs.as_bytes()).into_owned();
            self.check_cluster(&theirs).await?;
        }
        let diverged = match peer.read(response, ANSWER_MAX).await.map(|body| decode_position_map(&body)) {
            Ok(Ok(diverged)) => diverged,
            other => {
                tracing::debug!(answer = ?other, "the primary does not say what has diverged");
                return Ok(false);
            }
        };
        let mut changed = false;
        for (name, theirs) in diverged.iter().filter(|(name, _)| known.contains_key(*name)) {
            match self.rejoin_database(peer, name).await {
                Ok(()) => changed = true,
                Err(cause) => {
                    tracing::warn!(db = %name, %theirs, cause, "our position is not in the primary's history: a snapshot follows");
                }
            }
        }
        Ok(changed)
    }

    async fn rejoin_database(&self, peer: &mut Peer, name: &DbName) -> Result<(), String> {
        let db = self.store.database(name.as_str()).ok_or("it is gone")?;
        let listed = db.clone();
        let tail = tokio::task::spawn_blocking(move || listed.tail()).await.map_err(|panic| panic.to_string())?;
        let tail = tail.map_err(|error| format!("read the log: {error}"))?;
        let tail = tail.ok_or("its log does not reach back to another position")?;
        let path = format!("/resync?name={}", query_escape(name.as_str()));
        let answer = peer.send(Method::POST, &path, full(encode_tail(&tail)), RECORD_MAX).await;
        let body = answer.map_err(|error| error.to_string())?.into_body();
        let (pipe, rest) = mpsc::channel(PIPE_CHUNKS_MAX);
        let applying = tokio::task::spawn_blocking(move || {
            let mut record = PipeReader::new(Vec::new(), rest);
            db.rejoin(&mut record)
        });
        let received = receive(body, pipe).await;
        let applied = applying.await.map_err(|panic| panic.to_string())?;
        received?;
        applied.map(drop).map_err(|error| error.to_string())
    }
}

/// Hands the bytes of a record on. When it does not arrive whole, the reader is told so.
async fn receive(mut body: Incoming, pipe: mpsc::Sender<Pipe>) -> Result<(), String> {
    loop {
        let frame = tokio::time::timeout(SILENCE_MAX, body.frame()).await;
        let data: Bytes = match frame {
            Err(_) => return Err(format!("the primary has been silent for {SILENCE_MAX:?}")),
            Ok(Some(Err(error))) => return Err(format!("the record broke off: {error}")),
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(None) => {
                let _ = pipe.send(Pipe::End).await;
                return Ok(());
            }
        };
        // The engine refuses it, and says why.
        if pipe.send(Pipe::Chunk(data)).await.is_err() {
            return Ok(());
        }
    }
}
