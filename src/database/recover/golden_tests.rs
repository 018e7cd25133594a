//! Data directories that LiteFS v0.5.14 wrote.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::tests::{Node, config, copy_all};
use crate::database::Health;
use crate::kernel::FileKind;
use crate::store::Store;
use crate::{Checksum, Pos, Txid};

fn golden(name: &str) -> TempDir {
    let dir = TempDir::new().expect("dir");
    copy_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), dir.path());
    dir
}

#[test]
fn the_data_directories_of_litefs_open_at_their_last_position() {
    for (name, txid) in [("datadir-n1", 6), ("datadir-with-wal", 7)] {
        let dir = golden(name);
        for round in 0..2 {
            let store = Store::open(config(dir.path())).expect("open");
            let database = store.database("wal.db").expect("database");
            assert_eq!((database.health(), database.pos().txid), (Health::Ok, Txid(txid)), "{name} round {round}");
            let mut bytes = Vec::new();
            database.export(&mut bytes).expect("export");
            if txid == 6 {
                let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/export-wal.db.sqlite");
                assert!(bytes == fs::read(golden).expect("read"), "as LiteFS exported it");
            }
            assert!(store.database("del.db").is_none(), "it was dropped");
            let dropped = store.positions().into_iter().find(|(name, _)| name.as_str() == "del.db");
            assert_eq!(dropped.expect("listed").1, Pos::new(Txid(3), Checksum::EMPTY));
            assert_eq!(store.cluster_id().map(|id| id.len()), Some(20));
            store.close();
        }
    }
}

#[test]
fn a_deletion_that_was_not_finished_is_finished() {
    let dir = golden("datadir-n1");
    // The file as it was before the deletion: the log's records 1 and 2.
    let del = dir.path().join("dbs/del.db");
    let aside = TempDir::new().expect("dir");
    copy_all(&del, &aside.path().join("dbs/del.db"));
    fs::remove_file(aside.path().join("dbs/del.db/ltx").join(format!("{}-{}.ltx", Txid(3), Txid(3)))).expect("remove");
    let store = Store::open(config(aside.path())).expect("open");
    let mut bytes = Vec::new();
    assert_eq!(store.database("del.db").expect("restored").export(&mut bytes).expect("export").txid, Txid(2));
    store.close();
    drop(store);

    fs::write(del.join("database"), &bytes).expect("write");
    let store = Store::open(config(dir.path())).expect("open");
    assert!(store.database("del.db").is_none() && !del.join("database").exists());
    store.close();
    drop(store);

    // Another file is a new database under the old name: history goes on.
    fs::copy(Node::new("delete").path(FileKind::Database), del.join("database")).expect("copy");
    let store = Store::open(config(dir.path())).expect("open");
    assert_eq!(store.database("del.db").expect("new").pos().txid, Txid(4));
    store.close();
}
