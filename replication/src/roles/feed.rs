//! Watches what is recorded about the cluster, in a task of its own: blocking queries, no polling.

use std::sync::Arc;
use std::time::Duration;

use litefs_lease::{BootInstant, ClusterView, Leaser};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The newest view, and when it was here.
#[derive(Debug, Clone)]
pub(super) struct Feed {
    /// `None` until the first answer.
    pub(super) view: Option<Arc<ClusterView>>,
    /// After the answer had arrived.
    pub(super) at: BootInstant,
    /// Since then there was no answer.
    pub(super) lost_contact: Option<BootInstant>,
}

/// Ends the watching task when dropped.
#[derive(Debug)]
pub(super) struct Watching(AbortHandle);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts to watch. `retry`: between attempts while there is no answer.
pub(super) fn start(leaser: Arc<dyn Leaser>, retry: Duration) -> (watch::Receiver<Feed>, Watching) {
    let (sender, receiver) = watch::channel(Feed { view: None, at: BootInstant::PAST, lost_contact: None });
    let task = tokio::spawn(run(leaser, retry, sender));
    (receiver, Watching(task.abort_handle()))
}

async fn run(leaser: Arc<dyn Leaser>, retry: Duration, feed: watch::Sender<Feed>) {
    let mut version = None;
    loop {
        match leaser.watch(version).await {
            Ok(view) => {
                version = Some(view.version).filter(|version| version.0 > 0);
                let new = Feed { view: Some(Arc::new(view)), at: BootInstant::now(), lost_contact: None };
                if feed.send_replace(new).lost_contact.is_some() {
                    tracing::info!("the lease's records can be read again");
                }
                if version.is_some() {
                    continue;
                }
            }
            Err(error) => {
                version = None;
                let mut first = false;
                feed.send_modify(|feed| first = feed.lost_contact.replace(BootInstant::now()).is_none());
                if first {
                    tracing::warn!(%error, "cannot read who is primary; trying again");
                }
            }
        }
        tokio::time::sleep(retry).await;
    }
}
