//! Starting, stopping, dying.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use litefs_fuse::{MountError, Passthrough, force_unmount};

use crate::harness::{Node, PATIENCE, python, read_line};

pub fn is_mounted(dir: &std::path::Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
    table.lines().any(|line| line.contains(dir.to_str().expect("text")))
}

#[test]
fn a_clean_stop_leaves_nothing_mounted() {
    let node = Node::start();
    node.open("a.db").execute("PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
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

#[test]
fn two_mounts_on_one_directory_are_refused() {
    let node = Node::start();
    let dir = tempfile::tempdir().expect("dir");
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
