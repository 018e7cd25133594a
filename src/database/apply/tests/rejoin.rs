//! Two nodes that went different ways, and one of them gives way.

use std::io;

use super::*;
use crate::database::apply::rejoin::Rejoining;
use crate::database::{Health, inspect};
use crate::fault;

/// Rows before the histories part.
const ROWS: i64 = 300;

fn fill(connection: &Connection) {
    connection
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO t SELECT i, randomblob(2000) FROM n",
            [ROWS],
        )
        .unwrap();
}

/// A former primary and the new one with its connection, which has all that the old one has.
fn pair(page_size: u32) -> (Node, Node, Connection) {
    let (old, new) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&old, page_size);
    fill(&write);
    ship(&old, &new);
    let other = reader(&new);
    assert_eq!(count(&other), ROWS);
    swap(&old, &new);
    (new, old, write)
}

/// `primary` becomes a replica and `replica` the primary.
fn swap(primary: &Node, replica: &Node) {
    primary.store.set_mode(Mode::Replica, WAIT).unwrap();
    replica.store.set_mode(Mode::Primary, WAIT).unwrap();
}

fn folders(node: &Node) -> usize {
    std::fs::read_dir(node.dir.path().join("lost+found/app.db")).map_or(0, Iterator::count)
}

fn record_for(primary: &Node, replica: &Node) -> io::Result<Vec<u8>> {
    primary.db.position_now().unwrap();
    let tail = replica.db.tail().unwrap().expect("a tail");
    let mut record = Vec::new();
    let pos = primary.db.write_rejoin(&tail, &mut record)?;
    assert_eq!(pos, primary.db.pos());
    Ok(record)
}

/// The old primary with `own` transactions that nobody has, as a replica; and the new one with `theirs`.
fn diverged(own: usize, theirs: usize) -> (Node, Node, Connection) {
    let (old, new) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&old, 4096);
    fill(&write);
    write.execute("UPDATE t SET x = 'both' WHERE id = 100", []).unwrap();
    ship(&old, &new);
    for _ in 0..own {
        write.execute("INSERT INTO t(x) VALUES(randomblob(9000))", []).unwrap();
    }
    write.execute("DELETE FROM t WHERE id = 7", []).unwrap();
    old.db.position_now().unwrap();
    drop(write);
    swap(&old, &new);
    let write = reader(&new);
    for _ in 0..theirs {
        write.execute("UPDATE t SET x = randomblob(2000) WHERE id IN (5, 250)", []).unwrap();
    }
    new.db.position_now().unwrap();
    (old, new, write)
}

#[test]
fn a_diverged_node_gets_only_what_differs_and_its_readers_keep_their_snapshot() {
    // Also when the new primary has written nothing, or less, or more.
    for (own, theirs) in [(1, 0), (3, 1), (1, 4)] {
        let (old, new, write) = diverged(own, theirs);
        let read = reader(&old);
        read.execute_batch("BEGIN").unwrap();
        let before = count(&read);
        assert_eq!(before, ROWS + i64::try_from(own).unwrap() - 1);
        let record = record_for(&new, &old).unwrap();
        assert!(record.len() * 5 < image(&new).len(), "{} bytes", record.len());
        assert_eq!(old.db.rejoin(&mut record.as_slice()).unwrap(), new.db.pos());
        assert_eq!(count(&read), before, "a reader keeps its snapshot");
        assert_eq!(folders(&old), 1);
        read.execute_batch("COMMIT").unwrap();
        assert_eq!((count(&read), integrity(&read)), (ROWS, "ok".to_owned()));
        assert!(image(&new) == image(&old), "{own} of its own, {theirs} of the primary");
        assert_eq!(old.db.rejoining(), Rejoining::No);
        write.execute("INSERT INTO t(x) VALUES('on')", []).unwrap();
        ship(&new, &old);
        assert!(image(&new) == image(&old));
        // What it has is good for others, too.
        let third = node(Mode::Replica);
        third.db.apply(&mut snapshot_of(&old).as_slice()).unwrap();
        assert!(image(&third) == image(&new));
    }
}

