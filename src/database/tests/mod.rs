//! The engine against real SQLite clients in a plain directory: what they see is what the log says, at every transaction.
//!
//! Clients are processes of their own ([`client`]): POSIX locks are per process, and go when it closes any descriptor of the
//! file. There is no mount, so hooks are called by the tests where a mount would.

mod client;
mod crash;
mod fence;
mod hooked;
mod import;
mod model;
mod replica;
mod rollback;
mod snapshot;
mod wal;
mod wal_room;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::database::Database;
use crate::store::{Mode, StoreConfig};
use crate::{DbName, Layout, PlainDirectory, Store};
use client::Client;

/// More than anything here takes on a loaded machine.
const WAIT: Duration = Duration::from_secs(60);

/// A node on a plain directory.
struct Node {
    dir: tempfile::TempDir,
    store: Arc<Store>,
}

fn config(dir: &std::path::Path) -> StoreConfig {
    StoreConfig {
        data_dir: dir.to_owned(),
        compress: false,
        retention: Duration::from_secs(600),
        retention_interval: Duration::from_secs(60),
        strict_verify: false,
        lost_and_found_bytes_max: 1 << 30,
    }
}

impl Node {
    fn start(mode: Mode) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let store = Store::open_with_layout(config(dir.path()), Layout::Sqlite).expect("opens");
        store.attach_kernel(Arc::new(PlainDirectory { dbs: dir.path().join("dbs"), layout: Layout::Sqlite }));
        store.set_mode(mode, WAIT).expect("mode");
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("dbs").join(name).join("database")
    }

    /// A database made by `sql` elsewhere and copied in, as `cp` into the mount would; and a client that keeps it open.
    fn database(&self, name: &str, sql: &str) -> (Arc<Database>, Client) {
        let (database, client) = self.rollback_database(name, sql);
        database.shm_opened().expect("attaches");
        (database, client)
    }

    /// The same without a WAL.
    fn rollback_database(&self, name: &str, sql: &str) -> (Arc<Database>, Client) {
        let template = tempfile::tempdir().expect("temporary folder");
        let file = template.path().join("template");
        let connection = rusqlite::Connection::open(&file).expect("opens");
        connection.execute_batch(sql).expect("template");
        connection.close().expect("closes");
        let name: DbName = name.parse().expect("name");
        let database = self.store.create(&name).expect("creates");
        database.db_opened().expect("attaches");
        for (index, chunk) in std::fs::read(&file).expect("template").chunks(100_000).enumerate() {
            database.db_write(index as u64 * 100_000, chunk).expect("writes");
        }
        database.db_closed();
        assert_eq!(database.pos().txid.0, 1, "the copy is the first transaction");
        let client = Client::open(&self.path(name.as_str()));
        client.run("SELECT count(*) FROM sqlite_schema").expect("reads");
        (database, client)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.store.close();
    }
}

/// Waits until `condition` holds.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WAIT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
