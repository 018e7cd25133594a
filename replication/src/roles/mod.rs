//! The role of this node: one state machine owns it, everything else asks it.
//!
//! The machine acquires the lease or follows whoever has it, opens and closes the engine's fence, renews, demotes, promotes,
//! hands over. What it needs of the network is [`Links`]; what others need of it is [`RoleHandle`].

mod cluster;
mod feed;
mod follow;
mod lead;
mod machine;
mod record;
mod tenure;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use litefs_lease::{BoxFuture, LeaseId, PrimaryInfo};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

/// What this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// No primary is known; or this node holds the lease but cannot prove it at the moment. Nobody may write here.
    Unknown,
    /// Another node is the primary.
    Replica,
    /// This node may write.
    Primary,
}

/// The role as published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleState {
    /// What this node is.
    pub role: Role,
    /// Who the primary is, when known: this node itself if [`Role::Primary`].
    pub primary: Option<PrimaryInfo>,
    /// Grows with every change of the state of this run.
    pub term: u64,
}

impl RoleState {
    /// Whether this node is the primary.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }
}

/// Why a stream from the primary ended.
#[derive(Debug)]
pub enum StreamEnd {
    /// The primary said `end`: it gives its lease up or goes away cleanly.
    End,
    /// The primary handed its lease to this node.
    Handoff(LeaseId),
    /// Anything else: cannot connect, connection lost, silent, refused, bad data. The text has been logged by nobody.
    Failed(String),
}

/// Why a node could not be given the lease.
#[derive(Debug, Error)]
pub enum HandoffError {
    /// No such replica is connected.
    #[error("node {0:016X} is not connected to this primary")]
    NotConnected(u64),
    /// It did not keep up in time, or its stream broke.
    #[error("node {0:016X} did not receive the last transactions: {1}")]
    Tail(u64, String),
}

/// What the role machine needs of the network; implemented by the node (streams, node API client).
pub trait Links: Send + Sync + 'static {
    /// Replica: streams from `primary` until that ends. Dropping the future disconnects.
    fn follow<'a>(&'a self, primary: &'a PrimaryInfo) -> BoxFuture<'a, StreamEnd>;

    /// Replica: asks `primary` to hand its lease to this node (`POST <advertise-url>/handoff?nodeID=<own>`); `Ok` when it
    /// agreed (the lease then arrives as [`StreamEnd::Handoff`]). The error is the one-line answer.
    fn ask_for_handoff<'a>(&'a self, primary: &'a PrimaryInfo) -> BoxFuture<'a, Result<(), String>>;

    /// Primary, fence already closed: whether that replica is connected.
    fn is_connected(&self, node_id: u64) -> bool;

    /// Primary, fence already closed: everything up to the current positions has been written to the replica's stream
    /// (bounded by `within`).
    fn send_tail(&self, node_id: u64, within: Duration) -> BoxFuture<'_, Result<(), HandoffError>>;

    /// Primary, fence already closed: everything up to the current positions has been written to all streams, or the time is up.
    fn drain(&self, within: Duration) -> BoxFuture<'_, ()>;

    /// Returns when nothing of an ended stream is being applied any more.
    fn settle(&self) -> BoxFuture<'_, ()>;

    /// Replica: returns once everything that a primary had has been applied here, for the first time in this run.
    fn synced(&self) -> BoxFuture<'_, ()>;

    /// Primary: the handoff frame, as the last frame of that stream.
    fn send_handoff<'a>(&'a self, node_id: u64, lease: &'a LeaseId) -> BoxFuture<'a, Result<(), HandoffError>>;
}

/// Why a promotion was refused.
#[derive(Debug, Error)]
pub enum PromoteError {
    /// `lease.candidate: false`, or a static lease (409).
    #[error("this node is not a candidate")]
    NotCandidate,
    /// The rules of take-over forbid it; the text says which and how to override.
    #[error("{0}")]
    NotEligible(String),
    /// The primary refused, or the lease did not arrive in time.
    #[error("{0}")]
    Failed(String),
    /// This node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// What the API asks of the machine.
#[derive(Debug)]
pub(crate) enum Request {
    Promote { force: bool, answer: oneshot::Sender<Result<(), PromoteError>> },
    Handoff { node_id: u64, answer: oneshot::Sender<Result<(), HandoffRefused>> },
    Stop { answer: oneshot::Sender<()> },
}

/// Why this node does not hand its lease over.
#[derive(Debug, Error)]
pub enum HandoffRefused {
    /// Only a primary can (503).
    #[error("not the primary")]
    NotPrimary,
    /// A static lease cannot be handed over.
    #[error("this kind of lease cannot be handed over")]
    Unsupported,
    /// That replica is not connected, or did not catch up; this node stays primary.
    #[error(transparent)]
    Link(#[from] HandoffError),
    /// The lease could not be prepared; this node stays primary if the lease does.
    #[error("{0}")]
    Lease(String),
    /// This node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// How everybody else sees and uses the role machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RoleHandle {
    state: watch::Receiver<RoleState>,
    requests: mpsc::Sender<Request>,
    candidate: bool,
}

impl RoleHandle {
    /// The role now.
    #[must_use]
    pub fn state(&self) -> RoleState {
        self.state.borrow().clone()
    }

