//! What this node records of itself for candidates to see (see [`litefs_lease::candidates`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use litefs_lease::candidates::RECORD_EVERY;
use litefs_lease::{Leaser, LeaserKind, NodeRecord};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Engine, RoleState};

/// How often the positions are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long recording the stop may take.
const RECORD_STOP_WITHIN: Duration = Duration::from_millis(500);

/// Writes this node's record.
#[derive(Clone)]
pub(super) struct Recorder {
    leaser: Arc<dyn Leaser>,
    engine: Arc<dyn Engine>,
    candidate: bool,
    beat: Arc<AtomicU64>,
}

impl Recorder {
    pub(super) fn new(leaser: Arc<dyn Leaser>, engine: Arc<dyn Engine>, candidate: bool) -> Self {
        Self { leaser, engine, candidate, beat: Arc::default() }
    }

    /// What this node is and has now.
    pub(super) async fn current(&self, primary: bool) -> NodeRecord {
        let engine = self.engine.clone();
        let read = tokio::task::spawn_blocking(move || (engine.positions(), engine.cluster_id(), engine.node_id()));
        let (positions, cluster_id, node_id) = read.await.unwrap_or_default();
        let me = self.leaser.me();
        NodeRecord {
            hostname: me.hostname.clone(),
            advertise_url: me.advertise_url.clone(),
            node_id: format!("{node_id:016X}"),
            cluster_id,
            candidate: self.candidate,
            primary,
            stopped: false,
            beat: self.beat.fetch_add(1, Ordering::Relaxed),
            positions: positions.into_iter().map(|(name, pos)| (name.as_str().to_owned(), pos)).collect(),
        }
    }

    /// Records until dropped: soon after something has changed, and every few seconds to show that this node is alive.
    pub(super) async fn run(self, role: watch::Receiver<RoleState>) {
        if self.leaser.kind() == LeaserKind::Static {
            return;
        }
        let mut recorded: Option<(NodeRecord, Instant)> = None;
        let mut failing = false;
        loop {
            let primary = role.borrow().is_primary();
            let record = self.current(primary).await;
            let is_due = recorded.as_ref().is_none_or(|(before, at)| {
                let same = NodeRecord { beat: record.beat, ..before.clone() } == record;
                !same || at.elapsed() >= RECORD_EVERY
            });
            if is_due {
                match self.leaser.record(&record).await {
                    Ok(()) => {
                        failing = false;
                        recorded = Some((record, Instant::now()));
                    }
                    Err(error) if !std::mem::replace(&mut failing, true) => {
                        tracing::warn!(%error, "cannot record this node's positions for the candidates; trying again");
                    }
                    Err(_) => {}
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The last record of this run; `false` when the lease server does not take it in time.
    pub(super) async fn stopped(&self) -> bool {
        if self.leaser.kind() == LeaserKind::Static {
            return true;
        }
        let record = NodeRecord { stopped: true, ..self.current(false).await };
        match tokio::time::timeout(RECORD_STOP_WITHIN, self.leaser.record(&record)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the stop of this node is not recorded");
                true
            }
            Err(_) => false,
        }
    }
}
