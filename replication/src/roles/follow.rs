//! Following a primary.

use std::time::Duration;

use litefs_lease::{Acquire, BootInstant, Holder, LeaseId};

use super::machine::{Attempt, FollowAgain, Machine, Next, earliest, sleep_until};
use super::{PromoteError, Role, StreamEnd};

/// How long the stream of a primary may go on that holds the lease no more: a clean one sends its last transactions and `end`.
const STREAM_GRACE: Duration = Duration::from_secs(1);

/// How long connecting a stream may take until a refused handoff is an answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The first pause after a stream has failed.
const RETRY_FIRST: Duration = Duration::from_millis(30);

impl Machine {
    /// Streams from the holder of the lease until that ends, the lease changes hands, or this node gets it.
    pub(super) async fn follow(&mut self, mut holder: Holder) -> Next {
        let primary = holder.info.clone();
        self.publish(Role::Replica, Some(primary.clone()));
        let (links, synced) = (self.links.clone(), self.links.clone());
        let mut stream = links.follow(&primary);
        let mut asking = None;
        let (mut gone_since, begun) = (None, BootInstant::now());
        loop {
            self.take_note();
            let mut wake = self.check_promotion();
            if let Some(promotion) = &mut self.promotion {
                match promotion.ask_at {
                    Some(at) if BootInstant::now() >= at => {
                        promotion.ask_at = None;
                        asking = Some(links.ask_for_handoff(&primary));
                    }
                    at => wake = earliest(wake, at),
                }
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
                end = &mut stream => return self.stream_ended(end, &holder, BootInstant::now().since(begun)).await,
                answer = async { Some(asking.as_mut()?.await) }, if asking.is_some() => {
                    asking = None;
                    if let Some(Err(text)) = answer {
                        self.handoff_refused(&text, BootInstant::now().since(begun));
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

    /// A primary refuses also as long as the stream is not there yet: then it is asked again.
    fn handoff_refused(&mut self, text: &str, lasted: Duration) {
        match &mut self.promotion {
            Some(promotion) if lasted < CONNECT_WITHIN => {
                promotion.ask_at = Some(BootInstant::now().after(RETRY_FIRST));
            }
            _ => self.end_promotion(|| Err(PromoteError::Failed(text.to_owned()))),
        }
    }

    async fn stream_ended(&mut self, end: StreamEnd, holder: &Holder, lasted: Duration) -> Next {
        let primary = holder.info.hostname.as_str();
        if lasted >= self.config.reconnect_delay {
            self.all_is_news();
        }
        match end {
            StreamEnd::Handoff(lease) => return self.receive(lease, primary).await,
            StreamEnd::End => tracing::info!(primary, "the primary ended the stream"),
            StreamEnd::Failed(cause) if self.is_news(&cause) => {
                tracing::warn!(primary, cause, "the stream from the primary failed; trying again");
            }
            StreamEnd::Failed(cause) => tracing::debug!(primary, cause, "the stream from the primary failed again"),
        }
        if let Some(promotion) = &mut self.promotion {
            promotion.ask_at = Some(BootInstant::PAST);
        }
        self.wait_for(holder, lasted);
        Next::Seek
    }

    /// Waits before the next attempt at the same holder: the longer the more attempts have failed, up to `lease.reconnect-delay`.
    fn wait_for(&mut self, holder: &Holder, lasted: Duration) {
        let most = self.config.reconnect_delay;
        let before = self.follow_again.filter(|again| again.index == holder.index && lasted < most);
        let delay = before.map_or(RETRY_FIRST, |again| again.delay * 2).min(most);
        self.follow_again = Some(FollowAgain { index: holder.index, delay, at: BootInstant::now().after(delay) });
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
