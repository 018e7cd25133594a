//! Being the primary.

use std::time::Duration;

use litefs::store::Mode;
use litefs_lease::{Acquire, BootInstant, HandOver, Lease, LeaserKind, Timing};

use super::machine::{Machine, Next, sleep_until};
use super::tenure::Tenure;
use super::{HandoffError, HandoffRefused, Request, Role};

/// So long before its deadline the fence begins to close, at most.
const FENCE_MARGIN_MAX: Duration = Duration::from_millis(500);
/// How long opening the fence may take.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long running write transactions may hold a handoff up, and how long sending the tail may take.
const HANDOFF_STEP: Duration = Duration::from_secs(5);
/// After that the lease is taken back from a receiver that has not acquired it.
const RECLAIM_AFTER: Duration = Duration::from_secs(3);
/// The same for a clean stop.
const STOP_STEP: Duration = Duration::from_secs(1);

/// How a handoff ended.
enum HandedOver {
    /// The lease is on its way.
    Yes(HandOver),
    /// This node keeps it.
    No(HandoffRefused, Tenure),
    /// It is lost, or was left to expire.
    Lost(HandoffRefused),
}

impl Machine {
    /// Leads until the lease is lost, handed over, or the node stops.
    pub(super) async fn lead(&mut self, lease: Box<dyn Lease>) -> Next {
        if let Err(text) = self.join_cluster().await {
            tracing::error!("not becoming primary: {text}");
            return self.give_back(lease).await;
        }
        let mut tenure = Tenure::start(lease, self.fence.clone());
        self.links.settle().await;
        if !self.open(&tenure).await {
            return match tenure.stop().await {
                Some(lease) => self.give_back(lease).await,
                None => Next::Seek,
            };
        }
        tracing::info!(lease = %tenure.id(), "this node is the primary");
        self.promote_wanted = None;
        self.end_promotion(|| Ok(()));
        let (mut open, margin) = (true, self.fence_margin());
        loop {
            let closing = tenure.report().deadline.before(margin);
            tokio::select! {
                biased;
                () = tenure.changed() => {
                    let report = tenure.report();
                    if let Some(cause) = report.lost {
                        return self.lost(tenure, &cause).await;
                    }
                    if !open && BootInstant::now() < report.deadline.before(margin) {
                        open = self.open(&tenure).await;
                        tracing::info!(open, "the lease is proved again");
                    }
                }
                () = sleep_until(Some(closing)), if open => {
                    if BootInstant::now() >= tenure.report().deadline.before(margin) {
                        tracing::warn!("the lease could not be renewed in time: no writes until it is");
                        self.close(&tenure).await;
                        open = false;
                    }
                }
                request = self.requests.recv() => match request {
                    None => return self.step_down(tenure).await,
                    Some(Request::Stop { answer }) => {
                        self.stop = Some(answer);
                        return self.step_down(tenure).await;
                    }
                    Some(Request::Promote { answer, .. }) => {
                        let _ = answer.send(Ok(()));
                    }
                    Some(Request::Handoff { node_id, answer }) => match self.hand_over(tenure, node_id).await {
                        HandedOver::Yes(sent) => {
                            let _ = answer.send(Ok(()));
                            return self.handed_over(sent).await;
                        }
                        HandedOver::Lost(refused) => {
                            let _ = answer.send(Err(refused));
                            return Next::Seek;
                        }
                        HandedOver::No(refused, kept) => {
                            let _ = answer.send(Err(refused));
                            tenure = kept;
                            open = self.open(&tenure).await;
                        }
                    }
                },
                _ = self.feed.changed() => {
                    self.take_note();
                    let view = self.view();
                    if view.and_then(|view| view.holder.clone()).is_none_or(|holder| holder.lease != *tenure.id()) {
                        tenure.poke();
                    }
                }
            }
        }
    }

    /// So long before the deadline the fence begins to close: less when a renewal may take until shortly before it.
    fn fence_margin(&self) -> Duration {
        let spare = |timing: Timing| timing.fence_after.saturating_sub(timing.heartbeat) / 2;
        self.leaser.timing().map_or(FENCE_MARGIN_MAX, |timing| spare(timing).min(FENCE_MARGIN_MAX))
    }

    /// Opens the fence and tells everybody. `false`: it could not be opened, and is closed.
    async fn open(&self, tenure: &Tenure) -> bool {
        tenure.open();
        match self.set_mode(Mode::Primary, OPEN_WITHIN).await {
            Ok(()) => {
                self.publish(Role::Primary, Some(self.leaser.me().clone()));
                true
            }
            Err(error) => {
                tracing::error!(%error, "open the fence");
                self.close(tenure).await;
                false
            }
        }
    }

    /// Closes the fence, at the latest with the deadline, and tells everybody. The engine first: as long as it waits for running
    /// transactions the deadline stands, so that the supervisor closes the fence if this process stops here.
    async fn close(&self, tenure: &Tenure) -> bool {
        let closed = self.set_mode(Mode::Replica, self.fence_margin()).await;
        tenure.close();
        self.publish(Role::Unknown, None);
        if let Err(error) = &closed {
            tracing::warn!(%error, "a write transaction is still running: the fence closes when it ends; what it commits is set aside if another node becomes primary");
        }
        closed.is_ok()
    }

