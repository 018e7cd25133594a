//! A node: store, role machine, streams, HALT locks and API, tied together.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use litefs::{DbName, Store};
use litefs_lease::{BoxFuture, FenceCell, LeaseId, Leaser, PrimaryInfo};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::halt::RemoteHalts;
use crate::halt::table::HaltTable;
use crate::lag::Lag;
use crate::metrics::{Metrics, NodeState};
use crate::peer::{Peer, full};
use crate::problems::Problems;
use crate::roles::{self, HandoffError, Links, RoleConfig, RoleHandle, RoleParts, StreamEnd};
use crate::stream::Subscribers;
use crate::stream::lanes::{LaneParts, Lanes};
use crate::stream::patience::Patience;
use crate::stream::receiver::Receiver;
use crate::stream::subscribers::SubscriberError;

/// How long the handoff frame may take to leave.
const HANDOFF_MAX: Duration = Duration::from_secs(5);
/// How long a primary may take to answer `POST /handoff`.
const ASK_HANDOFF_MAX: Duration = Duration::from_secs(15);
/// At the stop: how long giving HALT locks back may take, if any are held.
const STOP_HALTS_MAX: Duration = Duration::from_secs(2);
/// How long giving the lease up may take.
const STOP_ROLE_MAX: Duration = Duration::from_millis(1500);
/// How long requests may go on afterwards.
const STOP_REQUESTS_MAX: Duration = Duration::from_millis(500);

/// More members for `GET /info`.
pub type InfoExtra = Arc<dyn Fn() -> serde_json::Map<String, serde_json::Value> + Send + Sync>;

/// How a node behaves; from `litefs.yml`.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// `lease.hostname`.
    pub hostname: String,
    /// `fuse.dir`, for `/info`.
    pub mount_dir: PathBuf,
    /// The role machine's part.
    pub roles: RoleConfig,
    /// `http.snapshot-timeout`: the longest that one file may take on its way to a replica.
    pub snapshot_timeout: Duration,
    /// `lease.databases`: follow only these; all when empty.
    pub databases: BTreeSet<DbName>,
}

/// What a node is made of.
pub struct NodeParts {
    /// The engine.
    pub store: Arc<Store>,
    /// Where the lease comes from.
    pub leaser: Arc<dyn Leaser>,
    /// The shared deadline.
    pub fence: Arc<FenceCell>,
    /// Where the API listens ([`api::listen`]).
    pub listener: TcpListener,
    /// Metrics of mount, proxy and supervisor; the node adds its own and the store's.
    pub registry: Registry,
    /// More members for `/info` (passthrough, ...).
    pub info: InfoExtra,
    /// Cancelled: the node stops by itself, as by [`Node::stop`].
    pub shutdown: CancellationToken,
}

/// What the parts of a node share.
pub(crate) struct Shared {
    pub(crate) config: NodeConfig,
    pub(crate) store: Arc<Store>,
    pub(crate) role: RoleHandle,
    pub(crate) fence: Arc<FenceCell>,
    pub(crate) subscribers: Subscribers,
    pub(crate) lag: Arc<Lag>,
    pub(crate) problems: Arc<Problems>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) registry: Registry,
    pub(crate) halts: HaltTable,
    pub(crate) info: InfoExtra,
    pub(crate) spool_dir: PathBuf,
    /// Streams and event feeds end.
    pub(crate) closing: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) started: std::time::Instant,
}

/// A running node.
pub struct Node {
    shared: Arc<Shared>,
    connected: watch::Receiver<Option<PrimaryInfo>>,
    remote_halts: RemoteHalts,
    address: SocketAddr,
    shutdown: CancellationToken,
    /// Requests in progress are cut off.
    cut: CancellationToken,
    stopped: Mutex<bool>,
}