#[test]
fn whatever_two_nodes_did_one_record_or_a_snapshot_makes_them_equal() {
    let mut by_record = 0;
    for seed in 0..6 {
        let (mut primary, mut replica, _write) = pair(if seed % 2 == 0 { 4096 } else { 1024 });
        let mut random = fastrand::Rng::with_seed(seed);
        for round in 0..6 {
            for node in [&primary, &replica] {
                // As if it were cut off: the replica goes on as a primary for a while.
                node.store.set_mode(Mode::Primary, WAIT).unwrap();
                let write = reader(node);
                for _ in 0..random.u32(..4) {
                    match random.u32(..8) {
                        0 => random_write(&write, &mut random),
                        1 => write.execute("DELETE FROM t WHERE id = (SELECT max(id) FROM t)", []).map(drop).unwrap(),
                        2 => write.execute_batch("PRAGMA incremental_vacuum(3)").unwrap(),
                        _ => write
                            .execute("INSERT INTO t(x) VALUES(randomblob(?1))", [random.u32(1..9000)])
                            .map(drop)
                            .unwrap(),
                    }
                }
                node.db.position_now().unwrap();
            }
            replica.store.set_mode(Mode::Replica, WAIT).unwrap();
            let is_behind = primary.db.log.contains(replica.db.pos()).unwrap();
            if is_behind {
                ship(&primary, &replica);
            } else {
                let expected = match record_for(&primary, &replica) {
                    Ok(record) => {
                        by_record += 1;
                        replica.db.rejoin(&mut record.as_slice()).unwrap()
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
                        replica.db.apply(&mut snapshot_of(&primary).as_slice()).unwrap()
                    }
                };
                assert_eq!(expected, primary.db.pos(), "seed {seed}, round {round}");
            }
            assert!(image(&primary) == image(&replica), "seed {seed}, round {round}");
            assert_eq!(integrity(&reader(&replica)), "ok");
            if random.bool() {
                std::mem::swap(&mut primary, &mut replica);
            }
        }
    }
    assert!(by_record >= 10, "{by_record} by a record");
}

