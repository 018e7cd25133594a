//! SQLite clients in every journal mode.

use std::fs;

use litefs_fuse::{IoMode, Passthrough};

use crate::harness::{Node, PATIENCE, eventually, python, sqlite3, succeeds, try_sqlite3};

fn work_in(node: &Node, mode: &str) {
    let name = format!("{mode}.db");
    let connection = node.open(&name);
    let set: String = connection.query_row(&format!("PRAGMA journal_mode={mode}"), [], |row| row.get(0)).expect(mode);
    assert_eq!(set, mode);
    connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, x TEXT)").expect("create");
    for i in 0..20 {
        connection.execute("INSERT INTO t(x) VALUES(?1)", [format!("{i:0300}")]).expect("insert");
    }
    connection.execute_batch("BEGIN; DELETE FROM t WHERE id > 5; ROLLBACK").expect("roll back");
    connection.execute_batch("UPDATE t SET x = 'u' WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0").expect("change");
    assert_eq!(sqlite3(&node.path(&name), "SELECT count(*) FROM t; INSERT INTO t(x) VALUES('cli')"), "16");
    let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],timeout=60)\n\
                  c.execute(\"INSERT INTO t(x) VALUES('python')\")\nc.commit()\n\
                  print(c.execute('SELECT count(*) FROM t').fetchone()[0])";
    assert_eq!(succeeds(python(script, &[&node.path(&name)])).trim(), "18");
    let count: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("count");
    assert_eq!(count, 18);
    connection.execute_batch("VACUUM").expect("vacuum");
    eventually("everything is captured", || node.database(&name).position_now().is_ok());
    node.verify(&name);
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("check");
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
    node.open("a.db").execute_batch("CREATE TABLE t(x)").expect("create");
    for (i, mode) in (0i64..).zip(["wal", "delete", "wal", "truncate", "persist", "wal", "delete"]) {
        // Nobody else may have it open while it leaves WAL mode: SQLite's rule.
        assert_eq!(sqlite3(&node.path("a.db"), &format!("PRAGMA journal_mode={mode}")), mode);
        let connection = node.open("a.db");
        connection.execute("INSERT INTO t VALUES(?1)", [i]).expect("insert");
        sqlite3(&node.path("a.db"), "INSERT INTO t VALUES('cli')");
        node.verify("a.db");
    }
    let connection = node.open("a.db");
    let count: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("count");
    assert_eq!(count, 14);
}

#[test]
fn a_new_sqlite_leaves_wal_mode_and_removes_the_wal_at_its_last_close() {
    let node = Node::start();
    let connection = node.open("a.db");
    connection.execute_batch("CREATE TABLE t(x)").expect("create");
    for (i, mode) in (0i64..).zip(["wal", "delete", "wal", "truncate", "wal", "off", "wal", "memory", "wal"]) {
        // SQLite refuses while the engine looks into the database: not for long.
        eventually("the mode is changed", || {
            let now = connection.query_row(&format!("PRAGMA journal_mode={mode}"), [], |row| row.get::<_, String>(0));
            now.is_ok_and(|now| now == mode)
        });
        connection.execute("INSERT INTO t VALUES(?1)", [i]).expect("insert");
        node.verify("a.db");
    }
    let count: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("count");
    assert_eq!(count, 9);
    connection.close().expect("close");
    eventually("a last close removes the WAL", || {
        node.open("a.db").query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).expect("count");
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
        old.execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE old(x); INSERT INTO old VALUES(1)"))
            .expect("create");
        fs::remove_file(node.path(&name)).expect("remove");
        assert!(!node.path(&name).exists());
        assert!(node.store.database(&name).is_none(), "{mode}");
        let new = node.open(&name);
        new.execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE new(x); INSERT INTO new VALUES(2)"))
            .expect("create again");
        let seen: i64 = old.query_row("SELECT x FROM old", [], |row| row.get(0)).expect("the old one lives");
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
    connection.execute_batch("CREATE TABLE t(x)").expect("create");
    node.open("b.db").execute_batch("CREATE TABLE t(x)").expect("create");
    connection.execute("ATTACH ?1 AS b", [node.path("b.db").to_str().expect("text")]).expect("attach");
    for i in 0..5 {
        connection
            .execute_batch(&format!("BEGIN; INSERT INTO main.t VALUES({i}); INSERT INTO b.t VALUES({i}); COMMIT"))
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
        connection.execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)")).expect("create");
        connection.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES(1)").expect("begin");
        let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],timeout=0)\n\
                      try: c.execute('BEGIN IMMEDIATE')\n\
                      except sqlite3.OperationalError as e: print(e)";
        assert_eq!(succeeds(python(script, &[&node.path(&name)])).trim(), "database is locked", "{mode}");
        connection.execute_batch("COMMIT").expect("commit");
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
            .execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x); PRAGMA mmap_size=268435456"))
            .expect("create");
        for i in 1..=30 {
            sqlite3(&node.path(&name), "INSERT INTO t VALUES(hex(randomblob(3000)))");
            let count: i64 = reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("count");
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
        .execute_batch(
            "CREATE TABLE t(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 3000)
             INSERT INTO t SELECT hex(randomblob(50)) FROM n",
        )
        .expect("fill");
    connection.execute("VACUUM INTO ?1", [node.path("b.db").to_str().expect("text")]).expect("vacuum into");
    let mut target = node.open("c.db");
    let backup = rusqlite::backup::Backup::new(&connection, &mut target).expect("backup");
    backup.run_to_completion(50, std::time::Duration::ZERO, None).expect("backup");
    drop(backup);
    drop(target);
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
    node.open("a.db")
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        .expect("write");
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
        node.open(&name).execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)")).expect("create");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let connection = node.open(&name);
                    connection.busy_timeout(PATIENCE).expect("timeout");
                    for i in 0..25 {
                        connection.execute("INSERT INTO t VALUES(?1)", [i]).expect("insert");
                        let sum: i64 = connection.query_row("SELECT sum(x) FROM t", [], |row| row.get(0)).expect("sum");
                        assert!(sum >= i);
                    }
                });
            }
        });
        assert_eq!(sqlite3(&node.path(&name), "SELECT count(*) FROM t"), "100");
        node.verify(&name);
    }
}
