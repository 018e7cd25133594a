//! SQLite clients whose file operations go through the engine's hooks, as a mount's would: a VFS around SQLite's own.
//!
//! Locks and reads stay SQLite's, writes, truncations, syncs and unlinks are the hooks'. It runs in this process; nothing
//! here closes a descriptor of a file that a client has locked.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::ffi;

use crate::database::Database;

/// What a VFS knows; lives for ever, as SQLite keeps a pointer to it.
struct Context {
    real: *mut ffi::sqlite3_vfs,
    databases: Vec<(PathBuf, Arc<Database>)>,
    journals: Journals,
}

/// How writes to journals go, as on a mount with or without passthrough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Journals {
    /// Through the hook.
    Relayed,
    /// Past it, where the open created the journal.
    Passed,
}

impl Context {
    fn find(&self, path: &str) -> Option<&Arc<Database>> {
        let matching = |main: &PathBuf| main.to_str().is_some_and(|main| path.starts_with(main));
        self.databases.iter().find(|(main, _)| matching(main)).map(|(_, database)| database)
    }
}

/// SQLite's handle of an open file, followed in memory by the real VFS's.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    /// A leaked `Arc`, or null for a file that has no hooks.
    database: *const Database,
    kind: c_int,
    /// Writes are not hooked.
    passed: bool,
}

/// Registers a VFS whose files are hooked into these databases; its name.
pub(super) fn register(databases: Vec<(PathBuf, Arc<Database>)>, journals: Journals) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("hooked{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let c_name = CString::new(name.clone()).expect("name").into_raw();
    // SAFETY: the default VFS lives for ever; the copy and its context are leaked, so they do, too. All methods copied from it
    // ignore the VFS they are given but for its path length, except xOpen and xDelete, which are ours.
    unsafe {
        let real = ffi::sqlite3_vfs_find(std::ptr::null());
        let context = Box::into_raw(Box::new(Context { real, databases, journals }));
        let size = c_int::try_from(size_of::<File>()).expect("small") + (*real).szOsFile;
        let vfs = ffi::sqlite3_vfs {
            szOsFile: size,
            pNext: std::ptr::null_mut(),
            zName: c_name,
            pAppData: context.cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            ..*real
        };
        assert_eq!(ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 0), ffi::SQLITE_OK);
    }
    name
}

fn code(result: std::io::Result<()>, otherwise: c_int) -> c_int {
    match result {
        Ok(()) => ffi::SQLITE_OK,
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => ffi::SQLITE_FULL,
        Err(_) => otherwise,
    }
}

unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: SQLite allocates `szOsFile` bytes: ours, then the real VFS's.
    unsafe { file.cast::<File>().add(1).cast() }
}

