//! The keeper thread: checkpoints, the CKPT lock, retention of the log, and what the mount has to be told.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::{Duration, Instant};

use super::{Notice, Store};
use crate::DbName;
use crate::database::{Checkpointed, Database, now_ms};
use crate::kernel::FileKind;

/// How often the databases are looked after.
const ROUND: Duration = Duration::from_millis(100);
/// A database without a new transaction for this long is checkpointed, so that its next writer starts the WAL again.
const IDLE: Duration = Duration::from_millis(500);
/// A checkpoint that readers kept from completing is tried again after this.
const RETRY: Duration = Duration::from_millis(500);

/// What the keeper remembers of a database.
struct Seen {
    pos: crate::Pos,
    changed: Instant,
    /// No idle checkpoint before this.
    next: Instant,
}

/// The state of the thread.
pub(super) struct Keeper {
    store: Weak<Store>,
    seen: HashMap<DbName, Seen>,
    retained: Instant,
}

impl Keeper {
    pub(super) fn new(store: Weak<Store>) -> Self {
        Self { store, seen: HashMap::new(), retained: Instant::now() }
    }

    pub(super) fn run(mut self) {
        let mut round = Instant::now();
        loop {
            let Some(shared) = self.store.upgrade().map(|store| store.shared.clone()) else { return };
            let notices = shared.signals.wait_notices(ROUND.saturating_sub(round.elapsed()));
            let Some(store) = self.store.upgrade() else { return };
            if shared.signals.is_stopping() {
                return;
            }
            for notice in notices {
                match notice {
                    Notice::Entry(name, kind) => tell_mount(&store, &name, kind),
                    Notice::Verify(name) => {
                        if let Some(database) = store.database(name.as_str()) {
                            let result = database.verify_strictly();
                            database.note_outcome("strict-verify", result.as_ref().err());
                        }
                    }
                    Notice::Checkpoint(name) => {
                        if let Some(database) = store.database(name.as_str()) {
                            checkpoint(&database);
                        }
                    }
                }
            }
            if round.elapsed() >= ROUND {
                round = Instant::now();
                self.look_after(&store);
            }
        }
    }

    fn look_after(&mut self, store: &Store) {
        let now = Instant::now();
        for database in store.databases() {
            let outcome = database.tend_checkpoint_lock();
            database.note_outcome("tend the checkpoint lock", outcome.as_ref().err());
            let pos = database.pos();
            let seen =
                self.seen.entry(database.name().clone()).or_insert_with(|| Seen { pos, changed: now, next: now });
            if seen.pos != pos {
                (seen.pos, seen.changed) = (pos, now);
            }
            if seen.changed.elapsed() >= IDLE && now >= seen.next {
                if database.checkpoint_backlog() > 0 {
                    checkpoint(&database);
                    seen.next = Instant::now() + RETRY;
                } else {
                    database.forget_failed_checkpoint();
                }
            }
        }
        let config = store.config();
        if self.retained.elapsed() >= config.retention_interval {
            self.retained = now;
            let retention_ms = u64::try_from(config.retention.as_millis()).unwrap_or(u64::MAX);
            for database in store.all_databases() {
                database.retain_log(now_ms().saturating_sub(retention_ms));
            }
        }
    }
}

fn checkpoint(database: &Database) {
    let start = Instant::now();
    let result = database.checkpoint();
    database.note_outcome("checkpoint", result.as_ref().err());
    if matches!(result, Ok(Checkpointed::Complete | Checkpointed::Partial)) {
        database.shared.metrics.checkpointed(start.elapsed().as_secs_f64());
    }
}

fn tell_mount(store: &Store, name: &DbName, kind: FileKind) {
    if let Some(kernel) = store.shared.kernel() {
        kernel.invalidate_entry(name, kind);
    }
}
