//! A replica over loopback: how soon it shows a commit, whether it keeps up, how fast it catches up, what it costs idle.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rusqlite::Connection;

use crate::node::{Node, Role};
use crate::report::{Replication, percentile};
use crate::side::Side;
use crate::workloads::fill;

/// Longest wait for a replica.
const WAIT_MAX: Duration = Duration::from_secs(100);
/// Between two looks at a position.
const POLL: Duration = Duration::from_millis(1);
/// Between two commits at light load.
const LIGHT: Duration = Duration::from_millis(5);

/// Starts replicas of `primary` and measures them; transfers as the median of `rounds`.
pub fn measure(binary: &Path, primary: &Node, scratch: &Path, rounds: usize, quick: bool) -> Result<Replication> {
    let scale = |n: i64| if quick { n / 10 } else { n };
    let folder = scratch.join("replica");
    std::fs::create_dir(&folder)?;
    let start = || Node::start(binary, &folder, Role::ReplicaOf(primary.url()));
    let side = Side::new("litefs", primary.mount());
    let replica = start()?;
    let latency_us = latency(&side, primary, &replica, scale(1000))?;
    let (commits, applied) = sustained(&side, primary, &replica, scale(30_000))?;
    let idle = replica.usage_over(Duration::from_secs(5))?;
    replica.stop()?;

    let catch_up = |name: &str| -> Result<Duration> {
        // What the primary has just written is not the replica's to wait for.
        rustix::fs::sync();
        let begun = Instant::now();
        let replica = start()?;
        wait_same(primary, &replica, name)?;
        let took = begun.elapsed();
        replica.stop()?;
        Ok(took)
    };
    let (mut disk, mut records, mut snapshots) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // What a start costs with nothing to catch up with.
        let nothing = catch_up("sustained.db")?;
        let rate = |name: &str, megabytes: f64| -> Result<f64> {
            Ok(megabytes / catch_up(name)?.saturating_sub(nothing).as_secs_f64())
        };
        let name = format!("records-{round}.db");
        let megabytes = write_records(&side, &name, scale(200))?;
        records.push(rate(&name, megabytes)?);
        let name = format!("snapshot-{round}.db");
        let megabytes = primary.import_new(&name, &side, scale(200_000))?;
        snapshots.push(rate(&name, megabytes)?);
        disk.push(disk_speed(scratch, megabytes)?);
    }
    Ok(Replication {
        visible_p50_us: percentile(&latency_us, 50.0),
        visible_p99_us: percentile(&latency_us, 99.0),
        commits_per_second: commits,
        applied_per_second: applied,
        catch_up_mb_per_second: percentile(&records, 50.0),
        snapshot_mb_per_second: percentile(&snapshots, 50.0),
        disk_mb_per_second: percentile(&disk, 50.0),
        idle,
    })
}

/// One new file, written and synced, in MB/s.
fn disk_speed(scratch: &Path, megabytes: f64) -> Result<f64> {
    let (path, block) = (scratch.join("disk"), vec![7_u8; 1 << 20]);
    rustix::fs::sync();
    let begun = Instant::now();
    let mut file = File::create(&path)?;
    for _ in 0..(megabytes * 1e6) as usize / block.len() {
        file.write_all(&block)?;
    }
    file.sync_data()?;
    let took = begun.elapsed();
    std::fs::remove_file(&path)?;
    Ok(megabytes / took.as_secs_f64())
}

/// From a commit's return to the first read transaction on the replica that shows it, at light load, in µs.
fn latency(side: &Side, primary: &Node, replica: &Node, commits: i64) -> Result<Vec<f64>> {
    let db = side.open("visible.db", "WAL", "NORMAL")?;
    db.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY)")?;
    let mut insert = db.prepare("INSERT INTO t VALUES (?1)")?;
    insert.execute([0])?;
    wait_same(primary, replica, "visible.db")?;
    let reader = Connection::open(replica.mount().join("visible.db"))?;
    reader.busy_timeout(WAIT_MAX)?;
    let mut newest = reader.prepare("SELECT max(n) FROM t")?;
    let mut micros = Vec::new();
    for n in 1..=commits {
        insert.execute([n])?;
        let committed = Instant::now();
        while newest.query_row([], |row| row.get::<_, Option<i64>>(0))? != Some(n) {
            if committed.elapsed() > WAIT_MAX {
                bail!("row {n} does not arrive");
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        micros.push(committed.elapsed().as_secs_f64() * 1e6);
        std::thread::sleep(LIGHT);
    }
    Ok(micros)
}

/// Small transactions as fast as the primary takes them: commits per second, and how many per second have been applied when
/// the replica has the last one.
fn sustained(side: &Side, primary: &Node, replica: &Node, commits: i64) -> Result<(f64, f64)> {
    let db = side.open("sustained.db", "WAL", "NORMAL")?;
    db.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, data BLOB)")?;
    wait_same(primary, replica, "sustained.db")?;
    let mut insert = db.prepare("INSERT INTO t (data) VALUES (randomblob(100))")?;
    let begun = Instant::now();
    for _ in 0..commits {
        insert.execute([])?;
    }
    let committed = begun.elapsed();
    wait_same(primary, replica, "sustained.db")?;
    let rate = |time: Duration| commits as f64 / time.as_secs_f64();
    Ok((rate(committed), rate(begun.elapsed())))
}

/// Transactions of about 1 MB; returns how many MB the database then has.
fn write_records(side: &Side, name: &str, transactions: i64) -> Result<f64> {
    let mut db = side.open(name, "WAL", "NORMAL")?;
    db.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, data BLOB)")?;
    for _ in 0..transactions {
        fill(&mut db, 1000, 1000)?;
    }
    let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    Ok(pages as f64 * 4096.0 / 1e6)
}

fn wait_same(primary: &Node, replica: &Node, name: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let (wanted, has) = (primary.position(name), replica.position(name));
        if wanted.is_some() && wanted == has {
            return Ok(());
        }
        if begun.elapsed() > WAIT_MAX {
            bail!("{name}: the replica has {has:?} instead of {wanted:?}");
        }
        std::thread::sleep(POLL);
    }
}