impl Node {
    /// Starts everything. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the spool directory cannot be made, or a thread not be started.
    pub async fn start(config: NodeConfig, parts: NodeParts) -> io::Result<Arc<Self>> {
        let NodeParts { store, leaser, fence, listener, mut registry, info, shutdown } = parts;
        let address = listener.local_addr()?;
        let spool_dir = api::spool::prepare(&store.config().data_dir).await?;
        store.register_metrics(&mut registry);
        let metrics = Arc::new(Metrics::register(&mut registry));
        let (lag, problems) = (Arc::new(Lag::default()), Arc::new(Problems::default()));
        let (subscribers, resync) = (Subscribers::default(), Arc::new(Notify::new()));
        let (connected_sender, connected) = watch::channel(None);
        let lanes = Lanes::start(LaneParts {
            store: store.clone(),
            metrics: metrics.clone(),
            problems: problems.clone(),
            retry_first: config.roles.reconnect_delay,
        })?;
        let receiver = Receiver {
            store: store.clone(),
            lag: lag.clone(),
            problems: problems.clone(),
            lanes,
            memory: Receiver::memory(),
            filter: config.databases.clone(),
            connected: connected_sender,
            resync: resync.clone(),
            patience: Patience::default(),
        };
        let links = Arc::new(NodeLinks { receiver, subscribers: subscribers.clone() });
        let (roles, engine) = (config.roles.clone(), store.clone());
        let role = roles::start(RoleParts { config: roles, engine, leaser, fence: fence.clone(), links });
        registry.register_collector(Box::new(NodeState {
            store: store.clone(),
            role: role.clone(),
            lag: lag.clone(),
            subscribers: subscribers.clone(),
        }));
        let remote_halts = RemoteHalts::new(store.clone(), role.clone(), resync);
        let shared = Arc::new(Shared {
            halts: HaltTable::new(store.clone(), metrics.clone()),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            started: std::time::Instant::now(),
            config,
            store,
            role,
            fence,
            subscribers,
            lag,
            problems,
            metrics,
            registry,
            info,
            spool_dir,
        });
        let (cut, stopped) = (CancellationToken::new(), Mutex::new(false));
        let node = Arc::new(Self { shared, connected, remote_halts, address, shutdown, cut, stopped });
        node.spawn_tasks(listener);
        Ok(node)
    }

