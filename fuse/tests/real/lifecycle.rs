//! Starting, stopping, dying.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use litefs_fuse::{MountError, Passthrough, force_unmount};

use crate::harness::{Node, PATIENCE, eventually, python, read_line};

fn is_mounted(dir: &std::path::Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
    table.lines().any(|line| line.contains(dir.to_str().expect("text")))
}

#[test]
fn a_clean_stop_leaves_nothing_mounted() {
    let node = Node::start();
    node.open("a.db").execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    let dead = node.dead.clone();
    let dir = node.stop();
    assert!(!is_mounted(dir.path()));
    assert_eq!(fs::read_dir(dir.path().join("mnt")).expect("list").count(), 0);
    assert!(dead.try_recv().is_err(), "a wanted end is no death");
}

#[test]
fn unmounting_does_not_wait_for_clients_with_open_files() {
    let node = Node::start();
    fs::write(node.path("file"), "x").expect("write");
    let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\nc.execute('PRAGMA journal_mode=WAL')\n\
                  c.execute('CREATE TABLE t(x)')\nprint('ready',flush=True)\nsys.stdin.readline()\n\
                  try: c.execute('SELECT * FROM t').fetchall(); c.execute('INSERT INTO t VALUES(1)'); c.commit(); print('ok')\n\
                  except sqlite3.Error as e: print('error')";
    let mut client = python(script, &[&node.path("a.db")]);
    assert_eq!(read_line(&mut client), "ready");
    let file = File::open(node.path("file")).expect("open");
    let dir = node.stop();
    assert!(!is_mounted(dir.path()));
    assert!(file.read_at(&mut [0; 1], 5000).is_err());
    client.stdin.as_mut().expect("piped").write_all(b"\n").expect("tell");
    // It may have everything it needs in its caches; it must not hang.
    let printed = read_line(&mut client);
    assert!(printed == "error" || printed == "ok", "{printed}");
    client.wait().expect("wait");
}

#[test]
fn a_directory_in_use_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("dir");
    fs::create_dir(dir.path().join("mnt")).expect("mkdir");
    fs::write(dir.path().join("mnt/file"), "x").expect("write");
    let Err(MountError::NotEmpty(_)) = Node::start_in(dir, Passthrough::Auto) else { panic!("must be refused") };
}

#[test]
fn a_dead_connection_is_reported() {
    let node = Node::start();
    force_unmount(&node.dir()).expect("force");
    let why = node.dead.recv_timeout(PATIENCE).expect("reported");
    assert!(why.contains("main mount"), "{why}");
    let dir = node.stop();
    assert!(!is_mounted(dir.path()));
}

/// Run by [`the_mount_of_a_killed_process_is_cleaned_at_start`] in a process of its own.
#[test]
#[ignore = "run by another test as the process that is killed"]
fn hold_a_mount_until_killed() {
    let dir = std::env::var_os("LITEFS_TEST_DIR").expect("set by the parent");
    let parent = std::path::PathBuf::from(dir);
    let holder = tempfile::Builder::new().prefix("node").disable_cleanup(true).tempdir_in(&parent).expect("dir");
    fs::write(parent.join("path"), holder.path().to_str().expect("text")).expect("write");
    let node = Node::start_in(holder, Passthrough::Auto).expect("mount");
    fs::write(node.path("file"), "x").expect("write");
    fs::write(parent.join("ready"), "").expect("write");
    loop {
        std::thread::park();
    }
}

#[test]
fn the_mount_of_a_killed_process_is_cleaned_at_start() {
    let parent = tempfile::tempdir().expect("dir");
    let mut holder = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "lifecycle::hold_a_mount_until_killed"])
        .env("LITEFS_TEST_DIR", parent.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("start");
    eventually("it is mounted", || parent.path().join("ready").exists());
    let dir = fs::read_to_string(parent.path().join("path")).expect("path");
    holder.kill().expect("kill");
    holder.wait().expect("wait");
    let mount = std::path::Path::new(&dir).join("mnt");
    eventually("the connection is dead", || rustix::fs::statvfs(&mount).is_err());
    assert!(is_mounted(&mount));
    // The same directories, in a new process as it were.
    let again = tempfile::Builder::new().prefix("again").tempdir_in(parent.path()).expect("dir");
    fs::remove_dir(again.path()).expect("rmdir");
    std::os::unix::fs::symlink(&dir, again.path()).expect("link");
    let node = Node::start_in(again, Passthrough::Auto).expect("mount over the stale one");
    assert_eq!(fs::read_to_string(node.path("file")).expect("read"), "x");
    drop(node.stop());
    assert!(!is_mounted(&mount));
}

#[test]
fn two_mounts_on_one_directory_are_refused() {
    let node = Node::start();
    let dir = tempfile::tempdir().expect("dir");
    std::os::unix::fs::symlink(node.dir().parent().expect("parent").join("mnt"), dir.path().join("mnt")).ok();
    fs::remove_file(dir.path().join("mnt")).expect("remove");
    let options = litefs_fuse::MountOptions {
        dir: node.dir(),
        control_dir: dir.path().join("control"),
        allow_other: false,
        passthrough: Passthrough::Auto,
        on_dead: std::sync::Arc::new(|_| ()),
    };
    let (info, halts) = (node.info.clone(), node.halts.clone());
    let Err(MountError::InUse(_)) = litefs_fuse::Mount::start(options, node.store.clone(), info, halts) else {
        panic!("must be refused")
    };
    fs::write(node.path("file"), "x").expect("the first one lives on");
}
