//! SQLite's byte-range locks, taken as OFD locks.
//!
//! OFD locks (`fcntl(F_OFD_*)`) conflict with the POSIX locks of SQLite's clients, belong to the open file description
//! and do not vanish when another descriptor of the same file closes (ENGINE "Lock bytes"). Two things follow for
//! callers: locks taken through one [`File`] never conflict with each other, and dropping a guard gives the range back
//! even if the same description had taken it before. So what is held for long gets a descriptor of its own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A range of lock bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockBytes {
    /// First byte.
    pub start: i64,
    /// Number of bytes.
    pub len: i64,
}

impl LockBytes {
    const fn one(start: i64) -> Self {
        Self { start, len: 1 }
    }
}

/// On the database file: a writer waits for readers to leave; new readers stay out.
pub const PENDING: LockBytes = LockBytes::one(0x4000_0000);
/// On the database file: a writer prepares a transaction; readers go on.
pub const RESERVED: LockBytes = LockBytes::one(0x4000_0001);
/// On the database file: shared by readers, exclusive while pages are written in rollback mode.
pub const SHARED: LockBytes = LockBytes { start: 0x4000_0002, len: 510 };
/// On the shm: the one writer of the WAL.
pub const WRITE: LockBytes = LockBytes::one(120);
/// On the shm: the one checkpointer.
pub const CKPT: LockBytes = LockBytes::one(121);
/// On the shm: whoever rebuilds the wal-index.
pub const RECOVER: LockBytes = LockBytes::one(122);
/// On the shm: the "dead man switch"; shared by everybody who has it open.
pub const DMS: LockBytes = LockBytes::one(128);
/// Number of read marks, and of READ locks.
pub const READERS: usize = 5;

/// On the shm: READ0…READ4, `mark` below [`READERS`].
#[must_use]
pub const fn read(mark: usize) -> LockBytes {
    LockBytes::one(123 + mark as i64)
}

/// On the shm: every lock that recovery of the wal-index takes when it has none yet (WRITE, CKPT, RECOVER and all READ).
pub const ALL_WAL: LockBytes = LockBytes { start: 120, len: 8 };

/// How a range is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
}

/// Who keeps us from a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockHolder {
    /// How it holds the range.
    pub kind: LockKind,
    /// Its process, or `None` for an OFD lock (the kernel does not say).
    pub pid: Option<i32>,
}

fn flock(kind: libc::c_int, bytes: LockBytes) -> libc::flock {
    // SAFETY: `flock` is a plain C struct for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // The constants are tiny; the field is a short on every Linux target.
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = bytes.start;
    lock.l_len = bytes.len;
    lock
}

const fn lock_type(kind: LockKind) -> libc::c_int {
    match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    }
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open for as long as `file` is borrowed; `lock` is a valid, exclusively borrowed
        // `flock` with `l_pid == 0`, as F_OFD_* demand.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes the lock if it is free (or changes the kind in which this description holds it); `false` if others hold it.
///
/// # Errors
/// Anything but "held by another".
pub fn try_lock(file: &File, bytes: LockBytes, kind: LockKind) -> io::Result<bool> {
    match fcntl(file, libc::F_OFD_SETLK, &mut flock(lock_type(kind), bytes)) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits for the lock without a bound, woken by the kernel. For threads that have nothing else to do.
///
/// # Errors
/// Whatever the kernel answers.
pub fn lock_blocking(file: &File, bytes: LockBytes, kind: LockKind) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLKW, &mut flock(lock_type(kind), bytes))
}

/// Waits for the lock at most `wait`; `false` when others still hold it then. Tries at growing distances (50 µs … 2 ms).
///
/// # Errors
/// Whatever the kernel answers.
pub fn lock_within(file: &File, bytes: LockBytes, kind: LockKind, wait: Duration) -> io::Result<bool> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        if try_lock(file, bytes, kind)? {
            return Ok(true);
        }
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(2));
    }
}

/// Gives the range back.
///
/// # Errors
/// Whatever the kernel answers.
pub fn unlock(file: &File, bytes: LockBytes) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, &mut flock(libc::F_UNLCK, bytes))
}

/// Who would keep us from taking the lock, if anybody.
///
/// # Errors
/// Whatever the kernel answers.
pub fn holder(file: &File, bytes: LockBytes, kind: LockKind) -> io::Result<Option<LockHolder>> {
    ask(file, libc::F_OFD_GETLK, bytes, kind)
}

/// As [`holder`], but what this very description holds is told as well: asked for a POSIX lock, which conflicts with
/// every OFD lock.
///
/// # Errors
/// Whatever the kernel answers.
pub fn any_holder(file: &File, bytes: LockBytes, kind: LockKind) -> io::Result<Option<LockHolder>> {
    ask(file, libc::F_GETLK, bytes, kind)
}

fn ask(file: &File, command: libc::c_int, bytes: LockBytes, kind: LockKind) -> io::Result<Option<LockHolder>> {
    let mut lock = flock(lock_type(kind), bytes);
    fcntl(file, command, &mut lock)?;
    let kind = match libc::c_int::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => LockKind::Shared,
        _ => LockKind::Exclusive,
    };
    Ok(Some(LockHolder { kind, pid: (lock.l_pid > 0).then_some(lock.l_pid) }))
}

