//! Writing on a replica under the HALT lock (`litefs run -with-halt-lock-on`).

use litefs_tests::sqlite::{cli, python};
use litefs_tests::{Node, eventually};

/// Takes byte 72 of the lock file as LiteFS's clients do, writes, and gives it back.
const WRITE_UNDER_LOCK: &str = r"
import fcntl, sqlite3, sys
path, rounds = sys.argv[1], int(sys.argv[2])
with open(path + '-lock', 'r+') as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX, 1, 72)
    db = sqlite3.connect(path, timeout=20, isolation_level=None)
    for n in range(rounds):
        db.execute('INSERT INTO t VALUES (?)', (n,))
    db.close()
    fcntl.lockf(lock, fcntl.LOCK_UN, 1, 72)
";

fn run_halted(node: &Node, sql: &str) -> Result<String, (i32, String)> {
    let db = node.db("a.db");
    let db = db.to_str().expect("path");
    Node::litefs(&["run", "-url", &node.url(), "-with-halt-lock-on", db, "--", "sqlite3", "-bail", db, sql])
}

#[test]
fn what_is_written_under_the_lock_is_on_the_primary_when_run_returns() {
    for mode in ["WAL", "DELETE"] {
        let primary = Node::primary();
        let replica = Node::replica_of(&primary);
        cli(&primary.db("a.db"), &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)")).expect("create");
        replica.wait_same_pos(&primary, "a.db");
        for round in 1..=3 {
            run_halted(&replica, &format!("INSERT INTO t VALUES({round}); UPDATE t SET x = x")).expect("run");
            assert_eq!(cli(&primary.db("a.db"), "SELECT count(*) FROM t"), Ok(round.to_string()), "{mode}");
        }
        cli(&primary.db("a.db"), "INSERT INTO t VALUES(9)").expect("the primary writes again");
        replica.wait_same_pos(&primary, "a.db");
        let error = cli(&replica.db("a.db"), "PRAGMA busy_timeout=0; INSERT INTO t VALUES(1)").expect_err("refused");
        assert!(error.contains("locked"), "{error}");
        assert_eq!(cli(&replica.db("a.db"), "PRAGMA integrity_check").as_deref(), Ok("ok"));
    }
}

#[test]
fn the_primary_waits_while_a_replica_holds_the_lock() {
    let primary = Node::primary();
    let replica = Node::replica_of(&primary);
    cli(&primary.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    replica.wait_same_pos(&primary, "a.db");
    let started = replica.folder().join("started");
    let go_on = replica.folder().join("go-on");
    let script = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.05; done; sqlite3 {} 'INSERT INTO t VALUES(1)'",
        started.display(),
        go_on.display(),
        replica.db("a.db").display()
    );
    std::thread::scope(|scope| {
        let db = replica.db("a.db");
        let url = replica.url();
        let run = scope.spawn(move || {
            let db = db.to_str().expect("path");
            Node::litefs(&["run", "-url", &url, "-with-halt-lock-on", db, "--", "sh", "-c", &script])
        });
        eventually("the lock is held", || started.exists().then_some(()));
        let refused = cli(&primary.db("a.db"), "PRAGMA busy_timeout=0; INSERT INTO t VALUES(2)");
        std::fs::write(&go_on, "").expect("write");
        run.join().expect("thread").expect("run");
        assert!(refused.is_err(), "nobody else writes meanwhile: {refused:?}");
    });
    cli(&primary.db("a.db"), "INSERT INTO t VALUES(2)").expect("insert");
    replica.wait_same_pos(&primary, "a.db");
    assert_eq!(cli(&replica.db("a.db"), "SELECT group_concat(x) FROM t").as_deref(), Ok("1,2"));
}

#[test]
fn a_client_takes_the_lock_by_fcntl() {
    let primary = Node::primary();
    let replica = Node::replica_of(&primary);
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        cli(&primary.db(&name), &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)")).expect(mode);
        replica.wait_same_pos(&primary, &name);
        let path = replica.db(&name);
        python(WRITE_UNDER_LOCK, &[path.to_str().expect("a path"), "20"]).expect(mode);
        // The primary has everything when the lock is given back.
        assert_eq!(primary.pos(&name), replica.pos(&name), "{mode}");
        assert_eq!(cli(&primary.db(&name), "SELECT count(*) FROM t").as_deref(), Ok("20"), "{mode}");
        cli(&primary.db(&name), "INSERT INTO t VALUES (100)").expect("the primary writes again");
        replica.wait_same_pos(&primary, &name);
        let check = "SELECT count(*) FROM t; PRAGMA integrity_check";
        assert_eq!(cli(&replica.db(&name), check), cli(&primary.db(&name), check), "{mode}");
    }
}
