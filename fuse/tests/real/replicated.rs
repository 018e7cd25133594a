//! Two nodes: what one captures the other applies under the eyes of its readers.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};

use litefs::database::{Next, Record, RecordBody};
use litefs::store::Mode;
use litefs::{DbName, Pos};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::harness::{Node, PATIENCE, eventually, python, sqlite3, succeeds};

/// Every transaction leaves all rows of `t` equal; changes the file's size, too.
const WRITER: &str = r"
import sqlite3,sys,random
c=sqlite3.connect(sys.argv[1],timeout=60,isolation_level=None)
r=random.Random(1)
for i in range(int(sys.argv[2])):
    c.execute('BEGIN IMMEDIATE')
    c.execute('UPDATE t SET v=?',(i,))
    k=r.random()
    if k<0.4: c.execute('INSERT INTO pad VALUES(hex(randomblob(?)))',(r.choice([10,3000,20000]),))
    elif k<0.5: c.execute('DELETE FROM pad')
    c.execute('COMMIT')
    if k>0.97: c.execute('VACUUM')
";

/// Reads until a line comes; each snapshot must be whole and stay the same while the transaction lasts.
const READER: &str = r"
import sqlite3,sys,select
c=sqlite3.connect(sys.argv[1],timeout=60,isolation_level=None)
if sys.argv[2]=='mmap': c.execute('PRAGMA mmap_size=100000000')
n=0; last=-1
while not select.select([sys.stdin],[],[],0)[0]:
    c.execute('BEGIN')
    a=c.execute('SELECT min(v),max(v),count(*) FROM t').fetchone()
    assert a[0]==a[1] and a[2]==100, a
    assert a[0]>=last, (a,last)
    last=a[0]
    if n%20==0: assert c.execute('PRAGMA integrity_check').fetchone()[0]=='ok'
    assert c.execute('SELECT min(v),max(v),count(*) FROM t').fetchone()==a
    c.execute('COMMIT')
    n+=1
print(n)
";

struct Part {
    file: File,
    len: u64,
}

fn image(record: &Record) -> Box<dyn Read> {
    match &record.body {
        RecordBody::Memory(bytes) => Box::new(std::io::Cursor::new(bytes.clone())),
        RecordBody::File { file, offset, len } => {
            let mut part = Part { file: file.try_clone().expect("clone"), len: *len };
            part.file = File::open(format!("/proc/self/fd/{}", part.file.as_raw_fd())).expect("open");
            part.file.seek(std::io::SeekFrom::Start(*offset)).expect("seek");
            Box::new(part.file.take(part.len))
        }
    }
}

/// Brings the replica's database to the primary's position.
pub fn catch_up(primary: &Node, replica: &Node, name: &str) -> Pos {
    let (from, name) = (primary.database(name), name.parse::<DbName>().expect("name"));
    let to = replica.store.create(&name).expect("create on the replica");
    loop {
        match from.next_after(to.pos()).expect("next") {
            Next::UpToDate => return to.pos(),
            Next::Records(records) => {
                for record in records {
                    to.apply(&mut image(&record.expect("record"))).expect("apply");
                }
            }
            Next::SnapshotNeeded => {
                let mut file = tempfile::tempfile().expect("file");
                from.snapshot(&mut file).expect("snapshot");
                file.rewind().expect("rewind");
                to.apply(&mut file).expect("apply the snapshot");
            }
        }
    }
}

/// The number of cachestat(2), the same on every architecture.
const CACHESTAT: libc::c_long = 451;

/// The length the kernel takes a file to have, without asking for it.
fn length_in_kernel(path: &Path) -> u64 {
    let flags = AtFlags::STATX_DONT_SYNC;
    statx(CWD, path, flags, StatxFlags::SIZE).expect("statx").stx_size
}

fn readers_see_whole_transactions(mode: &str, transactions: u32) {
    let (primary, replica) = (Node::start(), Node::start());
    replica.store.set_mode(Mode::Replica, PATIENCE).expect("replica");
    let setup = format!(
        "PRAGMA journal_mode={mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE pad(x);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 100) INSERT INTO t SELECT i,0 FROM n"
    );
    sqlite3(&primary.path("a.db"), &setup);
    assert!(!replica.path("a.db").exists());
    catch_up(&primary, &replica, "a.db");
    eventually("the new database is seen", || replica.path("a.db").exists());
    let readers: Vec<Child> =
        ["plain", "mmap"].map(|how| python(READER, &[&replica.path("a.db"), Path::new(how)])).into();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                catch_up(&primary, &replica, "a.db");
                std::thread::yield_now();
            }
        });
        let count = transactions.to_string();
        let writer = python(WRITER, &[&primary.path("a.db"), Path::new(&count)]);
        let written = writer.wait_with_output().expect("wait");
        done.store(true, Ordering::Relaxed);
        assert!(written.status.success(), "the writer failed");
    });
    let last = primary.database("a.db").position_now().expect("position");
    assert_eq!(catch_up(&primary, &replica, "a.db"), last);
    for mut reader in readers {
        drop(reader.stdin.take());
        let reads: u32 = succeeds(reader).trim().parse().expect("a number");
        assert!(reads > 0);
    }
    assert_eq!(sqlite3(&replica.path("a.db"), ".dump"), sqlite3(&primary.path("a.db"), ".dump"));
    replica.verify("a.db");
    replica.store.set_mode(Mode::Primary, PATIENCE).expect("promote");
    sqlite3(&replica.path("a.db"), "INSERT INTO pad VALUES('by the new primary')");
    replica.verify("a.db");
}

