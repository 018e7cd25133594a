//! Asking the engine to catch up: "which transaction does this answer stand for?"
//!
//! The engine's answer may block, so it is asked on one thread of its own. Requests that wait for the same database
//! share one call: any call that *starts* after a request asked is late enough for it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use litefs::{DbName, Txid};
use tokio::sync::oneshot;

use crate::node::Positions;

/// A position and the moment at which the engine was asked for it.
pub(crate) type Captured = Result<(Option<Txid>, Instant), ()>;

struct Ask {
    db: DbName,
    answer: oneshot::Sender<Captured>,
}

/// The desk where requests ask. Its thread ends with the last clone.
#[derive(Clone)]
pub(crate) struct CaptureDesk {
    positions: Arc<dyn Positions>,
    asks: mpsc::Sender<Ask>,
}

impl CaptureDesk {
    /// Starts the thread.
    pub fn start(positions: Arc<dyn Positions>) -> io::Result<Self> {
        let (asks, queue) = mpsc::channel();
        let engine = Arc::clone(&positions);
        std::thread::Builder::new().name("proxy-capture".into()).spawn(move || serve(&queue, engine.as_ref()))?;
        Ok(Self { positions, asks })
    }

    /// The position of `db` that includes everything committed before this call.
    pub async fn position_now(&self, db: &DbName) -> Captured {
        let asked_at = Instant::now();
        if let Some(txid) = self.positions.position_if_current(db) {
            return Ok((Some(txid), asked_at));
        }
        let (answer, captured) = oneshot::channel();
        self.asks.send(Ask { db: db.clone(), answer }).map_err(|_| ())?;
        captured.await.unwrap_or(Err(()))
    }
}

/// One round: everything that is queued, one call for each database.
fn serve(queue: &mpsc::Receiver<Ask>, positions: &dyn Positions) {
    let mut round: HashMap<DbName, Vec<oneshot::Sender<Captured>>> = HashMap::new();
    while let Ok(first) = queue.recv() {
        for ask in std::iter::once(first).chain(queue.try_iter()) {
            round.entry(ask.db).or_default().push(ask.answer);
        }
        for (db, answers) in round.drain() {
            let captured = match positions.position_now(&db) {
                // The moment after the capture: the lease must have covered the captured state.
                Ok(txid) => Ok((txid, Instant::now())),
                Err(error) => {
                    tracing::error!(db = %db, %error, "capture what a request wrote; it is answered as unconfirmed");
                    Err(())
                }
            };
            for answer in answers {
                // A client that hung up does not wait any more.
                let _ = answer.send(captured);
            }
        }
    }
}
