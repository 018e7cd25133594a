//! Nodes made of a real role machine and pretended everything else.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use litefs::store::Mode;
use litefs::{Checksum, DbName, Pos, Txid};
use litefs_lease::testing::MemoryCluster;
use litefs_lease::{BoxFuture, FenceCell, LeaseId, Leaser, PrimaryInfo, Timing};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::roles::{Engine, HandoffError, Links, Role, RoleConfig, RoleHandle, RoleParts, RoleState, StreamEnd, start};

/// How long anything may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// Long enough that a loaded machine does not fence a primary by accident.
pub fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(100),
        fence_after: Duration::from_millis(4000),
        takeover_after: Duration::from_millis(4500),
    }
}

#[derive(Debug)]
pub struct FakeEngine {
    node_id: u64,
    pub mode: Mutex<Mode>,
    pub positions: Mutex<BTreeMap<DbName, Pos>>,
    pub cluster_id: Mutex<Option<String>>,
    /// A write transaction is running: the fence cannot be closed.
    pub is_busy: AtomicBool,
}

impl FakeEngine {
    pub fn is_writable(&self) -> bool {
        *self.mode.lock() == Mode::Primary
    }

    pub fn set_position(&self, name: &str, txid: u64) {
        let pos = Pos::new(Txid(txid), Checksum(Checksum::FLAG | txid));
        self.positions.lock().insert(name.parse().unwrap(), pos);
    }
}

impl Engine for FakeEngine {
    fn node_id(&self) -> u64 {
        self.node_id
    }

    fn cluster_id(&self) -> Option<String> {
        self.cluster_id.lock().clone()
    }

    fn set_cluster_id(&self, id: &str) -> io::Result<()> {
        *self.cluster_id.lock() = Some(id.to_owned());
        Ok(())
    }

    fn set_mode(&self, mode: Mode, _wait: Duration) -> io::Result<()> {
        if mode == Mode::Replica && self.is_busy.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        *self.mode.lock() = mode;
        Ok(())
    }

    fn positions(&self) -> BTreeMap<DbName, Pos> {
        self.positions.lock().clone()
    }
}

/// The end of a stream, seen from the replica.
type Stream = mpsc::UnboundedSender<StreamEnd>;

#[derive(Debug)]
pub struct Node {
    pub role: RoleHandle,
    pub engine: Arc<FakeEngine>,
    pub fence: Arc<FenceCell>,
    pub node_id: u64,
    streams: Mutex<BTreeMap<u64, Stream>>,
    synced: watch::Sender<bool>,
    /// Handoff frames get lost.
    pub loses_handoffs: AtomicBool,
}

impl Node {
    /// Whether an application could commit here.
    pub fn could_write(&self) -> bool {
        self.engine.is_writable() && self.fence.is_open()
    }

    pub fn is_role(&self, role: Role) -> bool {
        self.role.state().role == role
    }

    pub fn followers(&self) -> usize {
        self.streams.lock().len()
    }
}

/// Nodes by advertised URL.
#[derive(Debug, Default)]
pub struct Net {
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
}

/// A cluster whose nodes are started one after another.
pub struct Cluster {
    pub lease: MemoryCluster,
    net: Arc<Net>,
}

pub fn candidate() -> RoleConfig {
    RoleConfig {
        candidate: true,
        promote: false,
        reconnect_delay: Duration::from_millis(50),
        demote_delay: Duration::from_millis(200),
    }
}

impl Cluster {
    pub fn new() -> Self {
        Self { lease: MemoryCluster::new(Some(timing())), net: Arc::default() }
    }

    /// A candidate.
    pub fn node(&self, hostname: &str) -> Arc<Node> {
        self.node_with(hostname, candidate(), |_| {})
    }

    pub fn node_with(&self, hostname: &str, config: RoleConfig, prepare: impl FnOnce(&FakeEngine)) -> Arc<Node> {
        self.node_of(hostname, self.lease.node(hostname), config, prepare)
    }

    pub fn node_of(
        &self,
        hostname: &str,
        leaser: Arc<dyn Leaser>,
        config: RoleConfig,
        prepare: impl FnOnce(&FakeEngine),
    ) -> Arc<Node> {
        let node_id = fastrand::u64(1..);
        let engine = Arc::new(FakeEngine {
            node_id,
            mode: Mutex::new(Mode::Replica),
            positions: Mutex::default(),
            cluster_id: Mutex::default(),
            is_busy: AtomicBool::new(false),
        });
        prepare(&engine);
        let fence = Arc::new(FenceCell::create().unwrap());
        let url = format!("http://{hostname}");
        let links = Arc::new(FakeLinks { net: self.net.clone(), url: url.clone(), node_id });
        let parts = RoleParts { config, engine: engine.clone(), leaser, fence: fence.clone(), links };
        let node = Arc::new(Node {
            role: start(parts),
            engine,
            fence,
            node_id,
            streams: Mutex::default(),
            synced: watch::Sender::new(false),
            loses_handoffs: AtomicBool::new(false),
        });
        self.net.nodes.lock().insert(url, node.clone());
        node
    }

