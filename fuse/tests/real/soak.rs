//! Hours of it, by seed: `LITEFS_SOAK_SECONDS=600 LITEFS_SEED=1 cargo test --workspace --test real -- --ignored soak`.
//!
//! Several processes with the system's and Python's SQLite change one database at random, some are killed, the mode is
//! switched between rounds; after each round no acknowledged commit may be missing and the engine's copy must be equal.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use litefs::store::Mode;
use litefs_fuse::Passthrough;

use crate::harness::{Node, PATIENCE, eventually, python, read_line, sqlite3, try_sqlite3, try_sqlite3_now};
use crate::replicated::catch_up;

/// Commits random changes until told to stop (a line on stdin); prints `who counter` after each commit. Row `who` of table
/// `done` holds the counter of that client's last commit, so an acknowledged commit can be asked for.
const CLIENT: &str = r"
import sqlite3,sys,random,select
path,who,seed=sys.argv[1:4]
r=random.Random(int(seed))
c=sqlite3.connect(path,timeout=60,isolation_level=None)
c.execute('PRAGMA synchronous=%s'%r.choice(['OFF','NORMAL','FULL']))
c.execute('PRAGMA cache_size=%d'%r.choice([5,50,2000]))
c.execute('PRAGMA wal_autocheckpoint=%d'%r.choice([1,20,1000]))
if r.random()<0.3: c.execute('PRAGMA mmap_size=100000000')
n=0
def change():
    k=r.randrange(9)
    if k<3:
        for _ in range(r.choice([1,1,5,60])): c.execute('INSERT INTO t(y) VALUES(hex(randomblob(?)))',(r.choice([10,100,3000]),))
    elif k<5: c.execute('UPDATE t SET y=hex(randomblob(?)) WHERE id%7=?',(r.choice([10,500]),r.randrange(7)))
    elif k==5: c.execute('DELETE FROM t WHERE id%5=? AND id>(SELECT max(id)/3 FROM t)',(r.randrange(5),))
    elif k==6:
        c.execute('SAVEPOINT s'); c.execute('UPDATE t SET y=1 WHERE id%3=0'); c.execute('ROLLBACK TO s'); c.execute('RELEASE s')
    elif k==7: c.execute('INSERT OR REPLACE INTO u SELECT id,y FROM t LIMIT 50')
    else: c.execute('DELETE FROM u')
while not select.select([sys.stdin],[],[],0)[0]:
    try:
        k=r.random()
        if k<0.02: c.execute('VACUUM'); continue
        if k<0.05: c.execute('PRAGMA wal_checkpoint(%s)'%r.choice(['PASSIVE','TRUNCATE'])).fetchall(); continue
        if k<0.10:
            c.close(); c=sqlite3.connect(path,timeout=60,isolation_level=None)
        c.execute('BEGIN IMMEDIATE')
        for _ in range(r.choice([1,2,5])): change()
        if r.random()<0.15: c.execute('ROLLBACK'); continue
        n+=1
        c.execute('INSERT OR REPLACE INTO done VALUES(?,?)',(who,n))
        c.execute('COMMIT')
        print(who,n,flush=True)
    except sqlite3.OperationalError as e:
        if 'locked' not in str(e) and 'busy' not in str(e): raise
        if c.in_transaction: c.execute('ROLLBACK')
";

struct Client {
    child: Child,
    who: String,
    last: u64,
}

impl Client {
    fn start(path: &Path, who: String, seed: u64) -> Self {
        let child = python(CLIENT, &[path, Path::new(&who), Path::new(&seed.to_string())]);
        Self { child, who, last: 0 }
    }

    fn follow(&mut self, commits: u32) {
        for _ in 0..commits {
            let line = read_line(&mut self.child);
            self.note(&line);
        }
    }

    fn note(&mut self, line: &str) {
        match line.split_once(' ') {
            Some((who, counter)) if who == self.who => {
                // The last line of a killed client may be cut.
                self.last = self.last.max(counter.parse().unwrap_or(0));
            }
            _ => panic!("client {} failed, it printed {line:?}", self.who),
        }
    }

