//! Creating files, with the modes and owners that clients want.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use litefs::FileKind;

use super::{HANDLE_CLIENT, Opened, Tree};
use crate::attributes::Changes;
use crate::errno::os;
use crate::names::Name;
use crate::node::{IoPath, Located, Node, Target};

/// A file opened by CREATE, and whether it is new.
pub struct Created {
    /// The open file.
    pub opened: Opened,
}

/// Who creates a file and how.
#[derive(Debug, Clone, Copy)]
pub struct Creator {
    /// The client's user.
    pub uid: u32,
    /// The client's group.
    pub gid: u32,
    /// The mode, umask already taken off.
    pub mode: u32,
    /// `O_EXCL`, `O_TRUNC` count here.
    pub flags: i32,
}

impl Tree {
    /// Creates and opens a file, or opens it when somebody else was faster.
    pub(crate) fn create(&self, name: &Name, creator: Creator) -> Result<Created> {
        if !self.attached.pass() {
            return Err(Error::other("the engine is not attached to the mount"));
        }
        if matches!(name, Name::Special(_) | Name::Alias) {
            return Err(os(libc::EACCES));
        }
        if let Name::Attached(db, FileKind::Journal | FileKind::Wal) = name {
            self.promote_by_name(db)?;
        }
        let (located, node, is_new) = self.create_file(name, creator)?;
        let hooked = if is_new { self.created(&located) } else { self.truncate_existing(&located, creator) };
        if let Err(error) = hooked.and_then(|()| self.before_client_open(&node)) {
            if is_new {
                self.nodes.unlink(&located.name);
                let _ = std::fs::remove_file(&located.path);
            }
            // The kernel never learned of this reference.
            self.nodes.forget(node.ino, 1);
            return Err(error);
        }
        if is_new {
            self.nodes.created(node.ino);
        } else {
            self.nodes.opened(node.ino, true);
        }
        Ok(Created { opened: Opened { node: Arc::clone(&node), handle: HANDLE_CLIENT } })
    }

    /// The file, created if there is none, and whether it is new; with one more kernel reference.
    fn create_file(&self, name: &Name, creator: Creator) -> Result<(Located, Arc<Node>, bool)> {
        let _places = self.places.lock();
        let mut located = self.locate(name).ok_or(ErrorKind::InvalidInput)?;
        self.refuse_orphan(name, &located)?;
        let is_new = create_backing(&located, self.with_database_mode(name, creator)?)?;
        if is_new && self.passthrough && matches!(located.target, Target::Db(_, _, FileKind::Journal)) {
            // Its end is an unlink as a rule, which comes to us; what else it may be the engine finds.
            located.io = IoPath::Passthrough;
        }
        let node = self.nodes.look_up(&located)?;
        Ok((located, node, is_new))
    }

    /// SQLite gives a wal-index the mode and owner of its database, but sets the mode only while the file is empty; the
    /// engine has extended it by then.
    fn with_database_mode(&self, name: &Name, creator: Creator) -> Result<Creator> {
        let Name::Attached(db, FileKind::Shm) = name else { return Ok(creator) };
        match self.database_path(db, FileKind::Database).metadata() {
            Ok(meta) => Ok(Creator { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & 0o777, ..creator }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(creator),
            Err(error) => Err(error),
        }
    }

    /// A journal, WAL or wal-index without its database file.
    fn refuse_orphan(&self, name: &Name, located: &Located) -> Result<()> {
        if let Name::Attached(db, _) = name
            && matches!(located.target, Target::Plain)
            && !self.file_path(db.as_str()).exists()
        {
            return Err(ErrorKind::NotFound.into());
        }
        Ok(())
    }

    fn created(&self, located: &Located) -> Result<()> {
        self.mark_unsynced(located);
        match &located.target {
            Target::Db(database, _, FileKind::Journal) => database.journal_created(),
            Target::Db(database, _, FileKind::Wal) => database.wal_created(),
            _ => Ok(()),
        }
    }

    fn truncate_existing(&self, located: &Located, creator: Creator) -> Result<()> {
        if creator.flags & libc::O_EXCL != 0 {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if creator.flags & libc::O_TRUNC != 0 {
            let node = self.nodes.by_name(&located.name).ok_or(ErrorKind::NotFound)?;
            self.truncate(&node, 0)?;
        }
        Ok(())
    }
}

/// Makes the backing file if there is none; returns whether it did.
fn create_backing(located: &Located, creator: Creator) -> Result<bool> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(creator.mode & 0o777)
        .open(&located.path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error),
    };
    let owner = Changes { uid: Some(creator.uid), gid: Some(creator.gid), ..Changes::default() };
    let meta = file.metadata()?;
    // Only root can give files away; without it every client has our own user anyway.
    if rustix::process::geteuid().is_root() && (meta.uid(), meta.gid()) != (creator.uid, creator.gid) {
        owner.apply(&file)?;
    }
    // Our umask may have taken something off.
    if meta.mode() & 0o7777 != creator.mode & 0o7777 {
        Changes { mode: Some(creator.mode), ..Changes::default() }.apply(&file)?;
    }
    Ok(true)
}
