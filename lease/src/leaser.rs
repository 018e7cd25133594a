//! What a lease is: the traits that static and Consul leases implement, and the types they share.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::candidates::NodeRecord;
use crate::clock::BootInstant;
use crate::takeover::{TakeOver, Timing};

/// A boxed future: what makes the traits usable as `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a node tells the others that it is the primary; the value of the lease key (COMPAT §5). LiteFS ignores the fields
/// it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PrimaryInfo {
    /// `lease.hostname`.
    pub hostname: String,
    /// `lease.advertise-url`: where the primary's node API answers.
    #[serde(rename = "advertise-url")]
    pub advertise_url: String,
    /// Where the primary's HTTP proxy answers, so that replicas can forward writes to it. LiteFS nodes have none.
    #[serde(rename = "proxy-url", default, skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
}

/// The identity of a lease: a Consul session ID. It moves between nodes in a handoff frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub String);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A point in the history of the lease's keys, for [`Leaser::watch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Version(pub u64);

/// The lease as another node holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Who holds it.
    pub info: PrimaryInfo,
    /// With which lease.
    pub lease: LeaseId,
    /// Consul's `ModifyIndex` of the key: it changes with every acquisition.
    pub index: u64,
}

/// The heartbeat of a primary, written about every second (see [`crate::takeover`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The lease it proves to be alive.
    pub lease: LeaseId,
    /// The acquisition it belongs to: [`Holder::index`] as the primary knows it. After a handoff the same lease belongs to
    /// another node, and a late heartbeat of the earlier one must not be taken for that node's.
    pub key_index: u64,
    /// How long after a heartbeat the primary stops accepting writes (its own T1).
    pub fence_after: Duration,
    /// Consul's `ModifyIndex` of the heartbeat key: it changes with every beat.
    pub index: u64,
}

/// Everything that is recorded about the cluster, read at one instant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClusterView {
    /// To wait for the next change.
    pub version: Version,
    /// Who holds the lease; `None`: nobody.
    pub holder: Option<Holder>,
    /// The last heartbeat, of the holder or of an earlier one.
    pub heartbeat: Option<Heartbeat>,
    /// The cluster's ID, once one is set.
    pub cluster_id: Option<String>,
    /// What the nodes have recorded of themselves, with the `ModifyIndex` of each record.
    pub nodes: Vec<(NodeRecord, u64)>,
}

/// Which implementation a [`Leaser`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaserKind {
    /// `lease.type: static`: the primary is configured and never changes.
    Static,
    /// `lease.type: consul`.
    Consul,
}

/// How to get the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquire {
    /// Nobody holds it.
    Free,
    /// It was handed over: the receiver continues with the same lease.
    Existing(LeaseId),
    /// Its holder went silent: end that lease and take it, provided nothing has changed since it was observed.
    TakeOver(TakeOver),
}

/// Why something about the lease did not work.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// Another node holds the lease.
    #[error("the lease is held by another node")]
    Held,
    /// The lease ended abnormally a moment ago and nobody may take it yet (`lease.consul.lock-delay`).
    #[error("the lease ended abnormally and cannot be taken during its lock-delay")]
    LockDelay,
    /// This lease is ours no more: it expired, or another node took it.
    #[error("the lease is lost: {0}")]
    Lost(String),
    /// The lease of a take-over or handoff is not what it was when it was observed.
    #[error("the lease has changed since it was observed")]
    Changed,
    /// Another cluster's ID is recorded under the key.
    #[error(
        "cluster ID {found} is recorded under the lease key, but this node belongs to {ours}: two clusters share the key `{key}`; give them different `lease.consul.key`s"
    )]
    OtherCluster {
        /// The ID that is recorded.
        found: String,
        /// This node's.
        ours: String,
        /// The lease key.
        key: String,
    },
    /// This kind of lease cannot do that.
    #[error("a {0} lease cannot do that")]
    Unsupported(&'static str),
    /// The configuration is unusable.
    #[error("{0}")]
    Config(String),
    /// Consul refuses the token.
    #[error("Consul refuses access ({0}): check the ACL token (the password part of `lease.consul.url`)")]
    Denied(String),
    /// Consul cannot be reached, is too slow or has no leader. Passes by itself.
    #[error("Consul is not available: {0}")]
    Unavailable(String),
    /// Consul answered something that cannot be understood.
    #[error("unexpected answer from Consul: {0}")]
    BadAnswer(String),
}

impl LeaseError {
    /// Whether the same request may well work a moment later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::LockDelay | Self::Held | Self::Changed)
    }
}

/// Competes for the lease on behalf of this node.
pub trait Leaser: Send + Sync + 'static {
    /// Which kind this is.
    fn kind(&self) -> LeaserKind;

    /// What this node publishes when it is the primary.
    fn me(&self) -> &PrimaryInfo;

    /// The times of the fast take-over; `None`: this kind has none, or it is disabled.
    fn timing(&self) -> Option<Timing>;

    /// Reads the cluster's state: at once with `None`, else as soon as it is newer than `after`, or after a bounded time
    /// (a minute) although nothing has changed. Cancel-safe.
    fn watch(&self, after: Option<Version>) -> BoxFuture<'_, Result<ClusterView, LeaseError>>;

    /// Tries to get the lease. A cancelled attempt may leave an unused lease behind, which expires by itself.
    fn acquire(&self, how: Acquire) -> BoxFuture<'_, Result<Box<dyn Lease>, LeaseError>>;

    /// Records the cluster's ID if none is recorded; returns the one that is.
    fn set_cluster_id<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<String, LeaseError>>;

    /// Records what this node has, for the others to see ([`candidates`](crate::candidates)).
    fn record<'a>(&'a self, record: &'a NodeRecord) -> BoxFuture<'a, Result<(), LeaseError>>;
}

/// The right to write, held by this node until its deadline.
pub trait Lease: Send + fmt::Debug {
    /// Its identity.
    fn id(&self) -> &LeaseId;

    /// Until when this node may write unless it renews: computed from the *start* of the last successful renewal.
    fn deadline(&self) -> BootInstant;

    /// How often to renew; `None`: never needed.
    fn renew_every(&self) -> Option<Duration>;

    /// Proves that the lease is still ours and returns the new deadline. [`LeaseError::Lost`] is final; after any other error
    /// the old deadline stands and it may be tried again. Cancel-safe: what has no answer proves nothing.
    fn renew(&mut self) -> BoxFuture<'_, Result<BootInstant, LeaseError>>;

    /// Prepares the lease to be taken by the node that is sent its ID: renews it a last time and ends the heartbeat, so
    /// that nobody takes it over meanwhile. From here on this node must neither write nor renew.
    fn hand_over(&mut self) -> BoxFuture<'_, Result<HandOver, LeaseError>>;

    /// Gives the lease up at once: others may have it without a lock-delay.
    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), LeaseError>>;
}

/// A lease on its way to another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    /// What the receiver acquires with ([`Acquire::Existing`]).
    pub lease: LeaseId,
    /// Takes it back, provided the receiver has not acquired it ([`Acquire::TakeOver`]; atomic).
    pub reclaim: TakeOver,
}
