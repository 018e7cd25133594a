//! SQLite clients in every journal mode.

use std::fs;

use litefs_fuse::{IoMode, Passthrough};

use crate::harness::{Node, eventually, python, sqlite3, succeeds, try_sqlite3};

fn work_in(node: &Node, mode: &str) {
    let name = format!("{mode}.db");
    let connection = node.open(&name);
    let set = connection.text(&format!("PRAGMA journal_mode={mode}"));
    assert_eq!(set, mode);
    connection.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT)").expect("create");
    for i in 0..20 {
        connection.execute(&format!("INSERT INTO t(x) VALUES('{i:0300}')")).expect("insert");
    }
    connection.execute("BEGIN; DELETE FROM t WHERE id > 5; ROLLBACK").expect("roll back");
    connection.execute("UPDATE t SET x = 'u' WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0").expect("change");
    assert_eq!(sqlite3(&node.path(&name), "SELECT count(*) FROM t; INSERT INTO t(x) VALUES('cli')"), "16");
    let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],timeout=60)\n\
                  c.execute(\"INSERT INTO t(x) VALUES('python')\")\nc.commit()\n\
                  print(c.execute('SELECT count(*) FROM t').fetchone()[0])";
    assert_eq!(succeeds(python(script, &[&node.path(&name)])).trim(), "18");
    let count = connection.number("SELECT count(*) FROM t");
    assert_eq!(count, 18);
    connection.execute("VACUUM").expect("vacuum");
    eventually("everything is captured", || node.database(&name).position_now().is_ok());
    node.verify(&name);
    let check = connection.text("PRAGMA integrity_check");
    assert_eq!(check, "ok");
}

#[test]
fn every_journal_mode_works_for_three_sqlites() {
    let node = Node::start();
    assert_eq!(*node.mount().io_mode(), IoMode::Passthrough);
    for mode in ["delete", "truncate", "persist", "memory", "off", "wal"] {
        work_in(&node, mode);
    }
}

#[test]
fn every_journal_mode_works_without_passthrough() {
    let node = Node::start_with(Passthrough::Off);
    assert!(matches!(node.mount().io_mode(), IoMode::Relayed(_)));
    for mode in ["delete", "truncate", "persist", "memory", "off", "wal"] {
        work_in(&node, mode);
    }
}

#[test]
fn journal_modes_can_be_switched_with_two_clients() {
    let node = Node::start();
    node.open("a.db").execute("CREATE TABLE t(x)").expect("create");
    for (i, mode) in (0i64..).zip(["wal", "delete", "wal", "truncate", "persist", "wal", "delete"]) {
        // Nobody else may have it open while it leaves WAL mode: SQLite's rule.
        assert_eq!(sqlite3(&node.path("a.db"), &format!("PRAGMA journal_mode={mode}")), mode);
        let connection = node.open("a.db");
        connection.execute(&format!("INSERT INTO t VALUES({i})")).expect("insert");
        sqlite3(&node.path("a.db"), "INSERT INTO t VALUES('cli')");
        node.verify("a.db");
    }
    let connection = node.open("a.db");
    let count = connection.number("SELECT count(*) FROM t");
    assert_eq!(count, 14);
}

#[test]
fn a_new_sqlite_leaves_wal_mode_and_removes_the_wal_at_its_last_close() {
    let node = Node::start();
    let connection = node.open("a.db");
    connection.execute("CREATE TABLE t(x)").expect("create");
    for (i, mode) in (0i64..).zip(["wal", "delete", "wal", "truncate", "wal", "off", "wal", "memory", "wal"]) {
        // SQLite refuses while the engine looks into the database: not for long.
        eventually("the mode is changed", || {
            connection.run(&format!("PRAGMA journal_mode={mode}")).is_ok_and(|now| now == mode)
        });
        connection.execute(&format!("INSERT INTO t VALUES({i})")).expect("insert");
        node.verify("a.db");
    }
    assert_eq!(connection.number("SELECT count(*) FROM t"), 9);
    drop(connection);
    eventually("a last close removes the WAL", || {
        node.open("a.db").number("SELECT count(*) FROM t");
        !node.path("a.db-wal").exists()
    });
    node.verify("a.db");
}

#[test]
fn a_removed_database_lives_for_who_has_it_open_and_its_name_is_free() {
    let node = Node::start();
    for mode in ["delete", "wal"] {
        let name = format!("{mode}.db");
        let old = node.open(&name);
        old.execute(&format!("PRAGMA journal_mode={mode}; CREATE TABLE old(x); INSERT INTO old VALUES(1)"))
            .expect("create");
        fs::remove_file(node.path(&name)).expect("remove");
        assert!(!node.path(&name).exists());
        assert!(node.store.database(&name).is_none(), "{mode}");
        let new = node.open(&name);
        new.execute(&format!("PRAGMA journal_mode={mode}; CREATE TABLE new(x); INSERT INTO new VALUES(2)"))
            .expect("create again");
        let seen = old.number("SELECT x FROM old");
        assert_eq!(seen, 1);
        drop(old);
        assert_eq!(sqlite3(&node.path(&name), "SELECT x FROM new"), "2");
        node.verify(&name);
    }
}

