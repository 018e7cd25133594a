//! Names, ordinary files, special files, errnos, modes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::Ordering;

use litefs::FileKind;

use crate::harness::{Node, eventually};

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("must fail").raw_os_error().expect("an errno")
}

#[test]
fn ordinary_files_work_and_are_not_databases() {
    let node = Node::start();
    let path = node.path("notes.txt");
    fs::write(&path, "one").expect("write");
    let mut file = File::options().read(true).append(true).open(&path).expect("open");
    file.write_all(b" two").expect("append");
    file.sync_all().expect("sync");
    assert_eq!(fs::read_to_string(&path).expect("read"), "one two");
    file.set_len(3).expect("truncate");
    assert_eq!(fs::metadata(&path).expect("stat").len(), 3);
    assert!(node.store.database("notes.txt").is_none());
    fs::rename(&path, node.path("other.txt")).expect("rename");
    assert_eq!(fs::read_to_string(node.path("other.txt")).expect("read"), "one");
    assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
    fs::remove_file(node.path("other.txt")).expect("remove");
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("an open file outlives its name");
    assert_eq!(text, "one");
}

#[test]
fn what_the_engine_tells_late_of_a_deleted_database_does_not_concern_the_new_file_of_its_name() {
    let node = Node::start();
    let path = node.path("a.db");
    node.open("a.db").execute("CREATE TABLE old(x)").expect("create");
    fs::remove_file(&path).expect("remove");
    // Open, but nothing is written yet: an ordinary file.
    let connection = node.open("a.db");
    connection.execute("SELECT 1 FROM sqlite_schema").expect("opens the file");
    let inode = fs::metadata(&path).expect("stat").ino();
    node.mount().kernel().invalidate_entry(&"a.db".parse().expect("name"), FileKind::Database);
    connection.execute("CREATE TABLE t(x)").expect("the first transaction");
    assert_eq!(fs::metadata(&path).expect("stat").ino(), inode);
    connection
        .execute("INSERT INTO t VALUES(1)")
        .expect("the second one, for which SQLite looks whether its file was moved");
    node.verify("a.db");
}

#[test]
fn a_wal_that_went_with_its_database_can_be_deleted_by_who_still_sees_it() {
    let node = Node::start();
    let connection = node.open("a.db");
    connection.execute("PRAGMA journal_mode=wal; CREATE TABLE t(x)").expect("create");
    for name in ["a.db-wal", "a.db-shm", "a.db-journal"] {
        // The kernel knows the name, and is not told that the file is gone.
        let path = node.path(name);
        if name == "a.db-journal" {
            fs::write(&path, "").expect("create");
        }
        let backing = node.store.config().data_dir.join("dbs/a.db").join(&name["a.db-".len()..]);
        fs::metadata(&path).expect("look up");
        fs::remove_file(backing).expect("remove");
        assert!(path.exists(), "{name} is in the kernel's cache");
        let result = fs::remove_file(&path);
        if name == "a.db-journal" {
            assert_eq!(errno(result), libc::ENOENT, "its end would be a commit");
        } else {
            result.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!path.exists(), "{name}");
        }
    }
}

#[test]
fn listing_shows_databases_with_their_positions_and_ordinary_files() {
    let node = Node::start();
    node.open("app.db").execute("PRAGMA journal_mode=WAL; CREATE TABLE t(x)").expect("create");
    let connection = node.open("app.db");
    connection.execute("INSERT INTO t VALUES(1)").expect("insert");
    fs::write(node.path(".hidden"), "x").expect("write");
    let names: BTreeSet<String> = fs::read_dir(node.dir())
        .expect("list")
        .map(|entry| {
            let entry = entry.expect("entry");
            assert!(entry.file_type().expect("type").is_file());
            entry.file_name().into_string().expect("text")
        })
        .collect();
    let expected = [".hidden", ".lag", "app.db", "app.db-pos", "app.db-shm", "app.db-wal"];
    assert_eq!(names, expected.map(String::from).into());
    let listed = fs::read_dir(node.dir()).expect("list").map(|entry| entry.expect("entry"));
    for entry in listed {
        use std::os::unix::fs::DirEntryExt;
        assert_eq!(entry.ino(), entry.metadata().expect("stat").ino(), "{:?}", entry.file_name());
    }
}

