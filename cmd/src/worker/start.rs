//! The order of a node's start and end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use litefs::Store;
use litefs::store::StoreConfig;
use litefs_fuse::{IoMode, Mount, MountError, MountOptions, Passthrough, default_control_dir};
use litefs_lease::{ConsulConfig, ConsulLeaser, FenceCell, FenceGate, Leaser, PrimaryInfo, StaticLeaser};
use litefs_replication::roles::{Role, RoleConfig};
use litefs_replication::{LAG_NEVER_MS, Node, NodeConfig, NodeParts};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::fly::Machine;
use super::keeper::SupervisorKeeper;
use super::mount_metrics::MountMetrics;
use super::proxy::{BoundProxy, RunningProxy};
use super::seams::LateNode;
use crate::channel::{Channel, FromWorker};
use crate::config::{Config, LeaseType};

/// Between two looks at something that changes soon.
const READY_POLL: Duration = Duration::from_millis(20);
/// Between two looks at who still uses the data directory.
const HOLDER_POLL: Duration = Duration::from_millis(200);
/// How long requests that are in flight when a primary stops may go on before its fence closes.
const REQUESTS_AT_MOST: Duration = Duration::from_millis(500);
/// How long mount and address of a process that was killed may still seem to be in use.
const DYING_AT_MOST: Duration = Duration::from_secs(5);

/// A node that runs.
pub struct Running {
    channel: Arc<Channel>,
    store: Arc<Store>,
    mount: Option<Mount>,
    mounts: Vec<PathBuf>,
    node: Arc<Node>,
    proxy: Option<RunningProxy>,
    lease: LeaseType,
    /// `skip-sync`: the application does not wait.
    skip_sync: bool,
    /// `lease.promote` on a candidate: the application waits until this node is the primary.
    promote: bool,
    is_ready: bool,
}

impl Running {
    /// Starts everything in the order in which it can fail: data, addresses, mounts, then what others see.
    ///
    /// # Errors
    /// What is missing, with its remedy.
    pub async fn start(config: &Config, channel: Arc<Channel>, cell: Arc<FenceCell>) -> anyhow::Result<Self> {
        say_what_starts(config);
        let store = open_store(config).await?;
        let listener = listen(config).await?;
        let port = listener.local_addr()?.port();
        let proxy = config.proxy.clone().map(|proxy| BoundProxy::bind(proxy, &store, &cell)).transpose()?;
        let proxy_url = proxy.as_ref().map(BoundProxy::advertise_url);
        let leaser = leaser(config, port, proxy_url.clone())?;
        store.set_fence_keeper(Arc::new(SupervisorKeeper(channel.clone())));
        store.set_write_gate(Arc::new(FenceGate(cell.clone())));
        let late = LateNode::new(tokio::runtime::Handle::current());
        let (mount, mounts) = start_mount(config, &channel, &store, &late).await?;
        for dir in &mounts {
            channel.tell_supervisor(&FromWorker::Mounted(dir.display().to_string()), None)?;
        }
        let io_mode = mount.io_mode().clone();
        tracing::info!(dir = %config.fuse.dir.display(), io = ?io_mode, "mounted");
        let mut registry = Registry::default();
        registry.register_collector(Box::new(MountMetrics(mount.counts())));
        if let Some(proxy) = &proxy {
            proxy.register(&mut registry);
        }
        let parts = NodeParts {
            store: store.clone(),
            leaser,
            fence: cell,
            listener,
            registry,
            info: Arc::new(move || info_members(&io_mode, proxy_url.as_deref())),
            shutdown: CancellationToken::new(),
        };
        let node = Node::start(node_config(config)?, parts).await.context("start the node")?;
        late.set(node.clone());
        tracing::info!(addr = %node.address(), "the node API listens");
        show_primary_changes(&node, mount.kernel());
        if let Some(machine) = Machine::from_environment() {
            tokio::spawn(machine.report(node.role().subscribe()));
        }
        Ok(Self {
            channel,
            store,
            mount: Some(mount),
            mounts,
            proxy: proxy.map(|proxy| proxy.serve(node.clone())),
            node,
            lease: config.lease.kind,
            skip_sync: config.skip_sync,
            promote: config.lease.promote && config.lease.candidate,
            is_ready: false,
        })
    }

