//! A transaction over several databases: in all of them or in none, wherever the node dies.

use litefs_tests::sqlite::cli;
use litefs_tests::{Node, NodeConfig, eventually};

use super::Faulty;

fn count(node: &Node, name: &str) -> String {
    eventually("the database can be read", || cli(&node.db(name), "SELECT count(*) FROM t").ok())
}

#[test]
fn a_transaction_over_several_databases_is_in_all_of_them_or_in_none() {
    // Killed at the record of the first, of the second, of the third; and at the end of each journal.
    for (label, ends) in [("log.append", 3), ("journal.unlink", 3)] {
        for after in 0..ends {
            let what = format!("{label}:kill:1:{after}");
            let mut faulty = Faulty::new(NodeConfig::default());
            faulty.start();
            for name in ["a.db", "b.db", "c.db"] {
                cli(&faulty.node.db(name), "CREATE TABLE t(x); INSERT INTO t VALUES(1)").expect("create");
            }
            faulty.set(&what);
            let sql = format!(
                "ATTACH '{}' AS b; ATTACH '{}' AS c; BEGIN; INSERT INTO t VALUES(2); INSERT INTO b.t VALUES(2);
                 INSERT INTO c.t VALUES(2); COMMIT",
                faulty.node.db("b.db").display(),
                faulty.node.db("c.db").display()
            );
            let told = cli(&faulty.node.db("a.db"), &sql);
            assert!(faulty.struck(label), "{what}: {told:?}");
            faulty.start_after_kill();
            let counts = ["a.db", "b.db", "c.db"].map(|name| count(&faulty.node, name));
            assert!(counts.iter().all(|count| *count == counts[0]), "{what}: {counts:?}");
            assert!(told.is_err() || counts[0] == "2", "{what}: acknowledged and lost");
            for name in ["a.db", "b.db", "c.db"] {
                cli(&faulty.node.db(name), "INSERT INTO t VALUES(3)").expect("it goes on");
                assert_eq!(faulty.node.get(&format!("/export?name={name}")).expect("export").status, 200);
            }
        }
    }
}
