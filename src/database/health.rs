//! A database's health: what an operator sees in `/info`, metrics and the log.

use super::{Database, Health};

impl Database {
    /// Notes how an operation that is retried went: its failure degrades the database, its next success ends that. Each
    /// change is logged once.
    pub(crate) fn note_outcome(&self, operation: &'static str, error: Option<&std::io::Error>) {
        let mut health = self.health.lock();
        match (&*health, error) {
            (Health::Ok, None) | (Health::Broken(_), _) => {}
            (Health::Degraded { failed, .. }, None) => {
                if *failed == operation {
                    tracing::info!(database = %self.name, operation, "works again");
                    *health = Health::Ok;
                }
            }
            (Health::Ok, Some(error)) => {
                let remedy = match error.raw_os_error() {
                    Some(libc::ENOSPC | libc::EDQUOT) => "free disk space under data.dir",
                    Some(libc::EIO) => "check the disk under data.dir",
                    _ => "it is retried",
                };
                tracing::error!(database = %self.name, operation, %error, remedy, "database degraded");
                let cause = format!("{operation}: {error}; {remedy}");
                *health = Health::Degraded { failed: operation, cause };
            }
            (Health::Degraded { .. }, Some(_)) => {}
        }
    }

    /// A checkpoint that failed is of no interest any more when there is no WAL: a client has done it at its last close.
    pub(crate) fn forget_failed_checkpoint(&self) {
        let has_failed = matches!(&*self.health.lock(), Health::Degraded { failed: "checkpoint", .. });
        if has_failed && !self.files.exists(crate::kernel::FileKind::Wal) {
            self.note_outcome("checkpoint", None);
        }
    }

    /// The files are removed: whatever failed, there is nothing to repeat it with.
    pub(super) fn forget_failures(&self) {
        let mut health = self.health.lock();
        if matches!(&*health, Health::Degraded { .. }) {
            *health = Health::Ok;
        }
    }

    /// The database cannot be served; see [`Health::Broken`].
    pub(crate) fn set_broken(&self, reason: String) {
        tracing::error!(database = %self.name, reason, "database broken; not served");
        *self.health.lock() = Health::Broken(reason);
    }

    /// Serving again: a snapshot or an import replaced everything.
    pub(crate) fn set_healthy(&self) {
        *self.health.lock() = Health::Ok;
    }
}
