//! File attributes as FUSE wants them.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rustix::fs::{Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

/// How long the kernel may keep what only changes through itself or with a notification.
pub const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// The attributes of a backing file, under our inode number.
#[must_use]
pub fn from_metadata(ino: u64, kind: FileType, meta: &Metadata) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: meta.len(),
        blocks: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind,
        perm: (meta.mode() & 0o7777) as u16,
        nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The attributes of a file the node makes up.
#[must_use]
pub fn made_up(ino: u64, kind: FileType, perm: u16, size: u64, at: SystemTime) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: 0,
        atime: at,
        mtime: at,
        ctime: at,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// What `entry` needs to tell the kernel that a name does not exist.
#[must_use]
pub fn negative() -> FileAttr {
    made_up(0, FileType::RegularFile, 0, 0, UNIX_EPOCH)
}

fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let nanoseconds = Duration::from_nanos(nanoseconds.unsigned_abs());
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

/// What a client changes of a file besides its size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<TimeOrNow>,
    /// Last modification.
    pub mtime: Option<TimeOrNow>,
}

impl Changes {
    /// Makes the changes on a backing file or directory.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn apply(&self, file: &File) -> io::Result<()> {
        if self.uid.is_some() || self.gid.is_some() {
            rustix::fs::fchown(file, self.uid.map(Uid::from_raw), self.gid.map(Gid::from_raw))?;
        }
        if let Some(mode) = self.mode {
            rustix::fs::fchmod(file, Mode::from_bits_truncate(mode & 0o7777))?;
        }
        if self.atime.is_some() || self.mtime.is_some() {
            let times = Timestamps { last_access: timespec(self.atime), last_modification: timespec(self.mtime) };
            rustix::fs::futimens(file, &times)?;
        }
        Ok(())
    }
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(at)) => match at.duration_since(UNIX_EPOCH) {
            Ok(after) => Timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: after.subsec_nanos().into(),
            },
            Err(before) => Timespec {
                tv_sec: i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
                tv_nsec: 0,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_reach_the_file_and_come_back_as_attributes() {
        let file = tempfile::tempfile().expect("file");
        let at = UNIX_EPOCH + Duration::new(1_000_000_000, 500);
        let changes = Changes { mode: Some(0o100_640), mtime: Some(TimeOrNow::SpecificTime(at)), ..Changes::default() };
        changes.apply(&file).expect("apply");
        let attr = from_metadata(7, FileType::RegularFile, &file.metadata().expect("metadata"));
        assert_eq!((attr.ino.0, attr.perm, attr.mtime), (7, 0o640, at));
    }
}
