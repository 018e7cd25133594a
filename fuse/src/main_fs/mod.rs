//! The main mount as FUSE messages: translates to [`Tree`] and chooses the thread.

mod requests;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::attributes::Changes;
use crate::errno::errno;
use crate::names::{Name, Special};
use crate::node::{ALIAS_INO, ROOT_INO, SPECIAL_INO};
use crate::tree::{Creator, Tree};
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
            ROOT_INO => requests::reply_entry(reply, requests::look_up_in_root(&self.tree, name)),
            ALIAS_INO => requests::reply_entry(reply, requests::look_up_in_alias(&self.tree, name)),
            _ => reply.error(Errno::ENOTDIR),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        guarded(|| self.tree.nodes.forget(ino.0, nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded(|| requests::reply_attr(reply, requests::attributes(&self.tree, ino.0)));
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
        let changes = Changes { mode, uid, gid, atime, mtime };
        self.blocking(move |tree| requests::reply_attr(reply, requests::set_attributes(tree, ino.0, size, &changes)));
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
            (ROOT_INO, Ok(name)) => requests::reply_empty(reply, tree.unlink(&name)),
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
                requests::reply_empty(reply, tree.rename(&from, &to, flags.contains(RenameFlags::RENAME_NOREPLACE)));
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
            return guarded(|| requests::open(&self.tree, ino.0, thread, reply));
        }
        self.blocking(move |tree| requests::open(tree, ino.0, thread, reply));
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
        self.blocking(move |tree| requests::create(tree, &name, creator, reply));
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
            Some(special) => self.blocking(move |tree| requests::read_special(tree, &special, offset, size, reply)),
            None => guarded(|| requests::read(&self.tree, ino.0, offset, size, reply)),
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
            return guarded(|| requests::write(&self.tree, ino.0, offset, data, reply));
        }
        let (tree, data) = (Arc::clone(&self.tree), data.to_vec());
        self.workers.spawn(move || requests::write(&tree, ino.0, offset, &data, reply));
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
        self.blocking(move |tree| {
            requests::reply_empty(reply, tree.node(ino.0).and_then(|node| tree.sync(&node, datasync)))
        });
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
        self.blocking(move |tree| requests::reply_empty(reply, tree.sync_directory()));
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
