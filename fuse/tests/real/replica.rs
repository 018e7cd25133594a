//! Clients of a node that may not write.

use std::fs;

use litefs::store::Mode;

use crate::harness::{Node, PATIENCE, python, sqlite3, succeeds, try_sqlite3};

fn set_mode(node: &Node, mode: Mode) {
    node.store.set_mode(mode, PATIENCE).expect("change the mode");
}

#[test]
fn a_write_is_busy_at_once_and_works_on_the_same_connection_after_promotion() {
    let node = Node::start();
    for mode in ["wal", "delete", "truncate", "persist", "memory"] {
        let name = format!("{mode}.db");
        let connection = node.open(&name);
        connection.execute(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)")).expect("create");
        connection.execute("PRAGMA busy_timeout=0").expect("timeout");
        set_mode(&node, Mode::Replica);
        let before = node.database(&name).position_now().expect("position");
        let error = connection.execute("INSERT INTO t VALUES(1)").expect_err("refused");
        assert_eq!(error, "database is locked", "{mode}");
        let count = connection.number("SELECT count(*) FROM t");
        assert_eq!(count, 0);
        let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],timeout=0)\n\
                      print(c.execute('SELECT count(*) FROM t').fetchone()[0])\n\
                      try: c.execute('INSERT INTO t VALUES(2)')\nexcept sqlite3.OperationalError as e: print(e)";
        let printed = succeeds(python(script, &[&node.path(&name)]));
        assert_eq!(printed, "0\ndatabase is locked\n", "{mode}: a new client");
        assert_eq!(node.database(&name).position_now().expect("position"), before);
        set_mode(&node, Mode::Primary);
        connection.execute("INSERT INTO t VALUES(3)").expect("the same connection writes");
        assert_eq!(sqlite3(&node.path(&name), "SELECT x FROM t"), "3");
        node.verify(&name);
    }
}

#[test]
fn new_databases_and_removals_are_refused() {
    let node = Node::start();
    node.open("a.db").execute("CREATE TABLE t(x)").expect("create");
    let source = tempfile::tempdir().expect("dir");
    fs::copy(node.path("a.db"), source.path().join("copy")).expect("copy");
    set_mode(&node, Mode::Replica);
    let output = try_sqlite3(&node.path("new.db"), "CREATE TABLE t(x)");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("readonly"), "{error}");
    assert!(node.store.database("new.db").is_none());
    let error = fs::copy(source.path().join("copy"), node.path("b.db")).expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let error = fs::remove_file(node.path("a.db")).expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    let error = fs::write(node.path("a.db"), "").expect_err("refused");
    assert!(matches!(error.raw_os_error(), Some(libc::EACCES | libc::EROFS)), "{error}");
    assert_eq!(sqlite3(&node.path("a.db"), "SELECT count(*) FROM t"), "0");
    fs::write(node.path("notes.txt"), "x").expect("ordinary files are nobody's business");
}
