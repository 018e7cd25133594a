//! Databases whose replication is stuck, with the cause: logged once, listed in `/info`, gone when it works again.

use std::collections::BTreeMap;
use std::time::Duration;

use litefs::DbName;
use parking_lot::Mutex;

/// The longest pause between attempts.
const RETRY_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Problem {
    cause: String,
    attempts: u32,
}

/// The table of problems.
#[derive(Debug, Default)]
pub struct Problems {
    by_database: Mutex<BTreeMap<DbName, Problem>>,
}

impl Problems {
    /// Notes a failure; logs it when it is new. Returns how long to wait before trying again, starting at `first`.
    pub(crate) fn failed(&self, db: &DbName, cause: String, first: Duration) -> Duration {
        let mut table = self.by_database.lock();
        let problem = table.entry(db.clone()).or_insert(Problem { cause: String::new(), attempts: 0 });
        if problem.cause != cause {
            tracing::error!(%db, error = %cause, "replication of this database is stuck; trying again until the cause is gone");
            problem.cause = cause;
        }
        problem.attempts = problem.attempts.saturating_add(1);
        first.saturating_mul(1 << (problem.attempts - 1).min(8)).min(RETRY_MAX)
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
        let pauses: Vec<_> = (0..7).map(|_| problems.failed(&db, "disk full".into(), first).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(problems.list().len(), 1);
        problems.works(&db);
        assert!(problems.list().is_empty());
        assert_eq!(problems.failed(&db, "disk full".into(), first), first);
    }
}
