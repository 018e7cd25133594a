//! What the proxy asks of the node: positions from the engine, the role from the lease.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::{Duration, Instant};

use litefs::{DbName, Txid};
use tokio::sync::watch;

/// Sleeps until a position is reached.
pub type WaitFuture<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Positions of the databases, as the engine publishes them.
pub trait Positions: Send + Sync + 'static {
    /// The published position, from memory. `None`: there is no such database (yet).
    fn txid(&self, db: &DbName) -> Option<Txid>;

    /// Sleeps until the position of `db` is at least `txid`; woken by the advance itself. Dropping the future gives up.
    /// For a database that does not exist yet it may sleep for ever: every caller has a bound of its own.
    fn wait<'a>(&'a self, db: &'a DbName, txid: Txid) -> WaitFuture<'a>;

    /// The published position if it is known *without blocking* that nothing newer is committed. `None`: ask
    /// [`Positions::position_now`]. Called on the proxy's own threads for every request the primary answers.
    fn position_if_current(&self, _db: &DbName) -> Option<Txid> {
        None
    }

    /// Captures what is committed already, then tells the position. May block; called on a thread of its own.
    ///
    /// # Errors
    /// When the capture failed: what the request wrote is then not known to be kept.
    fn position_now(&self, db: &DbName) -> io::Result<Option<Txid>>;
}

/// The node that may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    /// Its `lease.hostname`: what `fly-replay: instance=` names.
    pub hostname: String,
    /// Its `proxy.advertise-url`, if it published one. A LiteFS node does not: then its proxy is taken to listen on
    /// the same port as ours.
    pub proxy_url: Option<String>,
}

/// What this node may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// This node writes.
    Primary,
    /// Another one does.
    Replica(Primary),
    /// Nobody is known to.
    NoPrimary,
}

/// The node's place in the cluster.
pub trait Cluster: Send + Sync + 'static {
    /// The role now, and every change of it.
    fn role(&self) -> watch::Receiver<Role>;

    /// How far behind the primary this node is: zero on the primary, `None` before a replica's first sync.
    fn lag(&self) -> Option<Duration>;

    /// Why this node should get no traffic although its lag is fine (a broken database, a full disk).
    fn unhealthy(&self) -> Option<String> {
        None
    }

    /// Replica: whether everything here belongs to the history of the last primary known. If not, positions say nothing about what a client has
    /// seen: a node that was primary may have transactions of its own under the numbers that its successor has given to others.
    fn has_shared_history(&self) -> bool {
        true
    }

    /// Waits until [`Self::has_shared_history`].
    fn shared_history(&self) -> WaitFuture<'_> {
        Box::pin(std::future::ready(()))
    }

    /// Whether the lease covered this moment, so that what was captured then belongs to the cluster's history.
    fn lease_covers(&self, moment: Instant) -> bool;
}
