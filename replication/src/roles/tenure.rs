//! A lease while it is ours: renewed in a task of its own, whatever the role machine waits for.

use std::sync::Arc;
use std::time::Duration;

use litefs_lease::{BootInstant, FenceCell, Lease, LeaseError, LeaseId};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

/// The longest pause after a renewal that failed.
const RETRY_AT_MOST: Duration = Duration::from_millis(250);

/// How the lease does.
#[derive(Debug, Clone)]
pub(super) struct Report {
    /// Until when it is proved to be ours.
    pub(super) deadline: BootInstant,
    /// It is ours no more; the cause.
    pub(super) lost: Option<String>,
}

/// What the renewing task and the machine share.
struct Shared {
    fence: Arc<FenceCell>,
    /// Whether renewals extend the fence's deadline. Held while the deadline is written, so that none is written after
    /// [`Tenure::close`].
    open: Mutex<bool>,
    poke: Notify,
}

/// The lease and its renewal.
pub(super) struct Tenure {
    id: LeaseId,
    shared: Arc<Shared>,
    report: watch::Receiver<Report>,
    stop: Option<oneshot::Sender<oneshot::Sender<Box<dyn Lease>>>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Tenure {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tenure {
    /// Starts to renew, at once. The fence stays closed until [`Tenure::open`].
    pub(super) fn start(lease: Box<dyn Lease>, fence: Arc<FenceCell>) -> Self {
        let id = lease.id().clone();
        let (sender, report) = watch::channel(Report { deadline: lease.deadline(), lost: None });
        let shared = Arc::new(Shared { fence, open: Mutex::new(false), poke: Notify::new() });
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(keep(lease, shared.clone(), sender, stopped)).abort_handle();
        Self { id, shared, report, stop: Some(stop), task }
    }

    /// The lease's identity.
    pub(super) const fn id(&self) -> &LeaseId {
        &self.id
    }

    /// How the lease does now.
    pub(super) fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// Waits for the next report. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.report.changed().await.is_err() {
            // The task is gone: nothing will come any more, and the deadline passes.
            std::future::pending::<()>().await;
        }
    }

    /// From now on the fence is open until the lease's deadline, and every renewal extends it.
    pub(super) fn open(&self) {
        let mut open = self.shared.open.lock();
        *open = true;
        let deadline = self.report.borrow().deadline;
        self.shared.fence.set_deadline(deadline);
    }

    /// Closes the fence; renewals go on but do not open it.
    pub(super) fn close(&self) {
        *self.shared.open.lock() = false;
        self.shared.fence.close();
    }

    /// Renews at once: something indicates that the lease is lost.
    pub(super) fn poke(&self) {
        self.shared.poke.notify_one();
    }

    /// Ends the renewal and returns the lease, with the fence closed.
    pub(super) async fn stop(mut self) -> Option<Box<dyn Lease>> {
        self.close();
        let (answer, lease) = oneshot::channel();
        self.stop.take()?.send(answer).ok()?;
        lease.await.ok()
    }
}

async fn keep(
    mut lease: Box<dyn Lease>,
    shared: Arc<Shared>,
    report: watch::Sender<Report>,
    mut stop: oneshot::Receiver<oneshot::Sender<Box<dyn Lease>>>,
) {
    let Some(every) = lease.renew_every() else {
        if let Ok(answer) = stop.await {
            let _ = answer.send(lease);
        }
        return;
    };
    let (mut wait, mut failing) = (Duration::ZERO, false);
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut stop => break answer,
            () = shared.poke.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        let renewed = tokio::select! {
            biased;
            answer = &mut stop => break answer,
            renewed = lease.renew() => renewed,
        };
        match renewed {
            Ok(deadline) => {
                let open = shared.open.lock();
                if *open {
                    shared.fence.set_deadline(deadline);
                }
                drop(open);
                report.send_replace(Report { deadline, lost: None });
                if std::mem::take(&mut failing) {
                    tracing::info!("the lease can be renewed again");
                }
                wait = every;
            }
            Err(LeaseError::Lost(cause)) => {
                report.send_replace(Report { deadline: lease.deadline(), lost: Some(cause) });
                break stop.await;
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    let left = lease.deadline().since(BootInstant::now());
                    tracing::warn!(%error, ?left, "cannot renew the lease; trying again");
                }
                wait = RETRY_AT_MOST.min(every / 4);
            }
        }
    };
    if let Ok(answer) = answer {
        let _ = answer.send(lease);
    }
}
