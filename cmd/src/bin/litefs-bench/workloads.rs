//! The rows of the table.

use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Result, anyhow};
use rusqlite::{Connection, params};

use crate::side::Side;

/// What one operation of a row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Inserts a row of about 100 bytes and commits.
    Insert,
    /// Updates 20 random rows of 10,000 and commits.
    Update20,
    /// One transaction that inserts 200,000 rows.
    Bulk,
    /// A read transaction with one point read.
    ReadTransaction,
    /// A point read inside one long read transaction.
    PointRead,
    /// Reads every row, the database in the page cache.
    WarmScan,
    /// Reads every row after the kernel's caches were dropped (needs root).
    ColdScan,
}

/// One row of the table: a kind of operation under a journal mode, with a number of clients.
#[derive(Debug, Clone)]
pub struct Workload {
    kind: Kind,
    journal: &'static str,
    synchronous: &'static str,
    clients: usize,
    beside_writer: bool,
    operations: usize,
    target: f64,
}

/// Rows of the database that is read: about 200 MB.
const READ_ROWS: i64 = 200_000;
const READ_ROW_BYTES: usize = 1000;
const UPDATE_ROWS: i64 = 10_000;
const BULK_ROWS: i64 = 200_000;

impl Workload {
    /// Every row, in the order of the table.
    pub fn all(quick: bool) -> Vec<Self> {
        let mut all = Vec::new();
        let scale = |n: usize| if quick { (n / 10).max(1) } else { n };
        for (journal, synchronous, target) in
            [("WAL", "NORMAL", 1.0), ("WAL", "FULL", 0.95), ("DELETE", "FULL", 0.6), ("DELETE", "NORMAL", 0.6)]
        {
            let commits = if synchronous == "NORMAL" && journal == "WAL" { 30_000 } else { 2_000 };
            for clients in [1, 4] {
                for (kind, divisor) in [(Kind::Insert, 1), (Kind::Update20, 3)] {
                    let operations = scale(commits / divisor);
                    all.push(Self { kind, journal, synchronous, clients, beside_writer: false, operations, target });
                }
            }
            let kind = Kind::Bulk;
            all.push(Self { kind, journal, synchronous, clients: 1, beside_writer: false, operations: 1, target });
        }
        for beside_writer in [false, true] {
            for clients in [1, 4] {
                for (kind, operations, target) in
                    [(Kind::ReadTransaction, 100_000, 0.97), (Kind::PointRead, 300_000, 0.97)]
                {
                    let operations = scale(operations);
                    let (journal, synchronous) = ("WAL", "NORMAL");
                    all.push(Self { kind, journal, synchronous, clients, beside_writer, operations, target });
                }
            }
        }
        for kind in [Kind::WarmScan, Kind::ColdScan] {
            let (journal, synchronous, target) = ("WAL", "NORMAL", 0.95);
            all.push(Self { kind, journal, synchronous, clients: 1, beside_writer: false, operations: 1, target });
        }
        all
    }

