//! Looking after a data directory while no node uses it: what `litefs verify` and `litefs repair` do.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

pub use crate::database::Inspection;
use crate::database::inspect;
use crate::store::{Store, StoreConfig};
use crate::{DbName, Layout, Pos};

/// Reads every database of a data directory whole: log, database file, WAL. Changes nothing.
///
/// # Errors
/// `ResourceBusy` while a node uses the directory; reading it.
pub fn verify(data_dir: &Path) -> io::Result<Vec<(DbName, Inspection)>> {
    let _lock = lock(data_dir)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(data_dir.join("dbs"))? {
        let entry = entry?;
        if let Some(Ok(name)) = entry.file_name().to_str().map(str::parse::<DbName>)
            && entry.file_type()?.is_dir()
        {
            found.push((name, inspect(&entry.path(), Layout::Data)?));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Recovers the directory as a start does, then makes what the files of a broken database hold its new history
/// ([`crate::Database::repair`]). Returns its position.
///
/// # Errors
/// `NotFound`: no such database; `ResourceBusy` while a node uses the directory; what [`crate::Database::repair`] gives.
pub fn repair(config: StoreConfig, name: &DbName) -> io::Result<Pos> {
    drop(lock(&config.data_dir)?);
    let store = Store::open(config)?;
    let result = match store.database(name.as_str()) {
        Some(database) => database.repair(),
        None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no database {name}"))),
    };
    store.close();
    result
}

/// The directory's lock, which a running node holds.
fn lock(data_dir: &Path) -> io::Result<Option<File>> {
    let file = match File::open(data_dir.join(".lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("a node uses {}; stop it first", data_dir.display()),
        )),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use super::*;
    use crate::Txid;

    fn config(data_dir: &Path) -> StoreConfig {
        StoreConfig {
            data_dir: data_dir.to_owned(),
            compress: true,
            retention: Duration::from_secs(600),
            retention_interval: Duration::from_secs(60),
            strict_verify: false,
            lost_and_found_bytes_max: 1 << 30,
        }
    }

    fn copy_all(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("folder");
        for entry in fs::read_dir(from).expect("read").map(|entry| entry.expect("entry")) {
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy_all(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).expect("copy");
            }
        }
    }

    /// A data directory of LiteFS.
    fn golden(name: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("dir");
        copy_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), dir.path());
        dir
    }

    fn wal_db(dir: &Path) -> Inspection {
        let found = verify(dir).expect("reads");
        assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["del.db", "wal.db"]);
        found.into_iter().nth(1).expect("wal.db").1
    }

    #[test]
    fn verifying_says_what_is_there_and_changes_nothing() {
        for (golden_name, txid) in [("datadir-n1", 6), ("datadir-with-wal", 7)] {
            let dir = golden(golden_name);
            let found = wal_db(dir.path());
            assert_eq!((found.pos.txid, found.records), (Txid(txid), txid), "{golden_name}");
            assert_eq!((found.problems.len(), found.notes.len(), found.commits_without_record), (0, 0, 0));
            assert!(!dir.path().join("dbs/wal.db/log").exists());
        }
        let dir = golden("datadir-with-wal");
        let ltx = dir.path().join("dbs/wal.db/ltx");
        fs::remove_file(ltx.join(format!("{}-{}.ltx", Txid(7), Txid(7)))).expect("remove");
        assert_eq!(wal_db(dir.path()).commits_without_record, 1);
        fs::remove_file(dir.path().join("dbs/wal.db/database")).expect("remove");
        assert_eq!(wal_db(dir.path()).problems.len(), 1);
    }

    #[test]
    fn damage_is_found_and_repaired_by_decision() {
        let dir = golden("datadir-n1");
        let database = dir.path().join("dbs/wal.db/database");
        File::options().write(true).open(&database).expect("open").write_all_at(b"x", 4096 * 3 + 50).expect("write");
        // The log does not reach back to the damaged page's last version.
        for txid in 1..=6 {
            let path = dir.path().join("dbs/wal.db/ltx").join(format!("{}-{}.ltx", Txid(txid), Txid(txid)));
            if txid != 5 {
                fs::remove_file(path).expect("remove");
            }
        }
        let found = wal_db(dir.path());
        assert_eq!((found.pos.txid, found.problems.len()), (Txid(5), 1), "{found:?}");

        let name: DbName = "wal.db".parse().expect("name");
        let pos = repair(config(dir.path()), &name).expect("repairs");
        assert_eq!(pos.txid, Txid(6));
        let found = wal_db(dir.path());
        assert_eq!((found.pos, found.problems.len(), found.records), (pos, 0, 1), "{found:?}");
        assert!(dir.path().join("lost+found/wal.db").exists());
        assert_eq!(repair(config(dir.path()), &name).expect("nothing to do"), pos);
        let missing = repair(config(dir.path()), &"no.db".parse().expect("name")).expect_err("missing");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_directory_in_use_is_left_alone() {
        let dir = golden("datadir-n1");
        let store = Store::open(config(dir.path())).expect("opens");
        assert_eq!(verify(dir.path()).expect_err("in use").kind(), io::ErrorKind::ResourceBusy);
        store.close();
    }
}
