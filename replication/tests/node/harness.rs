//! Nodes, databases and waiting.

use std::collections::BTreeSet;
use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use litefs::sqlite::locks::{self, LockKind};
use litefs::store::StoreConfig;
use litefs::{Database, DbName, Layout, PlainDirectory, Pos, Store};
use litefs_lease::testing::MemoryCluster;
use litefs_lease::{FenceCell, Leaser, PrimaryInfo, StaticLeaser};
use litefs_replication::roles::RoleConfig;
use litefs_replication::{Node, NodeConfig, NodeParts};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// The bound of every wait: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct TestNode {
    pub(crate) store: Arc<Store>,
    pub(crate) node: Arc<Node>,
    pub(crate) info: PrimaryInfo,
    pub(crate) fence: Arc<FenceCell>,
    dir: Arc<TempDir>,
}

/// How a test node differs from the usual.
#[derive(Default)]
pub(crate) struct Setup {
    /// `None`: this node is the primary.
    pub(crate) primary: Option<PrimaryInfo>,
    pub(crate) cluster_id: Option<&'static str>,
    pub(crate) databases: &'static [&'static str],
    /// An existing data directory.
    pub(crate) dir: Option<Arc<TempDir>>,
    /// `127.0.0.1:<port>`; 0 for any.
    pub(crate) port: u16,
    /// Competes for this lease (and `primary` is not looked at).
    pub(crate) cluster: Option<MemoryCluster>,
    /// `data.retention`; looked after every 50 ms then.
    pub(crate) retention: Option<Duration>,
}

impl TestNode {
    pub(crate) async fn primary() -> Self {
        Self::start(Setup { cluster_id: Some("LFSC0000000000000001"), ..Setup::default() }).await
    }

    pub(crate) async fn replica_of(primary: &PrimaryInfo) -> Self {
        Self::start(Setup { primary: Some(primary.clone()), ..Setup::default() }).await
    }

    pub(crate) async fn start(setup: Setup) -> Self {
        // The log of a test that fails is shown with it.
        let _ = tracing_subscriber::fmt().with_test_writer().with_ansi(false).try_init();
        let dir = setup.dir.unwrap_or_else(|| Arc::new(tempfile::tempdir().expect("a directory")));
        let mut config = store_config(dir.path());
        if let Some(retention) = setup.retention {
            config.retention = retention;
            config.retention_interval = Duration::from_millis(50);
        }
        let store = tokio::task::spawn_blocking(move || Store::open_with_layout(config, Layout::Sqlite))
            .await
            .expect("no panic")
            .expect("a store");
        let kernel = PlainDirectory { dbs: dir.path().join("dbs"), layout: Layout::Sqlite };
        let attached = store.clone();
        tokio::task::spawn_blocking(move || attached.attach_kernel(Arc::new(kernel))).await.expect("no panic");
        if let (Some(id), None) = (setup.cluster_id, store.cluster_id()) {
            store.set_cluster_id(id).expect("a cluster ID");
        }
        let listener = listen(setup.port).await;
        let address = listener.local_addr().expect("an address");
        let info = PrimaryInfo { hostname: "node".into(), advertise_url: format!("http://{address}"), proxy_url: None };
        let candidate = setup.primary.is_none() || setup.cluster.is_some();
        let static_primary = setup.primary.is_none() && setup.cluster.is_none();
        let leaser: Arc<dyn Leaser> = match &setup.cluster {
            Some(cluster) => cluster.node(&address.to_string()),
            None => Arc::new(StaticLeaser::new(setup.primary.unwrap_or_else(|| info.clone()), candidate)),
        };
        let info = if setup.cluster.is_some() { leaser.me().clone() } else { info };
        let config = NodeConfig {
            hostname: info.hostname.clone(),
            mount_dir: PathBuf::from("/litefs"),
            roles: RoleConfig {
                candidate,
                promote: false,
                reconnect_delay: Duration::from_millis(50),
                demote_delay: Duration::from_secs(1),
            },
            snapshot_timeout: Duration::from_secs(600),
            databases: setup.databases.iter().map(|name| db_name(name)).collect::<BTreeSet<_>>(),
        };
        let fence = Arc::new(FenceCell::create().expect("a fence"));
        let parts = NodeParts {
            store: store.clone(),
            leaser,
            fence: fence.clone(),
            listener,
            registry: prometheus_client::registry::Registry::default(),
            info: Arc::new(serde_json::Map::new),
            shutdown: CancellationToken::new(),
        };
        let node = Node::start(config, parts).await.expect("a node");
        if static_primary {
            until("the primary is one", || node.role().is_primary()).await;
        }
        Self { store, node, info, dir, fence }
    }