#[test]
fn transactions_over_attached_databases_work() {
    let node = Node::start();
    let connection = node.open("a.db");
    connection.execute("CREATE TABLE t(x)").expect("create");
    node.open("b.db").execute("CREATE TABLE t(x)").expect("create");
    connection.execute(&format!("ATTACH '{}' AS b", node.path("b.db").display())).expect("attach");
    for i in 0..5 {
        connection
            .execute(&format!("BEGIN; INSERT INTO main.t VALUES({i}); INSERT INTO b.t VALUES({i}); COMMIT"))
            .expect("commit in both");
    }
    node.verify("a.db");
    node.verify("b.db");
    assert_eq!(sqlite3(&node.path("b.db"), "SELECT count(*) FROM t"), "5");
    let left: Vec<_> = fs::read_dir(node.dir())
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
        .filter(|name| name.contains("-mj"))
        .collect();
    assert!(left.is_empty(), "super-journals are gone: {left:?}");
}

#[test]
fn locks_hold_between_processes() {
    let node = Node::start();
    for mode in ["delete", "wal"] {
        let name = format!("{mode}.db");
        let connection = node.open(&name);
        connection.execute(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)")).expect("create");
        connection.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES(1)").expect("begin");
        let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],timeout=0)\n\
                      try: c.execute('BEGIN IMMEDIATE')\n\
                      except sqlite3.OperationalError as e: print(e)";
        assert_eq!(succeeds(python(script, &[&node.path(&name)])).trim(), "database is locked", "{mode}");
        connection.execute("COMMIT").expect("commit");
        sqlite3(&node.path(&name), "INSERT INTO t VALUES(2)");
    }
}

#[test]
fn the_database_can_be_mapped() {
    let node = Node::start();
    for mode in ["delete", "wal"] {
        let name = format!("{mode}.db");
        let reader = node.open(&name);
        reader
            .execute(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x); PRAGMA mmap_size=268435456"))
            .expect("create");
        for i in 1..=30 {
            sqlite3(&node.path(&name), "INSERT INTO t VALUES(hex(randomblob(3000)))");
            let count = reader.number("SELECT count(*) FROM t");
            assert_eq!(count, i);
        }
        node.verify(&name);
    }
}

#[test]
fn backup_and_vacuum_into_write_databases_into_the_mount() {
    let node = Node::start();
    let connection = node.open("a.db");
    connection
        .execute(
            "CREATE TABLE t(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 3000)
             INSERT INTO t SELECT hex(randomblob(50)) FROM n",
        )
        .expect("fill");
    connection.execute(&format!("VACUUM INTO '{}'", node.path("b.db").display())).expect("vacuum into");
    // The backup interface of another SQLite.
    sqlite3(&node.path("a.db"), &format!(".backup '{}'", node.path("c.db").display()));
    for name in ["b.db", "c.db"] {
        eventually("it is captured", || node.database(name).position_now().is_ok_and(|pos| !pos.is_zero()));
        node.verify(name);
        assert_eq!(sqlite3(&node.path(name), "SELECT count(*) FROM t"), "3000");
    }
}

#[test]
fn an_empty_file_and_a_file_of_something_else_are_no_databases() {
    let node = Node::start();
    sqlite3(&node.path("empty.db"), "SELECT 1");
    fs::write(node.path("text.db"), "not a database at all, but long enough to have a header").expect("write");
    assert!(node.store.database("empty.db").is_none() && node.store.database("text.db").is_none());
    let output = try_sqlite3(&node.path("text.db"), "CREATE TABLE t(x)");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a database"));
}

#[test]
fn a_database_survives_a_restart_of_the_node() {
    let node = Node::start();
    node.open("a.db").execute("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("write");
    fs::write(node.path("file"), "x").expect("write");
    let before = node.database("a.db").position_now().expect("position");
    let dir = node.stop();
    let node = Node::start_in(dir, Passthrough::Auto).expect("mount again");
    assert_eq!(node.database("a.db").pos(), before);
    assert_eq!(sqlite3(&node.path("a.db"), "SELECT x FROM t"), "1");
    assert_eq!(fs::read_to_string(node.path("file")).expect("read"), "x");
    sqlite3(&node.path("a.db"), "INSERT INTO t VALUES(2)");
    node.verify("a.db");
}

#[test]
fn many_threads_write_while_others_read() {
    let node = Node::start();
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        node.open(&name).execute(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)")).expect("create");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let connection = node.open(&name);
                    for i in 0..25 {
                        connection.execute(&format!("INSERT INTO t VALUES({i})")).expect("insert");
                        let sum = connection.number("SELECT sum(x) FROM t");
                        assert!(sum >= i);
                    }
                });
            }
        });
        assert_eq!(sqlite3(&node.path(&name), "SELECT count(*) FROM t"), "100");
        node.verify(&name);
    }
}