#[test]
fn a_record_for_somebody_else_changes_nothing() {
    let (old, new, _write) = diverged(2, 2);
    let before = old.db.pos();
    let good = record_for(&new, &old).unwrap();
    // Too little: pages of our own are not in it.
    let tail = old.db.tail().unwrap().unwrap();
    let ancestor = tail.steps.last().unwrap().before;
    let mut short = tail.clone();
    let only: Vec<_> =
        short.steps.drain(..).map(|step| crate::database::TailStep { pages: Vec::new(), ..step }).collect();
    short.steps = only;
    let mut record = Vec::new();
    new.db.write_rejoin(&short, &mut record).unwrap();
    assert!(matches!(old.db.rejoin(&mut record.as_slice()), Err(ApplyError::Damaged(_))));
    for at in [3, 50, 120, good.len() - 1] {
        let mut damaged = good.clone();
        damaged[at] ^= 0x10;
        assert!(old.db.rejoin(&mut damaged.as_slice()).is_err(), "byte {at}");
    }
    assert!(matches!(old.db.rejoin(&mut snapshot_of(&new).as_slice()), Err(ApplyError::Damaged(_))));
    assert!(!ancestor.is_zero());
    assert_eq!((old.db.pos(), old.db.log.last_pos(), folders(&old)), (before, before, 0));
    assert_eq!(old.db.rejoin(&mut good.as_slice()).unwrap(), new.db.pos());
    // On the primary there is nothing to give up.
    assert!(new.db.rejoin(&mut good.as_slice()).is_err());
    // Nobody knows this position.
    let stranger = node(Mode::Primary);
    let _other = writer(&stranger, 4096);
    stranger.db.position_now().unwrap();
    assert_eq!(record_for(&new, &stranger).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

/// The node's files as a kill leaves them, in another directory, started.
fn killed(node: &Node) -> Node {
    killed_and(node, |_| {})
}

/// The same; `damage` is done to the database's directory before the start.
fn killed_and(node: &Node, damage: impl FnOnce(&std::path::Path)) -> Node {
    fn copy(from: &std::path::Path, to: &std::path::Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().flatten() {
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(node.dir.path(), dir.path());
    damage(&dir.path().join("dbs/app.db"));
    let config = StoreConfig { data_dir: dir.path().to_owned(), ..node.store.config().clone() };
    let store = Store::open_with_layout(config, Layout::Sqlite).unwrap();
    store.attach_kernel(Arc::new(PlainDirectory { dbs: dir.path().join("dbs"), layout: Layout::Sqlite }));
    store.set_mode(Mode::Replica, WAIT).unwrap();
    let db = store.database("app.db").unwrap();
    let path = db.files.path(FileKind::Database);
    Node { dir, store, db, path }
}

#[test]
fn a_resync_that_fails_or_is_killed_anywhere_ends_at_the_primarys_position() {
    for label in [
        "lost_and_found.create",
        "lost_and_found.sync",
        "rejoin.mark",
        "log.truncate",
        "log.append",
        "log.sync",
        "wal.append",
        "received.write",
        "rejoin.forget",
    ] {
        for strikes in [1, 2] {
            let (old, new, write) = diverged(2, 2);
            let before = old.db.pos();
            let record = record_for(&new, &old).unwrap();
            let injected = fault::on_this_thread(label, libc::EIO, strikes);
            let result = old.db.rejoin(&mut record.as_slice());
            drop(injected);
            let what = format!("{label} fails {strikes} times: {result:?}");
            let started = killed(&old);
            let pos = started.db.pos();
            let is_either = [before, new.db.pos()].contains(&pos);
            assert!(is_either || pos.txid < before.txid, "{what}: {pos}");
            if label == "wal.append" || result.is_ok() {
                assert_eq!(pos, new.db.pos(), "{what}");
            }
            // The one that lives on, and the one that was killed.
            write.execute("INSERT INTO t(x) VALUES('on')", []).unwrap();
            let snapshot = snapshot_of(&new);
            for node in [&old, &started] {
                let rejoined = node.db.tail().unwrap().is_some_and(|_| {
                    record_for(&new, node).is_ok_and(|record| node.db.rejoin(&mut record.as_slice()).is_ok())
                });
                if !rejoined {
                    node.db.apply(&mut snapshot.as_slice()).unwrap();
                }
                assert_eq!(node.db.pos(), new.db.pos(), "{what}");
                assert!(image(node) == image(&new), "{what}");
                assert!(folders(node) > 0, "{what}: our own transactions are kept");
            }
        }
    }
}

#[test]
fn a_replica_killed_between_log_and_wal_goes_by_the_log() {
    let (primary, replica) = (node(Mode::Primary), node(Mode::Replica));
    let write = writer(&primary, 4096);
    fill(&write);
    ship(&primary, &replica);
    write.execute("UPDATE t SET x = 'a' WHERE id = 5", []).unwrap();
    ship(&primary, &replica);
    let before = replica.db.pos();
    write.execute("UPDATE t SET x = 'b' WHERE id = 5", []).unwrap();
    let record = bytes(&records_after(&primary.db, before)[0]);
    let faults =
        [fault::on_this_thread("wal.append", libc::EIO, 1), fault::on_this_thread("log.truncate", libc::EIO, 1)];
    replica.db.apply(&mut record.as_slice()).unwrap_err();
    drop(faults);
    assert_eq!((replica.db.pos(), replica.db.log.last_pos()), (before, primary.db.pos()));
    let started = killed(&replica);
    assert_eq!(started.db.pos(), primary.db.pos());
    assert!(image(&started) == image(&primary));
}

/// A node that was killed between the log and its files in a resync, and the primary with its record.
fn half_rejoined() -> (Node, Node, Connection) {
    let (old, new, write) = diverged(2, 2);
    let record = record_for(&new, &old).unwrap();
    let injected = fault::on_this_thread("wal.append", libc::EIO, 1);
    old.db.rejoin(&mut record.as_slice()).unwrap_err();
    drop(injected);
    assert_eq!((old.db.log.last_pos(), old.db.rejoining()), (new.db.pos(), Rejoining::To(new.db.pos())));
    (old, new, write)
}

#[test]
fn an_interrupted_resync_is_said_and_no_damage() {
    let (old, new, _write) = half_rejoined();
    let started = killed_and(&old, |dir| {
        let found = inspect(dir, Layout::Sqlite).unwrap();
        assert_eq!(found.problems, Vec::<String>::new());
        assert!(found.notes.iter().any(|note| note.contains("the next start completes it")), "{:?}", found.notes);
    });
    assert_eq!((started.db.health(), started.db.pos()), (Health::Ok, new.db.pos()));
}

/// Makes something else of a mark's bytes.
type Damage = Box<dyn Fn(&mut Vec<u8>)>;

#[test]
fn files_beside_a_mark_that_cannot_be_read_are_not_believed() {
    let (old, new, _write) = half_rejoined();
    let snapshot = snapshot_of(&new);
    let len = std::fs::read(old.dir.path().join("dbs/app.db/rejoining")).unwrap().len();
    let mut damages: Vec<(String, Damage)> = Vec::new();
    for at in [0, 20, len - 2] {
        damages.push((format!("a bit of byte {at}"), Box::new(move |mark| mark[at] ^= 0x04)));
    }
    for keep in [0, 33, len - 1] {
        damages.push((format!("{keep} bytes are left"), Box::new(move |mark| mark.truncate(keep))));
    }
    for (what, damage) in damages {
        let started = killed_and(&old, |dir| {
            let mut mark = std::fs::read(dir.join("rejoining")).unwrap();
            damage(&mut mark);
            std::fs::write(dir.join("rejoining"), mark).unwrap();
            let problems = inspect(dir, Layout::Sqlite).unwrap().problems;
            assert!(problems[0].contains("`rejoining` cannot be read"), "{what}: {problems:?}");
        });
        let Health::Broken(reason) = started.db.health() else { panic!("{what}: {:?}", started.db.health()) };
        assert!(reason.contains("let a primary replace it"), "{what}: {reason}");
        assert_eq!(
            (started.db.pos(), started.db.log.last_pos()),
            (Pos::ZERO, new.db.pos()),
            "{what}: nothing is recorded"
        );
        assert_eq!(folders(&started), 1, "{what}: our own transactions");
        assert_eq!(started.db.tail().unwrap(), None, "{what}");
        started.db.apply(&mut snapshot.as_slice()).unwrap();
        assert_eq!((started.db.health(), started.db.rejoining()), (Health::Ok, Rejoining::No), "{what}");
        assert!(image(&started) == image(&new), "{what}");
        assert_eq!(folders(&started), 2, "{what}: the files as they were");
    }
}

#[test]
fn a_mark_that_cannot_be_opened_is_none_that_can_be_read_either() {
    let (old, new, _write) = half_rejoined();
    let started = killed_and(&old, |dir| {
        std::fs::remove_file(dir.join("rejoining")).unwrap();
        std::fs::create_dir(dir.join("rejoining")).unwrap();
    });
    assert!(matches!(started.db.rejoining(), Rejoining::Unknown(_)));
    assert!(matches!(started.db.health(), Health::Broken(_)));
    assert_eq!((started.db.pos(), started.db.log.last_pos()), (Pos::ZERO, new.db.pos()));
}

#[test]
fn a_damaged_mark_that_was_left_behind_does_not_matter_where_the_files_are_at_the_logs_end() {
    let (old, new, write) = diverged(2, 2);
    let record = record_for(&new, &old).unwrap();
    let injected = fault::on_this_thread("rejoin.forget", libc::EIO, 1);
    old.db.rejoin(&mut record.as_slice()).unwrap();
    drop(injected);
    write.execute("INSERT INTO t(x) VALUES('on')", []).unwrap();
    ship(&new, &old);
    let started = killed_and(&old, |dir| {
        std::fs::write(dir.join("rejoining"), "damaged").unwrap();
        assert_eq!(inspect(dir, Layout::Sqlite).unwrap().problems, Vec::<String>::new());
    });
    assert_eq!((started.db.health(), started.db.pos()), (Health::Ok, new.db.pos()));
    assert_eq!(started.db.rejoining(), Rejoining::No);
    assert!(image(&started) == image(&new));
}

fn set_aside_count(node: &Node) -> String {
    let (mut text, mut registry) = (String::new(), prometheus_client::registry::Registry::default());
    node.store.register_metrics(&mut registry);
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text.lines().find(|line| line.starts_with("litefs_set_aside_count")).unwrap().to_owned()
}

#[test]
fn a_resync_that_fails_and_the_snapshot_after_it_set_the_same_transactions_aside_once() {
    for label in ["rejoin.mark", "log.truncate"] {
        let (old, new, _write) = diverged(2, 2);
        for _ in 0..2 {
            let record = record_for(&new, &old).unwrap();
            let injected = fault::on_this_thread(label, libc::EIO, 1);
            old.db.rejoin(&mut record.as_slice()).unwrap_err();
            drop(injected);
            assert_eq!(folders(&old), 1, "{label}");
        }
        let mut snapshot = Vec::new();
        new.db.snapshot(&mut snapshot).unwrap();
        old.db.apply(&mut snapshot.as_slice()).unwrap();
        assert_eq!(old.db.pos(), new.db.pos());
        assert_eq!(folders(&old), 1, "{label}");
        assert!(set_aside_count(&old).ends_with(" 1"), "{label}: {}", set_aside_count(&old));
    }
}

#[test]
fn what_is_damaged_in_lost_and_found_is_set_aside_again_and_so_is_more_than_is_there() {
    let (old, new, _write) = diverged(2, 2);
    let fail = || {
        let record = record_for(&new, &old).unwrap();
        let _injected = fault::on_this_thread("log.truncate", libc::EIO, 1);
        old.db.rejoin(&mut record.as_slice()).unwrap_err();
    };
    fail();
    let folder = std::fs::read_dir(old.dir.path().join("lost+found/app.db")).unwrap().next().unwrap().unwrap().path();
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    fail();
    assert_eq!(folders(&old), 2);
    // Another primary may not have that position.
    let third = node(Mode::Replica);
    third.db.apply(&mut snapshot_of(&new).as_slice()).unwrap();
    let mut snapshot = Vec::new();
    third.db.snapshot(&mut snapshot).unwrap();
    old.db.apply(&mut snapshot.as_slice()).unwrap();
    assert_eq!(folders(&old), 3);
}

#[test]
fn a_broken_database_with_a_wal_is_replaced_by_an_import_and_its_history_goes_on() {
    let (old, new, _write) = half_rejoined();
    let started = killed_and(&old, |dir| std::fs::write(dir.join("rejoining"), "damaged").unwrap());
    assert!(matches!(started.db.health(), Health::Broken(_)));
    let (end, copy) = (started.db.log.last_pos(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(copy.path(), image(&new)).unwrap();
    started.store.set_mode(Mode::Primary, WAIT).unwrap();
    let pos = started.db.import(copy.path()).unwrap();
    assert_eq!((started.db.health(), pos.txid), (Health::Ok, end.txid.next()));
    let write = reader(&started);
    assert_eq!((count(&write), integrity(&write)), (ROWS, "ok".to_owned()));
    write.execute("INSERT INTO t(x) VALUES('on')", []).unwrap();
    assert_eq!(started.db.position_now().unwrap().txid, pos.txid.next());
    drop(write);
    let again = killed(&started);
    assert_eq!((again.db.health(), again.db.pos()), (Health::Ok, started.db.pos()));
}
