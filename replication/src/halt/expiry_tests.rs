//! Locks of other nodes on the primary: how long they last.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litefs::store::{Mode, StoreConfig};
use litefs::{DbName, Layout, PlainDirectory, Store};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::table::{HaltTable, TableError};
use crate::metrics::Metrics;

/// Short, but longer than a loaded machine pauses a test.
const TTL: Duration = Duration::from_secs(6);
/// Between two renewals.
const RENEW: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

fn store(dir: &Path) -> Arc<Store> {
    let config = StoreConfig {
        data_dir: dir.to_owned(),
        compress: false,
        retention: Duration::from_secs(600),
        retention_interval: Duration::from_secs(60),
        strict_verify: false,
        lost_and_found_bytes_max: 1 << 20,
    };
    let store = Store::open_with_layout(config, Layout::Sqlite).expect("a store");
    store.attach_kernel(Arc::new(PlainDirectory { dbs: dir.join("dbs"), layout: Layout::Sqlite }));
    store.set_mode(Mode::Primary, Duration::from_secs(60)).expect("primary");
    store
}

/// Whether a client of the primary may write: nobody holds RESERVED.
fn may_write(dir: &Path) -> bool {
    use litefs::sqlite::locks::{self, LockKind};
    let path = dir.join("dbs/a.db/database");
    let file = std::fs::File::options().read(true).write(true).open(path).expect("the database file");
    locks::holder(&file, locks::RESERVED, LockKind::Exclusive).expect("asked").is_none()
}

/// Waits until clients of the primary may write.
async fn writable(dir: &Path) {
    let begun = Instant::now();
    while !may_write(dir) {
        assert!(begun.elapsed() < PATIENCE, "the primary never writes again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_lasts_as_long_as_it_is_renewed_and_then_expires() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path());
    let name: DbName = "a.db".parse().expect("a name");
    store.create(&name).expect("created");
    let metrics = Arc::new(Metrics::register(&mut Registry::default()));
    let table = Arc::new(HaltTable::with_times(store.clone(), metrics, TTL, Duration::from_millis(100)));
    let stop = CancellationToken::new();
    let (expiring, stopped) = (table.clone(), stop.clone());
    let expiry = tokio::spawn(async move { expiring.run_expiry(stopped).await });

    assert!(may_write(dir.path()));
    let taken = Instant::now();
    table.acquire(&name, 1).await.expect("granted");
    assert!(!may_write(dir.path()), "the primary holds still");
    while taken.elapsed() < TTL + RENEW {
        tokio::time::sleep(RENEW).await;
        table.acquire(&name, 1).await.expect("renewed");
        assert!(matches!(table.acquire(&name, 2).await, Err(TableError::HeldByAnother)));
        assert!(!may_write(dir.path()));
    }
    assert!(matches!(table.release(&name, 2).await, Err(TableError::NotHeld)), "only its owner gives it back");
    let nothing = dir.path().join("nothing");
    assert!(matches!(table.commit(&name, 2, &nothing).await, Err(TableError::NotHeld)));

    writable(dir.path()).await;
    assert!(matches!(table.commit(&name, 1, &nothing).await, Err(TableError::NotHeld)), "it has expired");
    table.acquire(&name, 2).await.expect("free for others");
    table.release(&name, 2).await.expect("given back");
    writable(dir.path()).await;
    table.acquire(&name, 3).await.expect("granted");
    stop.cancel();
    expiry.await.expect("no panic");
    writable(dir.path()).await;
    store.close();
}
