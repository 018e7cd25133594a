//! Listening, worker threads, and the end of both.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::capture::CaptureDesk;
use crate::config::{ForwardMode, HostPort, ProxyConfig};
use crate::connection;
use crate::metrics::ProxyMetrics;
use crate::node::{Cluster, Positions, Role};
use crate::upstream::Upstream;

/// How often idle connections upstream are looked through.
const CLOSE_IDLE_INTERVAL: Duration = Duration::from_secs(10);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Most peers (past and present primaries) whose connections are kept.
const PEERS_MAX: usize = 16;
const WORKERS_MAX: usize = 4;

/// Why the proxy cannot start.
#[derive(Debug, Error)]
#[error("proxy.addr: listen on {addr}: {source}")]
pub struct BindError {
    addr: String,
    source: io::Error,
}

/// What all workers share.
pub(crate) struct Shared {
    pub config: ProxyConfig,
    pub positions: Arc<dyn Positions>,
    pub cluster: Arc<dyn Cluster>,
    pub role: watch::Receiver<Role>,
    pub capture: CaptureDesk,
    pub metrics: Arc<ProxyMetrics>,
    /// How this proxy is called in `Via`: unique, so that a loop is recognised.
    pub name: String,
    pub name_value: HeaderValue,
    pub via: HeaderValue,
    /// The application's address, as a `Host`.
    pub target_value: HeaderValue,
    /// The port that is really listened on.
    pub port: u16,
    /// For requests that wait.
    pub places: Semaphore,
    /// Connections end when their requests do.
    pub drain: CancellationToken,
    /// Tunnels end now.
    pub close_tunnels: CancellationToken,
}

impl Shared {
    /// The role now. Cloned: nothing is called while the channel is locked.
    pub fn role(&self) -> Role {
        self.role.borrow().clone()
    }

    /// Whether this node takes itself for the primary.
    pub fn is_primary(&self) -> bool {
        *self.role.borrow() == Role::Primary
    }

    /// Whether an application's `fly-replay` is for us to perform.
    pub fn performs_replays(&self) -> bool {
        self.config.mode != ForwardMode::FlyReplay
    }
}

/// A thread with its own connections upstream; a client's connection stays on one.
pub(crate) struct Worker {
    pub shared: Arc<Shared>,
    pub target: Arc<Upstream>,
    peers: Mutex<HashMap<HostPort, Arc<Upstream>>>,
    tunnels: TaskTracker,
}

impl Worker {
    fn new(shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            target: Arc::new(Upstream::new(shared.config.target.clone())),
            shared: Arc::clone(shared),
            peers: Mutex::default(),
            tunnels: TaskTracker::new(),
        })
    }

    /// Connections to another node's proxy.
    pub fn peer(&self, address: &HostPort) -> Arc<Upstream> {
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get(address) {
            return Arc::clone(peer);
        }
        if peers.len() >= PEERS_MAX {
            peers.clear();
        }
        Arc::clone(peers.entry(address.clone()).or_insert_with(|| Arc::new(Upstream::new(address.clone()))))
    }

    /// Runs a tunnel until it ends or the proxy does.
    pub fn spawn_tunnel(&self, tunnel: impl Future<Output = ()> + Send + 'static) {
        let close = self.shared.close_tunnels.clone();
        self.tunnels.spawn(async move {
            tokio::select! {
                () = tunnel => {}
                () = close.cancelled() => {}
            }
        });
    }

    fn close_idle(&self) {
        self.target.close_idle();
        for peer in self.peers.lock().values() {
            peer.close_idle();
        }
    }

    /// Serves the connections it is given until there will be no more and the last has ended (or had its time).
    async fn run(self: Arc<Self>, mut connections: mpsc::UnboundedReceiver<Accepted>) {
        let clients = TaskTracker::new();
        let mut close_idle = tokio::time::interval(CLOSE_IDLE_INTERVAL);
        loop {
            let accepted = tokio::select! {
                accepted = connections.recv() => accepted,
                _ = close_idle.tick() => {
                    self.close_idle();
                    continue;
                }
            };
            let Some(Accepted { stream, peer, counted }) = accepted else { break };
            let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
            let serving = connection::serve(Arc::clone(&self), stream, peer);
            clients.spawn(async move {
                let _counted = counted;
                serving.await;
            });
        }
        clients.close();
        self.tunnels.close();
        let drain = self.shared.config.settings.drain_timeout;
        if tokio::time::timeout(drain, clients.wait()).await.is_err() {
            tracing::warn!(open = clients.len(), "requests still in flight after proxy.drain-timeout are broken off");
        }
        self.shared.close_tunnels.cancel();
        self.tunnels.wait().await;
    }
}

