//! Commands and configuration errors: no node needed.

use std::fs;
use std::path::Path;

use litefs_tests::Node;
use litefs_tests::sqlite::cli;

fn refused(args: &[&str]) -> (i32, String) {
    Node::litefs(args).expect_err("must fail")
}

#[test]
fn version_names_version_and_commit() {
    let text = Node::litefs(&["version"]).expect("version");
    assert!(text.starts_with("LiteFS v0.1.0, commit="), "{text}");
}

#[test]
fn usage_errors_exit_with_2() {
    for args in [&["mount", "-nonsense"][..], &["run", "-promote"], &["import", "x"], &["nonsense"], &[]] {
        assert_eq!(refused(args).0, 2, "{args:?}");
    }
}

#[test]
fn configuration_errors_exit_with_2_and_one_line() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("litefs.yml");
    let mount = folder.path().join("mnt");
    for (text, expected) in [
        ("lease:\n  type: static\n  nonsense: 1\n", "line 3: lease.nonsense: unknown field"),
        ("lease:\n  type: ${NO_SUCH_VARIABLE}\n", "lease.type: is required"),
        ("lease: {type: static}\nproxy:\n  target: a:1\n  db: x\n  addr: nonsense\n", "line 5: proxy.addr:"),
    ] {
        fs::write(&path, format!("{text}fuse:\n  dir: {}\n", mount.display())).expect("write");
        let (code, error) = refused(&["mount", "-config", path.to_str().expect("path")]);
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(expected) && error.trim_end().lines().count() == 1, "{error:?}");
        assert!(!mount.exists(), "nothing was touched");
    }
    let (code, error) = refused(&["mount", "-config", "/no/such/file.yml"]);
    assert!(code == 2 && error.contains("/no/such/file.yml"), "{error}");
}

#[test]
fn an_unreachable_node_is_an_error_with_its_address() {
    let folder = tempfile::tempdir().expect("folder");
    let target = folder.path().join("copy.db");
    fs::write(&target, "precious").expect("write");
    let args = ["export", "-url", "http://127.0.0.1:1", "-name", "x", target.to_str().expect("path")];
    let (code, error) = refused(&args);
    assert!(code == 1 && error.contains("http://127.0.0.1:1"), "{error}");
    assert_eq!(fs::read_to_string(&target).expect("read"), "precious");
}

#[test]
fn ltx_files_of_the_original_are_listed_verified_and_applied() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/datadir-n1/dbs/wal.db/ltx");
    let golden = golden.to_str().expect("path");
    let folder = tempfile::tempdir().expect("folder");
    let db = folder.path().join("wal.db");
    assert_eq!(Node::litefs(&["ltx", "list", golden]).expect("list").lines().count(), 6);
    let end = "0000000000000006/aa5522d3c300a5d2";
    assert!(Node::litefs(&["ltx", "verify", golden]).expect("verify").contains(end));
    let args = ["ltx", "apply", "-db", db.to_str().expect("path"), golden];
    assert!(Node::litefs(&args).expect("apply").contains(end));
    assert_eq!(cli(&db, "PRAGMA integrity_check").expect("check"), "ok");
}

#[test]
fn a_stopped_data_directory_can_be_verified() {
    let mut node = Node::primary();
    cli(&node.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("fill");
    let data = node.data();
    let args = ["verify", "-data.dir", data.to_str().expect("path")];
    assert!(refused(&args).1.contains("stop it first"));
    let pos = node.pos("a.db").expect("position");
    node.stop();
    let text = Node::litefs(&args).expect("verify");
    assert!(text.starts_with(&format!("a.db: ok, {pos}, ")), "{text}");
}
