//! The main mount as FUSE messages: translates to [`Tree`] and chooses the thread.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::attributes::{Changes, LONG, made_up, negative};
use crate::errno::{errno, os};
use crate::names::{Name, Special};
use crate::node::{ALIAS_INO, IoPath, Node, ROOT_INO, SPECIAL_INO};
use crate::tree::io::READ_BYTES_MAX;
use crate::tree::{Creator, HANDLE_CLIENT, Tree};
use crate::workers::{Workers, guarded};

/// Largest write in one request.
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// The FUSE side of the main mount.
pub struct MainFs {
    tree: Arc<Tree>,
    workers: Workers,
    passthrough: bool,
}

impl MainFs {
    /// A file system over this tree. `passthrough`: ask the kernel for it.
    pub fn new(tree: Arc<Tree>, passthrough: bool) -> Self {
        Self { tree, workers: Workers::default(), passthrough }
    }

    /// Runs a request that may block, with a reply that answers `EIO` if it is dropped.
    fn blocking(&self, job: impl FnOnce(&Tree) + Send + 'static) {
        let tree = Arc::clone(&self.tree);
        self.workers.run(move || job(&tree));
    }
}

/// How long the kernel may keep a file's attributes: those of a passthrough file change behind its back.
fn attribute_ttl(node: &Node) -> Duration {
    match node.io {
        IoPath::Cached => LONG,
        IoPath::Passthrough | IoPath::Direct => Duration::ZERO,
    }
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

fn reply_entry(reply: ReplyEntry, found: io::Result<(FileAttr, Duration, Duration)>) {
    match found {
        Ok((attr, attr_ttl, entry_ttl)) => reply.entry_with_ttls(&attr_ttl, &entry_ttl, &attr, Generation(0)),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_empty(reply: ReplyEmpty, done: io::Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

impl MainFs {
    fn look_up_in_root(&self, name: &OsStr) -> io::Result<(FileAttr, Duration, Duration)> {
        // A name that cannot exist does not exist; only creating it is an error of its own.
        let name = Name::parse(name).map_err(|_| io::ErrorKind::NotFound)?;
        match &name {
            Name::Special(special) => {
                let attr = self.tree.special_attributes(special).ok_or(io::ErrorKind::NotFound)?;
                Ok((attr, Duration::ZERO, Duration::ZERO))
            }
            Name::Alias => Ok((alias_attributes(), LONG, LONG)),
            Name::Candidate(_) | Name::Attached(..) | Name::Ordinary(_) => match self.tree.look_up(&name) {
                Ok(node) => Ok((self.tree.attributes(&node)?, attribute_ttl(&node), LONG)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((negative(), LONG, LONG)),
                Err(error) => Err(error),
            },
        }
    }

    /// Through the alias directory only files of databases are found, and nothing is remembered: a remembered entry once
    /// led to the old, unlinked wal-index.
    fn look_up_in_alias(&self, name: &OsStr) -> io::Result<(FileAttr, Duration, Duration)> {
        let name = Name::parse(name).map_err(|_| io::ErrorKind::NotFound)?;
        let node = self.tree.look_up(&name)?;
        Ok((self.tree.attributes(&node)?, attribute_ttl(&node), Duration::ZERO))
    }

    fn attributes(&self, ino: u64) -> io::Result<(FileAttr, Duration)> {
        match ino {
            ROOT_INO => Ok((self.tree.root_attributes()?, Duration::ZERO)),
            ALIAS_INO => Ok((alias_attributes(), LONG)),
            SPECIAL_INO.. => {
                let special = self.tree.specials.get(ino).ok_or_else(|| os(libc::ESTALE))?;
                let attr = self.tree.special_attributes(&special).ok_or_else(|| os(libc::ESTALE))?;
                Ok((attr, Duration::ZERO))
            }
            _ => {
                let node = self.tree.node(ino)?;
                Ok((self.tree.attributes(&node)?, attribute_ttl(&node)))
            }
        }
    }
}

fn alias_attributes() -> FileAttr {
    made_up(ALIAS_INO, FileType::Directory, 0o700, 0, SystemTime::UNIX_EPOCH)
}

fn set_attributes(tree: &Tree, ino: u64, size: Option<u64>, changes: &Changes) -> io::Result<(FileAttr, Duration)> {
    match ino {
        ROOT_INO => {
            tree.change_root(changes)?;
            Ok((tree.root_attributes()?, Duration::ZERO))
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

fn open(tree: &Tree, ino: u64, thread: u32, reply: ReplyOpen) {
    let opened = match tree.open(ino, thread) {
        Ok(opened) => opened,
        Err(error) => return reply.error(errno(&error)),
    };
    let (node, handle, flags) = (&opened.node, FileHandle(opened.handle), open_flags(opened.node.io));
    if node.io != IoPath::Passthrough {
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

fn create(tree: &Tree, name: &OsStr, creator: Creator, reply: ReplyCreate) {
    let created =
        Name::parse(name).map_err(|bad| os(i32::from(bad.errno()))).and_then(|name| tree.create(&name, creator));
    let node = match created {
        Ok(created) => created.opened.node,
        Err(error) => return reply.error(errno(&error)),
    };
    let prepared = tree.attributes(&node).and_then(|attr| {
        let mut backing_id = node.backing_id.lock();
        if node.io == IoPath::Passthrough && backing_id.is_none() {
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
    let (handle, flags, generation) = (FileHandle(HANDLE_CLIENT), open_flags(node.io), Generation(0));
    // One time-to-live covers entry and attributes here, so passthrough files are looked up once more.
    let ttl = attribute_ttl(&node);
    match (&*backing_id, node.io) {
        (Some(id), IoPath::Passthrough) => reply.created_passthrough(&ttl, &attr, generation, handle, flags, id),
        _ => reply.created(&ttl, &attr, generation, handle, flags),
    }
}

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn read(tree: &Tree, ino: u64, offset: u64, size: u32, reply: ReplyData) {
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

fn read_special(tree: &Tree, special: &Special, offset: u64, size: u32, reply: ReplyData) {
    let content = tree.special_content(special).unwrap_or_default();
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
    let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)).min(content.len());
    reply.data(&content[start..end]);
}

fn write(tree: &Tree, ino: u64, offset: u64, data: &[u8], reply: ReplyWrite) {
    match tree.node(ino).and_then(|node| tree.write(&node, offset, data)) {
        Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
        Err(error) => reply.error(errno(&error)),
    }
}

impl Filesystem for MainFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // No FUSE_POSIX_LOCKS: locks stay in the kernel. No writeback cache: every write reaches us before it is
        // acknowledged.
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_EXPLICIT_INVAL_DATA | InitFlags::FUSE_ASYNC_DIO;
        let _ = config.add_capabilities(wanted & config.capabilities());
        if self.passthrough {
            config
                .add_capabilities(InitFlags::FUSE_PASSTHROUGH)
                .map_err(|_| io::Error::new(io::ErrorKind::Unsupported, "no FUSE passthrough in this kernel"))?;
            // 2: the data directory may itself be on a stacked file system (overlayfs).
            let _ = config.set_max_stack_depth(2);
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(|| match parent.0 {
            ROOT_INO => reply_entry(reply, self.look_up_in_root(name)),
            ALIAS_INO => reply_entry(reply, self.look_up_in_alias(name)),
            _ => reply.error(Errno::ENOTDIR),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        guarded(|| self.tree.nodes.forget(ino.0, nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded(|| match self.attributes(ino.0) {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.blocking(move |tree| match set_attributes(tree, ino.0, size, &Changes { mode, uid, gid, atime, mtime }) {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        guarded(|| {
            let special = self.tree.specials.get(ino.0).filter(|special| matches!(special, Special::HaltLock(_)));
            match special.and_then(|special| self.tree.special_content(&special)) {
                Some(target) => reply.data(&target),
                None => reply.error(Errno::EINVAL),
            }
        });
    }

    fn mknod(&self, _r: &Request, _p: INodeNo, _n: &OsStr, _m: u32, _u: u32, _d: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        // The mount directory is flat.
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = Name::parse(name);
        self.blocking(move |tree| match (parent.0, name) {
            (ROOT_INO, Ok(name)) => reply_empty(reply, tree.unlink(&name)),
            (ROOT_INO, Err(_)) => reply.error(Errno::ENOENT),
            _ => reply.error(Errno::EPERM),
        });
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(if matches!(Name::parse(name), Ok(Name::Alias)) { Errno::EPERM } else { Errno::ENOTDIR });
    }

    fn symlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let names = Name::parse(name).and_then(|from| Ok((from, Name::parse(newname)?)));
        self.blocking(move |tree| match names {
            _ if (parent.0, newparent.0) != (ROOT_INO, ROOT_INO) => reply.error(Errno::EPERM),
            _ if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) => {
                reply.error(Errno::EINVAL);
            }
            Ok((from, to)) => {
                reply_empty(reply, tree.rename(&from, &to, flags.contains(RenameFlags::RENAME_NOREPLACE)));
            }
            Err(bad) => reply.error(bad.errno()),
        });
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn open(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let thread = req.pid();
        if ino.0 >= SPECIAL_INO {
            return reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
        }
        if self.tree.engine_threads.contains(thread) {
            // A handler may be waiting for this very open: it runs at once, however many requests are blocked.
            return guarded(|| open(&self.tree, ino.0, thread, reply));
        }
        self.blocking(move |tree| open(tree, ino.0, thread, reply));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        if parent.0 != ROOT_INO {
            return reply.error(Errno::EPERM);
        }
        let (name, creator) = (name.to_owned(), Creator { uid: req.uid(), gid: req.gid(), mode, flags });
        self.blocking(move |tree| create(tree, &name, creator, reply));
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.tree.specials.get(ino.0) {
            Some(special) => self.blocking(move |tree| read_special(tree, &special, offset, size, reply)),
            None => guarded(|| read(&self.tree, ino.0, offset, size, reply)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Not `blocking`: only a request that moves to another thread needs a copy of its data.
        if let Some(_slot) = self.workers.try_inline() {
            return guarded(|| write(&self.tree, ino.0, offset, data, reply));
        }
        let (tree, data) = (Arc::clone(&self.tree), data.to_vec());
        self.workers.spawn(move || write(&tree, ino.0, offset, &data, reply));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.blocking(move |tree| {
            tree.release(ino.0, fh.0);
            reply.ok();
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.blocking(move |tree| reply_empty(reply, tree.node(ino.0).and_then(|node| tree.sync(&node, datasync))));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match ino.0 {
            ROOT_INO | ALIAS_INO => reply.opened(FileHandle(self.tree.listings.open()), FopenFlags::empty()),
            _ => reply.error(Errno::ENOTDIR),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino.0 != ROOT_INO {
            return reply.ok();
        }
        self.blocking(move |tree| {
            let listing = match tree.listings.get(fh.0, offset, || tree.list()) {
                Ok(listing) => listing,
                Err(error) => return reply.error(errno(&error)),
            };
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            for (index, entry) in listing.iter().enumerate().skip(from) {
                if reply.add(INodeNo(entry.ino), index as u64 + 1, entry.kind, &entry.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.tree.listings.close(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.blocking(move |tree| reply_empty(reply, tree.sync_directory()));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        guarded(|| match self.tree.statistics() {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                u32::try_from(s.f_bsize).unwrap_or(4096),
                u32::try_from(litefs::name::NAME_BYTES_MAX).unwrap_or(200),
                u32::try_from(s.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(errno(&error)),
        });
    }

    // ENOSYS once, and the kernel answers every later call by itself ("not supported", or its own generic way).

    fn setxattr(&self, _r: &Request, _i: INodeNo, _n: &OsStr, _v: &[u8], _f: i32, _p: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(&self, _r: &Request, _i: INodeNo, _fh: FileHandle, _o: u64, _l: u64, _m: i32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _r: &Request, _i: INodeNo, _fh: FileHandle, _o: i64, _w: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