    async fn lost(&mut self, tenure: Tenure, cause: &str) -> Next {
        tracing::warn!(cause, "the lease is lost: this node is no longer the primary");
        self.close(&tenure).await;
        if let Some(lease) = tenure.stop().await {
            return self.give_back(lease).await;
        }
        Next::Seek
    }

    /// Releases a lease that is not used, and waits a moment before the next attempt.
    async fn give_back(&mut self, lease: Box<dyn Lease>) -> Next {
        self.retry_at = BootInstant::now().after(self.config.reconnect_delay);
        release(lease).await;
        Next::Seek
    }

    /// A clean stop: closes the fence, sends the replicas the last transactions, releases the lease at once.
    async fn step_down(&mut self, tenure: Tenure) -> Next {
        if let Err(error) = self.set_mode(Mode::Replica, STOP_STEP).await {
            // Others may have the lease only when nobody can write here any more: it is left to expire.
            tracing::warn!(%error, "a write transaction is still running at the stop: the lease is not released but left to expire");
            tenure.close();
            return Next::Stop;
        }
        tenure.close();
        self.links.drain(STOP_STEP).await;
        self.publish(Role::Unknown, None);
        // Before the lease is free: a candidate that did not get the tail lets one that did go first.
        self.is_recordable = self.recorder.stopped().await;
        if let Some(lease) = tenure.stop().await {
            release(lease).await;
            tracing::info!("the lease is released");
        }
        Next::Stop
    }

    /// Hands the lease to a connected replica: closes the fence (running transactions end first), sends it the tail, then the lease.
    async fn hand_over(&mut self, tenure: Tenure, node_id: u64) -> HandedOver {
        if self.leaser.kind() == LeaserKind::Static {
            return HandedOver::No(HandoffRefused::Unsupported, tenure);
        }
        if !self.links.is_connected(node_id) {
            return HandedOver::No(HandoffError::NotConnected(node_id).into(), tenure);
        }
        if let Err(error) = self.set_mode(Mode::Replica, HANDOFF_STEP).await {
            return HandedOver::No(HandoffRefused::Lease(format!("writes did not come to an end: {error}")), tenure);
        }
        if let Err(error) = self.links.send_tail(node_id, HANDOFF_STEP).await {
            return HandedOver::No(error.into(), tenure);
        }
        let Some(mut lease) = tenure.stop().await else {
            return HandedOver::Lost(HandoffRefused::Lease("the lease is lost".to_owned()));
        };
        let sent = match lease.hand_over().await {
            Ok(sent) => sent,
            Err(error) => {
                let kept = Tenure::start(lease, self.fence.clone());
                return HandedOver::No(HandoffRefused::Lease(error.to_string()), kept);
            }
        };
        if let Err(error) = self.links.send_handoff(node_id, &sent.lease).await {
            // It may have left all the same, so the lease is only ours again if nobody has acquired it.
            return match self.leaser.acquire(Acquire::TakeOver(sent.reclaim)).await {
                Ok(lease) => HandedOver::No(error.into(), Tenure::start(lease, self.fence.clone())),
                Err(_) => {
                    self.publish(Role::Unknown, None);
                    HandedOver::Lost(error.into())
                }
            };
        }
        tracing::info!(node = format!("{node_id:016X}"), "handed the lease over");
        HandedOver::Yes(sent)
    }

    /// Waits until the receiver has the lease; takes it back when it does not take it.
    async fn handed_over(&mut self, sent: HandOver) -> Next {
        self.publish(Role::Unknown, None);
        let until = BootInstant::now().after(RECLAIM_AFTER);
        self.not_before = BootInstant::now().after(self.config.demote_delay);
        while BootInstant::now() < until {
            self.take_note();
            let holder = self.view().and_then(|view| view.holder.clone());
            if holder.is_some_and(|holder| holder.index > sent.reclaim.key_index) {
                self.not_before = BootInstant::PAST; // It has arrived: if that node fails, this one competes again.
                return Next::Seek;
            }
            tokio::select! {
                _ = self.feed.changed() => {}
                request = self.requests.recv() => {
                    if self.handle(request) {
                        return Next::Stop;
                    }
                }
                () = sleep_until(Some(until)) => {}
            }
        }
        match self.leaser.acquire(Acquire::TakeOver(sent.reclaim)).await {
            Ok(lease) => {
                tracing::warn!("the receiver of the handoff did not take the lease: taking it back");
                self.not_before = BootInstant::PAST;
                Next::Lead(lease)
            }
            Err(_) => Next::Seek,
        }
    }
}

async fn release(lease: Box<dyn Lease>) {
    match tokio::time::timeout(STOP_STEP, lease.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the lease could not be released; it expires by itself"),
        Err(_) => tracing::warn!("the lease could not be released in time; it expires by itself"),
    }
}