#[test]
fn special_files_say_what_the_node_says() {
    let node = Node::start();
    assert_eq!(fs::read_to_string(node.path(".lag")).expect("lag"), "+000000000\n");
    node.info.lag_ms.store(1234, Ordering::Relaxed);
    assert_eq!(fs::read_to_string(node.path(".lag")).expect("lag"), "+000001234\n");
    assert_eq!(errno(fs::read(node.path(".primary"))), libc::ENOENT);
    *node.info.primary.lock() = Some("node-a".into());
    assert_eq!(fs::read_to_string(node.path(".primary")).expect("primary"), "node-a\n");
    *node.info.primary.lock() = None;
    assert_eq!(errno(fs::read(node.path(".primary"))), libc::ENOENT);

    assert_eq!(errno(fs::read(node.path("app.db-pos"))), libc::ENOENT);
    let connection = node.open("app.db");
    connection.execute("CREATE TABLE t(x)").expect("create");
    let before = fs::read_to_string(node.path("app.db-pos")).expect("position");
    assert_eq!(before.len(), 34);
    connection.execute("INSERT INTO t VALUES(1)").expect("insert");
    let after = fs::read_to_string(node.path("app.db-pos")).expect("position");
    assert_eq!(after.trim_end(), node.database("app.db").pos().to_string());
    assert!(after > before, "{before} then {after}");
    assert_eq!(fs::metadata(node.path("app.db-pos")).expect("stat").len(), 34);
    let target = fs::read_link(node.path("app.db-lock")).expect("link");
    assert_eq!(target, node.control_dir().canonicalize().expect("path").join("app.db-lock"));
    for special in [".lag", "app.db-pos", "app.db-lock"] {
        assert_eq!(errno(fs::remove_file(node.path(special))), libc::EPERM, "{special}");
    }
    assert!(matches!(errno(File::create(node.path("x-pos"))), libc::EACCES | libc::EINVAL));
}

