//! The data directory: who uses it, the cluster ID, where databases lie (COMPAT §2).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

use crate::{DbName, os};

/// Locked by the node that uses the directory; holds its process ID.
const LOCK_FILE: &str = ".lock";
/// How long a start waits for a node that uses the directory: the lock of a killed one goes with its last thread.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The kernel's random name for the time since the machine was started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// `data.dir`.
#[derive(Debug)]
pub(super) struct DataDirectory {
    path: PathBuf,
    cluster_id: Mutex<Option<String>>,
    /// Locked for as long as the node runs.
    _lock: File,
}

impl DataDirectory {
    /// Creates it if necessary and locks it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path.join("dbs"))?;
        let lock = lock(path)?;
        let cluster_id = match fs::read_to_string(path.join("clusterid")) {
            Ok(text) => Some(text.trim().to_owned()).filter(|id| is_cluster_id(id)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path: path.to_owned(), cluster_id: Mutex::new(cluster_id), _lock: lock })
    }

    pub(super) fn cluster_id(&self) -> Option<String> {
        self.cluster_id.lock().clone()
    }

    pub(super) fn set_cluster_id(&self, id: &str) -> io::Result<()> {
        if !is_cluster_id(id) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{id:?} is not a cluster ID")));
        }
        let mut current = self.cluster_id.lock();
        match current.as_deref() {
            Some(same) if same == id => return Ok(()),
            Some(other) => {
                let problem = format!("this data directory belongs to cluster {other}, not {id}");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
            }
            None => {}
        }
        self.keep("clusterid.keep", "clusterid", id)?;
        *current = Some(id.to_owned());
        Ok(())
    }

    /// Writes a line into a file of the directory, durably.
    fn keep(&self, label: &'static str, name: &str, line: &str) -> io::Result<()> {
        let (partial, path) = (self.path.join(format!("{name}.new")), self.path.join(name));
        let file = os::open_or_create(label, &partial)?;
        os::set_len(label, &file, 0)?;
        os::write_all_at(label, &file, format!("{line}\n").as_bytes(), 0)?;
        os::sync_data(label, &file)?;
        os::rename(label, &partial, &path)?;
        os::sync_dir(label, &self.path)
    }

    /// Whether the machine has not been started again since [`Self::note_boot`].
    pub(super) fn is_same_boot(&self) -> io::Result<bool> {
        let noted = match fs::read_to_string(self.path.join("bootid")) {
            Ok(noted) => noted,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        Ok(fs::read_to_string(BOOT_ID).is_ok_and(|now| now.trim() == noted.trim() && !now.trim().is_empty()))
    }

    /// Remembers that the directory is used in this boot.
    pub(super) fn note_boot(&self) -> io::Result<()> {
        if self.is_same_boot()? {
            Ok(())
        } else {
            self.keep("bootid.keep", "bootid", fs::read_to_string(BOOT_ID)?.trim())
        }
    }

    /// Every folder under `dbs/` whose name can be a database's.
    pub(super) fn database_names(&self) -> io::Result<Vec<DbName>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path.join("dbs"))? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            match entry.file_name().to_str().map(str::parse) {
                Some(Ok(name)) => names.push(name),
                _ => tracing::warn!(folder = ?entry.path(), "ignored: its name cannot be a database's"),
            }
        }
        Ok(names)
    }

    pub(super) fn database_dir(&self, name: &DbName) -> PathBuf {
        self.path.join("dbs").join(name.as_str())
    }

    /// The folder of a new database, durable.
    pub(super) fn create_database_dir(&self, name: &DbName) -> io::Result<PathBuf> {
        let dir = self.database_dir(name);
        fs::create_dir_all(&dir)?;
        os::sync_dir("database.sync_dir", &self.path.join("dbs"))?;
        Ok(dir)
    }
}

/// `LFSC` and 16 upper-case hex digits.
fn is_cluster_id(id: &str) -> bool {
    let digits = id.strip_prefix("LFSC").unwrap_or_default();
    digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
}

/// The process that uses a data directory, or used it last; whoever waits for the directory may look whether it still lives.
#[must_use]
pub fn holder(data_dir: &Path) -> Option<u32> {
    fs::read_to_string(data_dir.join(LOCK_FILE)).ok()?.trim().parse().ok()
}

fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(false).open(path.join(LOCK_FILE))?;
    let start = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // For `holder`; the lock itself does not need it, so a full disk does not keep us from starting.
                let told = file.set_len(0).and_then(|()| writeln!(&file, "{}", std::process::id()));
                if let Err(error) = told {
                    tracing::debug!(%error, "write our process ID into the lock file");
                }
                return Ok(file);
            }
            Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < LOCK_WAIT => std::thread::sleep(LOCK_PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let problem =
                    format!("another litefs uses {}; stop it, or give this one its own data.dir", path.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, problem));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_id_is_set_once_and_kept() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let directory = DataDirectory::open(dir.path()).expect("opens");
        assert_eq!(directory.cluster_id(), None);
        assert_eq!(directory.set_cluster_id("LFSC12").expect_err("short").kind(), io::ErrorKind::InvalidInput);
        directory.set_cluster_id("LFSC0123456789ABCDEF").expect("sets");
        directory.set_cluster_id("LFSC0123456789ABCDEF").expect("same again");
        let error = directory.set_cluster_id("LFSC0000000000000000").expect_err("another");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        drop(directory);
        let directory = DataDirectory::open(dir.path()).expect("opens again");
        assert_eq!(directory.cluster_id().as_deref(), Some("LFSC0123456789ABCDEF"));
        assert_eq!(fs::read_to_string(dir.path().join("clusterid")).expect("file"), "LFSC0123456789ABCDEF\n");
    }

    #[test]
    fn folders_that_cannot_be_databases_are_ignored() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let directory = DataDirectory::open(dir.path()).expect("opens");
        for name in ["app.db", "x-wal", ".hidden"] {
            fs::create_dir(dir.path().join("dbs").join(name)).expect("folder");
        }
        let names = directory.database_names().expect("lists");
        assert_eq!(names.iter().map(DbName::as_str).collect::<Vec<_>>(), ["app.db"]);
    }
}
