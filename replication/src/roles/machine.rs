//! The state machine: seeks a role, follows a primary, or leads.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use litefs::store::Mode;
use litefs_lease::candidates::{YIELD_AT_MOST, decide};
use litefs_lease::{
    Acquire, BootInstant, ClusterView, Decision, FenceCell, Holder, Lease, LeaseError, Leaser, LeaserKind, Observer,
    PrimaryInfo, Roster,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::feed::{Feed, Watching};
use super::record::Recorder;
use super::{Engine, HandoffRefused, Links, PromoteError, Request, Role, RoleConfig, RoleParts, RoleState};

/// How long a promotion may take until the lease is here.
const PROMOTE_WITHIN: Duration = Duration::from_secs(10);
/// How soon a yielding candidate looks again, and one whose attempt failed for a passing reason.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How many different reasons are remembered as said.
const SAID_MAX: usize = 100;

/// What comes next.
pub(super) enum Next {
    /// Find out who is primary, or become it.
    Seek,
    /// Stream from this primary.
    Follow(Holder),
    /// Be the primary.
    Lead(Box<dyn Lease>),
    /// The end.
    Stop,
}

/// A promotion that somebody waits for.
pub(super) struct Promotion {
    pub(super) force: bool,
    /// When to ask the primary for its lease; `None`: it has been asked.
    pub(super) ask_at: Option<BootInstant>,
    /// By `lease.promote`: tried again when it fails.
    pub(super) is_configured: bool,
    until: BootInstant,
    answers: Vec<oneshot::Sender<Result<(), PromoteError>>>,
}

/// When to try the same holder again: soon at first, because a new primary may not be ready yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct FollowAgain {
    /// [`Holder::index`].
    pub(super) index: u64,
    pub(super) delay: Duration,
    pub(super) at: BootInstant,
}

/// The role machine.
pub(super) struct Machine {
    pub(super) config: RoleConfig,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) leaser: Arc<dyn Leaser>,
    pub(super) links: Arc<dyn Links>,
    pub(super) fence: Arc<FenceCell>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) feed: watch::Receiver<Feed>,
    pub(super) promotion: Option<Promotion>,
    /// `lease.promote` is still to be done, but not before this.
    pub(super) promote_wanted: Option<BootInstant>,
    /// Before that this node does not compete (`lease.demote-delay`).
    pub(super) not_before: BootInstant,
    /// Before that no further attempt at the lease.
    pub(super) retry_at: BootInstant,
    /// After a stream from a holder has ended.
    pub(super) follow_again: Option<FollowAgain>,
    pub(super) stop: Option<oneshot::Sender<()>>,
    pub(super) recorder: Recorder,
    /// Whether recording the stop is worth a try (again): a lease server that is silent has not to be waited for twice.
    pub(super) is_recordable: bool,
    state: watch::Sender<RoleState>,
    observer: Observer,
    roster: Roster,
    yielding_since: Option<BootInstant>,
    /// What has been said about not taking the lease: said once each.
    said: BTreeSet<String>,
    _watching: Watching,
}

/// What an attempt at the lease came to.
pub(super) enum Attempt {
    Got(Box<dyn Lease>),
    /// Not now; when to try again at the latest, unless the view changes.
    Wait(Option<BootInstant>),
}

/// The earlier of two instants that may not be known.
pub(super) fn earliest(a: Option<BootInstant>, b: Option<BootInstant>) -> Option<BootInstant> {
    [a, b].into_iter().flatten().min()
}

impl Machine {
    pub(super) fn new(
        parts: RoleParts,
        state: watch::Sender<RoleState>,
        requests: mpsc::Receiver<Request>,
        (feed, watching): (watch::Receiver<Feed>, Watching),
    ) -> Self {
        let RoleParts { config, engine, leaser, fence, links } = parts;
        let recorder = Recorder::new(leaser.clone(), engine.clone(), config.candidate);
        Self {
            promote_wanted: (config.promote && config.candidate && leaser.kind() != LeaserKind::Static)
                .then_some(BootInstant::PAST),
            observer: Observer::new(leaser.timing()),
            config,
            engine,
            leaser,
            links,
            fence,
            requests,
            feed,
            promotion: None,
            not_before: BootInstant::PAST,
            retry_at: BootInstant::PAST,
            follow_again: None,
            stop: None,
            recorder,
            is_recordable: true,
            state,
            roster: Roster::default(),
            yielding_since: None,
            said: BTreeSet::new(),
            _watching: watching,
        }
    }