/// A held lock; dropping it gives the range back.
#[derive(Debug)]
pub struct LockGuard {
    file: Arc<File>,
    bytes: LockBytes,
    held: bool,
}

impl LockGuard {
    /// Takes the lock if it is free.
    ///
    /// # Errors
    /// Anything but "held by another", which is `None`.
    pub fn try_new(file: &Arc<File>, bytes: LockBytes, kind: LockKind) -> io::Result<Option<Self>> {
        Ok(try_lock(file, bytes, kind)?.then(|| Self { file: Arc::clone(file), bytes, held: true }))
    }

    /// Waits for the lock at most `wait`; `None` when others still hold it then.
    ///
    /// # Errors
    /// Whatever the kernel answers.
    pub fn within(file: &Arc<File>, bytes: LockBytes, kind: LockKind, wait: Duration) -> io::Result<Option<Self>> {
        Ok(lock_within(file, bytes, kind, wait)?.then(|| Self { file: Arc::clone(file), bytes, held: true }))
    }

    /// SHARED on the database file, as a reader takes it: PENDING shared, SHARED, PENDING given back, so that a waiting
    /// writer keeps new readers out. `None` when a writer is in the way for longer than `wait`.
    ///
    /// # Errors
    /// Whatever the kernel answers.
    pub fn shared_db(file: &Arc<File>, wait: Duration) -> io::Result<Option<Self>> {
        let start = Instant::now();
        let Some(_pending) = Self::within(file, PENDING, LockKind::Shared, wait)? else { return Ok(None) };
        Self::within(file, SHARED, LockKind::Shared, wait.saturating_sub(start.elapsed()))
    }

    /// Keeps the lock beyond this guard's life: it goes with [`unlock`] or the last close of the description.
    pub fn keep(mut self) {
        self.held = false;
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        // Unlocking a range of an open file fails only when the kernel is out of memory for splitting a lock record,
        // which these ranges never need; there is nobody to tell beside the log.
        if let Err(error) = unlock(&self.file, self.bytes) {
            tracing::error!(bytes = ?self.bytes, %error, "release a lock");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_descriptions() -> (tempfile::TempDir, Arc<File>, Arc<File>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"").unwrap();
        let open = || Arc::new(File::options().read(true).write(true).open(&path).unwrap());
        let (a, b) = (open(), open());
        (dir, a, b)
    }

    #[test]
    fn exclusive_locks_conflict_between_descriptions_and_end_with_the_guard() {
        let (_dir, a, b) = two_descriptions();
        let guard = LockGuard::try_new(&a, WRITE, LockKind::Exclusive).unwrap().unwrap();
        assert!(!try_lock(&b, WRITE, LockKind::Shared).unwrap());
        assert!(!lock_within(&b, WRITE, LockKind::Shared, Duration::from_millis(1)).unwrap());
        assert_eq!(holder(&b, WRITE, LockKind::Shared).unwrap().map(|h| h.kind), Some(LockKind::Exclusive));
        assert!(try_lock(&b, CKPT, LockKind::Exclusive).unwrap(), "the neighbour byte is free");
        drop(guard);
        assert_eq!(holder(&b, WRITE, LockKind::Exclusive).unwrap(), None);
        assert!(try_lock(&b, WRITE, LockKind::Exclusive).unwrap());
    }

    #[test]
    fn a_kept_lock_outlives_its_guard_until_unlock() {
        let (_dir, a, b) = two_descriptions();
        LockGuard::try_new(&a, DMS, LockKind::Shared).unwrap().unwrap().keep();
        assert_eq!(Arc::strong_count(&a), 1);
        assert!(!try_lock(&b, DMS, LockKind::Exclusive).unwrap());
        unlock(&a, DMS).unwrap();
        assert!(try_lock(&b, DMS, LockKind::Exclusive).unwrap());
    }

    #[test]
    fn shared_db_respects_a_waiting_writer_and_leaves_pending_free() {
        let (_dir, a, b) = two_descriptions();
        let wait = Duration::from_millis(1);
        let reader = LockGuard::shared_db(&a, wait).unwrap().unwrap();
        assert!(try_lock(&b, PENDING, LockKind::Exclusive).unwrap(), "PENDING was given back");
        assert!(!try_lock(&b, SHARED, LockKind::Exclusive).unwrap());
        drop(reader);
        assert!(LockGuard::shared_db(&a, wait).unwrap().is_none(), "a writer is waiting");
        assert!(try_lock(&b, SHARED, LockKind::Exclusive).unwrap());
    }

    #[test]
    fn sqlite_clients_see_our_locks_and_we_see_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        connection.execute_batch("PRAGMA journal_mode=delete; CREATE TABLE t(x)").unwrap();
        let file = Arc::new(File::options().read(true).write(true).open(&path).unwrap());
        let guard = LockGuard::try_new(&file, RESERVED, LockKind::Exclusive).unwrap().unwrap();
        assert!(connection.execute_batch("INSERT INTO t VALUES(1)").is_err());
        drop(guard);
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        let holder = holder(&file, RESERVED, LockKind::Exclusive).unwrap().unwrap();
        assert_eq!(holder.pid, Some(std::process::id().cast_signed()));
    }
}