    /// Whether this node is the primary now.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.state.borrow().is_primary()
    }

    /// `lease.candidate`.
    #[must_use]
    pub const fn is_candidate(&self) -> bool {
        self.candidate
    }

    /// To be told of every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<RoleState> {
        self.state.clone()
    }

    /// `POST /promote`: returns when this node is the primary. `force`: although candidates' positions forbid it.
    ///
    /// # Errors
    /// When the rules or the primary refuse, or it does not happen in time.
    pub async fn promote(&self, force: bool) -> Result<(), PromoteError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Promote { force, answer }).await.map_err(|_| PromoteError::Stopping)?;
        answered.await.map_err(|_| PromoteError::Stopping)?
    }

    /// `POST /handoff`: returns when the lease has been sent to that replica.
    ///
    /// # Errors
    /// When this node is not the primary, or stays it.
    pub async fn handoff(&self, node_id: u64) -> Result<(), HandoffRefused> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Handoff { node_id, answer }).await.map_err(|_| HandoffRefused::Stopping)?;
        answered.await.map_err(|_| HandoffRefused::Stopping)?
    }

    /// Gives the role up for good: closes the fence, releases the lease at once. Returns when that is done (within 2 s).
    pub async fn stop(&self) {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request::Stop { answer }).await.is_ok() {
            let _ = answered.await;
        }
    }

    /// A handle whose role the caller sets by hand, for tests of what only reads it.
    #[must_use]
    pub fn fixed(initial: RoleState) -> (Self, watch::Sender<RoleState>) {
        let (sender, state) = watch::channel(initial);
        let (requests, _) = mpsc::channel(1);
        (Self { state, requests, candidate: true }, sender)
    }
}

/// How the machine behaves; from `litefs.yml`.
#[derive(Debug, Clone)]
pub struct RoleConfig {
    /// `lease.candidate`.
    pub candidate: bool,
    /// `lease.promote`: ask for the lease once connected and caught up.
    pub promote: bool,
    /// `lease.reconnect-delay`: between attempts to reach primary or lease.
    pub reconnect_delay: Duration,
    /// `lease.demote-delay`: after giving the lease up on request, so long no candidate.
    pub demote_delay: Duration,
}

/// What the role machine needs of the engine; [`litefs::Store`] is it. All calls may block.
pub trait Engine: Send + Sync + 'static {
    /// See [`litefs::Store::node_id`].
    fn node_id(&self) -> u64;
    /// See [`litefs::Store::cluster_id`].
    fn cluster_id(&self) -> Option<String>;
    /// See [`litefs::Store::set_cluster_id`].
    ///
    /// # Errors
    /// When another one is set, or the disk fails.
    fn set_cluster_id(&self, id: &str) -> std::io::Result<()>;
    /// See [`litefs::Store::set_mode`].
    ///
    /// # Errors
    /// `TimedOut`: the fence closes as soon as running write transactions end.
    fn set_mode(&self, mode: litefs::store::Mode, wait: Duration) -> std::io::Result<()>;
    /// See [`litefs::Store::positions`].
    fn positions(&self) -> BTreeMap<litefs::DbName, litefs::Pos>;
}

impl Engine for litefs::Store {
    fn node_id(&self) -> u64 {
        self.node_id()
    }

    fn cluster_id(&self) -> Option<String> {
        self.cluster_id()
    }

    fn set_cluster_id(&self, id: &str) -> std::io::Result<()> {
        self.set_cluster_id(id)
    }

    fn set_mode(&self, mode: litefs::store::Mode, wait: Duration) -> std::io::Result<()> {
        self.set_mode(mode, wait)
    }

    fn positions(&self) -> BTreeMap<litefs::DbName, litefs::Pos> {
        self.positions()
    }
}

/// Everything the machine works with.
pub struct RoleParts {
    /// How it behaves.
    pub config: RoleConfig,
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Where the lease comes from.
    pub leaser: Arc<dyn litefs_lease::Leaser>,
    /// The shared deadline (also given to the engine as its write gate, and to the supervisor).
    pub fence: Arc<litefs_lease::FenceCell>,
    /// The network.
    pub links: Arc<dyn Links>,
}

/// Requests that may wait for the machine.
const REQUESTS_MAX: usize = 16;

/// Starts the role machine on the current runtime. The engine's fence is closed until the machine opens it. It ends with
/// [`RoleHandle::stop`], or when the last handle is dropped.
#[must_use]
pub fn start(parts: RoleParts) -> RoleHandle {
    let (sender, state) = watch::channel(RoleState { role: Role::Unknown, primary: None, term: 0 });
    let (requests, received) = mpsc::channel(REQUESTS_MAX);
    let candidate = parts.config.candidate;
    let feed = feed::start(parts.leaser.clone(), parts.config.reconnect_delay);
    tokio::spawn(machine::Machine::new(parts, sender, received, feed).run());
    RoleHandle { state, requests, candidate }
}
