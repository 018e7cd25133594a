//! Unlinking and renaming.

use std::io::{ErrorKind, Result};

use litefs::{Database, DbName, FileKind};

use super::Tree;
use crate::errno::os;
use crate::names::{Name, is_super_journal, mount_name};
use crate::node::{Located, Target};

impl Tree {
    /// Removes a file; the engine is told before it is gone.
    pub(crate) fn unlink(&self, name: &Name) -> Result<()> {
        if !self.attached.pass() {
            return Err(os(libc::EIO));
        }
        let Some(located) = self.locate(name) else { return Err(os(libc::EPERM)) };
        if !located.path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            return self.unlink_what_is_gone(name, &located);
        }
        match &located.target {
            Target::Plain => self.unlink_ordinary(&located),
            Target::Db(database, db, kind) => self.unlink_database_file(&located, database, db, *kind),
        }
    }

    /// The kernel asks only for a name that it knows, and hears a moment later that a WAL went with its database. SQLite looks
    /// whether there is one beside a new, empty database, and deletes it: that it is gone is what it wants, and an I/O
    /// error to it otherwise. A journal's end is a commit, which nobody else may have made.
    fn unlink_what_is_gone(&self, name: &Name, located: &Located) -> Result<()> {
        match name {
            Name::Attached(_, FileKind::Wal | FileKind::Shm) => {
                // The engine may have made a new one meanwhile.
                self.nodes.recheck(&located.name, &located.path);
                Ok(())
            }
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    fn unlink_database_file(&self, located: &Located, database: &Database, db: &DbName, kind: FileKind) -> Result<()> {
        match kind {
            FileKind::Database => database.db_unlink(),
            FileKind::Journal => database.journal_unlink(),
            FileKind::Wal => database.wal_unlink(),
            FileKind::Shm => database.shm_unlink(),
        }?;
        remove_if_there(located)?;
        self.nodes.unlink(&located.name);
        if kind != FileKind::Journal {
            // A journal that comes back after a power loss is rolled back, and the log brings the transaction again.
            self.mark_unsynced(located);
        }
        if kind == FileKind::Database {
            self.forget_removed(db);
        }
        Ok(())
    }

    /// With a database, the engine removes what belongs to it.
    fn forget_removed(&self, db: &DbName) {
        for kind in [FileKind::Journal, FileKind::Wal, FileKind::Shm] {
            if self.nodes.recheck(&mount_name(db, kind), &self.database_path(db, kind)) {
                self.forget_name(mount_name(db, kind));
            }
        }
    }

    fn unlink_ordinary(&self, located: &Located) -> Result<()> {
        if is_super_journal(&located.name) {
            for database in self.store.databases() {
                database.super_journal_unlink(&located.name)?;
            }
        }
        let _ordinary_files = self.ordinary_files.lock();
        std::fs::remove_file(&located.path)?;
        self.nodes.unlink(&located.name);
        self.mark_unsynced(located);
        Ok(())
    }

    /// Renames an ordinary file. Files of a database keep their names, and nothing is renamed onto them: the clients
    /// that have them open would go on with the old inode. An ordinary file that holds a database becomes one by its
    /// new name.
    pub(crate) fn rename(&self, from: &Name, to: &Name, no_replace: bool) -> Result<()> {
        self.rename_ordinary(from, to, no_replace)?;
        self.promote_renamed(to)
    }

    fn rename_ordinary(&self, from: &Name, to: &Name, no_replace: bool) -> Result<()> {
        // Neither becomes a database meanwhile.
        let _ordinary_files = self.ordinary_files.lock();
        let _places = self.places.lock();
        let (Some(source), Some(destination)) = (self.locate(from), self.locate(to)) else {
            return Err(os(libc::EPERM));
        };
        if !source.path.exists() {
            return Err(ErrorKind::NotFound.into());
        }
        if matches!(source.target, Target::Db(..)) || matches!(destination.target, Target::Db(..)) {
            return Err(os(libc::EPERM));
        }
        if no_replace && destination.path.exists() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        std::fs::rename(&source.path, &destination.path)?;
        self.nodes.rename(&source.name, &destination.name);
        self.mark_unsynced(&destination);
        Ok(())
    }

    fn promote_renamed(&self, to: &Name) -> Result<()> {
        if let Name::Candidate(_) = to {
            let node = self.look_up(to)?;
            let mut head = [0; 16];
            let count = self.read(&node, 0, &mut head)?;
            let promoted = self.promote_by_content(&node, 0, &head[..count]);
            self.nodes.forget(node.ino, 1);
            if promoted.is_ok() && matches!(node.target(), Target::Db(..)) {
                // Nobody has to have it open: the import is complete.
                self.release_promoted(&node);
            }
            return promoted;
        }
        Ok(())
    }

    fn release_promoted(&self, node: &crate::node::Node) {
        self.nodes.opened(node.ino, true);
        self.release(node.ino, super::HANDLE_CLIENT);
    }
}

fn remove_if_there(located: &Located) -> Result<()> {
    match std::fs::remove_file(&located.path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