#[test]
fn what_cannot_be_has_a_clear_errno() {
    let node = Node::start();
    node.open("app.db").execute("CREATE TABLE t(x)").expect("create");
    fs::write(node.path("file"), "x").expect("write");
    assert_eq!(errno(fs::create_dir(node.path("sub"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(node.path("file"), node.path("link"))), libc::EPERM);
    assert_eq!(errno(std::os::unix::fs::symlink("x", node.path("link"))), libc::EPERM);
    assert_eq!(errno(fs::rename(node.path("file"), node.path("app.db"))), libc::EPERM);
    assert_eq!(errno(fs::rename(node.path("app.db"), node.path("b.db"))), libc::EPERM);
    assert_eq!(errno(File::create(node.path("a\nb"))), libc::EINVAL);
    assert_eq!(errno(File::create(node.dir().join(OsStr::from_bytes(b"\xff")))), libc::EINVAL);
    assert_eq!(errno(File::create(node.path(&"x".repeat(201)))), libc::ENAMETOOLONG);
    assert_eq!(errno(File::create(node.path(&"x".repeat(300)))), libc::ENAMETOOLONG);
    assert_eq!(errno(File::create(node.path("nothing-wal"))), libc::ENOENT);
    assert_eq!(errno(File::open(node.path("nothing"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_file(node.path("nothing"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(node.path("file"))), libc::ENOTDIR);
    assert_eq!(errno(File::create_new(node.path("file"))), libc::EEXIST);
    let unnamed = File::options().write(true).custom_flags(libc::O_TMPFILE).open(node.dir());
    assert_eq!(errno(unnamed), libc::EOPNOTSUPP);
    let path = std::ffi::CString::new(node.path("file").as_os_str().as_bytes()).expect("path");
    // SAFETY: the path and the name are NUL-terminated, the value has the length given.
    let code = unsafe { libc::setxattr(path.as_ptr(), c"user.x".as_ptr(), b"1".as_ptr().cast(), 1, 0) };
    assert_eq!((code, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EOPNOTSUPP)));
}

#[test]
fn the_engines_directory_is_hidden_and_leads_to_database_files_only() {
    let node = Node::start();
    fs::write(node.path("plain"), "x").expect("write");
    let alias = node.path(".litefs-engine");
    assert_eq!(fs::metadata(&alias).expect("stat").permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(&alias).expect("list").count(), 0);
    assert_eq!(errno(File::create(alias.join("new"))), libc::EPERM);
    assert_eq!(errno(fs::remove_file(alias.join("plain"))), libc::EPERM);
    assert_eq!(errno(fs::remove_dir(&alias)), libc::EPERM);
}

#[test]
fn modes_owners_and_times_are_the_clients() {
    let node = Node::start();
    let path = node.path("file");
    let file = File::options().write(true).create_new(true).mode(0o640).open(&path).expect("create");
    assert_eq!(file.metadata().expect("stat").permissions().mode() & 0o777, 0o640);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    std::os::unix::fs::chown(&path, Some(12345), Some(54321)).expect("chown");
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
    file.set_modified(at).expect("utimens");
    let meta = fs::metadata(&path).expect("stat");
    assert_eq!((meta.permissions().mode() & 0o777, meta.uid(), meta.gid()), (0o600, 12345, 54321));
    assert_eq!(meta.modified().expect("time"), at);
    assert_eq!(fs::metadata(node.dir()).expect("stat").permissions().mode() & 0o777, 0o777);

    // SQLite gives its WAL and index the database's mode and owner.
    let connection = node.open("app.db");
    connection.execute("CREATE TABLE t(x)").expect("create");
    fs::set_permissions(node.path("app.db"), fs::Permissions::from_mode(0o660)).expect("chmod");
    std::os::unix::fs::chown(node.path("app.db"), Some(12345), Some(54321)).expect("chown");
    connection.execute("PRAGMA journal_mode=WAL; INSERT INTO t VALUES(1)").expect("write");
    for name in ["app.db-wal", "app.db-shm"] {
        let meta = fs::metadata(node.path(name)).expect("stat");
        assert_eq!((meta.permissions().mode() & 0o777, meta.uid()), (0o660, 12345), "{name}");
    }
}

#[test]
fn permissions_are_checked_for_other_users() {
    let node = Node::start();
    fs::set_permissions(node.dir().parent().expect("parent"), fs::Permissions::from_mode(0o755)).expect("chmod");
    let secret = node.path("secret");
    fs::write(&secret, "x").expect("write");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
    let script = "import os,sys\nos.setuid(12345)\n\
                  try: open(sys.argv[1]); sys.exit(1)\nexcept PermissionError: pass\n\
                  open(sys.argv[2],'w').write('mine')\nprint(os.stat(sys.argv[2]).st_uid)";
    let child = crate::harness::python(script, &[&secret, &node.path("mine")]);
    assert_eq!(crate::harness::succeeds(child).trim(), "12345");
}

#[test]
fn the_file_system_reports_the_data_directorys_room() {
    let node = Node::start();
    let here = rustix::fs::statvfs(node.dir()).expect("statvfs");
    let there = rustix::fs::statvfs(node.store.config().data_dir.clone()).expect("statvfs");
    assert_eq!((here.f_blocks, here.f_frsize), (there.f_blocks, there.f_frsize));
}

#[test]
fn directory_changes_can_be_synced() {
    let node = Node::start();
    fs::write(node.path("file"), "x").expect("write");
    File::open(node.dir()).expect("open").sync_all().expect("sync the directory");
    fs::remove_file(node.path("file")).expect("remove");
    File::open(node.dir()).expect("open").sync_all().expect("sync the directory");
}

#[test]
fn a_database_copied_into_the_mount_becomes_one() {
    let node = Node::start();
    let source = tempfile::tempdir().expect("dir");
    let original = source.path().join("x.db");
    let connection = rusqlite::Connection::open(&original).expect("open");
    connection
        .execute_batch(
            "CREATE TABLE t(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 20000)
             INSERT INTO t SELECT hex(randomblob(50)) FROM n",
        )
        .expect("fill");
    drop(connection);
    for command in ["cp", "dd"] {
        let name = format!("{command}.db");
        let target = node.path(&name);
        let mut process = std::process::Command::new(command);
        match command {
            "cp" => process.arg(&original).arg(&target),
            _ => {
                process.arg(format!("if={}", original.display())).arg(format!("of={}", target.display())).arg("bs=1000")
            }
        };
        assert!(process.stderr(std::process::Stdio::null()).status().expect("run").success());
        assert_eq!(fs::read(&target).expect("read"), fs::read(&original).expect("read"));
        eventually("the copy is captured", || !node.database(&name).pos().is_zero());
        node.verify(&name);
        assert_eq!(node.database(&name).pos().txid.0, 1, "one import, one transaction");
    }
}

#[test]
fn a_database_renamed_into_its_name_becomes_one() {
    let node = Node::start();
    let source = tempfile::tempdir().expect("dir");
    let original = source.path().join("x.db");
    rusqlite::Connection::open(&original).expect("open").execute_batch("CREATE TABLE t(x)").expect("fill");
    // As rsync does it.
    fs::copy(&original, node.path(".x.db.tmp")).expect("copy");
    fs::rename(node.path(".x.db.tmp"), node.path("x.db")).expect("rename");
    eventually("the database is captured", || !node.database("x.db").pos().is_zero());
    node.verify("x.db");
}

#[test]
fn reads_at_odd_places_are_right() {
    let node = Node::start();
    let path = node.path("data");
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let file = File::options().read(true).write(true).create_new(true).open(&path).expect("create");
    file.write_all_at(&bytes, 0).expect("write");
    for (offset, len) in [(0usize, 10usize), (4090, 20), (131_071, 2), (299_990, 10)] {
        let mut part = vec![0; len];
        file.read_exact_at(&mut part, offset as u64).expect("read");
        assert_eq!(part, bytes[offset..offset + len]);
    }
    let error = file.read_exact_at(&mut [0; 20], 299_990).expect_err("past the end");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    file.write_all_at(b"end", 1_000_000).expect("write past the end");
    let mut hole = [1; 8];
    file.read_exact_at(&mut hole, 500_000).expect("read the hole");
    assert_eq!(hole, [0; 8]);
}
