//! Databases whose replication is stuck, with the cause: logged once, listed in `/info`, gone when it works again.

use std::collections::BTreeMap;
use std::time::Duration;

use litefs::DbName;
use parking_lot::Mutex;

/// The longest pause between attempts.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Failures with the record itself after which the whole database is asked for: it is not the way that damaged it.
const DAMAGED_MAX: u32 = 2;

/// Why something that came from the primary was not applied.
#[derive(Debug)]
pub(crate) struct Failure {
    cause: String,
    /// It is the record: another try with the same one is of no use.
    damaged: bool,
}

impl Failure {
    /// A record that breaks the format's rules, or does not lead to the checksum that it names.
    pub(crate) const fn damaged(cause: String) -> Self {
        Self { cause, damaged: true }
    }
}

impl From<String> for Failure {
    fn from(cause: String) -> Self {
        Self { cause, damaged: false }
    }
}

#[derive(Debug, Default)]
struct Problem {
    cause: String,
    attempts: u32,
    /// How many times in a row it was the record.
    damaged: u32,
}

/// The table of problems.
#[derive(Debug, Default)]
pub struct Problems {
    by_database: Mutex<BTreeMap<DbName, Problem>>,
}

impl Problems {
    /// Notes a failure; logs it when it is new. Returns how long to wait before trying again, starting at `first`.
    pub(crate) fn failed(&self, db: &DbName, failure: Failure, first: Duration) -> Duration {
        let Failure { cause, damaged } = failure;
        let mut table = self.by_database.lock();
        let problem = table.entry(db.clone()).or_default();
        problem.damaged = if damaged { problem.damaged.saturating_add(1) } else { 0 };
        if problem.cause != cause {
            tracing::error!(%db, error = %cause, "replication of this database is stuck; trying again until the cause is gone");
            problem.cause = cause;
        }
        problem.attempts = problem.attempts.saturating_add(1);
        first.saturating_mul(1 << (problem.attempts - 1).min(8)).min(RETRY_MAX)
    }

    /// The next record of this database is damaged at the primary, again and again: only a snapshot leads past it.
    pub(crate) fn needs_snapshot(&self, db: &DbName) -> bool {
        self.by_database.lock().get(db).is_some_and(|problem| problem.damaged >= DAMAGED_MAX)
    }

    /// It works (again).
    pub(crate) fn works(&self, db: &DbName) {
        if self.by_database.lock().remove(db).is_some() {
            tracing::info!(%db, "replication of this database goes on");
        }
    }

    /// Causes by database.
    #[must_use]
    pub fn list(&self) -> BTreeMap<DbName, String> {
        self.by_database.lock().iter().map(|(db, problem)| (db.clone(), problem.cause.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_start_over_after_success() {
        let (problems, db) = (Problems::default(), "a".parse().expect("a name"));
        let first = Duration::from_secs(1);
        let pauses: Vec<_> =
            (0..7).map(|_| problems.failed(&db, "disk full".to_owned().into(), first).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(problems.list().len(), 1);
        problems.works(&db);
        assert!(problems.list().is_empty());
        assert_eq!(problems.failed(&db, "disk full".to_owned().into(), first), first);
    }

    #[test]
    fn a_snapshot_is_needed_when_it_is_the_record_twice_in_a_row() {
        let (problems, db) = (Problems::default(), "a".parse().expect("a name"));
        let fail = |failure| problems.failed(&db, failure, Duration::from_secs(1));
        let damaged = || Failure::damaged("damaged".to_owned());
        fail(damaged());
        fail("disk full".to_owned().into());
        fail(damaged());
        assert!(!problems.needs_snapshot(&db));
        fail(damaged());
        assert!(problems.needs_snapshot(&db));
        problems.works(&db);
        assert!(!problems.needs_snapshot(&db));
    }
}
