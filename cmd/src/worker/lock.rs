//! One node per data directory.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

/// How long a start waits: right after a kill -9 the kernel still closes the old process' files.
const WAIT_AT_MOST: Duration = Duration::from_secs(10);

/// The data directory, locked for as long as this lives. The lock is on the directory itself: no file stays behind.
#[derive(Debug)]
pub struct DataLock {
    _directory: File,
}

impl DataLock {
    /// Creates the directory if need be and locks it.
    ///
    /// # Errors
    /// When another process has it, or it cannot be created or opened.
    pub async fn take(path: PathBuf) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        std::fs::create_dir_all(&path).with_context(|| format!("create the data directory {name}"))?;
        let directory = File::open(&path).with_context(|| format!("open the data directory {name}"))?;
        let begun = Instant::now();
        while let Err(error) = flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(error).with_context(|| format!("lock the data directory {name}"));
            }
            if begun.elapsed() > WAIT_AT_MOST {
                bail!("the data directory {name} is in use by another litefs: stop that one, or set data.dir");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { _directory: directory })
    }
}
