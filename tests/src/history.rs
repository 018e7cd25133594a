//! Writers on every node, what they were told, and the checker of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

/// Between two attempts of a writer or two looks of an observer.
const PAUSE: Duration = Duration::from_millis(5);

/// The table that writers fill.
pub const CREATE: &str = "PRAGMA journal_mode=WAL; \
    CREATE TABLE history(node INTEGER, number INTEGER, PRIMARY KEY(node, number)) WITHOUT ROWID";

/// A row: whose client's, and which of its attempts to write one. The numbers of a client only grow.
pub type Row = (u32, u32);

/// A row that a client was told is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub row: Row,
    /// The newest row of every client that the transaction saw: what the node knew when it accepted the row.
    pub saw: BTreeMap<u32, u32>,
    /// Before the transaction began.
    pub begun: Instant,
    /// After it was acknowledged.
    pub ended: Instant,
}

/// What everything came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// By all writers; those of one writer in order.
    pub told: Vec<Told>,
    /// Rows that were seen at all other nodes than the writer's, or at one of them before the harm ([`Clients::before_harm`]).
    pub replicated: BTreeSet<Row>,
    /// All rows at the end.
    pub last: BTreeSet<Row>,
}

impl Outcome {
    /// What must not be: acknowledged rows that another node had and that are gone; and rows accepted by a node that did not
    /// know what had been acknowledged elsewhere before, and was not lost later: then two nodes were primary at once.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let lost = |told: &&Told| !self.last.contains(&told.row);
        let gone = self.told.iter().filter(lost).filter(|told| self.replicated.contains(&told.row));
        let mut violations: Vec<_> = gone.map(|told| format!("{:?} was replicated and is lost", told.row)).collect();
        let mut kept: BTreeMap<u32, Vec<&Told>> = BTreeMap::new();
        for told in self.told.iter().filter(|told| !lost(told)) {
            kept.entry(told.row.0).or_default().push(told);
        }
        for told in &self.told {
            for (node, rows) in &kept {
                let before = rows.partition_point(|other| other.ended < told.begun);
                let Some(newest) = before.checked_sub(1).map(|at| rows[at].row) else { continue };
                if told.saw.get(node).is_none_or(|number| *number < newest.1) {
                    violations.push(format!("{told:?} was accepted although {newest:?} had been acknowledged"));
                }
            }
        }
        violations
    }

    /// Acknowledged rows that are gone, replicated or not.
    #[must_use]
    pub fn lost(&self) -> Vec<Row> {
        self.told.iter().map(|told| told.row).filter(|row| !self.last.contains(row)).collect()
    }
}

/// A writer and an observer per node.
#[derive(Debug)]
pub struct Clients {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<Told>>>,
    observers: Vec<JoinHandle<()>>,
    /// What each observer has seen of other nodes' clients.
    seen: Vec<Arc<Mutex<BTreeSet<Row>>>>,
    replicated: BTreeSet<Row>,
    accepted: Vec<Arc<AtomicU64>>,
}

impl Clients {
    /// Starts them on one database at every node, in the order of `paths`. `synchronous`: of the writers.
    #[must_use]
    pub fn start(paths: &[PathBuf], synchronous: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let accepted: Vec<_> = paths.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
        let writers = (0..).zip(paths).zip(&accepted).map(|((node, path), accepted)| {
            let (stop, path, accepted) = (stop.clone(), path.clone(), accepted.clone());
            std::thread::spawn(move || write(node, &path, synchronous, &stop, &accepted))
        });
        let writers = writers.collect();
        let seen: Vec<_> = paths.iter().map(|_| Arc::new(Mutex::new(BTreeSet::new()))).collect();
        let observers = (0..).zip(paths).zip(&seen).map(|((node, path), seen)| {
            let (stop, path, seen) = (stop.clone(), path.clone(), seen.clone());
            std::thread::spawn(move || observe(node, &path, &stop, &seen))
        });
        let observers = observers.collect();
        Self { stop, writers, observers, seen, replicated: BTreeSet::new(), accepted }
    }

