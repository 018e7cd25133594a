use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use litefs::store::StoreConfig;
use litefs::{PlainDirectory, store::Mode};

use super::*;

/// Deletions and creations of one name; a name that is resolved while it changes its meaning shows within tens.
const ROUNDS: usize = 500;

struct Alone;

impl NodeInfo for Alone {
    fn primary_hostname(&self) -> Option<String> {
        None
    }

    fn lag_ms(&self) -> i64 {
        0
    }
}

/// A primary's tree over a data directory, without a mount.
fn tree(data_dir: &std::path::Path) -> Tree {
    let config = StoreConfig {
        data_dir: data_dir.to_owned(),
        compress: false,
        retention: Duration::from_secs(600),
        retention_interval: Duration::from_secs(60),
        strict_verify: false,
        lost_and_found_bytes_max: 1 << 30,
    };
    let store = Store::open(config).expect("open the store");
    store.set_mode(Mode::Primary, Duration::from_secs(30)).expect("become primary");
    store.attach_kernel(Arc::new(PlainDirectory { dbs: data_dir.join("dbs"), layout: litefs::Layout::Data }));
    let layout = Layout {
        data_dir: data_dir.to_owned(),
        control_dir: data_dir.join("control"),
        passthrough: false,
        engine_threads: EngineThreads::default(),
    };
    let tree = Tree::new(layout, store, Arc::new(Alone), Arc::default()).expect("tree");
    tree.attached.open();
    tree
}

fn create(tree: &Tree, name: &str) -> Arc<Node> {
    let creator = Creator {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mode: 0o644,
        flags: libc::O_RDWR | libc::O_CREAT,
    };
    let name = Name::parse(OsStr::new(name)).expect("name");
    tree.create(&name, creator).expect("create").opened.node
}

/// What the engine tells of an old file, and its look-ups, may come when the client has deleted that file and made a new one of
/// the same name: that is another inode then, and stays one.
#[test]
fn a_database_that_is_created_again_keeps_its_inode_while_the_engine_lags() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = tree(dir.path());
    let db: DbName = "app.db".parse().expect("name");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let engine = |late: fn(&Tree, &DbName)| {
            let (tree, db, done) = (&tree, &db, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    late(tree, db);
                }
            });
        };
        engine(|tree, db| tree.recheck(db, FileKind::Database));
        engine(|tree, db| {
            if let Ok(node) = tree.look_up(&Name::Candidate(db.clone())) {
                tree.nodes.forget(node.ino, 1);
            }
        });
        let client = scope.spawn(|| {
            for round in 0..ROUNDS {
                let node = create(&tree, "app.db");
                let journal = create(&tree, "app.db-journal");
                assert_eq!(node.name().as_deref(), Some("app.db"), "round {round}: its inode was taken for unlinked");
                assert!(
                    matches!(node.target(), Target::Db(..)),
                    "round {round}: what is written to it is not captured"
                );
                for node in [node, journal] {
                    tree.release(node.ino, HANDLE_CLIENT);
                    tree.nodes.forget(node.ino, 1);
                }
                tree.unlink(&Name::Candidate(db.clone())).expect("unlink");
            }
        });
        let outcome = client.join();
        done.store(true, Ordering::Relaxed);
        outcome.expect("every round");
    });
}

/// Between the engine's end and the mount's a client would be alone with a wal-index, which it could make anew: nobody would see
/// what it commits.
#[test]
fn no_client_gets_at_a_database_that_the_engine_lets_go_of() {
    let dir = tempfile::tempdir().expect("dir");
    let tree = tree(dir.path());
    let database = create(&tree, "app.db");
    create(&tree, "app.db-journal");
    let shm = create(&tree, "app.db-shm");
    assert!(tree.open(database.ino, 0).is_ok() && tree.open(shm.ino, 0).is_ok());
    tree.store.close();
    let refused = |result: Result<()>| result.err().and_then(|error| error.raw_os_error()) == Some(libc::ENOTCONN);
    for node in [&database, &shm] {
        assert!(refused(tree.open(node.ino, 0).map(drop)));
    }
    assert!(refused(tree.truncate(&shm, 3)), "one that had it open before makes no new index of it");
}