/// A connection on its way to a worker.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    counted: (Load, OwnedSemaphorePermit),
}

/// Counts a worker's connections.
struct Load(Arc<AtomicUsize>);

impl Load {
    fn more(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct WorkerThread {
    connections: mpsc::UnboundedSender<Accepted>,
    load: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl WorkerThread {
    fn start(worker: Arc<Worker>, index: usize) -> io::Result<Self> {
        let (connections, queue) = mpsc::unbounded_channel();
        let load = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            runtime.block_on(worker.run(queue));
            // What did not end in time is dropped with the runtime.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name(format!("proxy-{index}")).spawn(run)?;
        Ok(Self { connections, load, thread })
    }
}

/// A proxy that listens, but does not serve yet.
pub struct Proxy {
    listener: TcpListener,
    local_addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on `proxy.addr`. Clients that connect wait until [`Proxy::serve`].
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(
        config: ProxyConfig,
        positions: Arc<dyn Positions>,
        cluster: Arc<dyn Cluster>,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError { addr: config.listen.authority(), source };
        let listener = listen(&config.listen).map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let capture = CaptureDesk::start(Arc::clone(&positions)).map_err(failed)?;
        let name = format!("litefs-{:016x}", unique(local_addr));
        let shared = Shared {
            role: cluster.role(),
            via: HeaderValue::try_from(format!("1.1 {name}")).unwrap_or(HeaderValue::from_static("1.1 litefs")),
            target_value: HeaderValue::try_from(config.target.authority())
                .unwrap_or(HeaderValue::from_static("litefs")),
            name_value: HeaderValue::try_from(&name).unwrap_or(HeaderValue::from_static("litefs")),
            name,
            port: local_addr.port(),
            places: Semaphore::new(config.settings.max_waiting.min(Semaphore::MAX_PERMITS)),
            metrics: Arc::default(),
            drain: CancellationToken::new(),
            close_tunnels: CancellationToken::new(),
            capture,
            positions,
            cluster,
            config,
        };
        Ok(Self { listener, local_addr, shared: Arc::new(shared) })
    }

    /// The address that is really listened on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What to publish for other nodes (`proxy.advertise-url`).
    #[must_use]
    pub fn advertise_url(&self) -> String {
        self.shared.config.advertise_url(self.local_addr.port())
    }

    /// The metrics, to register before serving.
    #[must_use]
    pub fn metrics(&self) -> Arc<ProxyMetrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// Serves until `shutdown` completes; then takes no more connections, lets requests in flight end (at most
    /// `proxy.drain-timeout`), closes tunnels, and returns.
    ///
    /// # Errors
    /// When the worker threads cannot be started or the listener is not usable.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let workers = self.start_workers()?;
        self.listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        tokio::select! {
            () = accept(listener, &workers, self.shared.config.settings.max_connections) => {}
            () = shutdown => {}
        }
        self.shared.drain.cancel();
        let threads: Vec<_> = workers.into_iter().map(|worker| worker.thread).collect();
        tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a proxy worker ended by a panic");
                }
            }
        })
        .await
        .map_err(io::Error::other)
    }

    fn start_workers(&self) -> io::Result<Vec<WorkerThread>> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = match self.shared.config.settings.workers {
            0 => cores.min(WORKERS_MAX),
            count => count,
        };
        (0..count).map(|index| WorkerThread::start(Worker::new(&self.shared), index)).collect()
    }
}

/// Hands every new connection to the worker with the fewest.
async fn accept(listener: tokio::net::TcpListener, workers: &[WorkerThread], connections_max: usize) {
    let permits = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = listener.accept().await.and_then(|(stream, peer)| Ok((stream.into_std()?, peer)));
        match accepted {
            Ok((stream, peer)) => {
                let Some(worker) = workers.iter().min_by_key(|w| w.load.load(Ordering::Relaxed)) else { return };
                // A worker ends only after this loop has.
                let counted = (Load::more(&worker.load), permit);
                let _ = worker.connections.send(Accepted { stream, peer, counted });
            }
            // The client left before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn listen(address: &HostPort) -> io::Result<TcpListener> {
    if !address.host.is_empty() {
        let addresses: Vec<SocketAddr> = (address.host.as_str(), address.port).to_socket_addrs()?.collect();
        return TcpListener::bind(addresses.as_slice());
    }
    // Both families at once, as Go does for an address without a host; IPv6 may be switched off.
    let any: [SocketAddr; 2] = [(std::net::Ipv6Addr::UNSPECIFIED, address.port).into(), ([0; 4], address.port).into()];
    TcpListener::bind(&any[..])
}

/// A number that no other proxy has: time, process, address and the hasher's random keys.
fn unique(address: SocketAddr) -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one((std::time::SystemTime::now(), std::process::id(), address))
}
