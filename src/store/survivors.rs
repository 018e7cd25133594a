//! Clients that outlived a killed node: with passthrough they still reach the WAL that recovery is about to read.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sqlite::wal_index::retire::retire;

/// How long a transaction that was under way may take to end and undo it.
const SETTLE: Duration = Duration::from_millis(100);
/// How often it is tried again.
const ROUNDS_MAX: u32 = 10;

/// Retires the wal-indexes a killed node left: whatever its clients have committed is recovered, and they are refused from then on rather
/// than commit into a WAL that nobody looks at any more. Their locks are those of the old mount and cannot be seen from
/// here, so a transaction that was open may end behind it: then again. (After a clean stop there is nothing to do.)
pub(super) fn keep_out(mut indexes: Vec<PathBuf>) {
    for _ in 0..ROUNDS_MAX {
        indexes.retain(|path| was_in_use(path));
        if indexes.is_empty() {
            return;
        }
        std::thread::sleep(SETTLE);
    }
    tracing::warn!(?indexes, "clients of the node that was killed still write to these databases: end them");
}

fn was_in_use(index: &Path) -> bool {
    match File::options().read(true).write(true).open(index).and_then(|file| retire(&file)) {
        Ok(was_in_use) => was_in_use,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            tracing::warn!(index = %index.display(), %error, "keep clients of a killed node off the WAL");
            false
        }
    }
}
