//! The requests of the main mount: what each asks of the [`Tree`], and its reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::time::{Duration, SystemTime};

use fuser::{
    FileAttr, FileHandle, FileType, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite,
};
use litefs::FileKind;

use crate::attributes::{Changes, LONG, made_up, negative};
use crate::errno::{errno, os};
use crate::names::{Name, Special};
use crate::node::{ALIAS_INO, IoPath, Node, ROOT_INO, SPECIAL_INO, Target};
use crate::tree::io::READ_BYTES_MAX;
use crate::tree::{Creator, HANDLE_CLIENT, Tree};

/// How long the kernel may keep a file's attributes: those of a passthrough file change behind its back, but for a journal's.
fn attribute_ttl(node: &Node) -> Duration {
    match node.io() {
        IoPath::Passthrough if node.is_journal() => LONG,
        IoPath::Cached => LONG,
        IoPath::Passthrough | IoPath::Direct => Duration::ZERO,
    }
}

/// How long the kernel may keep what the answer to CREATE says: there is one time for the name and the attributes, so the passthrough
/// files are looked up once more. The kernel believes that answer whatever it has been told since, and a file that is a database
/// already is one that the engine has made, and may be writing to.
fn created_ttl(node: &Node) -> Duration {
    match node.target() {
        Target::Db(_, _, FileKind::Database) => Duration::ZERO,
        _ => attribute_ttl(node),
    }
}

/// How long the kernel may remember that there is no file of this name. A database may come from the primary at any time, and who has seen
/// its position must find it; what belongs to one is asked for with every transaction.
fn absent_ttl(name: &Name) -> Duration {
    if matches!(name, Name::Candidate(_)) { Duration::ZERO } else { LONG }
}

/// The flags of an open. `NOFLUSH`: a `close` must not wait for us, because the kernel drops POSIX locks only after
/// FLUSH is answered and SQLite relies on them being dropped at once (and nothing is buffered anyway).
fn open_flags(io: IoPath) -> FopenFlags {
    match io {
        IoPath::Cached => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
        IoPath::Passthrough => FopenFlags::FOPEN_NOFLUSH,
        IoPath::Direct => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
    }
}