    fn end(mut self, kill: bool) -> (String, u64) {
        if kill {
            self.child.kill().expect("kill");
        } else {
            drop(self.child.stdin.take());
        }
        loop {
            let line = read_line(&mut self.child);
            if line.is_empty() {
                break;
            }
            if line.contains(' ') {
                self.note(&line);
            }
        }
        let status = self.child.wait().expect("wait");
        assert!(kill || status.success(), "client {} failed", self.who);
        (self.who, self.last)
    }
}

fn round(node: &Node, name: &str, random: &mut fastrand::Rng, done: &mut BTreeMap<String, u64>, number: u32) {
    let path = node.path(name);
    let mode = ["wal", "wal", "delete", "truncate", "persist"][random.usize(..5)];
    eprintln!("round {number}: {mode}");
    // Leaving WAL mode does not wait, neither for a client nor for a checkpoint of ours that is running.
    eventually("the mode is changed", || try_sqlite3(&path, &format!("PRAGMA journal_mode={mode}")).status.success());
    let clients: Vec<Client> =
        (0..1 + random.u32(..4)).map(|n| Client::start(&path, format!("{number}.{n}"), random.u64(..))).collect();
    let mut ended = Vec::new();
    for mut client in clients {
        client.follow(random.u32(1..30));
        ended.push(client.end(random.bool()));
    }
    done.extend(ended);
    assert_eq!(sqlite3(&path, "PRAGMA integrity_check"), "ok", "{mode}");
    for (who, last) in &*done {
        let kept: u64 =
            sqlite3(&path, &format!("SELECT max(n) FROM done WHERE who='{who}'")).parse().expect("a counter");
        assert!(kept >= *last, "{mode}: acknowledged commit {last} of {who} is lost, {kept} is there");
    }
    node.verify(name);
}

/// Between rounds: the fence closes and opens, or the node stops and starts again.
fn disturb(node: Node, random: &mut fastrand::Rng) -> Node {
    match random.u32(..4) {
        0 => Node::start_in(node.stop(), Passthrough::Auto).expect("start again"),
        1 => {
            node.store.set_mode(Mode::Replica, PATIENCE).expect("close the fence");
            let output = try_sqlite3_now(&node.path("soak.db"), "INSERT INTO done VALUES('refused',0)");
            assert!(!output.status.success(), "the fence is closed");
            node.store.set_mode(Mode::Primary, PATIENCE).expect("open the fence");
            node
        }
        _ => node,
    }
}

fn soak(seed: u64, until: Instant, rounds: u32) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut node = Node::start();
    let replica = Node::start();
    replica.store.set_mode(Mode::Replica, PATIENCE).expect("replica");
    let page_size = 512 << random.u32(..8);
    let vacuum = random.u32(..3);
    sqlite3(
        &node.path("soak.db"),
        &format!(
            "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={vacuum}; CREATE TABLE t(id INTEGER PRIMARY KEY, y);
             CREATE TABLE u(id INTEGER PRIMARY KEY, y); CREATE TABLE done(who PRIMARY KEY, n)"
        ),
    );
    let mut done = BTreeMap::new();
    for number in 0..rounds {
        if Instant::now() < until {
            round(&node, "soak.db", &mut random, &mut done, number);
            catch_up(&node, &replica, "soak.db");
            replica.verify("soak.db");
            // See `Node::verify`.
            eventually("the replica holds what the primary's clients see", || {
                catch_up(&node, &replica, "soak.db");
                sqlite3(&replica.path("soak.db"), ".dump") == sqlite3(&node.path("soak.db"), ".dump")
            });
            node = disturb(node, &mut random);
        }
    }
    drop(node.stop());
    drop(replica.stop());
}

#[test]
fn a_short_soak() {
    soak(1, Instant::now() + Duration::from_secs(600), 2);
}

#[test]
#[ignore = "as long as LITEFS_SOAK_SECONDS says"]
fn a_long_soak() {
    let variable =
        |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let until = Instant::now() + Duration::from_secs(variable("LITEFS_SOAK_SECONDS", 60));
    let mut seed = variable("LITEFS_SEED", 1);
    while Instant::now() < until {
        eprintln!("seed {seed}");
        soak(seed, until, 6);
        seed += 1;
    }
}
