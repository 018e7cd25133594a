//! Disks that are really full, or read-only.

use std::fs;
use std::path::Path;

use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

const LEFT_BYTES: u64 = 3 << 20;

/// A small disk under a node's data directory; unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Self {
        fs::create_dir_all(at).expect("folder");
        mount("none", at, "tmpfs", MountFlags::empty(), Some(c"size=24m")).expect("mount a tmpfs");
        Self(at)
    }

    /// Fills what is left, but for a little that clients may use up.
    fn fill(&self) {
        let mut chunk = 1 << 20;
        let mut file = fs::File::create(self.0.join("ballast")).expect("create");
        while chunk > 0 {
            if std::io::Write::write_all(&mut file, &vec![1; chunk]).is_err() {
                chunk /= 2;
            }
        }
        let len = file.metadata().expect("metadata").len();
        file.set_len(len - LEFT_BYTES).expect("cut");
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).expect("remove");
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

fn rows(node: &Node, name: &str) -> u64 {
    let text = eventually("the database can be read", || cli(&node.db(name), "SELECT count(*) FROM t").ok());
    text.parse().expect("a number")
}

/// Inserts until the disk is full; how many were acknowledged.
fn insert_until_full(node: &Node, name: &str) -> u64 {
    let mut acknowledged = 0;
    for _ in 0..1000 {
        match cli(&node.db(name), "INSERT INTO t VALUES(randomblob(100000))") {
            Ok(_) => acknowledged += 1,
            Err(error) => {
                assert!(error.contains("full") || error.contains("I/O") || error.contains("open"), "{error}");
                return acknowledged;
            }
        }
    }
    panic!("the disk does not get full")
}

#[test]
fn a_full_disk_costs_no_acknowledged_commit_and_heals() {
    for mode in ["WAL", "DELETE"] {
        let mut node = Node::new(NodeConfig::default());
        let data = node.data();
        let disk = SmallDisk::mount(&data);
        node.launch();
        node.wait_ready();
        let sql = format!("PRAGMA journal_mode={mode}; CREATE TABLE t(x)");
        cli(&node.db("a.db"), &sql).expect("create");
        cli(&node.db("a.db"), "INSERT INTO t VALUES(randomblob(100000))").expect("insert");
        disk.fill();
        let acknowledged = 1 + insert_until_full(&node, "a.db");
        assert!(acknowledged > 1, "{mode}: there was room for some");
        // Also at a start. (Whether SQLite can read a WAL database on a full disk is its own affair: it needs room for a shm.)
        node.kill();
        node.launch();
        node.wait_ready();
        let _ = cli(&node.db("a.db"), "INSERT INTO t VALUES(randomblob(1000000))");
        disk.make_room();
        eventually("it goes on", || cli(&node.db("a.db"), "INSERT INTO t VALUES(1)").ok());
        eventually("it is healthy", || (node.get("/info").ok()?.json()["health"] == "ok").then_some(()));
        assert!(rows(&node, "a.db") > acknowledged, "{mode}: after a start on a full disk");
        assert_eq!(node.get("/export?name=a.db").expect("export").status, 200);
        node.kill();
        node.launch();
        node.wait_ready();
        assert!(rows(&node, "a.db") > acknowledged, "{mode}: after another kill");
        assert_eq!(cli(&node.db("a.db"), "PRAGMA integrity_check").as_deref(), Ok("ok"));
        node.stop();
    }
}

#[test]
fn a_data_directory_that_becomes_read_only_costs_no_acknowledged_commit() {
    let mut node = Node::new(NodeConfig::default());
    let data = node.data();
    let disk = SmallDisk::mount(&data);
    node.launch();
    node.wait_ready();
    cli(&node.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("create");
    node.stop();
    mount_remount(disk.0, MountFlags::RDONLY, "").expect("remount");
    node.launch();
    // It says what is wrong and ends, or serves what it can; it does not damage anything.
    eventually("the start ends", || {
        (node.has_ended() || node.log_of_this_start().contains("node is ready")).then_some(())
    });
    let log = node.log_of_this_start();
    assert!(log.contains("Read-only file system") || log.contains("read-only"), "{log}");
    node.kill();
    mount_remount(disk.0, MountFlags::empty(), "").expect("remount");
    node.launch();
    node.wait_ready();
    assert_eq!(rows(&node, "a.db"), 1);
    cli(&node.db("a.db"), "INSERT INTO t VALUES(2)").expect("it goes on");
    node.stop();
}
