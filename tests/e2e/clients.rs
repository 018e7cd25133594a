//! SQLite clients on the mount in every journal mode, as on a bare disk.

use std::fs;
use std::path::Path;

use litefs_tests::sqlite::{cli, python};
use litefs_tests::{Node, eventually};

const MODES: [&str; 5] = ["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY"];

/// What `/export` gives equals what clients see on the mount.
fn assert_export_equals(node: &Node, name: &str) {
    let copy = node.folder().join(format!("{name}.copy"));
    Node::litefs(&["export", "-url", &node.url(), "-name", name, copy.to_str().expect("path")]).expect("export");
    let dump = |path: &Path| cli(path, ".dump").expect("dump");
    assert_eq!(dump(&copy), dump(&node.db(name)));
    assert_eq!(cli(&copy, "PRAGMA integrity_check").as_deref(), Ok("ok"));
    fs::remove_file(&copy).expect("remove");
}

#[test]
fn the_cli_works_in_every_journal_mode() {
    let node = Node::primary();
    for mode in MODES {
        let name = format!("{}.db", mode.to_lowercase());
        let db = node.db(&name);
        cli(&db, &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)")).expect(mode);
        let before = node.pos(&name).expect("position");
        let sql = format!(
            "PRAGMA journal_mode={mode}; BEGIN; INSERT INTO t(x) SELECT randomblob(900) FROM generate_series(1, 500); COMMIT; \
             BEGIN; DELETE FROM t; ROLLBACK; UPDATE t SET x = randomblob(2000) WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0; VACUUM"
        );
        cli(&db, &sql).expect(mode);
        assert_ne!(node.pos(&name).expect("position"), before, "{mode}");
        assert_eq!(cli(&db, "SELECT count(*) FROM t; PRAGMA integrity_check").as_deref(), Ok("400\nok"), "{mode}");
        assert_export_equals(&node, &name);
    }
}

#[test]
fn python_works_in_every_journal_mode() {
    let program = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30)
print(db.execute('PRAGMA journal_mode=' + sys.argv[2]).fetchone()[0].upper() == sys.argv[2])
db.execute('CREATE TABLE t(a, b)')
with db:
    db.executemany('INSERT INTO t VALUES(?, ?)', [(i, 'x' * i) for i in range(300)])
try:
    with db:
        db.execute('DELETE FROM t')
        raise KeyError
except KeyError:
    pass
db.execute('SAVEPOINT s'); db.execute('DELETE FROM t WHERE a > 100'); db.execute('ROLLBACK TO s'); db.execute('RELEASE s')
print(db.execute('SELECT count(*), sum(length(b)) FROM t').fetchone())
"#;
    let node = Node::primary();
    for mode in MODES {
        let name = format!("{}.db", mode.to_lowercase());
        let db = node.db(&name);
        let said = python(program, &[db.to_str().expect("path"), mode]).expect(mode);
        assert_eq!(said, "True\n(300, 44850)", "{mode}");
        assert_export_equals(&node, &name);
    }
}

#[test]
fn a_pool_of_threads_loses_no_update() {
    let node = Node::primary();
    for mode in ["WAL", "DELETE"] {
        let name = format!("pool-{mode}.db");
        let db = node.db(&name);
        cli(&db, &format!("PRAGMA journal_mode={mode}; CREATE TABLE c(n); INSERT INTO c VALUES(0)")).expect("create");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let connection = rusqlite::Connection::open(&db).expect("open");
                    connection.busy_timeout(std::time::Duration::from_secs(60)).expect("timeout");
                    for _ in 0..25 {
                        connection.execute_batch("BEGIN IMMEDIATE; UPDATE c SET n = n + 1; COMMIT").expect("update");
                        let _: i64 = connection.query_row("SELECT n FROM c", [], |row| row.get(0)).expect("read");
                    }
                });
            }
        });
        assert_eq!(cli(&db, "SELECT n FROM c").as_deref(), Ok("100"), "{mode}");
        assert_export_equals(&node, &name);
    }
}

#[test]
fn a_copied_file_becomes_a_database_and_a_removed_one_is_gone() {
    let node = Node::primary();
    let plain = node.folder().join("plain.db");
    cli(&plain, "CREATE TABLE t(x); INSERT INTO t SELECT randomblob(500) FROM generate_series(1, 200)").expect("fill");
    fs::copy(&plain, node.db("copied.db")).expect("copy");
    eventually("the copy is captured", || node.pos("copied.db"));
    assert_export_equals(&node, "copied.db");
    fs::remove_file(node.db("copied.db")).expect("remove");
    assert!(!node.db("copied.db").exists());
    assert_eq!(node.get("/export?name=copied.db").expect("answer").status, 404);
    cli(&node.db("copied.db"), "CREATE TABLE again(x)").expect("create again");
    assert_export_equals(&node, "copied.db");
}

#[test]
fn attached_databases_commit_together_and_journal_modes_can_change() {
    let node = Node::primary();
    let (a, b) = (node.db("a.db"), node.db("b.db"));
    for db in [&a, &b] {
        cli(db, "CREATE TABLE t(x)").expect("create");
    }
    let sql =
        format!("ATTACH '{}' AS b; BEGIN; INSERT INTO t VALUES(1); INSERT INTO b.t VALUES(1); COMMIT", b.display());
    cli(&a, &sql).expect("commit over both");
    for mode in ["WAL", "DELETE", "WAL", "TRUNCATE"] {
        cli(&a, &format!("PRAGMA journal_mode={mode}; INSERT INTO t VALUES('{mode}')")).expect(mode);
    }
    cli(&a, "PRAGMA page_size=8192; VACUUM; INSERT INTO t VALUES('big')").expect("page size");
    assert_eq!(cli(&a, "SELECT count(*) FROM t").as_deref(), Ok("6"));
    for name in ["a.db", "b.db"] {
        assert_export_equals(&node, name);
    }
}

#[test]
fn ordinary_files_are_allowed_and_impossible_names_are_refused() {
    let node = Node::primary();
    fs::write(node.db("notes.txt"), "hello").expect("write");
    assert_eq!(fs::read_to_string(node.db("notes.txt")).expect("read"), "hello");
    assert!(fs::create_dir(node.db("folder")).is_err(), "no subdirectories");
}
