//! `litefs import` (COMPAT §7).

use std::fs;

use litefs_tests::Node;
use litefs_tests::sqlite::cli;

#[test]
fn import_replaces_a_database_and_a_bad_one_changes_nothing() {
    let node = Node::primary();
    cli(&node.db("a.db"), "PRAGMA journal_mode=WAL; CREATE TABLE old(x)").expect("create");
    let plain = node.folder().join("plain.db");
    cli(&plain, "CREATE TABLE t(x); INSERT INTO t SELECT randomblob(500) FROM generate_series(1, 300)").expect("fill");
    let import = |path: &std::path::Path| {
        Node::litefs(&["import", "-url", &node.url(), "-name", "a.db", path.to_str().expect("path")])
    };
    import(&plain).expect("import");
    assert_eq!(cli(&node.db("a.db"), "SELECT count(*) FROM t; PRAGMA journal_mode").as_deref(), Ok("300\nwal"));
    let before = node.pos("a.db");
    let bytes = fs::read(&plain).expect("read");
    let bad = node.folder().join("bad.db");
    fs::write(&bad, &bytes[..bytes.len() - 100]).expect("write");
    assert!(import(&bad).expect_err("refused").1.contains("cut off"));
    assert_eq!(node.post("/import?name=a.db", b"nonsense").expect("answer").status, 400);
    assert_eq!(node.pos("a.db"), before);
    assert_eq!(cli(&node.db("a.db"), "SELECT count(*) FROM t").as_deref(), Ok("300"));
}