    /// How many rows a node has accepted.
    #[must_use]
    pub fn accepted(&self, node: usize) -> u64 {
        self.accepted[node].load(Ordering::SeqCst)
    }

    /// How many rows all nodes have accepted.
    #[must_use]
    pub fn accepted_by_all(&self) -> u64 {
        self.accepted.iter().map(|accepted| accepted.load(Ordering::SeqCst)).sum()
    }

    /// Call it before a node is harmed. What any other node has shown by now, the candidates know of before the harmed one can be replaced: it
    /// must be there in the end. Of what reaches a replica in the last instant, or when it is too late, they need not know.
    ///
    /// # Panics
    /// When an observer did.
    pub fn before_harm(&mut self) {
        for seen in &self.seen {
            self.replicated.extend(seen.lock().expect("an observer").iter());
        }
    }

    /// Ends them; `last` is filled in by the caller when all nodes are at rest.
    ///
    /// # Panics
    /// When one of them did.
    #[must_use]
    pub fn finish(self) -> Outcome {
        self.stop.store(true, Ordering::SeqCst);
        let told = self.writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
        self.observers.into_iter().for_each(|observer| observer.join().expect("an observer"));
        let mut replicated = self.replicated;
        let seen: Vec<_> = self.seen.iter().map(|seen| seen.lock().expect("an observer").clone()).collect();
        let by_all_others = |row: &Row| (0..).zip(&seen).all(|(node, seen)| node == row.0 || seen.contains(row));
        replicated.extend(seen.iter().flatten().filter(|row| by_all_others(row)));
        Outcome { told, replicated, last: BTreeSet::new() }
    }
}

fn open(path: &Path, synchronous: &str) -> Option<Connection> {
    // Never creates one: where a mount is missing that would leave a file in its directory.
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    connection.busy_timeout(Duration::ZERO).ok()?;
    connection.pragma_update(None, "synchronous", synchronous).ok()?;
    Some(connection)
}

fn write(node: u32, path: &Path, synchronous: &str, stop: &AtomicBool, accepted: &AtomicU64) -> Vec<Told> {
    let (mut told, mut number, mut connection) = (Vec::new(), 0, None);
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(PAUSE);
        if connection.is_none() {
            connection = open(path, synchronous);
        }
        let Some(db) = &mut connection else { continue };
        number += 1;
        let begun = Instant::now();
        match insert(db, (node, number)) {
            Ok(saw) => {
                told.push(Told { row: (node, number), saw, begun, ended: Instant::now() });
                accepted.fetch_add(1, Ordering::SeqCst);
            }
            // Refused, or the node is gone and its mount with it: then another connection is needed.
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {}
            Err(_) => connection = None,
        }
    }
    told
}

/// Writes a row in a transaction; returns what that saw before.
fn insert(db: &mut Connection, row: Row) -> rusqlite::Result<BTreeMap<u32, u32>> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let saw = {
        let mut newest = transaction.prepare("SELECT node, max(number) FROM history GROUP BY node")?;
        let rows = newest.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    transaction.execute("INSERT INTO history VALUES(?, ?)", row)?;
    transaction.commit()?;
    Ok(saw)
}

/// Collects everything that other nodes' clients wrote and that is ever seen here.
fn observe(node: u32, path: &Path, stop: &AtomicBool, seen: &Mutex<BTreeSet<Row>>) {
    while !stop.load(Ordering::SeqCst) {
        std::thread::sleep(PAUSE);
        // A new connection each time: one whose mount has gone may go on to show what the kernel keeps of it.
        let Some(db) = open(path, "NORMAL") else { continue };
        let newest = |of: u32| seen.lock().ok()?.range((of, 0)..=(of, u32::MAX)).next_back().copied();
        if let Ok(rows) = look(&db, node, newest) {
            seen.lock().expect("the other threads").extend(rows);
        }
    }
}