    pub fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Insert => "insert 1 row",
            Kind::Update20 => "update 20 rows",
            Kind::Bulk => "insert 200k rows",
            Kind::ReadTransaction => "read, 1 per transaction",
            Kind::PointRead => "read, in a transaction",
            Kind::WarmScan => "scan 200 MB, warm",
            Kind::ColdScan => "scan 200 MB, cold",
        };
        let beside = if self.beside_writer { ", beside a writer" } else { "" };
        format!("{kind}, {} {}, {} client(s){beside}", self.journal, self.synchronous, self.clients)
    }

    pub fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Insert | Kind::Update20 => "commits/s",
            Kind::Bulk | Kind::WarmScan | Kind::ColdScan => "rows/s",
            Kind::ReadTransaction | Kind::PointRead => "reads/s",
        }
    }

    pub fn target(&self) -> f64 {
        self.target
    }

    pub fn database(&self) -> &'static str {
        "bench.db"
    }

    /// Makes the database that the rounds of this row share.
    pub fn prepare(&self, side: &Side) -> Result<()> {
        side.remove(self.database())?;
        let mut db = side.open(self.database(), self.journal, "NORMAL")?;
        db.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, data BLOB)")?;
        match self.kind {
            Kind::Insert | Kind::Bulk => Ok(()),
            Kind::Update20 => fill(&mut db, UPDATE_ROWS, 100),
            _ => fill(&mut db, READ_ROWS, READ_ROW_BYTES),
        }
    }

    /// Runs one round; operations (or rows) per second.
    pub fn run(&self, side: &Side) -> Result<f64> {
        match self.kind {
            Kind::Bulk => self.bulk(side),
            Kind::WarmScan => {
                self.scan(side)?;
                self.scan(side)
            }
            Kind::ColdScan => {
                rustix::fs::sync();
                std::fs::write("/proc/sys/vm/drop_caches", "3")?;
                self.scan(side)
            }
            _ => self.clients(side),
        }
    }

    fn bulk(&self, side: &Side) -> Result<f64> {
        let mut db = side.open(self.database(), self.journal, self.synchronous)?;
        db.execute_batch("DELETE FROM t")?;
        let start = Instant::now();
        fill(&mut db, BULK_ROWS, 100)?;
        Ok(rate(BULK_ROWS as usize, start))
    }

    fn scan(&self, side: &Side) -> Result<f64> {
        let db = side.open(self.database(), self.journal, self.synchronous)?;
        let start = Instant::now();
        let rows: i64 = db.query_row("SELECT count(*) + 0 * sum(length(data) + n) FROM t", [], |row| row.get(0))?;
        Ok(rate(usize::try_from(rows)?, start))
    }

    /// Splits the operations over the clients, each with a connection of its own.
    fn clients(&self, side: &Side) -> Result<f64> {
        let each = self.operations / self.clients;
        let ready = Barrier::new(self.clients + 1);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = self.beside_writer.then(|| scope.spawn(|| self.write_until(side, &stop)));
            let clients: Vec<_> = (0..self.clients)
                .map(|client| {
                    let ready = &ready;
                    scope.spawn(move || -> Result<()> {
                        let db = side.open(self.database(), self.journal, self.synchronous);
                        ready.wait();
                        self.operate(db?, client as u64, each)
                    })
                })
                .collect();
            ready.wait();
            let start = Instant::now();
            for client in clients {
                client.join().map_err(|_| anyhow!("a client panicked"))??;
            }
            let rate = rate(each * self.clients, start);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            if let Some(writer) = writer {
                writer.join().map_err(|_| anyhow!("the writer panicked"))??;
            }
            Ok(rate)
        })
    }

    fn operate(&self, mut db: Connection, seed: u64, count: usize) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(seed);
        let data = vec![7_u8; 100];
        match self.kind {
            Kind::Insert => {
                let mut insert = db.prepare("INSERT INTO t (n, data) VALUES (?1, ?2)")?;
                for n in 0..count {
                    insert.execute(params![n as i64, data])?;
                }
            }
            Kind::Update20 => {
                for _ in 0..count {
                    update_rows(&mut db, &mut random, UPDATE_ROWS)?;
                }
            }
            _ => {
                if self.kind == Kind::PointRead {
                    db.execute_batch("BEGIN")?;
                }
                let mut read = db.prepare("SELECT n FROM t WHERE id = ?1")?;
                for _ in 0..count {
                    let _: i64 = read.query_row([random.i64(1..=READ_ROWS)], |row| row.get(0))?;
                }
            }
        }
        Ok(())
    }

    fn write_until(&self, side: &Side, stop: &std::sync::atomic::AtomicBool) -> Result<()> {
        let mut db = side.open(self.database(), self.journal, self.synchronous)?;
        let mut random = fastrand::Rng::with_seed(99);
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            update_rows(&mut db, &mut random, READ_ROWS)?;
            // About a thousand transactions a second on either side, so that both readers see the same load.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    }
}

fn update_rows(db: &mut Connection, random: &mut fastrand::Rng, rows: i64) -> Result<()> {
    let transaction = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    {
        let mut update = transaction.prepare_cached("UPDATE t SET n = n + 1 WHERE id = ?1")?;
        for _ in 0..20 {
            update.execute([random.i64(1..=rows)])?;
        }
    }
    Ok(transaction.commit()?)
}

/// Inserts rows in one transaction.
pub fn fill(db: &mut Connection, rows: i64, bytes: usize) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut data = vec![0_u8; bytes];
    let transaction = db.transaction()?;
    {
        let mut insert = transaction.prepare("INSERT INTO t (n, data) VALUES (?1, ?2)")?;
        for n in 0..rows {
            // Half of each row is random: neither incompressible nor trivially compressible.
            random.fill(&mut data[..bytes / 2]);
            insert.execute(params![n, data])?;
        }
    }
    Ok(transaction.commit()?)
}

fn rate(operations: usize, start: Instant) -> f64 {
    operations as f64 / start.elapsed().as_secs_f64()
}
