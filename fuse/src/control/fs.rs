//! The control mount as FUSE messages.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLock, ReplyOpen,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use litefs::{DbName, Store};
use parking_lot::Mutex;

use super::locks::{Holder, LockTable};
use crate::attributes::made_up;
use crate::errno::errno;
use crate::names::{Name, Special};
use crate::workers::{Workers, guarded};

const ROOT: u64 = 1;
/// The byte of a lock file that is the HALT lock (COMPAT §3).
const HALT_BYTE: u64 = 72;

#[derive(Default)]
struct Files {
    numbers: HashMap<DbName, u64>,
    names: Vec<DbName>,
}

/// The FUSE side of the control mount.
pub struct ControlFs {
    store: Arc<Store>,
    locks: Arc<LockTable>,
    workers: Workers,
    files: Mutex<Files>,
    next_handle: AtomicU64,
}

impl ControlFs {
    /// Lock files for the store's databases.
    pub fn new(store: Arc<Store>, locks: Arc<LockTable>) -> Self {
        Self { store, locks, workers: Workers::default(), files: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    fn number(&self, db: DbName) -> u64 {
        let mut files = self.files.lock();
        if let Some(number) = files.numbers.get(&db) {
            return *number;
        }
        let number = ROOT + 1 + files.names.len() as u64;
        files.numbers.insert(db.clone(), number);
        files.names.push(db);
        number
    }

    fn database(&self, ino: INodeNo) -> Option<DbName> {
        let index = usize::try_from(ino.0.checked_sub(ROOT + 1)?).ok()?;
        self.files.lock().names.get(index).cloned()
    }

    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm) = if ino.0 == ROOT {
            (FileType::Directory, 0o755)
        } else {
            self.database(ino)?;
            (FileType::RegularFile, 0o666)
        };
        Some(made_up(ino.0, kind, perm, 0, SystemTime::UNIX_EPOCH))
    }

    /// Runs what may wait for the primary or another client, on a thread of its own: a lock may wait for ever, and what
    /// ends the wait must find a FUSE thread.
    fn apart(&self, job: impl FnOnce(&LockTable) + Send + 'static) {
        let locks = Arc::clone(&self.locks);
        self.workers.spawn(move || job(&locks));
    }
}

/// The errno of a failed release: the transactions under the lock did not reach the primary.
fn reply_released(reply: ReplyEmpty, db: &DbName, released: io::Result<()>) {
    match released {
        Ok(()) => reply.ok(),
        Err(error) => {
            tracing::error!(%db, %error, "release the HALT lock; its transactions did not reach the primary");
            reply.error(Errno::EIO);
        }
    }
}

fn reply_acquired(reply: ReplyEmpty, db: &DbName, acquired: io::Result<()>) {
    match acquired {
        Ok(()) => reply.ok(),
        Err(error) => {
            if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                tracing::warn!(%db, %error, "acquire the HALT lock for a local client");
            }
            reply.error(errno(&error));
        }
    }
}

impl Filesystem for ControlFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config
            .add_capabilities(InitFlags::FUSE_POSIX_LOCKS)
            .map_err(|_| io::Error::new(io::ErrorKind::Unsupported, "no remote POSIX locks in this kernel"))
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(|| {
            let Ok(Name::Special(Special::HaltLock(db))) = Name::parse(name) else { return reply.error(Errno::ENOENT) };
            if parent.0 != ROOT || self.store.database(db.as_str()).is_none() {
                return reply.error(Errno::ENOENT);
            }
            match self.attributes(INodeNo(self.number(db))) {
                Some(attr) => reply.entry(&Duration::ZERO, &attr, Generation(0)),
                None => reply.error(Errno::ENOENT),
            }
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded(|| match self.attributes(ino) {
            Some(attr) => reply.attr(&Duration::ZERO, &attr),
            None => reply.error(Errno::ESTALE),
        });
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Opening a lock file with O_TRUNC is harmless and common; nothing else of it can be changed.
        match self.attributes(ino) {
            Some(attr) if size == Some(0) => reply.attr(&Duration::ZERO, &attr),
            _ => reply.error(Errno::EPERM),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Not NOFLUSH: closing releases the owner's locks, and the close must see an error of that.
        reply.opened(FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed)), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&[]);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EPERM);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let Some(db) = self.database(ino) else { return reply.ok() };
        if self.locks.holder(&db).is_none_or(|holder| holder.owner != owner.0) {
            return reply.ok();
        }
        self.apart(move |locks| {
            let released = locks.release(&db, |holder| holder.owner == owner.0);
            reply_released(reply, &db, released);
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let Some(db) = self.database(ino) else { return reply.ok() };
        if self.locks.holder(&db).is_none_or(|holder| holder.handle != fh.0) {
            return reply.ok();
        }
        self.apart(move |locks| {
            let released = locks.release(&db, |holder| holder.handle == fh.0);
            reply_released(reply, &db, released);
        });
    }

    fn getlk(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let covers = (start..=end).contains(&HALT_BYTE);
        let holder = self.database(ino).and_then(|db| self.locks.holder(&db));
        match holder.filter(|holder| covers && holder.owner != owner.0) {
            Some(holder) => reply.locked(HALT_BYTE, HALT_BYTE, libc::F_WRLCK, holder.thread),
            None => reply.locked(start, end, if covers { libc::F_UNLCK } else { typ }, pid),
        }
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        _pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let Some(db) = self.database(ino) else { return reply.error(Errno::ESTALE) };
        let covers = (start..=end).contains(&HALT_BYTE);
        match typ {
            libc::F_UNLCK if !covers => reply.ok(),
            libc::F_UNLCK => self.apart(move |locks| {
                let released = locks.release(&db, |holder| holder.owner == owner.0);
                reply_released(reply, &db, released);
            }),
            libc::F_WRLCK if (start, end) == (HALT_BYTE, HALT_BYTE) => {
                let holder = Holder { owner: owner.0, handle: fh.0, thread: req.pid() };
                self.apart(move |locks| {
                    let acquired = locks.acquire(&db, holder, sleep);
                    reply_acquired(reply, &db, acquired);
                });
            }
            // The HALT lock is exclusive and has one byte.
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let databases = self.store.databases();
        let names = databases.iter().map(|database| database.name().clone());
        for (index, db) in names.enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let name = format!("{db}-lock");
            if reply.add(INodeNo(self.number(db)), index as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