pub(super) fn reply_entry(reply: ReplyEntry, found: io::Result<(FileAttr, Duration, Duration)>) {
    match found {
        Ok((attr, attr_ttl, entry_ttl)) => reply.entry_with_ttls(&attr_ttl, &entry_ttl, &attr, Generation(0)),
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn reply_attr(reply: ReplyAttr, found: io::Result<(FileAttr, Duration)>) {
    match found {
        Ok((attr, ttl)) => reply.attr(&ttl, &attr),
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, done: io::Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn look_up_in_root(tree: &Tree, name: &OsStr) -> io::Result<(FileAttr, Duration, Duration)> {
    // A name that cannot exist does not exist; only creating it is an error of its own.
    let name = Name::parse(name).map_err(|_| io::ErrorKind::NotFound)?;
    match &name {
        Name::Special(special) => {
            let attr = tree.special_attributes(special).ok_or(io::ErrorKind::NotFound)?;
            Ok((attr, Duration::ZERO, Duration::ZERO))
        }
        Name::Alias => Ok((alias_attributes(), LONG, LONG)),
        Name::Candidate(_) | Name::Attached(..) | Name::Ordinary(_) => match tree.look_up(&name) {
            Ok(node) => Ok((tree.attributes(&node)?, attribute_ttl(&node), LONG)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((negative(), LONG, absent_ttl(&name))),
            Err(error) => Err(error),
        },
    }
}

/// Through the alias directory only files of databases are found, and nothing is remembered: a remembered entry once
/// led to the old, unlinked wal-index.
pub(super) fn look_up_in_alias(tree: &Tree, name: &OsStr) -> io::Result<(FileAttr, Duration, Duration)> {
    let name = Name::parse(name).map_err(|_| io::ErrorKind::NotFound)?;
    let node = tree.look_up(&name)?;
    Ok((tree.attributes(&node)?, attribute_ttl(&node), Duration::ZERO))
}

pub(super) fn attributes(tree: &Tree, ino: u64) -> io::Result<(FileAttr, Duration)> {
    match ino {
        // The kernel asks again when it changes the directory itself.
        ROOT_INO => Ok((tree.root_attributes()?, LONG)),
        ALIAS_INO => Ok((alias_attributes(), LONG)),
        SPECIAL_INO.. => {
            let special = tree.specials.get(ino).ok_or_else(|| os(libc::ESTALE))?;
            let attr = tree.special_attributes(&special).ok_or_else(|| os(libc::ESTALE))?;
            Ok((attr, Duration::ZERO))
        }
        _ => {
            let node = tree.node(ino)?;
            Ok((tree.attributes(&node)?, attribute_ttl(&node)))
        }
    }
}

fn alias_attributes() -> FileAttr {
    made_up(ALIAS_INO, FileType::Directory, 0o700, 0, SystemTime::UNIX_EPOCH)
}

pub(super) fn set_attributes(
    tree: &Tree,
    ino: u64,
    size: Option<u64>,
    changes: &Changes,
) -> io::Result<(FileAttr, Duration)> {
    match ino {
        ROOT_INO => {
            tree.change_root(changes)?;
            Ok((tree.root_attributes()?, LONG))
        }
        ALIAS_INO | SPECIAL_INO.. => Err(os(libc::EPERM)),
        _ => {
            let node = tree.node(ino)?;
            if let Some(size) = size {
                tree.truncate(&node, size)?;
            }
            changes.apply(&node.backing)?;
            Ok((tree.attributes(&node)?, attribute_ttl(&node)))
        }
    }
}

pub(super) fn open(tree: &Tree, ino: u64, thread: u32, reply: ReplyOpen) {
    let opened = match tree.open(ino, thread) {
        Ok(opened) => opened,
        Err(error) => return reply.error(errno(&error)),
    };
    let (node, handle, io) = (&opened.node, FileHandle(opened.handle), opened.node.io());
    let flags = open_flags(io);
    if io != IoPath::Passthrough {
        // A journal that was passed through before is not any more.
        drop(node.backing_id.lock().take());
        return reply.opened(handle, flags);
    }
    let mut backing_id = node.backing_id.lock();
    if backing_id.is_none() {
        match reply.open_backing(&node.backing) {
            Ok(id) => *backing_id = Some(id),
            Err(error) => {
                tracing::error!(%error, "open a backing file for passthrough");
                tree.release(ino, opened.handle);
                return reply.error(errno(&error));
            }
        }
    }
    if let Some(id) = &*backing_id {
        reply.opened_passthrough(handle, flags, id);
    }
}

pub(super) fn create(tree: &Tree, name: &OsStr, creator: Creator, reply: ReplyCreate) {
    let created =
        Name::parse(name).map_err(|bad| os(i32::from(bad.errno()))).and_then(|name| tree.create(&name, creator));
    let node = match created {
        Ok(created) => created.opened.node,
        Err(error) => return reply.error(errno(&error)),
    };
    let prepared = tree.attributes(&node).and_then(|attr| {
        let mut backing_id = node.backing_id.lock();
        if node.io() == IoPath::Passthrough && backing_id.is_none() {
            *backing_id = Some(reply.open_backing(&node.backing)?);
        }
        Ok((attr, backing_id))
    });
    let (attr, backing_id) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            tracing::error!(%error, "open a created file");
            tree.release(node.ino, HANDLE_CLIENT);
            tree.nodes.forget(node.ino, 1);
            return reply.error(errno(&error));
        }
    };
    let io = node.io();
    let (handle, flags, generation) = (FileHandle(HANDLE_CLIENT), open_flags(io), Generation(0));
    let ttl = created_ttl(&node);
    match (&*backing_id, io) {
        (Some(id), IoPath::Passthrough) => reply.created_passthrough(&ttl, &attr, generation, handle, flags, id),
        _ => reply.created(&ttl, &attr, generation, handle, flags),
    }
}

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn read(tree: &Tree, ino: u64, offset: u64, size: u32, reply: ReplyData) {
    let size = usize::try_from(size).unwrap_or(READ_BYTES_MAX).min(READ_BYTES_MAX);
    READ_BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let count = tree.node(ino).and_then(|node| tree.read(&node, offset, &mut buffer[..size]));
        match count {
            Ok(count) => reply.data(&buffer[..count]),
            Err(error) => reply.error(errno(&error)),
        }
    });
}

pub(super) fn read_special(tree: &Tree, special: &Special, offset: u64, size: u32, reply: ReplyData) {
    let content = tree.special_content(special).unwrap_or_default();
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
    let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)).min(content.len());
    reply.data(&content[start..end]);
}

pub(super) fn write(tree: &Tree, ino: u64, offset: u64, data: &[u8], reply: ReplyWrite) {
    match tree.node(ino).and_then(|node| tree.write(&node, offset, data)) {
        Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
        Err(error) => reply.error(errno(&error)),
    }
}