/// Rows of other nodes' clients that are newer than the newest one seen of theirs.
fn look(db: &Connection, here: u32, newest: impl Fn(u32) -> Option<Row>) -> rusqlite::Result<Vec<Row>> {
    let mut nodes = db.prepare("SELECT DISTINCT node FROM history WHERE node <> ?")?;
    let nodes: Vec<u32> = nodes.query_map([here], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut newer = db.prepare("SELECT node, number FROM history WHERE node = ? AND number > ?")?;
    let mut found = Vec::new();
    for node in nodes {
        let rows = newer.query_map(newest(node).unwrap_or((node, 0)), |row| Ok((row.get(0)?, row.get(1)?)))?;
        found.extend(rows.collect::<rusqlite::Result<Vec<Row>>>()?);
    }
    Ok(found)
}

/// All rows of a database, for [`Outcome::last`].
///
/// # Errors
/// When it cannot be read.
pub fn rows(path: &Path) -> rusqlite::Result<BTreeSet<Row>> {
    let db = Connection::open(path)?;
    let mut statement = db.prepare("SELECT node, number FROM history")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row with the newest rows of nodes 0 and 1 (0: none) that it saw, and when it began and ended, in ms.
    type Sketch = (Row, [u32; 2], [u64; 2]);

    /// All rows are there at the end but those in `gone`.
    fn outcome(rows: &[Sketch], gone: &[Row], replicated: &[Row]) -> Outcome {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let told = rows.iter().map(|(row, saw, [begun, ended])| Told {
            row: *row,
            saw: (0..).zip(*saw).filter(|(_, number)| *number > 0).collect(),
            begun: at(*begun),
            ended: at(*ended),
        });
        let last = rows.iter().map(|(row, ..)| *row).filter(|row| !gone.contains(row)).collect();
        Outcome { told: told.collect(), replicated: replicated.iter().copied().collect(), last }
    }

    #[test]
    fn one_primary_after_another_is_in_order() {
        let turns: [Sketch; 4] = [
            ((0, 1), [0, 0], [0, 2]),
            ((0, 3), [1, 0], [3, 4]),
            ((1, 1), [3, 0], [10, 11]),
            ((0, 4), [3, 1], [20, 21]),
        ];
        assert_eq!(outcome(&turns, &[], &[(0, 1), (0, 3), (1, 1)]).violations(), [""; 0]);
        // Overlapping commits may be in either order.
        let overlap: [Sketch; 2] = [((0, 1), [0, 1], [0, 9]), ((1, 1), [0, 0], [1, 8])];
        assert_eq!(outcome(&overlap, &[], &[]).violations(), [""; 0]);
        // The old primary's last row was never sent: that is the asynchronous window.
        let unsent: [Sketch; 3] = [((0, 1), [0, 0], [0, 2]), ((0, 2), [1, 0], [3, 4]), ((1, 1), [1, 0], [10, 11])];
        let unsent = outcome(&unsent, &[(0, 2)], &[(0, 1)]);
        assert_eq!((unsent.violations(), unsent.lost()), (Vec::new(), vec![(0, 2)]));
    }

    #[test]
    fn what_must_not_be_is_found() {
        let rows: [Sketch; 2] = [((0, 1), [0, 0], [0, 2]), ((0, 2), [1, 0], [3, 4])];
        assert_eq!(outcome(&rows, &[(0, 2)], &[(0, 1), (0, 2)]).violations().len(), 1);
        // Node 0 goes on after node 1 has acknowledged a row that it does not know, whether its own is kept or set aside.
        let rows: [Sketch; 3] = [((0, 1), [0, 0], [0, 2]), ((1, 1), [1, 0], [10, 11]), ((0, 2), [1, 0], [12, 13])];
        for gone in [&[][..], &[(0, 2)]] {
            assert_eq!(outcome(&rows, gone, &[]).violations().len(), 1);
        }
        // Node 1 begins without what was acknowledged and is there in the end.
        let rows: [Sketch; 2] = [((0, 1), [0, 0], [0, 2]), ((1, 1), [0, 0], [10, 11])];
        assert_eq!(outcome(&rows, &[], &[]).violations().len(), 1);
    }
}
