//! The proxy's view of the node, and its life.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use litefs::database::Health;
use litefs::{DbName, Store, Txid};
use litefs_lease::{BootInstant, FenceCell, PrimaryInfo};
use litefs_proxy::{Cluster, Positions, Primary, Proxy, ProxyConfig, Role, WaitFuture};
use litefs_replication::roles::{self, RoleState};
use litefs_replication::{LAG_NEVER_MS, Node};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long the primary's `/info` is waited for.
const ASK_AT_MOST: Duration = Duration::from_secs(5);

/// Positions from the engine.
struct StorePositions(Arc<Store>);

impl Positions for StorePositions {
    fn txid(&self, db: &DbName) -> Option<Txid> {
        Some(self.0.database(db.as_str())?.pos().txid)
    }

    fn wait<'a>(&'a self, db: &'a DbName, txid: Txid) -> WaitFuture<'a> {
        Box::pin(async move {
            match self.0.database(db.as_str()) {
                Some(database) => drop(database.wait(txid).await),
                None => std::future::pending().await,
            }
        })
    }

    fn position_if_current(&self, db: &DbName) -> Option<Txid> {
        Some(self.0.database(db.as_str())?.position_if_current()?.txid)
    }

    fn position_now(&self, db: &DbName) -> io::Result<Option<Txid>> {
        self.0.database(db.as_str()).map(|database| database.position_now().map(|pos| pos.txid)).transpose()
    }
}

/// The node's place in the cluster, known once the node is there.
pub struct NodeCluster {
    store: Arc<Store>,
    cell: Arc<FenceCell>,
    node: OnceLock<Arc<Node>>,
    role: watch::Sender<Role>,
    /// Since when this node is the primary without a break; `None` while it is not.
    primary_since: Mutex<Option<Instant>>,
}

impl Cluster for NodeCluster {
    fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    fn lag(&self) -> Option<Duration> {
        let ms = self.node.get().map_or(LAG_NEVER_MS, |node| node.lag_ms());
        u64::try_from(ms).ok().filter(|_| ms < LAG_NEVER_MS).map(Duration::from_millis)
    }

    fn unhealthy(&self) -> Option<String> {
        self.store.databases().iter().find_map(|db| match db.health() {
            Health::Ok => None,
            Health::Degraded { cause: why, .. } | Health::Broken(why) => Some(format!("{}: {why}", db.name())),
        })
    }

    fn has_shared_history(&self) -> bool {
        self.node.get().is_some_and(|node| node.has_shared_history())
    }

    fn shared_history(&self) -> WaitFuture<'_> {
        Box::pin(async {
            match self.node.get() {
                Some(node) => node.shared_history().await,
                None => std::future::pending().await,
            }
        })
    }

    fn lease_covers(&self, moment: Instant) -> bool {
        let covered_since = self.primary_since.lock().is_some_and(|since| since <= moment);
        let at = BootInstant::now().before(moment.elapsed());
        covered_since && self.cell.is_open_at(at)
    }
}

/// The proxy, listening but not serving yet.
pub struct BoundProxy {
    proxy: Proxy,
    cluster: Arc<NodeCluster>,
}

/// The proxy at work.
pub struct RunningProxy {
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl BoundProxy {
    /// Listens on `proxy.addr`.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn bind(config: ProxyConfig, store: &Arc<Store>, cell: &Arc<FenceCell>) -> anyhow::Result<Self> {
        let cluster = Arc::new(NodeCluster {
            store: store.clone(),
            cell: cell.clone(),
            node: OnceLock::new(),
            role: watch::channel(Role::NoPrimary).0,
            primary_since: Mutex::default(),
        });
        let proxy = Proxy::bind(config, Arc::new(StorePositions(store.clone())), cluster.clone())?;
        Ok(Self { proxy, cluster })
    }

    /// What other nodes are told (`proxy.advertise-url`).
    pub fn advertise_url(&self) -> String {
        self.proxy.advertise_url()
    }

    /// Adds the proxy's metrics.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.proxy.metrics().register(registry);
    }

    /// Serves from now on.
    pub fn serve(self, node: Arc<Node>) -> RunningProxy {
        let Self { proxy, cluster } = self;
        tracing::info!(addr = %proxy.local_addr(), "the proxy listens");
        let _ = cluster.node.set(node.clone());
        tokio::spawn(follow_role(cluster, node));
        let shutdown = CancellationToken::new();
        let stopped = shutdown.clone();
        let task = tokio::spawn(async move { proxy.serve(stopped.cancelled_owned()).await });
        RunningProxy { shutdown, task }
    }
}

impl RunningProxy {
    /// Accepts nothing any more; the returned future ends when the requests in flight have.
    pub fn drain(self) -> impl Future<Output = ()> {
        self.shutdown.cancel();
        async move {
            match self.task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the proxy failed"),
                Err(error) => tracing::error!(%error, "the proxy failed"),
            }
        }
    }
}

async fn follow_role(cluster: Arc<NodeCluster>, node: Arc<Node>) {
    let mut role = node.role().subscribe();
    let mut connected = node.watch_connected();
    loop {
        let state = role.borrow_and_update().clone();
        connected.borrow_and_update();
        publish(&cluster, &state);
        let asking = ask_primary(&cluster, state);
        tokio::select! {
            () = asking => {}
            changed = role.changed() => if changed.is_err() { return },
            changed = connected.changed() => if changed.is_err() { return },
        }
    }
}

fn publish(cluster: &NodeCluster, state: &RoleState) {
    let role = match (&state.role, &state.primary) {
        (roles::Role::Primary, _) => Role::Primary,
        (roles::Role::Replica, Some(primary)) => Role::Replica(known(cluster, primary)),
        _ => Role::NoPrimary,
    };
    {
        let mut since = cluster.primary_since.lock();
        if role != Role::Primary {
            *since = None;
        } else if since.is_none() {
            *since = Some(Instant::now());
        }
    }
    cluster.role.send_if_modified(|now| {
        let changed = *now != role;
        *now = role;
        changed
    });
}

/// What the lease says of the primary, or what the primary itself has said before.
fn known(cluster: &NodeCluster, primary: &PrimaryInfo) -> Primary {
    if primary.proxy_url.is_none()
        && let Role::Replica(before) = &*cluster.role.borrow()
        && before.proxy_url.is_some()
    {
        return before.clone();
    }
    Primary { hostname: primary.hostname.clone(), proxy_url: primary.proxy_url.clone() }
}

/// A static lease names only the primary's API: hostname and proxy are asked of it. Never returns unless it has learnt
/// something new.
async fn ask_primary(cluster: &NodeCluster, state: RoleState) {
    let primary = state.primary.filter(|primary| state.role == roles::Role::Replica && primary.proxy_url.is_none());
    let Some(primary) = primary else { return std::future::pending().await };
    let answer = async {
        let client = reqwest::Client::builder().no_proxy().timeout(ASK_AT_MOST).build()?;
        client.get(format!("{}/info", primary.advertise_url)).send().await?.json::<serde_json::Value>().await
    };
    let info = match answer.await {
        Ok(info) => info,
        Err(error) => {
            tracing::debug!(%error, url = primary.advertise_url, "ask the primary for its proxy");
            return std::future::pending().await;
        }
    };
    let text = |value: &serde_json::Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let role = Role::Replica(Primary {
        hostname: text(&info["primary"]["hostname"]).unwrap_or(primary.hostname),
        proxy_url: text(&info["proxyURL"]),
    });
    cluster.role.send_if_modified(|now| {
        let changed = *now != role;
        *now = role;
        changed
    });
    std::future::pending().await
}
