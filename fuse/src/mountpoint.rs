//! Mount points: looking at them without touching a dead mount, mounting, unmounting.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::MountError;

/// How long a mount may take to answer before it counts as hung.
const PROBE_WAIT: Duration = Duration::from_secs(5);
/// Mounts stacked on one directory that a start cleans away.
const STALE_MOUNTS_MAX: usize = 16;

/// What is mounted on a directory, as the kernel's mount table says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mounted {
    Nothing,
    Litefs,
    Other,
}

fn mounted(dir: &Path) -> io::Result<Mounted> {
    Ok(mounted_in(&std::fs::read_to_string("/proc/self/mountinfo")?, dir))
}

/// The topmost mount on a directory, from the text of `mountinfo`.
fn mounted_in(table: &str, dir: &Path) -> Mounted {
    let mut found = Mounted::Nothing;
    for line in table.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let Some(point) = mount.split(' ').nth(4) else { continue };
        if Path::new(&unescape(point)) == dir {
            found = if filesystem.starts_with("fuse.litefs ") { Mounted::Litefs } else { Mounted::Other };
        }
    }
    found
}

/// Undoes the table's octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        result.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                result.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                result.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    result + rest
}

/// The directory's absolute path without asking the directory itself, which a dead mount would refuse.
fn absolute(dir: &Path) -> io::Result<PathBuf> {
    let dir = std::path::absolute(dir)?;
    match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().unwrap_or_else(|_| parent.to_owned()).join(name)),
        _ => Ok(dir),
    }
}

/// Whether a mount answers; asked on a thread of its own, which is left behind if it does not.
fn probe(dir: &Path) -> Option<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    let dir = dir.to_owned();
    thread::spawn(move || {
        // Not `stat`: the kernel may answer that from its cache for a dead process.
        let _ = sender.send(rustix::fs::statvfs(&dir).map(|_| ()).map_err(io::Error::from));
    });
    receiver.recv_timeout(PROBE_WAIT).ok()
}

/// Makes a directory ready to be mounted on: cleans up what a crashed litefs left, creates it, wants it empty.
///
/// # Errors
/// When something lives there.
pub fn prepare(dir: &Path) -> Result<PathBuf, MountError> {
    let fail = |source| MountError::Directory { dir: dir.to_owned(), source };
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    let dir = absolute(dir).map_err(fail)?;
    clean_stale(&dir)?;
    std::fs::create_dir_all(&dir).map_err(fail)?;
    let entries = std::fs::read_dir(&dir).map_err(fail)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<io::Result<Vec<String>>>().map_err(fail)?;
    let is_empty =
        |name: &String| dir.join(name).symlink_metadata().is_ok_and(|file| file.is_file() && file.len() == 0);
    if !names.iter().all(|name| is_left_behind(name, &names) || is_empty(name)) {
        return Err(MountError::NotEmpty(dir));
    }
    if !names.is_empty() {
        tracing::warn!(dir = %dir.display(), ?names, "files of a client that went on when the mount was gone; mounting over them");
    }
    Ok(dir)
}

/// Whether a file (that is not even empty) is SQLite's beside a database that is not there: a client that had opened that before the mount went has made it
/// when it was gone. It must not keep the node from starting.
fn is_left_behind(name: &str, all: &[String]) -> bool {
    let database = ["-journal", "-wal", "-shm"].iter().find_map(|suffix| name.strip_suffix(suffix));
    database.is_some_and(|database| !all.iter().any(|other| other == database))
}

fn clean_stale(dir: &Path) -> Result<(), MountError> {
    for _ in 0..STALE_MOUNTS_MAX {
        match mounted(dir).map_err(MountError::Start)? {
            Mounted::Nothing | Mounted::Other => return Ok(()),
            Mounted::Litefs => {}
        }
        match probe(dir) {
            None => return Err(MountError::Hung(dir.to_owned())),
            Some(Ok(())) => return Err(MountError::InUse(dir.to_owned())),
            Some(Err(error)) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                tracing::info!(dir = %dir.display(), "removing the mount that a crashed litefs left");
                unmount(dir, UnmountFlags::DETACH)
                    .map_err(|error| MountError::Unmount { dir: dir.to_owned(), source: error.into() })?;
            }
            Some(Err(source)) => return Err(MountError::Directory { dir: dir.to_owned(), source }),
        }
    }
    Err(MountError::InUse(dir.to_owned()))
}

