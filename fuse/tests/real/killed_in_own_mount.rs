//! A process is killed while it waits for its own mount, which has read the request and will not answer it any more.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Config, FileAttr, FileType, Filesystem, Generation, INodeNo, OpenFlags, ReplyAttr, ReplyEntry, ReplyOpen, Request,
    Session, SessionACL,
};
use litefs_fuse::{Openers, force_unmount};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};

use crate::harness::eventually;

/// Set by hand: the file is opened by a thread that shares its descriptors with all others, and the test fails.
const WITHOUT_OPENER: &str = "LITEFS_TEST_WITHOUT_OPENER";
/// The process has nothing to wait for.
const END_AT_MOST: Duration = Duration::from_secs(30);

/// Has one file, and never answers its open.
struct Silent {
    reached: PathBuf,
}

fn attributes(ino: INodeNo, kind: FileType) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Silent {
    fn lookup(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.entry(&END_AT_MOST, &attributes(INodeNo(2), FileType::RegularFile), Generation(0));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<fuser::FileHandle>, reply: ReplyAttr) {
        let kind = if ino == INodeNo::ROOT { FileType::Directory } else { FileType::RegularFile };
        reply.attr(&END_AT_MOST, &attributes(ino, kind));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        std::mem::forget(reply);
        fs::write(&self.reached, "").expect("write");
    }
}

#[test]
#[ignore = "run by other tests as the process that is killed"]
fn wait_for_the_own_mount_until_killed() {
    let parent = PathBuf::from(std::env::var_os("LITEFS_TEST_DIR").expect("set by the parent"));
    let dir = parent.join("mnt");
    let openers = Openers::start().expect("start");
    let device = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = std::ffi::CString::new(options).expect("text");
    mount("litefs", &dir, "fuse.litefs", MountFlags::NODEV, options.as_c_str()).expect("mount");
    let silent = Silent { reached: parent.join("reached") };
    let session = Session::from_fd(silent, device.into(), SessionACL::Owner, Config::default()).expect("session");
    let _session = session.spawn().expect("threads");
    let file = dir.join("file");
    if std::env::var_os(WITHOUT_OPENER).is_some() {
        let _ = File::open(&file);
    } else {
        let _ = openers.open(None, &file, OFlags::RDWR | OFlags::CLOEXEC);
    }
    panic!("the open was answered");
}

/// Takes the mount away, which also frees a process that hangs in it.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = force_unmount(self.0);
    }
}

#[test]
fn a_process_killed_while_it_opens_a_file_of_its_own_mount_ends() {
    let parent = tempfile::tempdir().expect("dir");
    let dir = parent.path().join("mnt");
    fs::create_dir(&dir).expect("mkdir");
    let _unmount = Unmount(&dir);
    let mut process = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "killed_in_own_mount::wait_for_the_own_mount_until_killed"])
        .env("LITEFS_TEST_DIR", parent.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("start");
    eventually("the file is being opened", || parent.path().join("reached").exists());
    process.kill().expect("kill");
    let deadline = Instant::now() + END_AT_MOST;
    while process.try_wait().expect("wait").is_none() {
        assert!(Instant::now() < deadline, "the killed process hangs in its own mount");
        std::thread::sleep(Duration::from_millis(10));
    }
}