    /// Stops the node; the data directory stays.
    pub(crate) async fn stop(self) -> Arc<TempDir> {
        self.node.stop().await;
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || {
            store.detach_kernel();
            store.close();
        })
        .await
        .expect("no panic");
        self.dir.clone()
    }

    pub(crate) fn pos(&self, name: &str) -> Pos {
        self.store.positions().get(name).copied().unwrap_or_default()
    }

    /// One transaction: the database becomes a table of `rows` rows.
    pub(crate) async fn put(&self, name: &str, rows: u32) -> Pos {
        let (store, name) = (self.store.clone(), db_name(name));
        let written = tokio::task::spawn_blocking(move || {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("source");
            sqlite_file(&path, rows);
            let db = store.create(&name).expect("created");
            let before = db.pos();
            copy_in(&store, &db, &path);
            (db, before)
        });
        let (db, before) = written.await.expect("no panic");
        within("the transaction is captured", db.wait(before.txid.next())).await
    }

    /// One transaction, as a client of the mount would make it in a rollback mode: the changed file is written through the hooks.
    pub(crate) async fn write(&self, name: &str, sql: &str) -> Pos {
        let (store, sql) = (self.store.clone(), sql.to_owned());
        let db = store.database(name).expect("the database");
        let written = tokio::task::spawn_blocking(move || {
            let before = db.pos();
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("copy");
            db.export(&mut std::fs::File::create(&path).expect("a file")).expect("exported");
            rusqlite::Connection::open(&path).expect("a database").execute_batch(&sql).expect("changed");
            copy_in(&store, &db, &path);
            (db, before)
        });
        let (db, before) = written.await.expect("no panic");
        within("the transaction is captured", db.wait(before.txid.next())).await
    }

    /// The database file as `export` gives it.
    pub(crate) async fn export(&self, name: &str) -> Vec<u8> {
        let db = self.store.database(name).expect("the database");
        tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            db.export(&mut bytes).expect("exported");
            bytes
        })
        .await
        .expect("no panic")
    }

    /// Waits until this node is where `other` is, and compares the databases byte by byte.
    pub(crate) async fn matches(&self, other: &Self, name: &str) {
        let target = other.pos(name);
        until(&format!("{name} reaches {target}"), || self.pos(name) == target).await;
        assert_eq!(self.export(name).await, other.export(name).await, "{name}");
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        reqwest::get(format!("{}{path}", self.info.advertise_url)).await.expect("an answer")
    }

    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> reqwest::Response {
        let url = format!("{}{path}", self.info.advertise_url);
        reqwest::Client::new().post(url).body(body).send().await.expect("an answer")
    }
}

async fn listen(port: u16) -> tokio::net::TcpListener {
    let start = Instant::now();
    loop {
        match litefs_replication::listen(&format!("127.0.0.1:{port}")).await {
            Ok(listener) => return listener,
            // The port of a node that was just stopped.
            Err(_) if start.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Overwrites a database with a file, under the locks of a SQLite client.
fn copy_in(store: &Store, db: &Arc<Database>, file: &Path) {
    db.db_opened().expect("opened");
    let path = store.config().data_dir.join("dbs").join(db.name().as_str()).join("database");
    let locked = File::options().read(true).write(true).open(path).expect("the database file");
    for bytes in [locks::RESERVED, locks::PENDING, locks::SHARED] {
        assert!(locks::lock_within(&locked, bytes, LockKind::Exclusive, PATIENCE).expect("a lock"), "{bytes:?}");
    }
    let bytes = std::fs::read(file).expect("a file");
    for (chunk, offset) in bytes.chunks(128 << 10).zip((0..).step_by(128 << 10)) {
        db.db_write(offset, chunk).expect("written");
    }
    db.db_truncate(bytes.len() as u64).expect("truncated");
    for bytes in [locks::SHARED, locks::PENDING, locks::RESERVED] {
        locks::unlock(&locked, bytes).expect("unlocked");
    }
    db.db_closed();
}

pub(crate) fn store_config(dir: &Path) -> StoreConfig {
    StoreConfig {
        data_dir: dir.to_owned(),
        compress: true,
        retention: Duration::from_secs(600),
        retention_interval: Duration::from_secs(60),
        strict_verify: true,
        lost_and_found_bytes_max: 1 << 30,
    }
}

pub(crate) fn db_name(name: &str) -> DbName {
    name.parse().expect("a name")
}

/// A database file of its own with `rows` rows.
pub(crate) fn sqlite_file(path: &Path, rows: u32) {
    let connection = rusqlite::Connection::open(path).expect("a database");
    connection.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)").expect("a table");
    connection
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO t SELECT i, printf('row %d %s', i, hex(randomblob(40))) FROM n WHERE ?1 > 0",
            [rows],
        )
        .expect("rows");
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a future.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}
