//! The node's own process is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use litefs_fuse::Passthrough;

use crate::harness::{Node, eventually, python, read_line, sqlite3};
use crate::lifecycle::is_mounted;
use crate::processes::WRITER;

/// Run by [`Holder`] in a process of its own.
#[test]
#[ignore = "run by other tests as the process that is killed"]
fn hold_a_mount_until_killed() {
    let dir = std::env::var_os("LITEFS_TEST_DIR").expect("set by the parent");
    let parent = PathBuf::from(dir);
    let holder = tempfile::Builder::new().prefix("node").disable_cleanup(true).tempdir_in(&parent).expect("dir");
    fs::write(parent.join("path"), holder.path().to_str().expect("text")).expect("write");
    let node = Node::start_in(holder, Passthrough::Auto).expect("mount");
    fs::write(node.path("file"), "x").expect("write");
    fs::write(parent.join("ready"), "").expect("write");
    loop {
        std::thread::park();
    }
}

/// A node in another process.
struct Holder {
    parent: tempfile::TempDir,
    process: Child,
    dir: PathBuf,
}

impl Holder {
    fn start() -> Self {
        let parent = tempfile::tempdir().expect("dir");
        let process = Command::new(std::env::current_exe().expect("this test"))
            .args(["--ignored", "--exact", "killed_node::hold_a_mount_until_killed"])
            .env("LITEFS_TEST_DIR", parent.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("start");
        eventually("it is mounted", || parent.path().join("ready").exists());
        let dir = fs::read_to_string(parent.path().join("path")).expect("path").into();
        Self { parent, process, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join("mnt").join(name)
    }

    fn kill(&mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
        eventually("the connection is dead", || rustix::fs::statvfs(self.dir.join("mnt")).is_err());
    }

    /// The same directories in this process.
    fn start_again(&self) -> Node {
        let again = tempfile::Builder::new().prefix("again").tempdir_in(self.parent.path()).expect("dir");
        fs::remove_dir(again.path()).expect("rmdir");
        std::os::unix::fs::symlink(&self.dir, again.path()).expect("link");
        Node::start_in(again, Passthrough::Auto).expect("mount over the stale one")
    }
}

#[test]
fn the_mount_of_a_killed_process_is_cleaned_at_start() {
    let mut holder = Holder::start();
    holder.kill();
    assert!(is_mounted(&holder.dir.join("mnt")));
    let node = holder.start_again();
    assert_eq!(fs::read_to_string(node.path("file")).expect("read"), "x");
    drop(node.stop());
    assert!(!is_mounted(&holder.dir.join("mnt")));
}

#[test]
fn a_killed_node_loses_no_acknowledged_commit() {
    for mode in ["wal", "delete"] {
        let mut holder = Holder::start();
        let path = holder.path("a.db");
        sqlite3(&path, &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(who,i,y)"));
        let mut writers: Vec<Child> = ["0", "1"].map(|who| python(WRITER, &[&path, Path::new(who)])).into();
        let mut last = Vec::new();
        for writer in &mut writers {
            last.push((0..20).map(|_| read_line(writer)).last().expect("a commit"));
        }
        holder.kill();
        for writer in &mut writers {
            // It may be between two calls; with passthrough it could go on for a while.
            writer.kill().expect("kill");
            writer.wait().expect("wait");
        }
        let node = holder.start_again();
        assert_eq!(sqlite3(&node.path("a.db"), "PRAGMA integrity_check"), "ok", "{mode}");
        for (who, last) in last.iter().enumerate() {
            let count: u32 =
                sqlite3(&node.path("a.db"), &format!("SELECT count(*) FROM t WHERE who='{who}' AND i<={last}"))
                    .parse()
                    .expect("a number");
            assert_eq!(count, last.parse::<u32>().expect("a number") + 1, "{mode}: a commit is lost");
        }
        sqlite3(&node.path("a.db"), "INSERT INTO t VALUES('after',0,0)");
        node.verify("a.db");
        drop(node.stop());
    }
}