    /// Checks all the time that no two nodes could commit at once. Stops with the returned guard.
    pub fn watch_for_two_writers(&self) -> OnlyOneWriter {
        let net = self.net.clone();
        let task = tokio::spawn(async move {
            loop {
                let writers = net.nodes.lock().values().filter(|node| node.could_write()).count();
                assert!(writers <= 1, "two nodes could write");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        OnlyOneWriter(task)
    }
}

pub struct OnlyOneWriter(tokio::task::JoinHandle<()>);

impl OnlyOneWriter {
    pub fn check(self) {
        assert!(!self.0.is_finished(), "two nodes could write");
        self.0.abort();
    }
}

struct FakeLinks {
    net: Arc<Net>,
    url: String,
    node_id: u64,
}

impl FakeLinks {
    fn node(&self, url: &str) -> Option<Arc<Node>> {
        self.net.nodes.lock().get(url).cloned()
    }

    fn me(&self) -> Option<Arc<Node>> {
        self.node(&self.url)
    }
}

/// A replica's entry in the primary's table; leaves it when the stream ends.
struct Following {
    primary: Arc<Node>,
    node_id: u64,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.primary.streams.lock().remove(&self.node_id);
    }
}

impl Links for FakeLinks {
    fn follow<'a>(&'a self, primary: &'a PrimaryInfo) -> BoxFuture<'a, StreamEnd> {
        Box::pin(async move {
            let Some(node) = self.node(&primary.advertise_url).filter(|node| node.role.is_primary()) else {
                return StreamEnd::Failed("not the primary".to_owned());
            };
            let (sender, mut frames) = mpsc::unbounded_channel();
            node.streams.lock().insert(self.node_id, sender);
            let mut role = node.role.subscribe();
            let following = Following { primary: node, node_id: self.node_id };
            if let Some(me) = self.me() {
                me.synced.send_replace(true);
                *me.engine.positions.lock() = following.primary.engine.positions();
                me.engine.cluster_id.lock().get_or_insert(following.primary.engine.cluster_id().unwrap_or_default());
            }
            tokio::select! {
                biased;
                frame = frames.recv() => frame.unwrap_or(StreamEnd::End),
                _ = role.wait_for(|state: &RoleState| !state.is_primary()) => StreamEnd::End,
            }
        })
    }

    fn ask_for_handoff<'a>(&'a self, primary: &'a PrimaryInfo) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let node = self.node(&primary.advertise_url).ok_or("unreachable")?;
            node.role.handoff(self.node_id).await.map_err(|error| error.to_string())
        })
    }

    fn is_connected(&self, node_id: u64) -> bool {
        self.me().is_some_and(|me| me.streams.lock().contains_key(&node_id))
    }

    fn send_tail(&self, node_id: u64, _within: Duration) -> BoxFuture<'_, Result<(), HandoffError>> {
        Box::pin(async move {
            let me = self.me().ok_or(HandoffError::NotConnected(node_id))?;
            assert!(!me.could_write(), "the tail is sent while the fence is open");
            let replicas: Vec<_> = self.net.nodes.lock().values().cloned().collect();
            if let Some(replica) = replicas.iter().find(|node| node.node_id == node_id) {
                *replica.engine.positions.lock() = me.engine.positions();
            }
            Ok(())
        })
    }

    fn drain(&self, _within: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn synced(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while let Some(me) = self.me() {
                if me.synced.subscribe().wait_for(|synced| *synced).await.is_ok() {
                    return;
                }
            }
            std::future::pending().await
        })
    }

    fn send_handoff<'a>(&'a self, node_id: u64, lease: &'a LeaseId) -> BoxFuture<'a, Result<(), HandoffError>> {
        Box::pin(async move {
            let me = self.me().ok_or(HandoffError::NotConnected(node_id))?;
            assert!(!me.fence.is_open(), "the lease is sent while the fence is open");
            let frame = if me.loses_handoffs.load(Ordering::SeqCst) {
                StreamEnd::Failed("lost".to_owned())
            } else {
                StreamEnd::Handoff(lease.clone())
            };
            let stream = me.streams.lock().get(&node_id).cloned();
            stream.and_then(|stream| stream.send(frame).ok()).ok_or(HandoffError::NotConnected(node_id))
        })
    }
}