    /// Runs until the node stops.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.set_mode(Mode::Replica, LOOK_AGAIN).await {
            tracing::warn!(%error, "close the fence at the start; it closes as soon as running transactions end");
        }
        let recording = tokio::spawn(self.recorder.clone().run(self.state.subscribe()));
        let mut next = Next::Seek;
        loop {
            next = match next {
                Next::Seek => self.seek().await,
                Next::Follow(holder) => self.follow(holder).await,
                Next::Lead(lease) => self.lead(lease).await,
                Next::Stop => break,
            };
        }
        recording.abort();
        self.publish(Role::Unknown, None);
        if self.is_recordable {
            self.recorder.stopped().await;
        }
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    async fn seek(&mut self) -> Next {
        loop {
            self.take_note();
            let mut wake = self.check_promotion();
            let view = self.view();
            if let Some(view) = &view {
                match self.attempt(view).await {
                    Attempt::Got(lease) => return Next::Lead(lease),
                    Attempt::Wait(at) => wake = earliest(wake, at),
                }
            }
            match view.as_ref().and_then(|view| self.primary_of(view)) {
                Some(holder) => {
                    let again = self.follow_again.filter(|again| again.index == holder.index).map(|again| again.at);
                    if again.is_none_or(|at| BootInstant::now() >= at) {
                        return Next::Follow(holder);
                    }
                    self.publish(Role::Replica, Some(holder.info));
                    wake = earliest(wake, again);
                }
                None => self.publish(Role::Unknown, None),
            }
            tokio::select! {
                _ = self.feed.changed() => {}
                request = self.requests.recv() => {
                    if self.handle(request) {
                        return Next::Stop;
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// The node to follow: who holds the lease, unless that is an earlier run of this node.
    pub(super) fn primary_of(&self, view: &ClusterView) -> Option<Holder> {
        let me = self.leaser.me();
        let is_static = self.leaser.kind() == LeaserKind::Static;
        let others = |holder: &&Holder| {
            is_static || (&holder.info.hostname, &holder.info.advertise_url) != (&me.hostname, &me.advertise_url)
        };
        view.holder.as_ref().filter(others).filter(|holder| !holder.info.advertise_url.is_empty()).cloned()
    }

    /// Tries to get the lease if it is free or its holder is silent, and the rules allow it.
    pub(super) async fn attempt(&mut self, view: &ClusterView) -> Attempt {
        let now = BootInstant::now();
        let is_static = self.leaser.kind() == LeaserKind::Static;
        if !self.config.candidate {
            return Attempt::Wait(None);
        }
        let asked = self.promotion.is_some();
        let earliest = if asked { self.retry_at } else { self.retry_at.max(self.not_before) };
        let how = match (&view.holder, self.observer.due()) {
            (None, _) => Acquire::Free,
            (Some(_), _) if is_static => Acquire::Free,
            (Some(_), Some((at, from))) if now >= at => Acquire::TakeOver(from),
            (Some(_), due) => {
                self.yielding_since = None;
                return Attempt::Wait(due.map(|(at, _)| at));
            }
        };
        if now < earliest {
            return Attempt::Wait(Some(earliest));
        }
        let forced = self.promotion.as_ref().is_some_and(|promotion| promotion.force);
        if !is_static && let Err(wait) = self.is_eligible(view, forced).await {
            return Attempt::Wait(wait);
        }
        if let Acquire::TakeOver(_) = how {
            let silent = view.holder.as_ref().map(|holder| holder.info.hostname.clone()).unwrap_or_default();
            tracing::warn!(primary = silent, "the primary is silent: taking its lease over");
        }
        match self.leaser.acquire(how).await {
            Ok(lease) => {
                self.yielding_since = None;
                self.all_is_news();
                Attempt::Got(lease)
            }
            Err(error) => Attempt::Wait(Some(self.attempt_failed(&error))),
        }
    }

    fn attempt_failed(&mut self, error: &LeaseError) -> BootInstant {
        let passes_soon = matches!(error, LeaseError::Held | LeaseError::Changed | LeaseError::LockDelay);
        if passes_soon {
            tracing::debug!(%error, "the lease was not to be had");
        } else if self.is_news(&error.to_string()) {
            tracing::warn!(%error, "cannot acquire the lease; trying again");
        }
        let delay = if passes_soon { LOOK_AGAIN.min(self.config.reconnect_delay) } else { self.config.reconnect_delay };
        self.retry_at = BootInstant::now().after(delay);
        self.retry_at
    }

    /// What has been said may be said again: something has worked since.
    pub(super) fn all_is_news(&mut self) {
        self.said.clear();
    }

    /// Whether a reason is new and should be logged.
    pub(super) fn is_news(&mut self, text: &str) -> bool {
        if self.said.len() >= SAID_MAX {
            self.said.clear();
        }
        self.said.insert(text.to_owned())
    }

    /// Whether the rules let this node take the lease now; else when to ask again.
    async fn is_eligible(&mut self, view: &ClusterView, forced: bool) -> Result<(), Option<BootInstant>> {
        let me = self.recorder.current(false).await;
        let now = BootInstant::now();
        let text = match decide(&me, view, &self.roster, now) {
            Decision::Take => return Ok(()),
            Decision::Yield(text) | Decision::Never(text) if forced => {
                tracing::warn!("taking the lease by force, although {text}");
                return Ok(());
            }
            Decision::Yield(text) => {
                let since = *self.yielding_since.get_or_insert(now);
                if now.since(since) >= YIELD_AT_MOST {
                    tracing::warn!(
                        "nobody else takes the lease: taking it, although {text}; what only that node has is lost to the cluster and set aside there"
                    );
                    return Ok(());
                }
                if self.is_news("yield") {
                    tracing::info!("letting another candidate go first: {text}");
                }
                return Err(Some(now.after(LOOK_AGAIN)));
            }
            Decision::Never(text) => text,
        };
        if self.is_news(&text) {
            tracing::warn!("not taking the lease: {text}");
        }
        self.end_promotion(|| Err(PromoteError::NotEligible(text.clone())));
        Err(None)
    }

    /// A request while this node is not primary. `true`: stop.
    pub(super) fn handle(&mut self, request: Option<Request>) -> bool {
        match request {
            None => return true,
            Some(Request::Stop { answer }) => {
                self.stop = Some(answer);
                self.end_promotion(|| Err(PromoteError::Stopping));
                return true;
            }
            Some(Request::Handoff { answer, .. }) => {
                let _ = answer.send(Err(HandoffRefused::NotPrimary));
            }
            Some(Request::Promote { answer, .. })
                if !self.config.candidate || self.leaser.kind() == LeaserKind::Static =>
            {
                let _ = answer.send(Err(PromoteError::NotCandidate));
            }
            Some(Request::Promote { force, answer }) => {
                let until = BootInstant::now().after(PROMOTE_WITHIN);
                let new = || Promotion {
                    force: false,
                    ask_at: Some(BootInstant::PAST),
                    is_configured: false,
                    until,
                    answers: Vec::new(),
                };
                let promotion = self.promotion.get_or_insert_with(new);
                promotion.force |= force;
                promotion.answers.push(answer);
            }
        }
        false
    }

    /// `lease.promote`: once caught up, asks for the lease as `POST /promote` does, until this node has led once.
    pub(super) fn promote_now(&mut self) {
        self.promote_wanted = None;
        tracing::debug!("caught up: asking the primary for its lease (lease.promote)");
        let until = BootInstant::now().after(PROMOTE_WITHIN);
        let new = || Promotion {
            force: false,
            ask_at: Some(BootInstant::PAST),
            is_configured: true,
            until,
            answers: Vec::new(),
        };
        self.promotion.get_or_insert_with(new).is_configured = true;
    }

    /// Ends a promotion that takes too long; else says when it does.
    pub(super) fn check_promotion(&mut self) -> Option<BootInstant> {
        let until = self.promotion.as_ref()?.until;
        if BootInstant::now() < until {
            return Some(until);
        }
        let text = "the lease did not arrive in time; see the primary's log";
        self.end_promotion(|| Err(PromoteError::Failed(text.to_owned())));
        None
    }

    /// Answers everybody who waits for a promotion.
    pub(super) fn end_promotion(&mut self, result: impl Fn() -> Result<(), PromoteError>) {
        let Some(promotion) = self.promotion.take() else { return };
        if promotion.is_configured
            && let Err(error) = result()
        {
            if self.is_news(&error.to_string()) {
                tracing::warn!(%error, "this node could not be promoted (lease.promote); trying again");
            }
            self.promote_wanted = Some(BootInstant::now().after(self.config.reconnect_delay));
        }
        for answer in promotion.answers {
            let _ = answer.send(result());
        }
    }

    /// Looks at what the feed has brought.
    pub(super) fn take_note(&mut self) {
        let feed = self.feed.borrow_and_update().clone();
        if let Some(view) = &feed.view {
            self.observer.observe(view, feed.at);
            self.roster.observe(view, feed.at);
        }
        if let Some(at) = feed.lost_contact {
            self.observer.lost_contact(at);
        }
    }

    /// The newest view.
    pub(super) fn view(&self) -> Option<Arc<ClusterView>> {
        self.feed.borrow().view.clone()
    }

    /// Tells everybody, if it is news.
    pub(super) fn publish(&self, role: Role, primary: Option<PrimaryInfo>) {
        self.state.send_if_modified(|state| {
            if (state.role, &state.primary) == (role, &primary) {
                return false;
            }
            tracing::debug!(?role, primary = primary.as_ref().map(|primary| primary.hostname.as_str()), "role");
            *state = RoleState { role, primary, term: state.term + 1 };
            true
        });
    }

    /// Opens or closes the engine's fence, off the async threads.
    pub(super) async fn set_mode(&self, mode: Mode, wait: Duration) -> io::Result<()> {
        let engine = self.engine.clone();
        let set = tokio::task::spawn_blocking(move || engine.set_mode(mode, wait)).await;
        set.unwrap_or_else(|panic| Err(io::Error::other(format!("the engine panicked: {panic}"))))
    }
}

/// Sleeps until an instant; for ever without one.
pub(super) async fn sleep_until(at: Option<BootInstant>) {
    match at {
        Some(BootInstant::NEVER) | None => std::future::pending().await,
        Some(at) => tokio::time::sleep(at.since(BootInstant::now())).await,
    }
}