    fn spawn_tasks(self: &Arc<Self>, listener: TcpListener) {
        let shared = &self.shared;
        shared.tasks.spawn(api::server::serve(listener, shared.clone(), self.cut.clone()));
        let halts = shared.clone();
        shared.tasks.spawn(async move { halts.halts.run_expiry(halts.closing.clone()).await });
        let (ended, mut role) = (shared.clone(), shared.role.subscribe());
        shared.tasks.spawn(async move {
            loop {
                let changed = tokio::select! {
                    changed = role.changed() => changed,
                    () = ended.closing.cancelled() => return,
                };
                if changed.is_err() {
                    return;
                }
                let primary = role.borrow_and_update().is_primary();
                if !primary {
                    ended.halts.release_all().await;
                }
            }
        });
        let (node, shutdown) = (self.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            shutdown.cancelled().await;
            node.stop().await;
        });
    }

    /// Stops: gives HALT locks and the lease back, sends the last transactions and `end` to the replicas, ends requests.
    /// The store is left to the caller. Returns within about 2 s; further calls return when the first is done.
    pub async fn stop(&self) {
        let first = !std::mem::replace(&mut *self.stopped.lock(), true);
        self.shutdown.cancel();
        if first {
            if tokio::time::timeout(STOP_HALTS_MAX, self.remote_halts.release_all()).await.is_err() {
                tracing::warn!("HALT locks could not be given back in time; they expire by themselves");
            }
            if tokio::time::timeout(STOP_ROLE_MAX, self.shared.role.stop()).await.is_err() {
                // Consul does not answer. The role machine goes on until this process ends, and so do deadline and fence.
                tracing::warn!("the lease could not be given up in time; it expires by itself");
            }
            self.shared.closing.cancel();
            self.shared.tasks.close();
        }
        if tokio::time::timeout(STOP_REQUESTS_MAX, self.shared.tasks.wait()).await.is_err() {
            self.cut.cancel();
            self.shared.tasks.wait().await;
        }
    }

    /// Where the API listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The role machine.
    #[must_use]
    pub fn role(&self) -> &RoleHandle {
        &self.shared.role
    }

    /// The primary this node is a replica of and connected to, for `.primary`.
    #[must_use]
    pub fn connected(&self) -> Option<PrimaryInfo> {
        self.connected.borrow().clone()
    }

    /// To be told of changes of [`Self::connected`].
    #[must_use]
    pub fn watch_connected(&self) -> watch::Receiver<Option<PrimaryInfo>> {
        self.connected.clone()
    }

    /// Milliseconds behind the primary: 0 on the primary, [`crate::LAG_NEVER_MS`] before the first sync.
    #[must_use]
    pub fn lag_ms(&self) -> i64 {
        if self.shared.role.is_primary() { 0 } else { self.shared.lag.ms() }
    }

    /// Replica: whether everything here belongs to the history of the primary it follows or followed last. Not so after this node
    /// was primary itself, or has started, until it has caught up with one: it may have transactions that the cluster does not have.
    #[must_use]
    pub fn has_shared_history(&self) -> bool {
        self.shared.lag.is_shared()
    }

    /// Waits until [`Self::has_shared_history`].
    pub async fn shared_history(&self) {
        self.shared.lag.shared().await;
    }

    /// HALT locks for local clients.
    #[must_use]
    pub const fn halts(&self) -> &RemoteHalts {
        &self.remote_halts
    }

    /// The connected replicas.
    #[must_use]
    pub fn subscribers(&self) -> &Subscribers {
        &self.shared.subscribers
    }

    /// Databases whose replication is stuck, with the cause.
    #[must_use]
    pub fn problems(&self) -> &Problems {
        &self.shared.problems
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The role machine's network.
struct NodeLinks {
    receiver: Receiver,
    subscribers: Subscribers,
}

fn handoff_error(node_id: u64, error: SubscriberError) -> HandoffError {
    match error {
        SubscriberError::NotConnected => HandoffError::NotConnected(node_id),
        SubscriberError::Lost | SubscriberError::Full => HandoffError::Tail(node_id, error.to_string()),
    }
}

impl Links for NodeLinks {
    fn follow<'a>(&'a self, primary: &'a PrimaryInfo) -> BoxFuture<'a, StreamEnd> {
        Box::pin(self.receiver.follow(primary))
    }

    fn ask_for_handoff<'a>(&'a self, primary: &'a PrimaryInfo) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            let store = &self.receiver.store;
            let ask = async {
                let mut peer = Peer::connect(&primary.advertise_url, store.node_id(), store.cluster_id()).await?;
                let path = format!("/handoff?nodeID={:016X}", store.node_id());
                peer.ask(Method::POST, &path, full(Bytes::new()), ASK_HANDOFF_MAX).await
            };
            ask.await.map(drop).map_err(|error| error.to_string())
        })
    }

    fn is_connected(&self, node_id: u64) -> bool {
        self.subscribers.is_connected(node_id)
    }

    fn send_tail(&self, node_id: u64, within: Duration) -> BoxFuture<'_, Result<(), HandoffError>> {
        Box::pin(async move {
            let sent = self.subscribers.send_tail(node_id, within).await;
            sent.map_err(|error| handoff_error(node_id, error))
        })
    }

    fn drain(&self, within: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let missed = self.subscribers.drain(within).await;
            if missed > 0 {
                tracing::warn!(missed, "replicas did not take the last transactions in time");
            }
        })
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.receiver.lanes.settle().await;
            self.receiver.lag.history_may_differ();
        })
    }

    fn synced(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.receiver.lag.synced())
    }

    fn send_handoff<'a>(&'a self, node_id: u64, lease: &'a LeaseId) -> BoxFuture<'a, Result<(), HandoffError>> {
        Box::pin(async move {
            let sent = self.subscribers.handoff(node_id, &lease.0, HANDOFF_MAX).await;
            sent.map_err(|error| handoff_error(node_id, error))
        })
    }
}
