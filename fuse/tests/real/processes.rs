//! Several processes write, and are killed.

use std::path::Path;
use std::process::Child;

use crate::harness::{Node, python, read_line, sqlite3};

/// Inserts rows for ever and prints each one's number when it is committed. Leaves the others a moment after each: SQLite's
/// waiting is not fair, and one writer could keep the lock until its pipe is full.
pub const WRITER: &str = "import sqlite3,sys,os,time\n\
     c=sqlite3.connect(sys.argv[1],timeout=60,isolation_level=None)\nwho=sys.argv[2]\ni=0\n\
     while True:\n\
     \x20c.execute('BEGIN IMMEDIATE')\n\
     \x20c.execute('INSERT INTO t VALUES(?,?,hex(randomblob(200)))',(who,i))\n\
     \x20c.execute('UPDATE t SET y=hex(randomblob(100)) WHERE rowid%7=?',(i%7,)) if i%5==0 else None\n\
     \x20c.execute('COMMIT')\n\
     \x20print(i,flush=True)\n\x20i+=1\n\x20time.sleep(0.002)";

fn kill(mut child: Child) {
    child.kill().expect("kill");
    child.wait().expect("wait");
}

fn killed_writers_lose_nothing(mode: &str, rounds: u32) {
    let node = Node::start();
    let path = node.path("a.db");
    let setup = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(who,i,y)");
    node.open("a.db").execute(&setup).expect("create");
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        let who: Vec<String> = (0..2).map(|n| format!("{round}.{n}")).collect();
        let mut writers: Vec<Child> = who.iter().map(|who| python(WRITER, &[&path, Path::new(who)])).collect();
        for (writer, who) in writers.iter_mut().zip(&who) {
            let commits = 3 + fastrand::u32(0..8);
            let last = (0..commits).map(|_| read_line(writer)).last().expect("a commit");
            acknowledged.push((who.clone(), last.parse::<u32>().expect("a number")));
        }
        writers.into_iter().for_each(kill);
        assert_eq!(sqlite3(&path, "PRAGMA integrity_check"), "ok", "{mode}, round {round}");
        for (who, last) in &acknowledged {
            let sql = format!("SELECT count(*) FROM t WHERE who='{who}' AND i<={last}");
            assert_eq!(sqlite3(&path, &sql), (last + 1).to_string(), "{mode}: an acknowledged commit of {who} is lost");
        }
        node.verify("a.db");
    }
}

#[test]
fn killed_writers_lose_nothing_in_wal_mode() {
    killed_writers_lose_nothing("wal", 4);
}

#[test]
fn killed_writers_lose_nothing_in_rollback_mode() {
    for mode in ["delete", "truncate", "persist"] {
        killed_writers_lose_nothing(mode, 1);
    }
}