    /// Returns when the application may start: this node is the primary, or in sync with it. Cancel-safe.
    pub async fn ready(&self) {
        if self.skip_sync {
            return;
        }
        loop {
            let role = self.node.role().state().role;
            let synced = role == Role::Replica && self.node.lag_ms() < LAG_NEVER_MS && !self.promote;
            if role == Role::Primary || synced {
                return;
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Whether [`Running::ready`] has returned and been heard.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// See [`Running::is_ready`].
    pub fn set_ready(&mut self) {
        self.is_ready = true;
    }

    /// The end begins: no new requests; the lease goes to whoever is next. A static lease goes to nobody, so the application
    /// may write until it has ended.
    ///
    /// A write in flight that finds the fence closed is `SQLITE_BUSY` for as long as its application cares to wait, and then an
    /// error to its client. So the requests in flight end first; those that take long do not hold the lease up.
    pub async fn drain(&mut self) {
        let proxy = self.proxy.take().map(RunningProxy::drain);
        let mut drained = pin!(async {
            if let Some(drained) = proxy {
                drained.await
            }
        });
        let mut is_drained = false;
        if self.lease == LeaseType::Consul {
            if self.node.role().state().role == Role::Primary {
                is_drained = tokio::time::timeout(REQUESTS_AT_MOST, &mut drained).await.is_ok();
            }
            self.node.stop().await;
        }
        if !is_drained {
            drained.await;
        }
    }

    /// The application has ended: capture what it left, unmount, close.
    ///
    /// # Errors
    /// When the mount cannot be taken down; the supervisor forces it then.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.node.stop().await;
        let (store, mount) = (self.store.clone(), self.mount.take());
        let unmounted = tokio::task::spawn_blocking(move || {
            store.close();
            mount.map_or(Ok(()), Mount::unmount)
        })
        .await?;
        unmounted.context("unmount")?;
        for dir in &self.mounts {
            self.channel.tell_supervisor(&FromWorker::Unmounted(dir.display().to_string()), None)?;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

fn say_what_starts(config: &Config) {
    match &config.source {
        Some(path) => tracing::info!(config = %path.display(), "starting"),
        None => tracing::info!("no configuration file: a single primary"),
    }
    tracing::info!(
        databases = %config.fuse.dir.display(),
        data = %config.data.dir.display(),
        api = %config.http.addr,
        lease = ?config.lease.kind,
        version = crate::version::text(),
        "node"
    );
    if let Some(kind) = &config.backup_type {
        tracing::warn!(kind, "backup.type is not supported: nothing is backed up; use `litefs export`");
    }
}

/// The data directory is ours, so its last user is dead; the kernel may still be closing its sockets.
async fn listen(config: &Config) -> std::io::Result<tokio::net::TcpListener> {
    let begun = Instant::now();
    loop {
        match litefs_replication::listen(&config.http.addr.to_string()).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && begun.elapsed() < DYING_AT_MOST => {
                tokio::time::sleep(READY_POLL).await;
            }
            result => return result,
        }
    }
}

async fn open_store(config: &Config) -> anyhow::Result<Arc<Store>> {
    let store_config = StoreConfig {
        data_dir: config.data.dir.clone(),
        compress: config.data.compress,
        retention: config.data.retention,
        retention_interval: config.data.retention_monitor_interval,
        strict_verify: config.strict_verify,
        lost_and_found_bytes_max: config.data.lost_and_found_bytes_max,
    };
    let dir = config.data.dir.clone();
    let mut opening = tokio::task::spawn_blocking(move || Store::open(store_config));
    let opened = loop {
        tokio::select! {
            opened = &mut opening => break opened?,
            () = tokio::time::sleep(HOLDER_POLL) => release_dying(config),
        }
    };
    opened.with_context(|| format!("open the data directory {}", dir.display()))
}

/// The engine makes no request of its own mount that could keep a killed node from ending (`litefs_fuse::Openers`). But it tells the
/// kernel what has changed, and that waits for the page's or the directory's lock; a client may hold it, whose request nobody answers
/// any more. Taking the mount away ends that wait, and with it the hold on the data directory. From another mount namespace it
/// cannot be taken away.
fn release_dying(config: &Config) {
    if !litefs::store::holder(&config.data.dir).is_some_and(crate::dying::is_dying) {
        return;
    }
    for dir in [default_control_dir(&config.fuse.dir), config.fuse.dir.clone()] {
        if let Err(error) = litefs_fuse::force_unmount(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "take the mount of a killed litefs away");
        }
    }
}

async fn start_mount(
    config: &Config,
    channel: &Arc<Channel>,
    store: &Arc<Store>,
    late: &LateNode,
) -> anyhow::Result<(Mount, Vec<PathBuf>)> {
    let control_dir = default_control_dir(&config.fuse.dir);
    let supervisor = channel.clone();
    let options = MountOptions {
        dir: config.fuse.dir.clone(),
        control_dir: control_dir.clone(),
        allow_other: config.fuse.allow_other,
        passthrough: if config.fuse.passthrough { Passthrough::Auto } else { Passthrough::Off },
        on_dead: Arc::new(move |why| {
            tracing::error!(why, "the mount is dead: this node stops");
            let _ = supervisor.tell_supervisor(&FromWorker::Failed, None);
        }),
    };
    let (store, late) = (store.clone(), Arc::new(late.clone()));
    let begun = Instant::now();
    loop {
        let (options, store, late) = (options.clone(), store.clone(), late.clone());
        match tokio::task::spawn_blocking(move || Mount::start(options, store, late.clone(), late)).await? {
            // The data directory is ours, so its last user is dead; the kernel may still be taking its mount down.
            Err(MountError::InUse(_)) if begun.elapsed() < DYING_AT_MOST => {
                tokio::time::sleep(READY_POLL).await;
            }
            started => return Ok((started?, vec![config.fuse.dir.clone(), control_dir])),
        }
    }
}

/// `port`: what the API really listens on, for an advertised URL that does not say it.
fn leaser(config: &Config, port: u16, proxy_url: Option<String>) -> anyhow::Result<Arc<dyn Leaser>> {
    let lease = &config.lease;
    let info = PrimaryInfo {
        hostname: lease.primary_hostname(),
        advertise_url: lease.advertise_url.clone().unwrap_or_else(|| format!("http://{}:{port}", lease.hostname)),
        // On a static replica this is about another node, which tells its own.
        proxy_url: proxy_url.filter(|_| lease.candidate),
    };
    Ok(match lease.kind {
        LeaseType::Static => Arc::new(StaticLeaser::new(info, lease.candidate)),
        LeaseType::Consul => {
            let consul = ConsulConfig {
                url: lease.consul.url.clone(),
                key: lease.consul.key.clone(),
                ttl: lease.consul.ttl,
                lock_delay: lease.consul.lock_delay,
                timing: lease.consul.timing,
            };
            Arc::new(ConsulLeaser::new(consul, info).context("lease.consul")?)
        }
    })
}

fn node_config(config: &Config) -> anyhow::Result<NodeConfig> {
    let lease = &config.lease;
    Ok(NodeConfig {
        hostname: lease.hostname.clone(),
        mount_dir: config.fuse.dir.clone(),
        roles: RoleConfig {
            candidate: lease.candidate,
            promote: lease.promote,
            reconnect_delay: lease.reconnect_delay,
            demote_delay: lease.demote_delay,
        },
        snapshot_timeout: config.http.snapshot_timeout,
        databases: lease.databases.iter().map(|name| name.parse()).collect::<Result<BTreeSet<_>, _>>()?,
    })
}

/// How the mount does its I/O, and where the proxy is, for `/info`.
fn info_members(io_mode: &IoMode, proxy_url: Option<&str>) -> serde_json::Map<String, serde_json::Value> {
    let mut members = serde_json::Map::new();
    let (passthrough, why) = match io_mode {
        IoMode::Passthrough => (true, None),
        IoMode::Relayed(why) => (false, Some(why)),
    };
    members.insert("passthrough".into(), json!(passthrough));
    if let Some(why) = why {
        members.insert("passthroughMissing".into(), json!(why));
    }
    if let Some(url) = proxy_url {
        members.insert("proxyURL".into(), json!(url));
    }
    members
}

/// `.primary` is wrong the moment the connection changes.
fn show_primary_changes(node: &Arc<Node>, kernel: Arc<dyn litefs::Kernel>) {
    let mut connected = node.watch_connected();
    tokio::spawn(async move {
        while connected.changed().await.is_ok() {
            let kernel = kernel.clone();
            let _ = tokio::task::spawn_blocking(move || kernel.special_changed(None)).await;
        }
    });
}