/// Mounts a FUSE file system; the returned descriptor is its connection.
///
/// # Errors
/// What is missing for it.
pub fn mount_fuse(dir: &Path, allow_other: bool) -> Result<OwnedFd, MountError> {
    let device =
        File::options().read(true).write(true).open("/dev/fuse").map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::NoFuseDevice,
            _ => MountError::FuseDevice(error),
        })?;
    let mut options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_fd().as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if allow_other {
        options.push_str(",allow_other");
    }
    let options = std::ffi::CString::new(options).map_err(|error| MountError::Start(error.into()))?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    mount("litefs", dir, "fuse.litefs", flags, options.as_c_str()).map_err(|error| match error {
        rustix::io::Errno::PERM => MountError::NoPrivilege,
        rustix::io::Errno::NODEV => MountError::NoFuseDevice,
        error => MountError::Mount { dir: dir.to_owned(), source: error.into() },
    })?;
    Ok(device.into())
}

/// Unmounts; when clients still hold files, ends the connection (they get errors) and detaches the directory.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount_or_abort(dir: &Path) -> io::Result<()> {
    match unmount(dir, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        // Not mounted any more: somebody else was faster.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::BUSY) => {
            tracing::warn!(dir = %dir.display(), "clients still hold files of the mount; they get errors from now on");
            abort(dir)
        }
        Err(error) => Err(error.into()),
    }
}

fn abort(dir: &Path) -> io::Result<()> {
    // Forcing aborts the connection first, whether or not the unmount itself then succeeds.
    match unmount(dir, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
        Err(_) => {}
    }
    match unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends a mount whose process is dead or hangs: aborts its connection, so that every waiting system call returns, and
/// detaches the directory. For the supervisor; safe when nothing is mounted. Never touches the mount's files.
///
/// # Errors
/// When the kernel refuses.
pub fn force_unmount(dir: &Path) -> io::Result<()> {
    let dir = absolute(dir)?;
    for _ in 0..STALE_MOUNTS_MAX {
        if mounted(&dir)? != Mounted::Litefs {
            return Ok(());
        }
        abort(&dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:40 / /data\\040dir rw,nosuid,nodev - fuse.litefs litefs rw,user_id=0
41 22 0:41 / /mnt rw - fuse.litefs litefs rw
42 41 0:42 / /mnt rw shared:9 master:1 - tmpfs none rw
";

    #[test]
    fn the_topmost_mount_counts() {
        assert_eq!(mounted_in(TABLE, Path::new("/data dir")), Mounted::Litefs);
        assert_eq!(mounted_in(TABLE, Path::new("/mnt")), Mounted::Other);
        assert_eq!(mounted_in(TABLE, Path::new("/data")), Mounted::Nothing);
    }

    #[test]
    fn a_directory_with_files_is_refused_and_a_missing_one_made() {
        let dir = tempfile::tempdir().expect("dir");
        let missing = dir.path().join("a/b");
        assert_eq!(prepare(&missing).expect("made").file_name(), missing.file_name());
        std::fs::write(missing.join("file-shm"), b"").expect("write");
        assert!(prepare(&missing).is_ok(), "what a client has left is no obstacle");
        std::fs::write(missing.join("file"), b"").expect("write");
        assert!(prepare(&missing).is_ok(), "nor what it has only opened");
        std::fs::write(missing.join("file"), b"content").expect("write");
        assert!(matches!(prepare(&missing), Err(MountError::NotEmpty(_))));
        assert!(matches!(prepare(&missing.join("file")), Err(MountError::Directory { .. })));
        force_unmount(&missing).expect("nothing is mounted: nothing happens");
    }
}
