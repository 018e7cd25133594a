//! Following a primary.

use std::time::Duration;

use litefs_lease::{Acquire, BootInstant, Holder, LeaseId};

use super::machine::{Attempt, Machine, Next, earliest, sleep_until};
use super::{PromoteError, Role, StreamEnd};

/// How long the stream of a primary may go on that holds the lease no more: a clean one sends its last transactions and `end`.
const STREAM_GRACE: Duration = Duration::from_secs(1);

impl Machine {
    /// Streams from the holder of the lease until that ends, the lease changes hands, or this node gets it.
    pub(super) async fn follow(&mut self, mut holder: Holder) -> Next {
        let primary = holder.info.clone();
        self.publish(Role::Replica, Some(primary.clone()));
        let (links, synced) = (self.links.clone(), self.links.clone());
        let mut stream = links.follow(&primary);
        let mut asking = None;
        let mut gone_since = None;
        loop {
            self.take_note();
            let mut wake = self.check_promotion();
            if let Some(promotion) = self.promotion.as_mut().filter(|promotion| !promotion.asked) {
                promotion.asked = true;
                asking = Some(links.ask_for_handoff(&primary));
            }
            let view = self.view();
            if let Some(view) = &view {
                match &view.holder {
                    Some(now) if now.info == primary => {
                        holder = now.clone();
                        gone_since = None;
                    }
                    _ => {
                        let since = *gone_since.get_or_insert(BootInstant::now());
                        wake = earliest(wake, Some(since.after(STREAM_GRACE)));
                        if BootInstant::now() >= since.after(STREAM_GRACE) {
                            tracing::info!(primary = primary.hostname, "the primary holds the lease no more");
                            return Next::Seek;
                        }
                    }
                }
                if gone_since.is_none() {
                    match self.attempt(view).await {
                        Attempt::Got(lease) => return Next::Lead(lease),
                        Attempt::Wait(at) => wake = earliest(wake, at),
                    }
                }
            }
            let promote_due = self.promote_wanted.is_some_and(|at| BootInstant::now() >= at);
            if !promote_due {
                wake = earliest(wake, self.promote_wanted);
            }
            tokio::select! {
                biased;
                end = &mut stream => return self.stream_ended(end, &holder).await,
                answer = async { Some(asking.as_mut()?.await) }, if asking.is_some() => {
                    asking = None;
                    if let Some(Err(text)) = answer {
                        self.end_promotion(|| Err(PromoteError::Failed(text.clone())));
                    }
                }
                () = synced.synced(), if promote_due => self.promote_now(),
                request = self.requests.recv() => {
                    if self.handle(request) {
                        return Next::Stop;
                    }
                }
                _ = self.feed.changed() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    async fn stream_ended(&mut self, end: StreamEnd, holder: &Holder) -> Next {
        let primary = holder.info.hostname.as_str();
        match end {
            StreamEnd::Handoff(lease) => return self.receive(lease, primary).await,
            StreamEnd::End => tracing::info!(primary, "the primary ended the stream"),
            StreamEnd::Failed(cause) => tracing::warn!(primary, cause, "the stream from the primary failed"),
        }
        if let Some(promotion) = &mut self.promotion {
            promotion.asked = false;
        }
        self.follow_again = Some((holder.index, BootInstant::now().after(self.config.reconnect_delay)));
        Next::Seek
    }

    async fn receive(&mut self, lease: LeaseId, primary: &str) -> Next {
        if !self.config.candidate {
            tracing::warn!(primary, "the primary hands its lease to this node, which is no candidate: not taken");
            return Next::Seek;
        }
        match self.leaser.acquire(Acquire::Existing(lease)).await {
            Ok(lease) => Next::Lead(lease),
            Err(error) => {
                tracing::warn!(primary, %error, "the lease that was handed over could not be acquired");
                Next::Seek
            }
        }
    }
}