unsafe fn hooks<'a>(file: *mut ffi::sqlite3_file) -> Option<(&'a Database, c_int)> {
    // SAFETY: every open file of this VFS begins with a `File`; the database is kept alive by its leaked `Arc`.
    unsafe {
        let file = file.cast::<File>();
        (*file).database.as_ref().map(|database| (database, (*file).kind))
    }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    const KINDS: c_int = ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_WAL;
    // SAFETY: SQLite's contract for xOpen; see `register` for the context.
    unsafe {
        let context = &*(*vfs).pAppData.cast::<Context>();
        let kind = flags & KINDS;
        let text = if path.is_null() { "" } else { CStr::from_ptr(path).to_str().expect("UTF-8") };
        let database = context.find(text).filter(|_| kind != 0);
        (*file).pMethods = std::ptr::null();
        let created = flags & ffi::SQLITE_OPEN_CREATE != 0 && !std::path::Path::new(text).exists();
        if let Some(database) = database {
            let hooked = match kind {
                ffi::SQLITE_OPEN_MAIN_DB => database.db_opened(),
                ffi::SQLITE_OPEN_MAIN_JOURNAL if created => database.journal_created(),
                _ => Ok(()),
            };
            if hooked.is_err() {
                return ffi::SQLITE_CANTOPEN;
            }
        }
        let result = (*context.real).xOpen.expect("method")(context.real, path, real(file), flags, out);
        if result != ffi::SQLITE_OK {
            return result;
        }
        if let (Some(database), ffi::SQLITE_OPEN_WAL) = (database, kind) {
            database.wal_created().expect("hook");
        }
        (*file.cast::<File>()).database =
            database.map_or(std::ptr::null(), |database| Arc::into_raw(Arc::clone(database)));
        (*file.cast::<File>()).kind = kind;
        (*file.cast::<File>()).passed =
            created && kind == ffi::SQLITE_OPEN_MAIN_JOURNAL && context.journals == Journals::Passed;
        (*file).pMethods = &raw const METHODS;
        result
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, path: *const c_char, sync: c_int) -> c_int {
    // SAFETY: SQLite's contract for xDelete; see `register` for the context.
    unsafe {
        let context = &*(*vfs).pAppData.cast::<Context>();
        let text = CStr::from_ptr(path).to_str().expect("UTF-8");
        if text.contains("-mj") {
            let name = text.rsplit('/').next().expect("name");
            for (_, database) in &context.databases {
                if let Err(error) = database.super_journal_unlink(name) {
                    return code(Err(error), ffi::SQLITE_IOERR_DELETE);
                }
            }
        } else if let Some(database) = context.find(text) {
            if !std::path::Path::new(text).exists() {
                return ffi::SQLITE_IOERR_DELETE_NOENT;
            }
            let result = if text.ends_with("-wal") { database.wal_unlink() } else { database.journal_unlink() };
            return code(result, ffi::SQLITE_IOERR_DELETE);
        }
        (*context.real).xDelete.expect("method")(context.real, path, sync)
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: as `forward`; the `Arc` leaked by `open` is taken back once, as SQLite closes once.
    unsafe {
        let database = (*file.cast::<File>()).database;
        let result = (*(*real(file)).pMethods).xClose.expect("method")(real(file));
        if !database.is_null() {
            drop(Arc::from_raw(database));
        }
        result
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite gives `len` readable bytes.
    unsafe {
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), usize::try_from(len).expect("length"));
        let at = u64::try_from(offset).expect("offset");
        match hooks(file) {
            Some((database, ffi::SQLITE_OPEN_MAIN_DB)) => code(database.db_write(at, bytes), ffi::SQLITE_IOERR_WRITE),
            Some((database, ffi::SQLITE_OPEN_MAIN_JOURNAL)) if !(*file.cast::<File>()).passed => {
                code(database.journal_write(at, bytes), ffi::SQLITE_IOERR_WRITE)
            }
            _ => (*(*real(file)).pMethods).xWrite.expect("method")(real(file), data, len, offset),
        }
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, len: i64) -> c_int {
    // SAFETY: as `forward`.
    unsafe {
        let size = u64::try_from(len).expect("length");
        match hooks(file) {
            Some((database, ffi::SQLITE_OPEN_MAIN_DB)) => code(database.db_truncate(size), ffi::SQLITE_IOERR_TRUNCATE),
            Some((database, ffi::SQLITE_OPEN_MAIN_JOURNAL)) => {
                code(database.journal_truncate(size), ffi::SQLITE_IOERR_TRUNCATE)
            }
            Some((database, ffi::SQLITE_OPEN_WAL)) => code(database.wal_truncate(size), ffi::SQLITE_IOERR_TRUNCATE),
            _ => (*(*real(file)).pMethods).xTruncate.expect("method")(real(file), len),
        }
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: as `forward`.
    unsafe {
        match hooks(file) {
            Some((database, ffi::SQLITE_OPEN_MAIN_DB)) => code(database.db_sync(), ffi::SQLITE_IOERR_FSYNC),
            Some((database, ffi::SQLITE_OPEN_MAIN_JOURNAL)) => code(database.journal_sync(), ffi::SQLITE_IOERR_FSYNC),
            Some((database, ffi::SQLITE_OPEN_WAL)) => code(database.wal_sync(), ffi::SQLITE_IOERR_FSYNC),
            _ => (*(*real(file)).pMethods).xSync.expect("method")(real(file), flags),
        }
    }
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    page: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: as `forward`.
    unsafe {
        let result = (*(*real(file)).pMethods).xShmMap.expect("method")(real(file), page, size, extend, out);
        if page == 0
            && result == ffi::SQLITE_OK
            && let Some((database, _)) = hooks(file)
        {
            database.shm_opened().expect("hook");
        }
        result
    }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: as `forward`.
    unsafe {
        if delete != 0
            && let Some((database, _)) = hooks(file)
        {
            let _ = database.shm_unlink();
        }
        (*(*real(file)).pMethods).xShmUnmap.expect("method")(real(file), 0)
    }
}

/// A method that only passes its arguments to the real file.
macro_rules! forward {
    ($(fn $name:ident = $method:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $arg: $type)*) -> $result {
            // SAFETY: SQLite calls it with a file that `open` opened, so the real file behind it is open.
            unsafe { (*(*real(file)).pMethods).$method.expect("method")(real(file) $(, $arg)*) }
        }
    )*};
}

forward! {
    fn read = xRead(data: *mut c_void, len: c_int, offset: i64) -> c_int;
    fn file_size = xFileSize(size: *mut i64) -> c_int;
    fn lock = xLock(level: c_int) -> c_int;
    fn unlock = xUnlock(level: c_int) -> c_int;
    fn check_reserved_lock = xCheckReservedLock(out: *mut c_int) -> c_int;
    fn file_control = xFileControl(operation: c_int, argument: *mut c_void) -> c_int;
    fn sector_size = xSectorSize() -> c_int;
    fn device_characteristics = xDeviceCharacteristics() -> c_int;
    fn shm_lock = xShmLock(offset: c_int, count: c_int, flags: c_int) -> c_int;
    fn shm_barrier = xShmBarrier() -> ();
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
