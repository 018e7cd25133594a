//! Hands the engine's lock inodes to the supervisor (DESIGN §9a).

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use litefs::store::FenceKeeper;
use litefs::{DbName, FileKind};

use crate::channel::{Channel, FromWorker};

/// The way to the supervisor.
#[derive(Debug)]
pub struct SupervisorKeeper(pub Arc<Channel>);

impl SupervisorKeeper {
    /// A supervisor that is gone has told the worker to stop by that already.
    fn tell(&self, message: &FromWorker, fd: Option<BorrowedFd<'_>>) {
        if let Err(error) = self.0.tell_supervisor(message, fd) {
            tracing::debug!(%error, ?message, "tell the supervisor");
        }
    }
}

impl FenceKeeper for SupervisorKeeper {
    fn attached(&self, db: &DbName, kind: FileKind, fd: BorrowedFd<'_>) {
        self.tell(&FromWorker::Attached(kind, db.to_string()), Some(fd));
    }

    fn detached(&self, db: &DbName, kind: FileKind) {
        self.tell(&FromWorker::Detached(kind, db.to_string()), None);
    }
}
