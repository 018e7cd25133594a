//! When a file becomes a replicated database.
//!
//! Any name may be a database, and any other file is allowed too. A new file is an ordinary one until SQLite's header is
//! written to it, or until SQLite creates its journal or WAL, which it does before the first page. Then the same inode
//! becomes the database file, and everything from that write on goes through the engine.

use std::fs::File;
use std::io::{ErrorKind, Result, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use litefs::store::Mode;
use litefs::{Database, DbName, FileKind};

use super::Tree;
use crate::errno::os;
use crate::names::{Name, is_super_journal};
use crate::node::{Node, Target};

/// How every SQLite database begins.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Bytes handed to the engine at once when a file had content before it became a database.
const REPLAY_BYTES: usize = 1 << 20;

impl Tree {
    /// SQLite creates the journal of `db`: its file, if it is still an ordinary one and empty or a database by content,
    /// becomes a database first.
    pub(super) fn promote_by_name(&self, db: &DbName) -> Result<()> {
        let path = self.file_path(db.as_str());
        let Ok(file) = File::open(&path) else { return Ok(()) };
        if self.is_database(db) {
            return Ok(());
        }
        if file.metadata()?.len() > 0 {
            let mut head = [0; MAGIC.len()];
            if file.read_exact_at(&mut head, 0).is_err() || &head != MAGIC {
                return Ok(());
            }
        }
        let node = self.look_up(&Name::Candidate(db.clone()))?;
        let promoted = self.promote(&node, db);
        self.nodes.forget(node.ino, 1);
        promoted.map_err(|error| match error.kind() {
            // SQLite reports a journal it may not create as "attempt to write a readonly database".
            ErrorKind::ReadOnlyFilesystem => os(libc::EACCES),
            _ => error,
        })
    }

    /// A write to an ordinary file: does it make the file a database?
    pub(super) fn promote_by_content(&self, node: &Node, offset: u64, data: &[u8]) -> Result<()> {
        let Ok(at) = usize::try_from(offset) else { return Ok(()) };
        if at >= MAGIC.len() || data.is_empty() {
            return Ok(());
        }
        let mut head = [0; MAGIC.len()];
        let _ = self.read(node, 0, &mut head[..at])?;
        let end = (at + data.len()).min(MAGIC.len());
        head[at..end].copy_from_slice(&data[..end - at]);
        if end < MAGIC.len() {
            let _ = self.read(node, end as u64, &mut head[end..])?;
        }
        if &head != MAGIC {
            return Ok(());
        }
        let Some(name) = node.name().filter(|name| !is_super_journal(name)) else { return Ok(()) };
        match name.parse::<DbName>() {
            Ok(db) => self.promote(node, &db),
            Err(reason) => {
                tracing::warn!(name, %reason, "a SQLite database under this name is not replicated");
                Ok(())
            }
        }
    }

    /// Whether this name is a live database with a file.
    pub(super) fn is_database(&self, db: &DbName) -> bool {
        self.store.database(db.as_str()).is_some() && self.database_path(db, FileKind::Database).exists()
    }

    /// Makes an ordinary file a database.
    pub(super) fn promote(&self, node: &Node, db: &DbName) -> Result<()> {
        let _ordinary_files = self.ordinary_files.lock();
        if matches!(node.target(), Target::Db(..)) || node.name().as_deref() != Some(db.as_str()) {
            return Ok(());
        }
        if self.store.mode() == Mode::Replica {
            return Err(os(libc::EROFS));
        }
        let (from, to) = (self.file_path(db.as_str()), self.database_path(db, FileKind::Database));
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // The engine starts with an empty file and is told of every write to it.
        let mut content = self.take_content(node)?;
        let database = self.move_to_databases(node, db, &from, &to, &mut content)?;
        self.unsynced.lock().extend([self.files_dir.clone(), self.dbs_dir.clone(), self.dbs_dir.join(db.as_str())]);
        database.db_opened()?;
        replay(&mut content, |offset, data| database.db_write(offset, data))
    }

    /// The moment at which the file changes places.
    fn move_to_databases(
        &self,
        node: &Node,
        db: &DbName,
        from: &Path,
        to: &Path,
        content: &mut File,
    ) -> Result<Arc<Database>> {
        let _places = self.places.lock();
        std::fs::rename(from, to)?;
        match self.store.create(db) {
            Ok(database) => {
                node.promote(Target::Db(Arc::clone(&database), db.clone(), FileKind::Database));
                Ok(database)
            }
            Err(error) => {
                std::fs::rename(to, from)?;
                replay(content, |offset, data| node.backing.write_all_at(data, offset))?;
                Err(error)
            }
        }
    }

    /// Moves what a file holds to a file without a name.
    fn take_content(&self, node: &Node) -> Result<File> {
        let mut content = unnamed_file(&self.files_dir)?;
        if node.backing.metadata()?.len() > 0 {
            let mut source = node.backing.try_clone()?;
            source.rewind()?;
            std::io::copy(&mut source, &mut content)?;
            node.backing.set_len(0)?;
        }
        Ok(content)
    }
}

fn unnamed_file(dir: &Path) -> Result<File> {
    File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(dir)
}

/// Writes a file's content elsewhere, in pieces.
fn replay(content: &mut File, mut write: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let len = content.metadata()?.len();
    let mut offset = 0;
    let mut buffer = vec![0; REPLAY_BYTES.min(usize::try_from(len).unwrap_or(REPLAY_BYTES))];
    while offset < len {
        let count = content.read_at(&mut buffer, offset)?;
        if count == 0 {
            break;
        }
        write(offset, &buffer[..count])?;
        offset += count as u64;
    }
    Ok(())
}
