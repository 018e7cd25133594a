//! The OS calls by which the engine changes files, each with a label (`<what>.<operation>`) that names it in errors and
//! lets tests make it fail ([`crate::fault`]).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::fault;

/// Bytes copied at once.
const COPY_BYTES: usize = 256 << 10;

/// Adds the label to an error and keeps its errno reachable: SQLite is answered by errno.
fn labelled(label: &'static str, error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        // An `io::Error` holds either an errno or a text; the errno decides what SQLite is told.
        Some(errno) => {
            tracing::debug!(label, errno, "file operation failed");
            io::Error::from_raw_os_error(errno)
        }
        None => io::Error::new(error.kind(), format!("{label}: {error}")),
    }
}

fn run<T>(label: &'static str, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    fault::check(label).and_then(|()| operation()).map_err(|error| labelled(label, &error))
}

/// Writes all of `data` at `offset`.
pub(crate) fn write_all_at(label: &'static str, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    let write = || {
        let len = fault::check_write(label, data.len())?;
        file.write_all_at(&data[..len], offset)?;
        if len < data.len() { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    };
    write().map_err(|error| labelled(label, &error))
}

/// Creates a file that must not be there yet.
pub(crate) fn create_new(label: &'static str, path: &Path) -> io::Result<File> {
    run(label, || File::options().read(true).write(true).create_new(true).open(path))
}

/// Writes everything that `source` gives to `file`, from its beginning.
pub(crate) fn copy(label: &'static str, source: &mut dyn Read, file: &File) -> io::Result<u64> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut len = 0;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return Ok(len),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        write_all_at(label, file, &buffer[..count], len)?;
        len += count as u64;
    }
}

/// Writes behind the end of the file, wherever that is at this instant. On a full disk part of it may be written.
pub(crate) fn append(label: &'static str, file: &File, data: &[u8]) -> io::Result<()> {
    let write = || {
        let len = fault::check_write(label, data.len())?;
        let flags = rustix::io::ReadWriteFlags::APPEND;
        rustix::io::pwritev2(file, &[io::IoSlice::new(&data[..len])], 0, flags)?;
        if len < data.len() { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    };
    write().map_err(|error| labelled(label, &error))
}

/// Bytes that an ordinary process may still use on the file's file system.
pub(crate) fn free_bytes(file: &File) -> io::Result<u64> {
    let found = rustix::fs::fstatvfs(file)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Makes the file's bytes durable (`fdatasync`).
pub(crate) fn sync_data(label: &'static str, file: &File) -> io::Result<()> {
    run(label, || file.sync_data())
}

/// Copies a whole file; where the file system can (XFS, Btrfs), both share their blocks and nothing is copied.
pub(crate) fn copy_file(label: &'static str, mut source: &File, file: &File) -> io::Result<()> {
    match rustix::fs::ioctl_ficlone(file, source) {
        Ok(()) => Ok(()),
        Err(_) => copy(label, &mut source, file).map(drop),
    }
}

/// Lets the kernel begin to write this range of bytes to the disk, so that a sync later finds it there. Best effort.
pub fn start_writing_back(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else { return };
    // SAFETY: takes an open descriptor and integers.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Runs two operations at the same time, `second` on a thread of its own: file systems combine concurrent syncs. (One after the other
/// in unit tests, whose faults are those of a thread.)
pub(crate) fn both<A, B: Send>(first: impl FnOnce() -> A, second: impl FnOnce() -> B + Send) -> io::Result<(A, B)> {
    if cfg!(test) {
        return Ok((first(), second()));
    }
    std::thread::scope(|scope| {
        let second = std::thread::Builder::new().name("sync".into()).spawn_scoped(scope, second)?;
        let first = first();
        let second = second.join().map_err(|_| io::Error::other("a thread that syncs panicked"))?;
        Ok((first, second))
    })
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(label: &'static str, dir: &Path) -> io::Result<()> {
    run(label, || File::open(dir)?.sync_all())
}

/// The inode number by which the kernel knows an open file. The file system is not asked: that of our own mount is this process,
/// and who waits for itself cannot be killed (ENGINE "Never wait on our own mount").
pub(crate) fn known_ino(file: &File) -> io::Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(file, c"", flags, StatxFlags::INO)?.stx_ino)
}

/// Cuts or grows the file.
pub(crate) fn set_len(label: &'static str, file: &File, len: u64) -> io::Result<()> {
    run(label, || file.set_len(len))
}

/// Opens for reading and writing, creating it when it is missing.
pub(crate) fn open_or_create(label: &'static str, path: &Path) -> io::Result<File> {
    run(label, || File::options().read(true).write(true).create(true).truncate(false).open(path))
}

/// Renames within one file system.
pub(crate) fn rename(label: &'static str, from: &Path, to: &Path) -> io::Result<()> {
    run(label, || fs::rename(from, to))
}

/// Removes a file; that it is missing already is no error.
pub(crate) fn remove_file(label: &'static str, path: &Path) -> io::Result<()> {
    run(label, || match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    })
}

/// Reads into all of `buffer`; what lies beyond the end of the file reads as zeros, as SQLite takes it.
pub(crate) fn read_or_zero_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => {
                buffer[filled..].fill(0);
                return Ok(());
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