#[test]
fn readers_of_a_replica_see_whole_transactions_in_wal_mode() {
    readers_see_whole_transactions("wal", 150);
}

#[test]
fn readers_of_a_replica_see_whole_transactions_in_rollback_mode() {
    readers_see_whole_transactions("delete", 60);
}

/// A kernel that still took a file for longer than it is would believe an answer about its length from before the next record, and
/// readers would find the database malformed.
#[test]
fn the_kernel_of_a_replica_takes_every_length_at_once() {
    let (primary, replica) = (Node::start(), Node::start());
    replica.store.set_mode(Mode::Replica, PATIENCE).expect("replica");
    let setup = "PRAGMA page_size=1024; PRAGMA auto_vacuum=FULL; CREATE TABLE t(id INTEGER PRIMARY KEY, x);
                 INSERT INTO t VALUES(1, randomblob(20000)), (2, randomblob(40000))";
    sqlite3(&primary.path("a.db"), setup);
    assert!(!replica.path("a.db").exists());
    catch_up(&primary, &replica, "a.db");
    assert!(replica.path("a.db").exists(), "at once");
    assert_eq!(sqlite3(&replica.path("a.db"), "SELECT count(*) FROM t"), "2");
    for change in ["DELETE FROM t WHERE id = 2", "INSERT INTO t VALUES(3, randomblob(10000))", "DELETE FROM t"] {
        sqlite3(&primary.path("a.db"), change);
        catch_up(&primary, &replica, "a.db");
        let length = primary.path("a.db").metadata().expect("metadata").len();
        assert_eq!(length_in_kernel(&replica.path("a.db")), length, "{change}");
    }
}

/// Pages of a file that the kernel has in its cache.
fn cached_pages(path: &Path) -> u64 {
    // `struct cachestat_range` and `struct cachestat` of linux/mman.h: the whole file; the first field is what is cached.
    let (range, mut stat, file) = ([0_u64; 2], [0_u64; 5], File::open(path).expect("open"));
    // SAFETY: cachestat(2) of an open descriptor reads the one structure and writes the other, both as long as it takes them to be.
    let result = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    stat[0]
}

#[test]
fn bulk_data_is_cached_for_clients_that_are_there() {
    let (primary, replica) = (Node::start(), Node::start());
    replica.store.set_mode(Mode::Replica, PATIENCE).expect("replica");
    let path = replica.path("a.db");
    sqlite3(&primary.path("a.db"), "CREATE TABLE t(x); INSERT INTO t VALUES(randomblob(400000))");
    let change = || {
        sqlite3(&primary.path("a.db"), "UPDATE t SET x = randomblob(800000)");
        catch_up(&primary, &replica, "a.db");
    };
    change();
    sqlite3(&path, "SELECT sum(length(hex(x))) FROM t");
    assert!(cached_pages(&path) > 90, "a client has read it");
    change();
    assert!(cached_pages(&path) < 20, "nobody has it open, and it is kept all the same");
    let reads_all = |client: &crate::client::Client| client.number("SELECT sum(length(hex(x))) FROM t");
    let client = replica.open("a.db");
    assert_eq!(reads_all(&client), 1_600_000);
    change();
    assert!(cached_pages(&path) > 90, "a client is reading it");
    assert_eq!(reads_all(&client), 1_600_000);
    assert_eq!(sqlite3(&path, ".dump"), sqlite3(&primary.path("a.db"), ".dump"));
    replica.verify("a.db");
}

#[test]
fn removal_and_creation_reach_a_replica() {
    let (primary, replica) = (Node::start(), Node::start());
    replica.store.set_mode(Mode::Replica, PATIENCE).expect("replica");
    for round in 0..3 {
        sqlite3(&primary.path("a.db"), &format!("PRAGMA journal_mode=WAL; CREATE TABLE t{round}(x)"));
        catch_up(&primary, &replica, "a.db");
        eventually("it is there", || replica.path("a.db").exists());
        assert_eq!(sqlite3(&replica.path("a.db"), ".tables"), format!("t{round}"));
        let before = primary.database("a.db");
        std::fs::remove_file(primary.path("a.db")).expect("remove");
        let to = replica.database("a.db");
        match before.next_after(to.pos()).expect("next") {
            Next::Records(records) => {
                for record in records {
                    to.apply(&mut image(&record.expect("record"))).expect("apply");
                }
            }
            _ => panic!("a deletion record is expected"),
        }
        eventually("it is gone", || !replica.path("a.db").exists());
    }
}
