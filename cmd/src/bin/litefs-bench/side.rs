//! One of the two directories that are compared.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rusqlite::Connection;

/// A directory to run workloads in.
#[derive(Debug)]
pub struct Side {
    name: &'static str,
    dir: PathBuf,
}

impl Side {
    pub fn new(name: &'static str, dir: &Path) -> Self {
        Self { name, dir: dir.to_path_buf() }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn path(&self, database: &str) -> PathBuf {
        self.dir.join(database)
    }

    /// Opens the database with the given journal mode and `synchronous` setting.
    pub fn open(&self, database: &str, journal: &str, synchronous: &str) -> Result<Connection> {
        let path = self.path(database);
        let db = Connection::open(&path).with_context(|| format!("open {}", path.display()))?;
        db.busy_timeout(Duration::from_secs(60))?;
        let mode: String = db.query_row(&format!("PRAGMA journal_mode={journal}"), [], |row| row.get(0))?;
        anyhow::ensure!(mode.eq_ignore_ascii_case(journal), "journal mode is {mode}, not {journal}");
        db.execute_batch(&format!("PRAGMA synchronous={synchronous}"))?;
        Ok(db)
    }

    /// Removes the database and its companions.
    pub fn remove(&self, database: &str) -> Result<()> {
        for suffix in ["-wal", "-shm", "-journal", ""] {
            let path = self.path(&format!("{database}{suffix}"));
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
